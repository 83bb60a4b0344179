"""The handle on a session, for asyncio."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from inspect import isawaitable, signature
from types import TracebackType
from typing import Any, Self

from inturn import listening
from inturn import session as sync
from inturn.aio.staff import Staff
from inturn.aio.turn import Turn
from inturn.aio.wrapping import like, paged, wrapped
from inturn.listening import AGAIN_SECONDS, Handler, Listener
from inturn.models.errors import ClosedError, SessionNotFoundError, StorageError
from inturn.records import Message, SessionEvent
from inturn.waiting import in_seconds

SEND_TIMEOUT = signature(sync.Session.send_and_wait).parameters["timeout"].default


class Session:
    """A handle on a session. Letting go of it changes nothing that is stored."""

    def __init__(self, staff: Staff, handle: sync.Session) -> None:
        self._staff, self._handle = staff, handle
        self._deliveries: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return repr(self._handle)

    @property
    def session_id(self) -> str:
        return self._handle.session_id

    send = wrapped(sync.Session.send, Turn)

    @like(sync.Session.send_and_wait)
    async def send_and_wait(self, *prompt: Any, timeout: Any = SEND_TIMEOUT, **how: Any) -> Message:
        seconds = in_seconds(timeout)
        turn = await self.send(*prompt, **how)
        return await turn.wait(seconds)

    @like(sync.Session.stream)
    def stream(self, *prompt: Any, timeout: Any = None, **how: Any) -> AsyncGenerator[SessionEvent, None]:
        """Send, and hear the reply while it is written; see ``send`` and ``Turn.stream`` for what comes and what they raise.
        It is sent when the first event is asked for. For the turn's handle, ``send(..., stream=True)``.
        """
        return self._staff.follow(
            lambda: self._handle.stream(*prompt, timeout=timeout, **how), in_seconds(timeout), Turn
        )

    @like(sync.Session.tail)
    def tail(self, *last: Any, **how: Any) -> AsyncGenerator[SessionEvent, None]:
        return self._staff.follow(lambda: self._handle.tail(*last, **how), None, Turn)

    @like(sync.Session.on)
    async def on(self, handler: Handler) -> Callable[[], None]:
        """Have a function called, or a coroutine function awaited, with every event of the session from now on, whichever
        client causes it: prompts, replies (while they are written, if they were sent with ``stream``), failures,
        cancellations.

        It is called in this event loop, with one event after the other. If it raises, that is logged, and it gets the next
        event. Events are those of ``get_events`` and ``Turn.stream``; what is not live may take two seconds.

        Returns:
            A function that ends it: the handler is not called again. ``disconnect`` ends it, too.

        Raises:
            SessionNotFoundError: the session was deleted.
        """
        listener = await self._staff.call(self._handle._listener)
        delivery = asyncio.create_task(deliver(self._staff, listener, handler), name="inturn-listener")
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

        def end() -> None:
            delivery.cancel()

        return end

    get_events = paged(sync.Session.get_events)
    get_messages = paged(sync.Session.get_messages)
    get_turns = paged(sync.Session.get_turns, Turn)
    metadata = wrapped(sync.Session.metadata)
    fork = wrapped(sync.Session.fork, lambda staff, handle: Session(staff, handle))
    rename = wrapped(sync.Session.rename)
    export = paged(sync.Session.export)

    @like(sync.Session.disconnect)
    async def disconnect(self) -> None:
        self._handle.disconnect()
        for delivery in self._deliveries:
            delivery.cancel()

    destroy = disconnect

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()


async def deliver(staff: Staff, listener: Listener, handler: Handler) -> None:
    """Call a handler with every event, until this task is cancelled, or the client is stopped (``listening.Delivery``)."""
    try:
        await staff.look(listening.start_stack, staff.client.connections)
        while True:
            try:
                async with contextlib.aclosing(staff.follow(listener.events, None, Turn)) as events:
                    async for event in events:
                        await hand_over(event, handler)
            except StorageError as error:
                listening.interrupted(error)
            await asyncio.sleep(AGAIN_SECONDS)
    except (ClosedError, SessionNotFoundError) as end:
        listening.ended(end)


async def hand_over(event: SessionEvent, handler: Handler) -> None:
    with listening.logged(event):
        found = handler(event)
        if isawaitable(found):
            await found
