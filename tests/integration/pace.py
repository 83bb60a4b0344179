"""The script that counts calls, on a real Redis by a clock of the test: minutes of a provider's limit pass in seconds."""

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

import orjson
import redis

from inturn.models.states import Lane
from inturn.workers.limits import SCRIPT
from inturn.workers.queues import limit_keys
from ops.bench.limits import busiest

BEGINNING = 1_000_000.0
CLOCK = "redis.call('TIME')"
_names = count()


@dataclass(frozen=True, slots=True)
class Called:
    """A call that was made.

    Attributes:
        at: when, in seconds from the beginning.
        waited: seconds since its turn first asked.
        asks: how often it asked.
    """

    at: float
    waited: float
    asks: int
    lane: Lane


@dataclass(order=True, slots=True)
class Coming:
    """A turn that asks at its moment."""

    at: float
    turn: str
    lane: Lane = field(compare=False)
    tokens: int = field(compare=False)
    since: float = field(compare=False)
    asks: int = field(default=0, compare=False)


class Provider:
    """One provider's limits, and turns that ask as they are told to, a little late.

    Args:
        late: seconds that a turn comes after its moment, from and to, at random.
    """

    def __init__(self, broker: redis.Redis, late: tuple[float, float] = (0.05, 0.25), **limits: float) -> None:
        assert SCRIPT.count(CLOCK) == 1
        self._script = broker.register_script(SCRIPT.replace(CLOCK, "{ARGV[2], ARGV[3]}"))
        self._keys = limit_keys(f"paced{next(_names)}")
        nothing = {"requests": 0, "tokens": 0, "flight": 0, "share": 0.2, "call": 500, "hold": 3_600_000}
        self._limits = nothing | limits
        self._late, self._random = late, random.Random(1)
        self._coming: list[Coming] = []
        self._turns = count(1)

    def come(self, at: float, lane: Lane, tokens: int = 0) -> None:
        """A turn asks for the first time at this moment."""
        heapq.heappush(self._coming, Coming(at, f"1.{next(self._turns)}", lane, tokens, at))

    def hold_up(self, since: float, until: float, part: float) -> None:
        """Of the turns that would come in this time, a part comes at its end: their worker, or all, stood still."""
        for one in self._coming:
            if since <= one.at < until and self._random.random() < part:
                one.at = until
        heapq.heapify(self._coming)

    def calls(self, until: float = float("inf")) -> list[Called]:
        """What was called until then, or until nobody is left."""
        made = []
        while self._coming and self._coming[0].at < until:
            one = heapq.heappop(self._coming)
            one.asks += 1
            wait = self._ask(one)
            if wait:
                one.at += wait + self._random.uniform(*self._late)
                heapq.heappush(self._coming, one)
            else:
                made.append(Called(one.at, one.at - one.since, one.asks, one.lane))
        return made

    def _ask(self, one: Coming) -> float:
        ask = {"turn": one.turn, "chat": one.lane is Lane.CHAT, "tokens": one.tokens, "draw": self._random.random()}
        told = orjson.dumps(self._limits | {"asks": [ask], "ended": []})
        seconds, rest = divmod(BEGINNING + one.at, 1)
        (wait,) = self._script(keys=self._keys, args=[told, int(seconds), int(rest * 1_000_000)])
        return float(wait) / 1000


def busiest_minute(calls: Iterable[Called]) -> int:
    return busiest([call.at for call in calls], 60.0)
