"""Who listens to a session's live text: rung by Redis, and looking by itself where Redis does not ring."""

import time
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self
from weakref import WeakKeyDictionary

import redis

from inturn.workers import live
from inturn.workers.events import FALLBACK_SECONDS, RECONNECT_SECONDS, Bell
from inturn.workers.live import Entry
from inturn.workers.queues import live as live_name
from inturn.workers.queues import replies

SLICE_SECONDS = 0.25
"""The longest that a listener does not notice that it is to stop."""
QUIET = Entry(0, 0)
"""What an ear says that has nothing more to say now, to who must not be kept waiting for it (``RING``)."""


class Ring(Protocol):
    """Takes the place of a ``Bell`` where an event loop waits: it says at once what was rung since it was last asked."""

    @property
    def connected(self) -> bool: ...
    def listen(self, *channels: str) -> None: ...
    def wait(self, seconds: float | None) -> set[str]: ...
    def close(self) -> None: ...


RING: ContextVar[Ring | None] = ContextVar("inturn_ring", default=None)
"""Set where no thread may wait: an ear pauses instead (``QUIET``), and is asked again when its ring was rung."""

AWAY_UNTIL: WeakKeyDictionary[redis.Redis, float] = WeakKeyDictionary()
"""Brokers that did not answer, and until when they are left alone: one ear finds out, for all of a client."""


class Ear:
    """Hears of one session. For one thread at a time. It starts with all of the reply that is being written.

    It connects when it is first asked something: who stops a client waits for those who ask.
    """

    def __init__(self, broker: redis.Redis, session_id: int) -> None:
        self._broker, self._session_id = broker, session_id
        self._after = live.BEGINNING
        self._looked_at = 0.0
        self._has_more = True
        self._bell: Bell | Ring | None = None
        self._ring = RING.get()

    def _listen(self) -> Bell | Ring:
        if self._bell is None:
            channels = (replies(self._session_id), live_name(self._session_id))
            if self._ring is None:
                self._bell = Bell(self._broker, *channels)
            else:
                self._ring.listen(*channels)
                self._bell = self._ring
            self._connected_at = time.monotonic()
        return self._bell

    def wait(self, seconds: float) -> bool:
        """Wait until there is something, or for a moment. Returns whether the database may have news."""
        bell = self._listen()
        rung = bell.wait(min(seconds, SLICE_SECONDS))
        now = time.monotonic()
        look = replies(self._session_id) in rung or now - self._looked_at >= FALLBACK_SECONDS
        if not bell.connected:
            look = True
            if now - self._connected_at >= RECONNECT_SECONDS:
                self.close()
        if look:
            self._looked_at = now
        self._has_more = self._has_more or look or live_name(self._session_id) in rung
        return look

    def entries(self) -> list[Entry]:
        """What is new in the live stream; nothing while Redis does not answer."""
        self._listen()  # before it looks: what comes in between rings
        if not self._has_more or time.monotonic() < AWAY_UNTIL.get(self._broker, 0.0):
            return []
        try:
            self._after, found = live.read(self._broker, self._session_id, self._after)
        except (redis.RedisError, OSError):
            AWAY_UNTIL[self._broker] = time.monotonic() + RECONNECT_SECONDS
            return []
        self._has_more = False
        return live.joined(found)

    def pause(self) -> list[Entry]:
        """What comes before ``wait``: nothing, unless nobody may be kept waiting."""
        return [] if self._ring is None else [QUIET]

    def close(self) -> None:
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
