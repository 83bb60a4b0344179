"""Meddlers: those who cancel turns, and delete sessions in the middle of a call."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable

from inturn import StorageError, Turn, TurnNotFoundError
from ops.chaos.correspondents import Correspondent
from ops.chaos.promises import Cancel, Log

CANCEL_SECONDS, DOOM_SECONDS = (0.05, 0.3), (0.3, 1.5)
"""Between two of each."""

Work = Callable[[random.Random], None]


class Meddlers:
    """Their works are loops for threads, until ``stopping`` is set.

    Args:
        doomed: the sessions to delete and make again; others send to them meanwhile.
    """

    def __init__(self, log: Log, doomed: list[Correspondent], stopping: threading.Event) -> None:
        self._log, self._doomed, self._stopping = log, doomed, stopping
        self.recent: deque[Turn] = deque(maxlen=30)
        """Turns that may be cancelled."""

    @property
    def works(self) -> tuple[Work, ...]:
        return self.cancel, self.doom

    def cancel(self, dice: random.Random) -> None:
        while not self._stopping.wait(dice.uniform(*CANCEL_SECONDS)):
            if not self.recent:
                continue
            turn = dice.choice(list(self.recent))
            session, number = map(int, turn.id.split("."))
            asked = Cancel(session, number, time.time())
            self._log.cancels.append(asked)  # before: the answer may be lost
            try:
                turn.cancel()
                asked.confirmed = turn.state == "cancelled"
            except (StorageError, TurnNotFoundError):
                continue

    def doom(self, dice: random.Random) -> None:
        while not self._stopping.wait(dice.uniform(*DOOM_SECONDS)):
            victim = dice.choice(self._doomed)
            victim.delete()
            victim.create()
