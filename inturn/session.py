"""The handles on a session and on its turns. They hold an ID and nothing else: whoever has the ID has the session."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

from inturn.connections import Connected, Connections
from inturn.models.content import checked_lane, checked_prompt, storable
from inturn.models.errors import (
    ClosedError,
    InvalidInputError,
    SendTimeoutError,
    SessionNotFoundError,
    TurnCancelledError,
    TurnFailedError,
)
from inturn.models.failpoints import reached
from inturn.models.states import Lane, TurnState
from inturn.models.store import reading, sending
from inturn.models.store.reading import TurnRecord
from inturn.models.store.sending import WhenBusy
from inturn.records import (
    Message,
    SessionMetadata,
    TurnError,
    checked_message_id,
    checked_not_before,
    checked_options,
    turn_id,
)
from inturn.waiting import in_seconds
from inturn.workers.events import ring_cancel

PAGE = 100

Choice = TypeVar("Choice", bound=str)
Timeout = float | timedelta | None
SendLane = Literal["chat", "batch"]


class Session:
    """A handle on a session. Letting go of it changes nothing that is stored."""

    def __init__(self, client: Connected, session_id: str, surrogate: int) -> None:
        self.session_id = session_id
        self._client = client
        self._surrogate = surrogate
        self._closed = False

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
    ) -> "Turn":
        """Store a prompt to be answered after all earlier ones. Returned means stored: no reply exists yet.

        Args:
            idempotency_key: sending again with the same key and prompt gives the same turn back.
            when_busy: with unfinished turns before it, ``"enqueue"`` waits, ``"reject"`` stores nothing, ``"interrupt"``
                cancels them and is next, ``"coalesce"`` joins the prompts that wait (not the one that runs) and this one
                into one turn, with a blank line between: this one, with its options and its lane.
            not_before: a moment with its timezone, or a time from now. Turns that are sent later wait behind this one.
            lane: ``"batch"`` leaves workers to interactive turns first. A session's lane is that of its next turn.
            options: for the provider, with this turn only, ahead of the session's.

        Raises:
            InvalidPromptError: empty, or larger than 256 KiB, by itself or joined; nothing was stored.
            InvalidInputError: another argument is refused; nothing was stored.
            SessionNotFoundError: the session was deleted.
            SessionBusyError, IdempotencyConflictError: nothing was stored.
        """
        return self._send(
            prompt,
            idempotency_key=idempotency_key,
            when_busy=when_busy,
            not_before=not_before,
            lane=lane,
            options=options,
        )

    def _send(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        when_busy: WhenBusy = "enqueue",
        not_before: datetime | timedelta | None = None,
        lane: str = "chat",
        options: Mapping[str, Any] | None = None,
        retry_of: int | None = None,
    ) -> "Turn":
        connections = self._connections
        sent = sending.send(
            connections.database,
            self.session_id,
            checked_prompt(prompt),
            session_id=self._surrogate,
            idempotency_key=checked_key(idempotency_key),
            when_busy=checked_choice("when_busy", when_busy, get_args(WhenBusy)),
            not_before=checked_not_before(not_before),
            lane=checked_lane(lane),
            options=checked_options(options),
            retry_of=retry_of,
        )
        reached("send.after_commit")
        if sent.interrupted:
            ring_cancel(connections.broker)
        if sent.hint:
            connections.hints.publish(sent, self.session_id)
        return Turn(self._client, sent.turn)

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

    def get_turns(self, *, state: TurnState | str | None = None) -> Iterator["Turn"]:
        """The session's turns by number, page by page."""
        if state is not None and state not in set(TurnState):
            raise InvalidInputError(f"{state!r:.100} is no state of a turn: there are {', '.join(TurnState)}")
        _ = self._connections
        return self._turns(None if state is None else TurnState(state))

    def _turns(self, wanted: TurnState | None) -> Iterator["Turn"]:
        after = 0
        while page := reading.list_turns(self._connections.database, self._surrogate, wanted, after, PAGE):
            after = page[-1].number
            yield from (Turn(self._client, row) for row in page)

    def metadata(self) -> SessionMetadata:
        """The session without its messages, as it is now. Raises: SessionNotFoundError."""
        row = reading.get_session(self._connections.database, self.session_id)
        if row.id != self._surrogate:
            raise SessionNotFoundError(self.session_id)
        return SessionMetadata.of(row)

    def disconnect(self) -> None:
        """Let go of the session: everything is kept, and turns go on. Twice is harmless."""
        self._closed = True

    destroy = disconnect

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()


