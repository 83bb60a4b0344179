"""The lookout: every process with metrics says how the whole deployment is, so that a dead one cannot keep that to itself.

It looks at the pace of the sweep, and not when it is asked: a scrape waits for no database, and costs it nothing.
"""

import random
import time

from inturn.models.database import Database
from inturn.models.store import overview
from inturn.models.store.overview import Overview
from inturn.settings import Settings
from inturn.workers.maintenance import Round
from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS

MISSED = 3
"""So many looks late, what was seen is no longer how it is: the database hangs."""


class Lookout(Round):
    """Looks at the deployment at intervals, and remembers the last look."""

    def __init__(self, database: Database, settings: Settings) -> None:
        super().__init__("lookout", lambda: settings.sweep_seconds * random.uniform(0.8, 1.2), self._look)
        self._database, self._settings = database, settings
        self._seen: tuple[float, Overview] | None = None

    def seen(self) -> Overview | None:
        """What it saw last; None: the database did not answer, or was not asked for long."""
        seen = self._seen
        if seen is None or time.monotonic() - seen[0] > MISSED * self._settings.sweep_seconds:
            return None
        return seen[1]

    def _look(self) -> None:
        try:
            with self._database.reading() as db:
                found = overview.look(db, REMOVE_EXPIRED_SESSIONS, self._settings.silent_seconds)
        except Exception:
            self._seen = None
            raise
        self._seen = (time.monotonic(), found)
