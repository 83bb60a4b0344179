"""Fleet-wide limits: how often all workers together may call a provider, and with how many calls at once.

A turn whose provider is at its limit goes back with ``ready_at``, and its slot works on something else. The counts are in
Redis (``limits.lua`` describes its keys and how it counts). While Redis is away each worker keeps to its share of the
limit: the whole, divided by the workers that were alive when it last looked.

A model that answered 429 is left alone by all workers, limits or not: who was told so tells Redis
(``inturn:cool:<provider>/<model>``, which expires when that is over), and all others look there every second.
"""

import asyncio
import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Protocol

import orjson
import redis

from inturn.models.states import Lane
from inturn.models.store.working import Started
from inturn.workers.queues import cooldown, limit_keys
from inturn.workers.retries import RETRY_AFTER_CAP

logger = logging.getLogger(__name__)

SCRIPT = files(__package__).joinpath("limits.lua").read_text()
AWAY_SECONDS = 2.0
"""How long Redis is not asked again after it did not answer: turns wait for the answer."""
LOOK_SECONDS = 1.0
"""How often a worker looks whether any worker was told to leave a model alone."""
NEAR_SECONDS = 0.25
"""How far a moment may be for a turn to keep its slot until then."""
NEAR_TIMES = 4
"""How often, if it is put off again and again."""
MODELS_LOOKED_AT = 1000
"""Of so many at most, those that were asked since it last forgot them."""
COOLDOWN_SECONDS = 1.0
"""After a 429 that does not say how long."""
REPLY_TOKENS = 500
"""What a reply is taken to have until its provider has said it, where the options set no limit."""
REMEMBERED = 0.05
"""How much of the known length of a call each new one is."""


class Limited(Protocol):
    """The limits in a provider's settings; None: none."""

    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def tokens_per_minute(self) -> int | None: ...
    @property
    def max_in_flight(self) -> int | None: ...
    @property
    def chat_share(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """A turn that would like to call its provider."""

    model: str
    turn: str
    lane: Lane
    tokens: int

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]


@dataclass(slots=True)
class _Waiting:
    ask: Ask
    answer: "asyncio.Future[float]"


@dataclass(slots=True)
class _Gathered:
    """What is to be told to Redis about one provider."""

    asks: list[_Waiting] = field(default_factory=list)
    ended: list[dict[str, Any]] = field(default_factory=list)