class Turn:
    """A handle on a turn, with what was known of it when it was last looked at (``refresh``)."""

    def __init__(self, client: Connected, row: TurnRecord) -> None:
        self._client = client
        self._row = row

    def __repr__(self) -> str:
        return f"<Turn {self.id} {self.state}>"

    @property
    def id(self) -> str:
        """``<session>.<number>``; never reused, good in any process."""
        return f"{self._row.session_id}.{self._row.number}"

    @property
    def session_id(self) -> str:
        return self._row.key

    @property
    def number(self) -> int:
        """Its place in the session, from 1."""
        return self._row.number

    @property
    def state(self) -> TurnState:
        return self._row.state

    @property
    def prompt(self) -> str:
        return self._row.prompt

    @property
    def model(self) -> str:
        return self._row.model

    @property
    def attempts(self) -> int:
        """Calls to a model, each recorded before it was made."""
        return self._row.attempts

    @property
    def lane(self) -> Lane:
        return self._row.lane

    @property
    def not_before(self) -> datetime | None:
        """The moment that it waits for: one it was sent for, or that of its next attempt. None: it waits for none."""
        return self._row.not_before

    @property
    def retry_of(self) -> str | None:
        """The ID of the turn whose prompt this one sent again."""
        return turn_id(self._row.session_id, self._row.retry_of)

    @property
    def merged_into(self) -> str | None:
        """The ID of the turn that its prompt was joined into (``when_busy="coalesce"``): it is answered there."""
        return turn_id(self._row.session_id, self._row.merged_into)

    @property
    def created_at(self) -> datetime:
        return self._row.created_at

    @property
    def started_at(self) -> datetime | None:
        return self._row.started_at

    @property
    def finished_at(self) -> datetime | None:
        return self._row.finished_at

    @property
    def error(self) -> TurnError | None:
        """Why it failed; on a waiting turn, why its last attempt did."""
        row = self._row
        if row.error_message is None:
            return None
        return TurnError(row.error_type, row.error_message, row.error_status, row.error_retryable)

    def refresh(self) -> Self:
        """Look again. Raises: TurnNotFoundError when its session was deleted."""
        self._row = reading.get_turn(self._client.connections.database, self._row.session_id, self._row.number)
        return self

    def wait(self, timeout: Timeout = None) -> Message:
        """The reply to this turn's prompt, once it is stored; of a joined turn, the reply of the turn it went into.

        Args:
            timeout: seconds, or a timedelta; None waits for as long as it takes.

        Raises:
            SendTimeoutError: the time is up. The turn goes on; wait for it again whenever you like.
            TurnFailedError, TurnCancelledError: there will be no reply.
            TurnNotFoundError: its session was deleted.
            NoWorkerError: nobody is alive to reply; the turn stays stored.
        """
        seconds = in_seconds(timeout)
        connections = self._client.connections
        answered_in = connections.waiter.until_final(self._row.session_id, self._row.number, seconds)
        if answered_in is None:
            raise SendTimeoutError(self, seconds or 0.0)
        session = self._row.session_id
        with connections.database.reading() as db:
            row, reply = reading.find_answer(db, session, answered_in)
            self._row = row if answered_in == self._row.number else reading.find_turn(db, session, self._row.number)
        final = f"{row.session_id}.{row.number}"
        if row.state is TurnState.FAILED:
            raise TurnFailedError(
                final, row.error_type or "", row.error_message or "", row.error_status, bool(row.error_retryable)
            )
        if reply is None:
            raise TurnCancelledError(final)
        return Message.of(reply)

    def cancel(self) -> bool:
        """Take the prompt back. A waiting turn is cancelled at once and never calls a model; a running one's call is
        broken off within two seconds. Twice is harmless; a reply that is stored already stays.

        Returns:
            Whether it could still be taken back. A running turn becomes ``cancelled`` a moment later: ``wait`` for it
            (TurnCancelledError) before you ``retry``.
        """
        connections = self._client.connections
        found, ready = sending.cancel(connections.database, self._row.session_id, self._row.number)
        reached("cancel.after_flag")
        if found is TurnState.RUNNING:
            ring_cancel(connections.broker)
        if ready is not None:
            connections.hints.publish(ready, self.session_id)
        self.refresh()
        return found in (TurnState.QUEUED, TurnState.RUNNING)

    def retry(self) -> "Turn":
        """Send the prompt of a failed or cancelled turn again, as a new turn at the end of the session.

        Raises:
            InvalidInputError: the turn is not final, or it has its reply, or it was joined into another.
        """
        self.refresh()
        if self.state not in (TurnState.FAILED, TurnState.CANCELLED):
            raise InvalidInputError(f"turn {self.id} is {self.state}: only a failed or a cancelled turn is sent again")
        if self.merged_into is not None:
            raise InvalidInputError(
                f"turn {self.id} was joined into turn {self.merged_into}, which answers its prompt: retry that one, if it "
                "failed or was cancelled"
            )
        session = Session(self._client, self.session_id, self._row.session_id)
        return session._send(self.prompt, retry_of=self.number, options=self._row.options, lane=self._row.lane)


def checked_key(key: object) -> str | None:
    """Raises: InvalidInputError."""
    if key is None or (isinstance(key, str) and 0 < len(key) <= 200 and storable(key) == key):
        return key
    raise InvalidInputError(f"idempotency key {key!r:.100} is refused: use 1 to 200 characters")


def checked_choice(name: str, chosen: Choice, choices: tuple[Choice, ...]) -> Choice:
    """Raises: InvalidInputError."""
    if chosen not in choices:
        raise InvalidInputError(f"{name} is {chosen!r:.100}: it is one of {', '.join(map(repr, choices))}")
    return chosen
