"""The handles on a session and on its turns. They hold an ID and nothing else: whoever has the ID has the session."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self

from inturn.connections import Connected, Connections
from inturn.models.content import checked_prompt, storable
from inturn.models.errors import (
    ClosedError,
    InvalidInputError,
    SendTimeoutError,
    SessionNotFoundError,
    TurnCancelledError,
    TurnFailedError,
)
from inturn.models.states import TurnState
from inturn.models.store import reading, sending
from inturn.models.store.reading import TurnRecord
from inturn.records import Message, SessionMetadata, TurnError, checked_message_id, checked_options
from inturn.waiting import in_seconds
from inturn.workers.events import ring_cancel

PAGE = 100

Timeout = float | timedelta | None
WhenBusy = Literal["enqueue", "reject"]


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
        options: Mapping[str, Any] | None = None,
    ) -> "Turn":
        """Store a prompt to be answered after all earlier ones. Returned means stored: no reply exists yet.

        Args:
            idempotency_key: sending again with the same key and prompt gives the same turn back.
            when_busy: with unfinished turns before it, ``"enqueue"`` waits, ``"reject"`` stores nothing.
            options: for the provider, with this turn only, ahead of the session's.

        Raises:
            InvalidPromptError: empty, or larger than 256 KiB.
            SessionNotFoundError: the session was deleted.
            SessionBusyError, IdempotencyConflictError: nothing was stored.
        """
        return self._send(prompt, idempotency_key=idempotency_key, when_busy=when_busy, options=options)

    def _send(self, prompt: str, retry_of: int | None = None, **how: Any) -> "Turn":
        connections, key = self._connections, how.get("idempotency_key")
        if how.get("when_busy", "enqueue") not in ("enqueue", "reject"):
            raise InvalidInputError(f"when_busy is {how['when_busy']!r}: it is 'enqueue' or 'reject'")
        if key is not None and not (isinstance(key, str) and 0 < len(key) <= 200 and storable(key) == key):
            raise InvalidInputError(f"idempotency key {key!r:.100} is refused: use 1 to 200 characters")
        sent = sending.send(
            connections.database,
            self.session_id,
            checked_prompt(prompt),
            session_id=self._surrogate,
            retry_of=retry_of,
            **(how | {"options": checked_options(how.get("options"))}),
        )
        if sent.hint:
            connections.hints.publish(sent, self.session_id)
        return Turn(self._client, reading.get_turn(connections.database, sent.session_id, sent.number))

    def send_and_wait(
        self,
        prompt: str,
        *,
        timeout: Timeout = 60.0,
        idempotency_key: str | None = None,
        when_busy: WhenBusy = "enqueue",
        options: Mapping[str, Any] | None = None,
    ) -> Message:
        """Send, and wait for the reply to this very prompt; see ``send`` and ``Turn.wait`` for what they raise."""
        return self.send(prompt, idempotency_key=idempotency_key, when_busy=when_busy, options=options).wait(timeout)

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
    def retry_of(self) -> int | None:
        """The number of the turn whose prompt this one sent again."""
        return self._row.retry_of

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
        """The reply to this turn's prompt, once it is stored.

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
        if connections.waiter.until_final(self._row.session_id, self._row.number, seconds) is None:
            raise SendTimeoutError(self, seconds or 0.0)
        self.refresh()
        if self.state is TurnState.FAILED:
            row = self._row
            raise TurnFailedError(
                self.id, row.error_type or "", row.error_message or "", row.error_status, bool(row.error_retryable)
            )
        reply = reading.get_reply(connections.database, self._row.session_id, self._row.number)
        if reply is None:
            raise TurnCancelledError(self.id)
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
        if found is TurnState.RUNNING:
            ring_cancel(connections.broker)
        if ready is not None:
            connections.hints.publish(ready, self.session_id)
        self.refresh()
        return found in (TurnState.QUEUED, TurnState.RUNNING)

    def retry(self) -> "Turn":
        """Send the prompt of a failed or cancelled turn again, as a new turn at the end of the session.

        Raises:
            InvalidInputError: the turn is not final, or it has its reply.
        """
        self.refresh()
        if self.state not in (TurnState.FAILED, TurnState.CANCELLED):
            raise InvalidInputError(f"turn {self.id} is {self.state}: only a failed or a cancelled turn is sent again")
        session = Session(self._client, self.session_id, self._row.session_id)
        return session._send(self.prompt, retry_of=self.number, options=self._row.options)
