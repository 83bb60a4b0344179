"""Waiting for turns: rung by Redis, looking at the database from time to time, and saying so when nobody is there to
reply.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import TIMEOUT_MAX, Condition, Lock
from typing import TypeVar

import redis

from inturn.ears import Ear
from inturn.models.database import Database
from inturn.models.errors import ClosedError, InvalidInputError, NoWorkerError, TurnNotFoundError
from inturn.models.states import FINAL, ProcessKind
from inturn.models.store import presence, reading
from inturn.models.store.reading import Outcome
from inturn.settings import Settings
from inturn.workers.events import FALLBACK_SECONDS, Bell
from inturn.workers.live import Entry
from inturn.workers.queues import Hints, replies
from inturn.workers.stack import StackUse

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_FOR_WORKERS_SECONDS = 2.0
WATCH_SECONDS = 0.25
WATCH_SHARE, LONGEST_WATCH_SECONDS = 10, 30.0
"""Between two looks at a large batch passes as many times what one of them takes, up to the longest; a machine that is busy
makes minutes of a look at a million lines.
"""
NOBODY_SECONDS = 10.0
"""A worker that is being started is there in less, also on a busy machine."""


def in_seconds(timeout: float | timedelta | None) -> float | None:
    """Raises: InvalidInputError: it is no length of time."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is None or (isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0):
        return seconds
    raise InvalidInputError(
        f"timeout is {timeout!r:.100}: it is a number of seconds from 0, a timedelta, or None, which waits for as long as "
        "it takes"
    )


def alive_workers(database: Database, settings: Settings) -> list[presence.WorkerInfo]:
    """The processes of this deployment, workers and beats; dead ones are marked so."""
    with database.reading() as db:
        return presence.list_processes(db, settings.silent_seconds)


