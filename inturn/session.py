"""The handle on a session. It holds an ID and nothing else: whoever has the ID has the session."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self

from inturn.connections import Connected, Connections
from inturn.listening import Delivery, Handler, Listener
from inturn.models.content import checked_session_id, new_session_id
from inturn.models.errors import ClosedError, InvalidInputError, SessionNotFoundError
from inturn.models.states import TurnState
from inturn.models.store import chronicle, forking, reading
from inturn.models.store.reading import SessionRecord
from inturn.models.store.sending import WhenBusy
from inturn.models.store.transcripts import transcript
from inturn.records import Message, SessionEvent, SessionMetadata, checked_event_id, checked_limit, checked_message_id
from inturn.turn import Content, Timeout, Turn, send
from inturn.waiting import in_seconds

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
        prompt: Content,
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
            prompt: a text; or parts, as OpenAI writes them, where the model takes more than text: ``[{"type": "text",
                "text": "What is this?"}, inturn.image("photo.png")]``.
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
            InvalidPromptError: empty, or larger than 256 KiB (with images 4 MiB), by itself or joined; nothing was stored.
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
        prompt: Content,
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
        seconds = in_seconds(timeout)  # refused before anything is stored
        turn = self.send(
            prompt,
            idempotency_key=idempotency_key,
            when_busy=when_busy,
            not_before=not_before,
            lane=lane,
            options=options,
        )
        return turn.wait(seconds)

    def stream(
        self,
        prompt: Content,
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
        seconds = in_seconds(timeout)
        turn = self.send(
            prompt,
            idempotency_key=idempotency_key,
            when_busy=when_busy,
            not_before=not_before,
            lane=lane,
            options=options,
            stream=True,
        )
        return turn.stream(seconds)

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
        """The last messages, behind a ``session.content_removed`` where retention has removed the others; with ``follow``,
        then what happens from now on, as ``on`` has it, until the session is deleted. Starts no worker.

        Raises:
            SessionNotFoundError: the session was deleted.
        """
        last = checked_limit("last", last) or 0
        return self._tail(self._listener(last), last, follow)

    def _tail(self, listener: Listener, last: int, follow: bool) -> Iterator[SessionEvent]:
        past = listener.past()
        if len(past) < last:
            yield from map(SessionEvent.message, self._removed())
        yield from past
        if follow:
            yield from listener.events()

    def _listener(self, last: int = 0) -> Listener:
        return Listener(self._connections, self._surrogate, self.session_id, last)

    def get_events(self, *, after: str | None = None, limit: int | None = None) -> Iterator[SessionEvent]:
        """The session's life by turn, page by page: its start, where retention has removed what was said (once, a
        ``session.content_removed``), its messages, and the ends of turns that have no reply (``session.error``, ``abort``).
        Pieces of replies are not in it.

        Args:
            after: the ``id`` of the last event seen.
            limit: how many at most; default: all.
        """
        place, limit = checked_event_id(after, self._surrogate), checked_limit("limit", limit)
        events = self._events(place or (0, 0))
        if place is None:
            row = self._row()
            events = itertools.chain([SessionEvent.start(row), *map(SessionEvent.message, removed(row))], events)
        return itertools.islice(events, limit)

    def _events(self, after: tuple[int, int]) -> Iterator[SessionEvent]:
        while page := chronicle.list_events(self._connections.database, self._surrogate, after, PAGE):
            after = (page[-1].turn_number, page[-1].place)
            yield from map(SessionEvent.of, page)

    def get_messages(self, *, after: str | None = None, limit: int | None = None) -> Iterator[Message]:
        """The history in order, page by page: system, user, assistant and tool messages, and summaries. Where retention has
        removed its beginning, or all of it, a message of the type ``session.content_removed`` comes first and says so.

        Args:
            after: the ``id`` of the last message seen.
            limit: how many at most; default: all.
        """
        _ = self._connections
        place, limit = checked_message_id(after, self._surrogate), checked_limit("limit", limit)
        return itertools.islice(self._history(place, limit), limit)

    def _history(self, after: tuple[int, int], limit: int | None) -> Iterator[Message]:
        pages = self._pages(after, limit)
        first = next(pages, None)
        if after == (0, 0) and (first is None or first.turn > 1):
            yield from self._removed()
        if first is not None:
            yield first
            yield from pages

    def _removed(self) -> list[Message]:
        try:
            return removed(self._row())
        except SessionNotFoundError:
            return []  # deleted, as pages then end, too

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
        if state is not None and state not in list(TurnState):
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

    def fork(self, session_id: str | None = None, *, to_turn: int | None = None) -> "Session":
        """Make a session that begins with this one's history and settings, and goes on by itself: what is said later in
        either is not seen in the other. Calls are not copied, since what they cost was spent once; nor is a hold.

        Args:
            session_id: its ID; default: a new unique one.
            to_turn: the number of the last turn that they share; 0: none; default: all that are finished, up to the first
                one that is not.

        Raises:
            SessionExistsError: the ID is taken.
            UnfinishedTurnsError: ``to_turn``, or a turn before it, is not finished.
            InvalidInputError: there is no such turn, or that is no ID.
            SessionNotFoundError: this session was deleted.
        """
        key, last = new_session_id(session_id), checked_limit("to_turn", to_turn)
        made = forking.fork(self._connections.database, self._surrogate, self.session_id, key, last)
        return Session(self._client, key, made)

    def export(self, form: Literal["jsonl", "json", "md"] = "jsonl") -> Iterator[bytes]:
        """The session as a file, piece by piece: ``file.writelines(session.export())``. Turns from the first one on that
        is not finished are left out.

        Args:
            form: ``"jsonl"`` or ``"json"``, which ``client.import_session`` takes; or ``"md"``, for people.

        Raises:
            InvalidInputError: there is no such form.
            SessionNotFoundError: the session was deleted; also in the middle.
            ContentRemovedError: in the middle, retention removed what was said in it.
        """
        from inturn import transcripts  # few programs export, and its models take a moment to be made

        writer = transcripts.writer(form)
        return writer(self.session_id, transcript(self._connections.database, self._surrogate, self.session_id))

    def rename(self, session_id: str) -> None:
        """Put the session under another ID. Handles that others have under the old one find no session any more; IDs of
        turns stay as they are.

        Raises:
            SessionExistsError: the ID is taken.
            UnfinishedTurnsError: a turn is not finished: a provider may know its calls by the old ID.
            InvalidSessionIdError: that is no ID.
            SessionNotFoundError: the session was deleted.
        """
        key = checked_session_id(session_id)
        forking.rename(self._connections.database, self._surrogate, self.session_id, key)
        self.session_id = key

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


def removed(row: SessionRecord) -> list[Message]:
    """What says that retention has removed what was said in a session; nothing, where it has not."""
    return [] if row.content_removed_at is None else [Message.removed(row, row.content_removed_at)]
