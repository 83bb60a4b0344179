"""Who listens to a session's live text: rung by Redis, and looking by itself where Redis does not ring."""

import time
from types import TracebackType
from typing import Self

import redis

from inturn.workers import live
from inturn.workers.events import FALLBACK_SECONDS, RECONNECT_SECONDS, Bell
from inturn.workers.live import Entry
from inturn.workers.queues import live as live_name
from inturn.workers.queues import replies

SLICE_SECONDS = 0.25
"""The longest that a listener does not notice that it is to stop."""


class Ear:
    """Hears of one session. For one thread. It starts with all of the reply that is being written.

    It connects when it is first asked something: who stops a client waits for those who ask.
    """

    def __init__(self, broker: redis.Redis, session_id: int) -> None:
        self._broker, self._session_id = broker, session_id
        self._after = live.BEGINNING
        self._looked_at = self._away_until = 0.0
        self._has_more = True
        self._bell: Bell | None = None

    def _listen(self) -> Bell:
        if self._bell is None:
            self._bell = Bell(self._broker, replies(self._session_id), live_name(self._session_id))
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
        if not self._has_more or time.monotonic() < self._away_until:
            return []
        try:
            self._after, found = live.read(self._broker, self._session_id, self._after)
        except (redis.RedisError, OSError):
            self._away_until = time.monotonic() + RECONNECT_SECONDS
            return []
        self._has_more = False
        return live.joined(found)

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
