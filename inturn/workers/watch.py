"""The watch over beat: nothing else is missed so quietly, since everything goes on without one but the clock's own work."""

import logging
import time

from inturn.models.database import Database
from inturn.models.states import ProcessKind
from inturn.models.store import presence, schedules
from inturn.settings import Settings
from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS

logger = logging.getLogger(__name__)

REMIND_SECONDS = 600.0
"""Between two warnings of one process."""


class Watch:
    """Warns when no beat has been alive for three heartbeats, and something waits for one."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings
        self._crons = settings.crons()
        self._missed_since: float | None = None
        self._quiet_until = 0.0

    def run(self) -> None:
        present, silent = time.monotonic(), self.settings.silent_seconds
        with self.database.reading() as db:
            known = presence.list_processes(db, silent)
            work = schedules.beat_work(db, REMOVE_EXPIRED_SESSIONS, self.settings.cleanup_interval_seconds, self._crons)
        if any(one.alive and one.kind is ProcessKind.BEAT for one in known):
            self._missed_since = None
            return
        if self._missed_since is None:  # it may just be on its way: workers and beat start together
            self._missed_since = present
        is_needed = work.schedules or work.is_cleanup_due
        if is_needed and present - self._missed_since >= silent and present >= self._quiet_until:
            self._quiet_until = present + REMIND_SECONDS
            logger.warning(
                "action=beat_missing schedules=%d cleanup_due=%s: no beat is alive, so schedules do not fire and nothing "
                "is cleaned up; start one (`inturn beat`)",
                work.schedules,
                work.is_cleanup_due,
            )
