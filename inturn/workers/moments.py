"""Moments of retention rules with a cron, watched by every beat: a worker is asked, and the first to claim one cleans up."""

import time
from collections.abc import Callable
from datetime import datetime

from inturn.models.database import Database
from inturn.models.store import moments
from inturn.models.store.moments import Crons

AGAIN_SECONDS = 60.0
"""Until a worker is asked again, if none has come."""
EXPIRES_SECONDS = 3600.0
"""Until what was asked is void. By the clocks of two machines, so that it is long."""


class Reminder:
    """Asks for what is due.

    Args:
        ask: returns whether anybody may hear of it.
    """

    def __init__(self, database: Database, crons: Crons, ask: Callable[[], bool]) -> None:
        self.database, self.crons, self._ask = database, crons, ask
        self._asked: dict[str, datetime] = {}
        self._again_at = 0.0

    def run(self) -> None:
        """Look once. Raises: StorageError: the database is away; the rest is due as before."""
        if not self.crons:
            return
        with self.database.reading() as db:
            unseen, due = moments.unseen(db, self.crons), moments.due(db, self.crons)
        if unseen:
            self.database.transact(lambda db: moments.begin(db, unseen))
        is_new = not due.items() <= self._asked.items()
        if due and (is_new or time.monotonic() >= self._again_at) and self._ask():
            self._asked, self._again_at = due, time.monotonic() + AGAIN_SECONDS