class Limits:
    """One per worker process. Asks for all turns that ask at the same moment in one round trip, from a thread of its own.

    Args:
        providers: their settings by name; one that is not in it has no limits.
        broker: a connection of its own.
        workers: how many are alive, for a worker's share while Redis is away.
        hold_seconds: the longest that a call may take: a call of a dead worker counts no longer.
    """

    def __init__(
        self,
        providers: Mapping[str, Limited],
        broker: redis.Redis,
        *,
        workers: Callable[[], int],
        hold_seconds: float,
    ) -> None:
        self._limited = {name: one for name, one in providers.items() if has_limits(one)}
        self._broker, self._workers, self._hold_seconds = broker, workers, hold_seconds
        self._script = broker.register_script(SCRIPT)
        self._cool_until: dict[str, float] = {}
        self._cooling: dict[str, float] = {}
        """By model: what was not told to Redis yet, in seconds."""
        self._used: set[str] = set()
        self._shares: dict[str, Share] = {}
        self._call_seconds = 1.0
        self._away_until = 0.0
        self._gathered: defaultdict[str, _Gathered] = defaultdict(_Gathered)
        self._lock, self._called, self._stopping = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="inturn-limits", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._called.set()
        self._thread.join(timeout=5)
        self._broker.close()

    def ask(self, started: Started, shown_tokens: int) -> Ask:
        """What is to be asked for a turn that shows so many tokens."""
        provider = started.model.partition("/")[0]
        limits = self._limited.get(provider)
        tokens = shown_tokens + reply_tokens(started.options) if limits is not None and limits.tokens_per_minute else 0
        return Ask(started.model, started.turn_id, started.lane, tokens)

    def is_cooling(self, model: str) -> bool:
        """Whether the model asked all workers for a pause."""
        return self._cool_until.get(model, 0.0) > time.monotonic()

    def said_of(self, ask: Ask) -> str:
        """Half a sentence for people: what its turn waits for."""
        if self.is_cooling(ask.model):
            return f"{ask.model}, which asked all workers for a pause (429)"
        limits = self._limited.get(ask.provider)
        measures = {
            "requests a minute": limits and limits.requests_per_minute,
            "tokens a minute": limits and limits.tokens_per_minute,
            "calls at once": limits and limits.max_in_flight,
        }
        most = " and ".join(f"{count:,} {measure}" for measure, count in measures.items() if count)
        return f"provider {ask.provider}, which takes {most} from all workers together"

    async def wait(self, ask: Ask) -> float:
        """How many seconds the turn has to wait before it may call; 0: it may now, and its call counts until ``ended``.

        A moment that is near is waited for here: the way through the queue would take longer, and cost two transactions.
        """
        seconds = await self._wait(ask)
        for _ in range(NEAR_TIMES):
            if not 0 < seconds <= NEAR_SECONDS:
                break
            await asyncio.sleep(seconds)
            seconds = await self._wait(ask)
        return seconds

    async def _wait(self, ask: Ask) -> float:
        self._used.add(ask.model)
        left = self._cool_until.get(ask.model, 0.0) - time.monotonic()
        if left > 0:
            return left * random.uniform(1.0, 1.5)  # or all would come back at once
        if ask.provider not in self._limited:
            return 0.0
        waiting = _Waiting(ask, asyncio.get_running_loop().create_future())
        with self._lock:
            self._gathered[ask.provider].asks.append(waiting)
        self._called.set()
        return await waiting.answer

    def ended(self, ask: Ask, seconds: float, tokens: int | None) -> None:
        """A call is over.

        Args:
            seconds: how long it took.
            tokens: what the provider counted; None: it did not say.
        """
        self._call_seconds += REMEMBERED * (seconds - self._call_seconds)
        if ask.provider in self._limited:
            more = 0 if tokens is None else tokens - ask.tokens
            call = {"turn": ask.turn, "chat": ask.lane is Lane.CHAT, "tokens": more}
            with self._lock:
                self._gathered[ask.provider].ended.append(call)
            self._called.set()

    def cool(self, model: str, seconds: float | None) -> None:
        """The model answered 429: all workers leave it alone for so many seconds; None: it did not say how many."""
        seconds = min(seconds or COOLDOWN_SECONDS, RETRY_AFTER_CAP)
        with self._lock:
            self._cooling[model] = max(self._cooling.get(model, 0.0), seconds)
        self._cool_until[model] = max(self._cool_until.get(model, 0.0), time.monotonic() + seconds)
        self._called.set()

    def _run(self) -> None:
        next_look = 0.0
        while True:
            self._called.wait(LOOK_SECONDS)
            self._called.clear()
            is_last = self._stopping  # what ended before that is still told: others wait for its place
            with self._lock:
                gathered, self._gathered = self._gathered, defaultdict(_Gathered)
                cooling, self._cooling = self._cooling, {}
            if cooling:
                self._tell(cooling)
            for provider, each in gathered.items():
                self._settle_safely(provider, each)
            if is_last:
                return
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + LOOK_SECONDS

    def _settle_safely(self, provider: str, gathered: _Gathered) -> None:
        """A mistake of ours must not end the thread that all turns of limited providers wait for."""
        try:
            self._settle(provider, gathered)
        except Exception:
            logger.exception("action=limits_failed provider=%s", provider)
            if gathered.asks:
                self._deliver([(waiting.answer, LOOK_SECONDS) for waiting in gathered.asks])

    def _settle(self, provider: str, gathered: _Gathered) -> None:
        limits = self._limited.get(provider)
        waits = self._asked(provider, limits, gathered)
        if waits is None and limits is not None:
            waits = self._share(provider, limits).wait_for([waiting.ask for waiting in gathered.asks], gathered.ended)
        answers = list(zip((waiting.answer for waiting in gathered.asks), waits or (), strict=False))
        if answers:
            self._deliver(answers)

    def _asked(self, provider: str, limits: Limited | None, gathered: _Gathered) -> list[float] | None:
        """What Redis says; None while it is away."""
        if time.monotonic() < self._away_until:
            return None
        told = orjson.dumps(
            {
                "requests": (limits and limits.requests_per_minute) or 0,
                "tokens": (limits and limits.tokens_per_minute) or 0,
                "flight": (limits and limits.max_in_flight) or 0,
                "share": limits.chat_share if limits is not None else 0,
                "call": round(self._call_seconds * 1000),
                "hold": round(self._hold_seconds * 1000),
                "asks": [
                    {
                        "turn": ask.turn,
                        "chat": ask.lane is Lane.CHAT,
                        "tokens": ask.tokens,
                        "draw": round(random.random(), 4),
                    }
                    for ask in (waiting.ask for waiting in gathered.asks)
                ],
                "ended": gathered.ended,
            }
        )
        try:
            waits: list[int] = self._script(keys=limit_keys(provider), args=[told])
        except (redis.RedisError, OSError) as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            logger.warning("action=limits_shared_out provider=%s reason=%r", provider, type(error).__name__)
            return None
        self._shares.pop(provider, None)
        return [wait / 1000 for wait in waits]

    def _share(self, provider: str, limits: Limited) -> "Share":
        if provider not in self._shares:
            self._shares[provider] = Share(limits, 1 / max(1, self._workers()))
        return self._shares[provider]

    def _tell(self, cooling: Mapping[str, float]) -> None:
        """All workers, to leave models alone. Who was told for longer stays with that."""
        with self._reaching("to tell of a cooldown") as pipeline:
            for model, seconds in cooling.items():
                milliseconds = max(1, round(seconds * 1000))
                pipeline.set(cooldown(model), 1, px=milliseconds, nx=True)
                pipeline.pexpire(cooldown(model), milliseconds, gt=True)
            pipeline.execute()

    def _look(self) -> None:
        """Which models other workers were told to leave alone."""
        models = sorted(self._used)
        if len(models) > MODELS_LOOKED_AT:
            self._used.clear()
        if not models or time.monotonic() < self._away_until:
            return
        with self._reaching("to look for cooldowns") as pipeline:
            for model in models:
                pipeline.pttl(cooldown(model))
            for model, left in zip(models, pipeline.execute(), strict=True):
                if left > 0:
                    until = time.monotonic() + left / 1000
                    self._cool_until[model] = max(self._cool_until.get(model, 0.0), until)

    @contextmanager
    def _reaching(self, why: str) -> Iterator[Any]:
        """A pipeline to Redis; without Redis, what is done with it is left."""
        try:
            with self._broker.pipeline(transaction=False) as pipeline:
                yield pipeline
        except (redis.RedisError, OSError) as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            logger.info("action=redis_not_reached purpose=%r reason=%r", why, type(error).__name__)

    @staticmethod
    def _deliver(answers: "list[tuple[asyncio.Future[float], float]]") -> None:
        def tell() -> None:
            for answer, wait in answers:
                if not answer.done():
                    answer.set_result(wait)

        try:
            answers[0][0].get_loop().call_soon_threadsafe(tell)
        except RuntimeError:  # the loop is closed: the process ends, and nobody waits any more
            return


