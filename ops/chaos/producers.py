"""Producers: threads that send prompts at a steady pace, and keep a log of what was accepted."""

import json
import random
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, get_args

from inturn import Client
from inturn.models.store.sending import WhenBusy
from inturn.session import SendLane
from ops.chaos import misdeeds
from ops.chaos.correspondents import Correspondent
from ops.chaos.lodgers import Lodgers
from ops.chaos.meddlers import Meddlers, Work
from ops.chaos.promises import Log, Population

THREADS = 4
LATER, LATER_SECONDS = 0.2, (0.1, 1.0)
"""The share of prompts to meddled sessions that are not to be answered before a while has passed."""
NOTE = {"name": "note"}
ROUNDS: tuple[list[Any], ...] = ([NOTE], [[NOTE, NOTE]], [NOTE, [NOTE, NOTE], NOTE])
"""What a model wants called, round by round."""
MEDDLED = 0.3
"""The share of prompts that goes to meddled, doomed and erased sessions, where there are any."""


class Producers:
    """Send in the background; the end of the ``with`` block waits for the end.

    Args:
        run: what session IDs and prompts begin with.
        sessions: how many plain ones; there are fewer of the others.
        rate: prompts per second, in all.
        seconds: how long the sending takes, if the database is quick enough.
        misbehave: the share of prompts that tell the model server to misbehave, in sessions of their own.
        meddle: whether there are sessions besides that are cancelled in, deleted, and left to expire.
        after: is added to every plain prompt: what the model server is to do.
        rounds: the share of plain prompts for which the model calls the tool ``note``.
        tools: what plain sessions allow; of others, a model is told that there are none.
    """

    def __init__(
        self,
        client: Client,
        run: str,
        seed: int,
        *,
        sessions: int = 100,
        rate: float = 100.0,
        seconds: float = 5.0,
        misbehave: float = 0.0,
        meddle: bool = False,
        after: str = "",
        rounds: float = 0.0,
        tools: Sequence[str] = (),
    ) -> None:
        self.log = Log(run)
        self._client, self._run, self._after = client, run, after
        self._rate, self._seconds, self._misbehave, self._rounds = rate, seconds, misbehave, rounds
        self._tools = list(tools)
        sizes = {Population.PLAIN: sessions}
        if misbehave:
            sizes[Population.MISBEHAVING] = max(2, sessions // 5)
        if meddle:
            sizes |= dict.fromkeys((Population.MEDDLED, Population.DOOMED), max(2, sessions // 10))
            sizes[Population.ERASED] = 3
        self._crowds = {population: self._crowd(population, size) for population, size in sizes.items()}
        self._errors: list[BaseException] = []
        self._stopping = threading.Event()
        self._meddlers: Meddlers | None = None
        self._lodgers: Lodgers | None = None
        works: tuple[Work, ...] = ()
        if meddle:
            self._meddlers = Meddlers(self.log, self._crowds[Population.DOOMED], self._stopping)
            self._lodgers = Lodgers(client, self.log, run, self._stopping, self._crowds[Population.ERASED])
            works = self._meddlers.works + self._lodgers.works
        self._senders = [self._thread(f"{seed}/{number}", self._sender(number)) for number in range(THREADS)]
        self._others = [self._thread(f"{seed}/{work.__name__}", work) for work in works]

    def _crowd(self, population: Population, size: int) -> list[Correspondent]:
        keys = (f"{self._run}-{population}-{number}" for number in range(size))
        how: dict[str, Any] = {"tools": self._tools} if population is Population.PLAIN and self._tools else {}
        if population is Population.ERASED:
            how = {"labels": {"owner": self._run}}
        return [Correspondent(self._client, self.log, key, population, **how) for key in keys]

    def _thread(self, seed: str, work: Work) -> threading.Thread:
        def run() -> None:
            try:
                work(random.Random(seed))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the end raises it
                self._errors.append(error)

        return threading.Thread(target=run, daemon=True)

    def __enter__(self) -> Self:
        for thread in (*self._senders, *self._others):
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopping.set()
        for thread in self._senders:
            thread.join()
        self._stopping.set()
        for thread in self._others:
            thread.join()
        if self._errors and error is None:
            raise self._errors[0]

    def stop(self) -> None:
        """Send no more; the end of the ``with`` block waits for what is under way."""
        self._stopping.set()

    def bury(self) -> None:
        """Note which sessions have gone, once nobody takes any more away."""
        if self._lodgers is not None:
            self._lodgers.bury()

    @property
    def are_sending(self) -> bool:
        return any(thread.is_alive() for thread in self._senders)

    def _sender(self, number: int) -> Work:
        def work(dice: random.Random) -> None:
            started, share = time.monotonic(), max(1, round(self._rate * self._seconds / THREADS))
            for count in range(share):
                self._send(f"{self._run} {number}.{count}", dice)
                due = started + (count + 1) / share * self._seconds
                if self._stopping.wait(max(0.0, due - time.monotonic())):
                    return

        return work

    def _send(self, prompt: str, dice: random.Random) -> None:
        population = self._drawn(dice)
        to = dice.choice(self._crowds[population])
        if population is Population.MISBEHAVING:
            to.send(f"{prompt} !{json.dumps(misdeeds.draw(dice))}", dice)
        elif population is Population.MEDDLED and self._meddlers is not None:
            turn = to.send(prompt, dice, when_busy=dice.choice(get_args(WhenBusy)), **meddled(dice))
            if turn is not None:
                self._meddlers.recent.append(turn)
        elif population is Population.PLAIN and dice.random() < self._rounds:
            to.send(f"{prompt} !{json.dumps({'calls': dice.choice(ROUNDS)})}", dice)
        else:
            to.send(f"{prompt}{self._after}" if population is Population.PLAIN else prompt, dice)

    def _drawn(self, dice: random.Random) -> Population:
        if dice.random() < self._misbehave:
            return Population.MISBEHAVING
        if self._meddlers is not None and dice.random() < MEDDLED:
            return dice.choice((Population.MEDDLED, Population.DOOMED, Population.ERASED))
        return Population.PLAIN


def meddled(dice: random.Random) -> dict[str, Any]:
    """Some wait, and some go by the other lane."""
    return {
        "not_before": timedelta(seconds=dice.uniform(*LATER_SECONDS)) if dice.random() < LATER else None,
        "lane": dice.choice(get_args(SendLane)),
    }
