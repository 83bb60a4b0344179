"""Hearing for everybody who waits in an event loop: one connection to Redis, whose rings are handed out.

A thread that waits has a connection of its own (``Bell``). Thousands of tasks share this one, and nothing depends on it,
either: who waits also looks by itself from time to time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inturn.workers.events import FALLBACK_SECONDS, RECONNECT_SECONDS
from inturn.workers.queues import BROKER_TIMEOUT_SECONDS, redis_url

DEAF_SECONDS = 0.1
"""Between two looks while Redis does not answer."""
LOOKS_PER_SECOND = 200
"""The most that those who wait look by themselves, all together: the more there are, the longer each of them trusts in
being rung."""


class LoopRing:
    """What one task hears (``ears.Ring``). A ring that comes while nobody waits is kept."""

    def __init__(self, belfry: "Belfry") -> None:
        self._belfry, self._loop = belfry, belfry.loop
        self._struck = asyncio.Event()
        self._fresh, self._heard = set[str](), set[str]()

    @property
    def connected(self) -> bool:
        return self._belfry.connected

    def strike(self, channels: Iterable[str]) -> None:
        self._fresh.update(channels)
        self._struck.set()

    async def until_struck(self, seconds: float) -> None:
        """Wait until rung, or until it is time to look anyway, ``seconds`` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self._belfry.patience)):
                await self._struck.wait()
        self._struck.clear()
        # Handed over here, where nothing is added meanwhile: a thread looks at it next, and no lock is needed.
        self._heard |= self._fresh
        self._fresh.clear()

    def listen(self, *channels: str) -> None:
        """From a thread."""
        self._loop.call_soon_threadsafe(self._belfry.listen, self, channels)

    def wait(self, seconds: float | None) -> set[str]:
        """From a thread: what was rung until the loop last handed over; at once."""
        heard, self._heard = self._heard, set()
        return heard

    def close(self) -> None:
        """It stays: its task takes it down."""


class Belfry:
    """Of the event loop that runs when it is made, in which everything here is called."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url, self.loop = broker_url, asyncio.get_running_loop()
        self.connected = False
        self._rings: set[LoopRing] = set()
        self._listening: dict[str, set[LoopRing]] = {}
        self._asked, self._standing = set[str](), set[str]()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def patience(self) -> float:
        """How long one who waits trusts in being rung."""
        return max(FALLBACK_SECONDS if self.connected else DEAF_SECONDS, len(self._rings) / LOOKS_PER_SECOND)

    @contextlib.asynccontextmanager
    async def ring(self) -> AsyncIterator[LoopRing]:
        ring = LoopRing(self)
        self._rings.add(ring)
        try:
            yield ring
        finally:
            self._rings.discard(ring)
            for channel in [channel for channel, rings in self._listening.items() if ring in rings]:
                self._leave(channel, ring)

    def _leave(self, channel: str, ring: LoopRing) -> None:
        rings = self._listening[channel]
        rings.discard(ring)
        if not rings:
            del self._listening[channel]
            self._changed.set()

    def listen(self, ring: LoopRing, channels: Iterable[str]) -> None:
        """From now on ``ring`` is struck when one of these is rung, and once more as soon as that is so: what came before
        may have been missed.
        """
        if ring not in self._rings:
            return
        for channel in channels:
            self._listening.setdefault(channel, set()).add(ring)
        if self._standing.issuperset(channels):  # otherwise it is struck when Redis says that it is
            ring.strike(channels)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="inturn-belfry")

    async def close(self) -> None:
        """Everybody is struck: they look, and find that there is nothing to wait for any more."""
        for ring in self._rings:
            ring.strike(())
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                with contextlib.suppress(RedisError, OSError):
                    async with self._connect() as broker, broker.pubsub() as pubsub:
                        await self._serve(pubsub)
            finally:
                self.connected = False
                self._asked.clear()
                self._standing.clear()
            await asyncio.sleep(RECONNECT_SECONDS)

    def _connect(self) -> Redis:
        # No time limit for an answer: mostly there is none to come. Who waits has its own.
        return Redis.from_url(
            redis_url(self._broker_url),
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=BROKER_TIMEOUT_SECONDS,
        )

    async def _serve(self, pubsub: PubSub) -> None:
        await self._subscribe(pubsub)
        self.connected = True
        hearing = asyncio.create_task(self._hear(pubsub), name="inturn-belfry-hearing")
        hearing.add_done_callback(lambda _: self._changed.set())
        try:
            while not hearing.done():
                await self._changed.wait()
                self._changed.clear()
                await self._subscribe(pubsub)
            hearing.result()
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Tell Redis what is new, for many who wait in one command. It stays with the last ones: a connection that has
        none cannot be listened to.
        """
        wanted = set(self._listening) or self._asked
        new, old = wanted - self._asked, self._asked - wanted
        self._asked = wanted
        self._standing -= old
        if new:
            await pubsub.subscribe(*new)
        if old:
            await pubsub.unsubscribe(*old)

    async def _hear(self, pubsub: PubSub) -> None:
        async for message in pubsub.listen():
            if message["type"] not in ("message", "subscribe"):
                continue
            channel = message["channel"].decode()
            if message["type"] == "subscribe" and channel in self._asked:
                self._standing.add(channel)
            for ring in self._listening.get(channel, ()):
                ring.strike((channel,))
