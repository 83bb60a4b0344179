"""Meddlers: those who cancel turns, delete sessions in the middle of a call, and let sessions expire."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from inturn import Client, StorageError, Turn, TurnNotFoundError
from ops.chaos.correspondents import Correspondent
from ops.chaos.promises import Cancel, Log, Population

CANCEL_SECONDS, DOOM_SECONDS, IDLE_SECONDS = (0.05, 0.3), (0.3, 1.5), (0.5, 2.5)
CLEANUP_SECONDS = (0.2, 0.6)
"""Between two of each. Retention's shortest time is a second: some expiring sessions are removed between two prompts."""

Work = Callable[[random.Random], None]


class Meddlers:
    """Their works are loops for threads, until ``stopping`` is set.

    Args:
        doomed: the sessions to delete and make again; others send to them meanwhile.
    """

    def __init__(
        self, client: Client, log: Log, run: str, doomed: list[Correspondent], stopping: threading.Event
    ) -> None:
        self._client, self._log, self._run = client, log, run
        self._doomed, self._stopping = doomed, stopping
        self._expiring = [self._short_lived(number, Population.EXPIRING) for number in range(3)]
        self._held = self._short_lived(3, Population.HELD)
        self.recent: deque[Turn] = deque(maxlen=30)
        """Turns that may be cancelled."""

    @property
    def works(self) -> tuple[Work, ...]:
        return self.cancel, self.doom, self.expire, self.clean_up

    def _short_lived(self, number: int, population: Population) -> Correspondent:
        """It is held before retention can come by."""
        one = Correspondent(
            self._client, self._log, f"{self._run}-{population}-{number}", population, retention=timedelta(seconds=1)
        )
        if population is Population.HELD:
            self._client.hold_session(one.key)
        return one

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

    def expire(self, dice: random.Random) -> None:
        """Send to sessions that retention may remove at any moment, and make them anew when it has."""
        count = 0
        while not self._stopping.wait(dice.uniform(*IDLE_SECONDS)):
            for one in (*self._expiring, self._held):
                count += 1
                if one.send(f"{self._run} expiring.{count}", dice) is None:
                    one.bury(expired=True)
                    one.create()

    def clean_up(self, dice: random.Random) -> None:
        while not self._stopping.wait(dice.uniform(*CLEANUP_SECONDS)):
            with suppress(StorageError):
                self._client.cleanup()

    def bury(self) -> None:
        """Note which sessions have expired since anybody sent to them."""
        for one in self._expiring:
            if one.is_gone():
                one.bury(expired=True)
