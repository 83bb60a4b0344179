"""The handle on a session. It holds an ID and nothing else: whoever has the ID has the session."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self

from inturn.connections import Connected, Connections
from inturn.listening import Delivery, Handler, Listener
from inturn.models.errors import ClosedError, InvalidInputError, SessionNotFoundError
from inturn.models.states import TurnState
from inturn.models.store import chronicle, reading
from inturn.models.store.reading import SessionRecord
from inturn.models.store.sending import WhenBusy
from inturn.records import Message, SessionEvent, SessionMetadata, checked_event_id, checked_message_id
from inturn.turn import Timeout, Turn, send

PAGE = 100
SendLane = Literal["chat", "batch"]


class Session:
    """A handle on a session. Letting go of it changes nothing that is stored."""

    def __init__(self, client: Connected, session_id: str, surrogate: int) -> None:
        self.session_id = session_id
        self._client = client
        self._surrogate = surrogate
        self._closed = False
        self._deliveries: list[Delivery] = []

    def __repr__(self) -> str:
        return f"<Session {self.session_id}>"

    @property
    def _connections(self) -> Connections:
        if self._closed:
            raise ClosedError(
                f"this handle on session {self.session_id!r} was let go: resume the session for a new one"
            )
        return self._client.connections

    def send(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        when_busy: WhenBusy = "enqueue",
        not_before: datetime | timedelta | None = None,
        lane: SendLane = "chat",
        options: Mapping[str, Any] | None = None,
        stream: bool = False,
    ) -> Turn:
        """Store a prompt to be answered after all earlier ones. Returned means stored: no reply exists yet.

        Args:
            idempotency_key: sending again with the same key and prompt gives the same turn back.
            when_busy: with unfinished turns before it, ``"enqueue"`` waits, ``"reject"`` stores nothing, ``"interrupt"``
                cancels them and is next, ``"coalesce"`` joins the prompts that wait (not the one that runs) and this one
                into one turn, with a blank line between: this one, with its options and its lane.
            not_before: a moment with its timezone, or a time from now. Turns that are sent later wait behind this one.
            lane: ``"batch"`` leaves workers to interactive turns first. A session's lane is that of its next turn.
            options: for the provider, with this turn only, ahead of the session's.
            stream: let the reply be heard while it is written: by ``turn.stream()``, here or in any other process that
                has the turn's ID, and by ``on``.

        Raises:
            InvalidPromptError: empty, or larger than 256 KiB, by itself or joined; nothing was stored.
            InvalidInputError: another argument is refused; nothing was stored.
            SessionNotFoundError: the session was deleted.
            SessionBusyError, IdempotencyConflictError: nothing was stored.
        """
        _ = self._connections
        return send(
            self._client,
            self.session_id,
            self._surrogate,
            prompt,
            idempotency_key=idempotency_key,
            when_busy=when_busy,
            not_before=not_before,
            lane=lane,
            options=options,
            stream=stream,
        )

    def send_and_wait(
        self,
        prompt: str,
        *,
        timeout: Timeout = 60.0,
        idempotency_key: str | None = None,
        when_busy: WhenBusy = "enqueue",
        not_before: datetime | timedelta | None = None,
        lane: SendLane = "chat",
        options: Mapping[str, Any] | None = None,
    ) -> Message:
        """Send, and wait for the reply to this very prompt; see ``send`` and ``Turn.wait`` for what they raise.

        ``timeout`` runs from now, also when ``not_before`` puts the turn off.
        """
        turn = self.send(
            prompt,
            idempotency_key=idempotency_key,
            when_busy=when_busy,
            not_before=not_before,
            lane=lane,
            options=options,
        )
        return turn.wait(timeout)

    def stream(
        self,
        prompt: str,
        *,
        timeout: Timeout = None,
        idempotency_key: str | None = None,
        when_busy: WhenBusy = "enqueue",
        not_before: datetime | timedelta | None = None,
        lane: SendLane = "chat",
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[SessionEvent]:
        """Send, and hear the reply while it is written; see ``send`` and ``Turn.stream`` for what comes and what they raise.
        It is sent at once, also if nobody looks at what comes. For the turn's handle, ``send(..., stream=True)``.
        """
        turn = self.send(
            prompt,
            idempotency_key=idempotency_key,
            when_busy=when_busy,
            not_before=not_before,
            lane=lane,
            options=options,
            stream=True,
        )
        return turn.stream(timeout)

    def on(self, handler: Handler) -> Callable[[], None]:
        """Have a function called with every event of the session from now on, whichever client causes it: prompts, replies
        (while they are written, if they were sent with ``stream``), failures, cancellations.

        It is called from a thread of its own, with one event after the other. If it raises, that is logged, and it gets
        the next event. Events are those of ``get_events`` and ``Turn.stream``; what is not live may take two seconds.

        Returns:
            A function that ends it: the handler is not called again. ``disconnect`` ends it, too.

        Raises:
            SessionNotFoundError: the session was deleted.
        """
        delivery = Delivery(self._connections, self._listener(), handler)
        self._deliveries.append(delivery)
        delivery.start()
        return delivery.close

    def tail(self, last: int = 10, *, follow: bool = False) -> Iterator[SessionEvent]:
        """The last messages; with ``follow``, then what happens from now on, as ``on`` has it, until the session is deleted.
        Starts no worker.

        Raises:
            SessionNotFoundError: the session was deleted.
        """
        listener = self._listener(last)
        return self._tail(listener, follow)

    def _tail(self, listener: Listener, follow: bool) -> Iterator[SessionEvent]:
        yield from listener.past()
        if follow:
            yield from listener.events()

    def _listener(self, last: int = 0) -> Listener:
        return Listener(self._connections, self._surrogate, self.session_id, last)

    def get_events(self, *, after: str | None = None, limit: int | None = None) -> Iterator[SessionEvent]:
        """The session's life by turn, page by page: its start, its messages, and the ends of turns that have no reply
        (``session.error``, ``abort``). Pieces of replies are not in it.

        Args:
            after: the ``id`` of the last event seen.
            limit: how many at most; default: all.
        """
        place = checked_event_id(after, self._surrogate)
        start = [] if place else [SessionEvent.start(self._row())]
        events = itertools.chain(start, self._events(place or (0, 0)))
        return itertools.islice(events, limit)

    def _events(self, after: tuple[int, int]) -> Iterator[SessionEvent]:
        while page := chronicle.list_events(self._connections.database, self._surrogate, after, PAGE):
            after = (page[-1].turn_number, page[-1].place)
            yield from map(SessionEvent.of, page)

    def get_messages(self, *, after: str | None = None, limit: int | None = None) -> Iterator[Message]:
        """The history in order, page by page: system, user and assistant messages.

        Args:
            after: the ``id`` of the last message seen.
            limit: how many at most; default: all.
        """
        _ = self._connections
        return self._pages(checked_message_id(after, self._surrogate), limit)

    def _pages(self, after: tuple[int, int], limit: int | None) -> Iterator[Message]:
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = reading.list_messages(self._connections.database, self._surrogate, after, size)
            yield from map(Message.of, page)
            if len(page) < size:
                return
            after, left = (page[-1].turn_number, page[-1].position), None if left is None else left - size

    def get_turns(self, *, state: TurnState | str | None = None) -> Iterator[Turn]:
        """The session's turns by number, page by page."""
        if state is not None and state not in set(TurnState):
            raise InvalidInputError(f"{state!r:.100} is no state of a turn: there are {', '.join(TurnState)}")
        _ = self._connections
        return self._turns(None if state is None else TurnState(state))

    def _turns(self, wanted: TurnState | None) -> Iterator[Turn]:
        after = 0
        while page := reading.list_turns(self._connections.database, self._surrogate, wanted, after, PAGE):
            after = page[-1].number
            yield from (Turn(self._client, row) for row in page)

    def metadata(self) -> SessionMetadata:
        """The session without its messages, as it is now. Raises: SessionNotFoundError."""
        return SessionMetadata.of(self._row())

    def _row(self) -> SessionRecord:
        row = reading.get_session(self._connections.database, self.session_id)
        if row.id != self._surrogate:
            raise SessionNotFoundError(self.session_id)
        return row

    def disconnect(self) -> None:
        """Let go of the session: everything is kept, turns go on, and handlers hear no more. Twice is harmless."""
        self._closed = True
        for delivery in self._deliveries:
            delivery.close()

    destroy = disconnect

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
