"""Who does the work behind an asyncio client: a few threads, and the belfry.

Those who look on behalf of who waits have threads of their own. On the embedded default a first look takes as long as a
stack takes to start, and nobody's ``send`` is to stand in line behind a thousand of them.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from inturn import client as sync
from inturn.aio.belfry import Belfry
from inturn.ears import RING
from inturn.listening import PAUSE
from inturn.models.errors import ClosedError, HasId, InturnError, SendTimeoutError
from inturn.models.states import FINAL
from inturn.models.store.reading import Outcome
from inturn.records import SessionEvent
from inturn.waiting import stopped
from inturn.workers.app import broker_url
from inturn.workers.queues import replies

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F")

CALL_THREADS, LOOK_THREADS = 7, 3
"""Together no more than a client has connections to a database: none of them waits for one."""
PAGE = 100
"""What is fetched at once of what is listed: as many as the synchronous SDK asks the database for."""
SHORTEST_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Haul:
    """What was heard of a stream until there was no more for the moment, and whether that was the end."""

    events: list[SessionEvent]
    is_last: bool = False
    error: InturnError | None = None


class Staff:
    """Of one client, in one event loop at a time."""

    def __init__(self, client: sync.Client) -> None:
        self.client = client
        self._belfry: Belfry | None = None
        self._calls = ThreadPoolExecutor(CALL_THREADS, "inturn-call")
        self._looks = ThreadPoolExecutor(LOOK_THREADS, "inturn-look")
        self._stopped = False

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call in a thread. Whoever stops waiting for it does not stop it, once it has begun.

        Raises:
            ClosedError: the client was stopped.
        """
        if self._stopped:
            raise ClosedError("this client was stopped: make a new one")
        work = partial(copy_context().run, partial(function, *args, **kwargs))  # the caller's trace goes on in there
        return await asyncio.get_running_loop().run_in_executor(self._calls, work)

    async def look(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call in a thread of those who look. Raises: ClosedError: the client was stopped meanwhile."""
        if self._stopped:
            raise stopped()
        return await asyncio.get_running_loop().run_in_executor(self._looks, partial(function, *args, **kwargs))

    async def pages(self, begin: Callable[[], Iterator[R]], face: Callable[[R], F]) -> AsyncGenerator[F, None]:
        """What the iterator gives, fetched page by page as it is asked for. It begins, and refuses, at the first."""
        found = await self.call(begin)
        while page := await self.call(list, islice(found, PAGE)):
            for one in page:
                yield face(one)

    async def until_final(self, session: int, turn: int, timeout: float | None) -> bool:
        """Wait as ``Waiter.until_final`` does, in the loop. Returns whether the turn is final."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        looks, is_heard = self._looks_at(session, turn, deadline), False
        async with self._bells.ring() as ring:
            while (seen := await self.look(next, looks, None)) is not None:
                found, left = seen
                if found.state in FINAL:
                    return True
                if not is_heard:  # now that a broker runs, also the embedded one
                    self._bells.listen(ring, (replies(session),))
                    is_heard = True
                await ring.until_struck(left)
        return False

    def _looks_at(self, session: int, turn: int, deadline: float) -> Iterator[tuple[Outcome, float]]:
        yield from self.client.connections.waiter.looks(session, turn, deadline)  # connects in a thread

    async def follow(
        self, begin: Callable[[], Iterator[SessionEvent]], timeout: float | None, face: Callable[["Staff", Any], HasId]
    ) -> AsyncGenerator[SessionEvent, None]:
        """What the iterator gives, which would keep a thread waiting: it pauses instead (``PAUSE``), and is asked again
        when something was rung, or it is time to look anyway.

        Args:
            begin: makes the iterator.
            timeout: what it was told, in seconds.
            face: makes the handle of a turn that is late, for who asks in this loop.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        async with self._bells.ring() as ring:
            context = copy_context()
            context.run(RING.set, ring)
            events = await self.look(context.run, begin)
            while True:
                haul = await self.look(context.run, hauled, events)
                for event in haul.events:
                    yield event
                if isinstance(haul.error, SendTimeoutError):
                    haul.error.turn = face(self, haul.error.turn)
                if haul.error is not None:
                    raise haul.error
                if haul.is_last:
                    return
                await ring.until_struck(max(deadline - time.monotonic(), SHORTEST_SECONDS))

    @property
    def _bells(self) -> Belfry:
        if self._belfry is None or self._belfry.loop is not asyncio.get_running_loop():
            self._belfry = Belfry(broker_url(self.client.settings))
        return self._belfry

    async def stop(self) -> None:
        """Who waits hears of it. Twice is harmless."""
        if self._stopped:
            return
        self._stopped = True
        if self._belfry is not None:
            await self._belfry.close()
        try:
            await asyncio.get_running_loop().run_in_executor(self._calls, self.client.stop)
        finally:
            self._calls.shutdown(wait=False)
            self._looks.shutdown(wait=False)


def hauled(events: Iterator[SessionEvent]) -> Haul:
    """Take what comes without waiting. What was heard before an error is given out before it."""
    found: list[SessionEvent] = []
    try:
        for event in events:
            if event is PAUSE:
                return Haul(found)
            found.append(event)
    except InturnError as error:
        return Haul(found, is_last=True, error=error)
    return Haul(found, is_last=True)
