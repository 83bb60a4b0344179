"""Schedules, fired by every beat: the first one that comes to a run sends it, and the others find that done."""

import logging
import traceback
from collections.abc import Callable
from functools import partial

from inturn.models.database import Database
from inturn.models.errors import InturnError, StorageError
from inturn.models.failpoints import reached
from inturn.models.states import Lane
from inturn.models.store import schedules
from inturn.models.store.schedules import Fired
from inturn.models.store.sending import Sent
from inturn.workers.tracer import Tracer

logger = logging.getLogger(__name__)

DUE_AT_ONCE = 500
"""Schedules that are looked at before the next look."""


class Firing:
    """Sends what is due.

    Args:
        hint: told of each turn that a worker is to hear of. It is stored by then: who dies here has sent it all the same.
        tracer: tells of each turn.
    """

    def __init__(self, database: Database, hint: Callable[[Sent], object], tracer: Tracer | None = None) -> None:
        self.database, self._hint, self._tracer = database, hint, tracer or Tracer()

    def run(self) -> None:
        """Fire all runs that are due. Raises: StorageError: the database is away; the rest is due as before."""
        with self.database.reading() as db:
            due = schedules.list_due(db, DUE_AT_ONCE)
        for schedule_id in due:
            self._catch_up(schedule_id)

    def _catch_up(self, schedule_id: int) -> None:
        while (fired := self._fire(schedule_id)) is not None:
            reached("schedule.after_commit")
            self._tell(fired)
            if not fired.is_behind:
                return

    def _fire(self, schedule_id: int) -> Fired | None:
        try:
            with self._tracer.send(Lane.CHAT) as span:
                fired = self.database.transact(partial(schedules.fire, schedule_id=schedule_id, trace=span.trace))
                if fired is None or fired.sent is None:
                    span.drop()
                else:
                    span.sent(fired.sent.turn)
            return fired
        except StorageError:
            raise
        except InturnError as error:
            self._give_up(schedule_id, str(error))
        except Exception as error:  # noqa: BLE001 (it holds up no other)
            # Nothing of its message, which may hold the prompt.
            trace = "".join(traceback.format_tb(error.__traceback__))
            logger.error("action=schedule_broken error=%s\n%s", type(error).__name__, trace)
            self._give_up(schedule_id, f"{type(error).__name__}, which is a bug in inturn: beat's log says where")
        return None

    def _tell(self, fired: Fired) -> None:
        if fired.sent is None:
            logger.warning("action=schedule_skipped schedule=%s: no beat was there to fire it in time", fired.name)
            return
        logger.info(
            "action=schedule_fired schedule=%s session=%s turn=%d", fired.name, fired.sent.turn.key, fired.sent.number
        )
        if fired.sent.hint:
            self._hint(fired.sent)

    def _give_up(self, schedule_id: int, because: str) -> None:
        """One schedule that cannot be fired holds up no other, and is not tried again every second."""
        if self.database.transact(lambda db: schedules.give_up(db, schedule_id, because)):
            logger.warning("action=schedule_paused schedule_id=%d reason=%s", schedule_id, because)