class Waiter:
    """Waits on behalf of one client. On the embedded default it also sees to it that a worker runs meanwhile."""

    def __init__(self, database: Database, settings: Settings, broker: redis.Redis, hints: Hints) -> None:
        self._database, self._settings, self._broker, self._hints = database, settings, broker, hints
        self._stack: StackUse | None = None
        self._starting = Lock()
        self._closed = False
        self._looked_at, self._known = -math.inf, list[presence.WorkerInfo]()
        self._waits = 0
        self._one_left = Condition()

    def until_final(self, session_id: int, number: int, timeout: float | None) -> int | None:
        """Wait until the turn is final, or the one that it is joined into.

        Returns:
            The number of the turn that is final; None when ``timeout`` seconds have passed before.

        Raises:
            NoWorkerError: nobody is alive to answer it.
            TurnNotFoundError: its session was deleted.
            ClosedError: the client was stopped meanwhile.
        """
        looks = self.looks(session_id, number, math.inf if timeout is None else time.monotonic() + timeout)
        with self.counted():
            for found, _ in looks:
                return found.number if found.state in FINAL else self._await(session_id, looks)
        return None

    def looks(self, session_id: int, number: int, deadline: float) -> Iterator[tuple[Outcome, float]]:
        """Look at a turn whenever the next look is asked for. Who waits in between is somebody else: a thread, or the
        asyncio face, which has many who wait and few threads. Ends when the deadline has passed and the turn is not final.

        Yields:
            Where the turn stands, or the one that it is joined into, and how many seconds are left.

        Raises:
            As ``until_final`` does.
        """
        with self.counted():
            found = self._outcome(session_id, number)
            if found.state not in FINAL:
                self.hold_stack(deadline)
        nobody = self._nobody()
        while True:
            yield found, deadline - time.monotonic()
            with self.counted():
                found = self._outcome(session_id, found.number)
                if found.state not in FINAL:
                    if time.monotonic() >= deadline:
                        nobody.check_at_the_end()
                        return
                    nobody.check()

    def follow(self, session_id: int, number: int, deadline: float) -> Iterator[tuple[list[Entry], Outcome | None]]:
        """Look at a turn again and again, until it is final or the deadline has passed (by the monotonic clock).

        Yields:
            What is new of its session's live text, and before that in time, if it was looked at: where the turn stands,
            or the one that it is joined into.

        Raises:
            As ``until_final`` does.
        """
        with self.counted():
            found: Outcome | None = self._outcome(session_id, number)
            if found is not None and found.state not in FINAL:
                self.hold_stack(deadline)
        nobody = self._nobody()
        with Ear(self._broker, session_id) as ear:
            while True:
                with self.counted():
                    entries = ear.entries()
                is_final = found is not None and found.state in FINAL
                yield entries if is_final else [*entries, *ear.pause()], found
                if is_final:
                    return
                number = number if found is None else found.number
                with self.counted():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        nobody.check_at_the_end()
                        return
                    nobody.check()
                    found = self._outcome(session_id, number) if ear.wait(left) else None

    def watch(self, look: Callable[[], tuple[T, bool]], deadline: float) -> Iterator[tuple[T, float]]:
        """Look at something that workers work on, again and again: seldom, where a look takes long. Who waits in between is
        somebody else, as in ``looks``.

        Args:
            look: what there is to see, and whether nothing more will come.

        Yields:
            What was seen, and for how many seconds to wait then; at last when nothing more will come, or when the deadline
            has passed.

        Raises:
            NoWorkerError: nobody is alive to work on it.
            ClosedError: the client was stopped meanwhile.
        """
        nobody = self._nobody()
        while True:
            began = time.monotonic()
            with self.counted():
                found, is_over = look()
            now = time.monotonic()
            left = 0.0 if is_over else deadline - now
            pause = min(max(WATCH_SECONDS, (now - began) * WATCH_SHARE), LONGEST_WATCH_SECONDS)
            yield found, max(0.0, min(left, pause))
            if is_over:
                return
            with self.counted():
                self.hold_stack(deadline)
                if left <= 0:
                    nobody.check_at_the_end()
                    return
                nobody.check()

    def _nobody(self) -> "Nobody":
        return Nobody(self._processes, starter(self._settings))

    def _processes(self) -> list[presence.WorkerInfo]:
        """As of a moment ago: of a thousand who wait at once, one looks."""
        now = time.monotonic()
        if now - self._looked_at > LOOK_FOR_WORKERS_SECONDS / 4:
            self._known, self._looked_at = alive_workers(self._database, self._settings), now
        return self._known

    def _await(self, session_id: int, looks: Iterator[tuple[Outcome, float]]) -> int | None:
        with Bell(self._broker, replies(session_id)) as bell:
            for found, left in looks:
                if found.state in FINAL:
                    return found.number
                bell.wait(left)
        return None

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._one_left:
            if self._closed:
                raise stopped()
            self._waits += 1
        try:
            yield
        finally:
            with self._one_left:
                self._waits -= 1
                self._one_left.notify_all()

    def _outcome(self, session_id: int, number: int) -> Outcome:
        with self._database.reading() as db:
            found = reading.outcome(db, session_id, number)
        if found is None:
            raise TurnNotFoundError(f"{session_id}.{number}")
        return found

    def hold_stack(self, deadline: float) -> None:
        """On the embedded default, wait until a stack runs; one that is late is not waited for beyond the deadline."""
        if not self._settings.is_embedded or self._is_served():
            return
        left = max(0.0, deadline - time.monotonic())
        if not self._starting.acquire(timeout=min(left, TIMEOUT_MAX)):
            return
        try:
            self._start_stack(deadline)
        finally:
            self._starting.release()

    def _is_served(self) -> bool:
        stack = self._stack
        return stack is not None and stack.stands()

    def _start_stack(self, deadline: float) -> None:
        if self._closed or self._is_served():
            return
        self._stack = self._stack or StackUse(self._settings, report=logger.info)
        try:
            is_ready = self._stack.get_ready(deadline)
        except BaseException:
            self._stack.close()
            self._stack = None
            raise
        if is_ready:
            self._hints.retry_now()

    def close(self) -> None:
        """Returns when threads that wait have noticed it: until then they use the client's connections."""
        with self._one_left:
            self._closed = True
            self._one_left.wait_for(lambda: not self._waits, 2 * FALLBACK_SECONDS)
        with self._starting:
            if self._stack is not None:
                self._stack.close()
                self._stack = None


def stopped() -> ClosedError:
    return ClosedError("this client was stopped: the turn goes on, and another client can wait for it")


def starter(settings: Settings) -> str:
    """What starts a worker: a worker alone would wait for the embedded broker, which comes with ``inturn up``."""
    return "inturn up" if settings.has_embedded_broker else "inturn worker"


class Nobody:
    """Notices that no worker is alive, not at the first look but after a while of looking.

    Args:
        processes: who is there.
        command: what starts a worker.
    """

    def __init__(self, processes: Callable[[], list[presence.WorkerInfo]], command: str) -> None:
        self._processes, self._command = processes, command
        self._next_look = 0.0
        self._since: float | None = None

    def check(self) -> None:
        """Raises: NoWorkerError."""
        now = time.monotonic()
        if now >= self._next_look:
            self._look(now, NOBODY_SECONDS)

    def check_at_the_end(self) -> None:
        """The last look, when nobody waits on. A wait too short for two looks cannot tell: a worker may be starting.

        Raises:
            NoWorkerError: nobody was there all the time.
        """
        if self._since is not None:
            self._look(time.monotonic(), LOOK_FOR_WORKERS_SECONDS)

    def _look(self, now: float, patience: float) -> None:
        self._next_look = now + LOOK_FOR_WORKERS_SECONDS
        if any(process.alive and process.kind is ProcessKind.WORKER for process in self._processes()):
            self._since = None
        elif self._since is None:
            self._since = now
            logger.warning("action=no_worker_alive: start one with `%s`", self._command)
        elif now - self._since >= patience:
            raise NoWorkerError(
                f"no worker is alive, so nobody will reply now. The prompt is stored: start `{self._command}` "
                "(with the same database and broker), and wait for the turn again"
            )