class Share:
    """A worker's share of a provider's limits, while Redis is away: kept as ``limits.lua`` does, without a pool for chat.

    Args:
        part: this worker's, of all; one call at once and one a minute are left in any case.
    """

    def __init__(self, limits: Limited, part: float) -> None:
        rates = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._seconds = {name: 60 / max(1.0, rate * part) for name, rate in rates.items() if rate}
        self._most = max(1, int(limits.max_in_flight * part)) if limits.max_in_flight else None
        self._due = dict.fromkeys(self._seconds, time.monotonic())
        self._reserved: dict[str, float] = {}
        self._flight: set[str] = set()

    def wait_for(self, asks: Iterable[Ask], ended: Iterable[Mapping[str, Any]]) -> list[float]:
        """Seconds for each ask; 0 may call."""
        self._flight.difference_update(call["turn"] for call in ended)
        return [self._wait(ask) for ask in asks]

    def _wait(self, ask: Ask) -> float:
        now = time.monotonic()
        moment = self._reserved.get(ask.turn) or self._reserve(ask, now)
        if moment > now:
            self._reserved[ask.turn] = moment
            return moment - now
        if self._most is not None and len(self._flight) >= self._most:
            self._reserved[ask.turn] = now
            return random.uniform(0.5, 1.0)
        self._reserved.pop(ask.turn, None)
        if self._most is not None:
            self._flight.add(ask.turn)
        return 0.0

    def _reserve(self, ask: Ask, now: float) -> float:
        moment = max([now, *self._due.values()])
        for name, seconds in self._seconds.items():
            self._due[name] = max(moment, self._due[name]) + seconds * (ask.tokens if name == "tokens" else 1)
        return moment


def reply_tokens(options: Mapping[str, Any]) -> int:
    """How many tokens a reply may take, before anybody has counted them."""
    asked = options.get("max_tokens") or options.get("max_completion_tokens")
    return asked if type(asked) is int and asked > 0 else REPLY_TOKENS


def has_limits(provider: Limited) -> bool:
    return any((provider.requests_per_minute, provider.tokens_per_minute, provider.max_in_flight))
