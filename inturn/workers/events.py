"""Wake-ups through Redis: they make waiting prompt, and nothing depends on them.

The working side rings (``Announcer``), the asking side and the heartbeat listen (``Bell``). Who listens looks into the
database after every ring, and from time to time without one.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import redis

from inturn.workers.queues import CANCELS, connect, replies

logger = logging.getLogger(__name__)

FALLBACK_SECONDS = 2.0
"""How long a waiter trusts in being rung before it looks for itself."""
POLL_SECONDS = (0.02, 0.5)
"""Without Redis: the first and the longest pause between two looks."""
RECONNECT_SECONDS = 1.0


class Bell:
    """Waits for one of its channels to be rung; without Redis, for a while."""

    def __init__(self, broker: redis.Redis, *channels: str) -> None:
        self._pubsub = broker.pubsub(ignore_subscribe_messages=True)
        self._pause = POLL_SECONDS[0]
        try:
            self._pubsub.subscribe(*channels)
            self.connected = True
        except (redis.RedisError, OSError):
            self.connected = False

    def wait(self, seconds: float | None) -> set[str]:
        """Wait until rung, or until it is time to look anyway, ``seconds`` at most. Returns what was rung; often twice in
        a row, which counts once.
        """
        seconds = None if seconds is None else max(0.0, seconds)  # the time may be up since it was looked at
        if self.connected:
            try:
                return self._rung(min(FALLBACK_SECONDS if seconds is None else seconds, FALLBACK_SECONDS))
            except (redis.RedisError, OSError):
                self.connected = False
        time.sleep(min(seconds if seconds is not None else self._pause, self._pause))
        self._pause = min(self._pause * 1.5, POLL_SECONDS[1])
        return set()

    def _rung(self, seconds: float) -> set[str]:
        rung, message = set[str](), self._pubsub.get_message(timeout=seconds)
        while message is not None:
            rung.add(message["channel"].decode())
            message = self._pubsub.get_message(timeout=0)
        return rung

    def close(self) -> None:
        with contextlib.suppress(redis.RedisError, OSError):
            self._pubsub.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Announcer:
    """Rings from a thread of its own, so that a slow Redis holds up neither the ledger nor the loop."""

    def __init__(self, broker_url: str) -> None:
        self._broker = connect(broker_url)
        self._jobs: queue.SimpleQueue[str | Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inturn-announcer", daemon=True)
        self._silent_until = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ring what is left, and end."""
        self._jobs.put(None)
        self._thread.join(timeout=5)
        self._broker.close()

    def reply_stored(self, session_id: int) -> None:
        self._jobs.put(replies(session_id))

    def soon(self, job: Callable[[], object]) -> None:
        """Do something else that talks to Redis in the same thread."""
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if callable(job):
                job()
                continue
            self._ring([job, *self._gathered()])

    def _gathered(self) -> Iterator[str]:
        """What else is waiting to be rung: one round trip for all of it."""
        while not self._jobs.empty():
            job = self._jobs.get()
            if isinstance(job, str):
                yield job
            else:
                self._jobs.put(job)
                return

    def _ring(self, channels: list[str]) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            ring(self._broker, channels)
        except (redis.RedisError, OSError):
            self._silent_until = time.monotonic() + RECONNECT_SECONDS


def ring(broker: redis.Redis, channels: list[str]) -> None:
    """Raises: redis.RedisError."""
    with broker.pipeline(transaction=False) as pipeline:
        for channel in channels:
            pipeline.publish(channel, b"")
        pipeline.execute()


def ring_cancel(broker: redis.Redis) -> None:
    """Tell the workers to look for cancelled turns now; they look by themselves soon enough."""
    with contextlib.suppress(redis.RedisError, OSError):
        broker.publish(CANCELS, b"")
