"""The handle on a turn, and how one comes about."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar, get_args

from inturn.connections import Connected
from inturn.listening import gone_round, is_anew, rest, told
from inturn.models.content import checked_content, checked_lane, storable
from inturn.models.errors import (
    ContentRemovedError,
    InvalidInputError,
    SendTimeoutError,
    TurnCancelledError,
    TurnFailedError,
)
from inturn.models.failpoints import reached
from inturn.models.states import FINAL, Lane, TurnState
from inturn.models.store import chronicle, reading, sending
from inturn.models.store.reading import Attempt, TurnRecord
from inturn.models.store.sending import WhenBusy
from inturn.options import checked_options
from inturn.records import Message, SessionEvent, TurnError, checked_not_before, turn_id
from inturn.waiting import in_seconds
from inturn.workers.events import ring_cancel
from inturn.workers.live import Transcript

Choice = TypeVar("Choice", bound=str)
Timeout = float | timedelta | None
Content = str | Sequence[Mapping[str, Any]]
"""A prompt: a text, or parts as OpenAI writes them (``text``, ``image_url``; ``inturn.image`` makes one of an image)."""


def send(
    client: Connected,
    session_id: str,
    surrogate: int,
    prompt: Content,
    *,
    idempotency_key: str | None = None,
    when_busy: WhenBusy = "enqueue",
    not_before: datetime | timedelta | None = None,
    lane: str = "chat",
    options: Mapping[str, Any] | None = None,
    retry_of: int | None = None,
    stream: bool = False,
) -> "Turn":
    """Store a prompt, and tell a worker; see ``Session.send``."""
    connections = client.connections
    text, data = checked_content(prompt)
    with connections.tracer.send(lane := checked_lane(lane), session_id) as span:
        sent = sending.send(
            connections.database,
            session_id,
            text,
            data=data,
            session_id=surrogate,
            idempotency_key=checked_key(idempotency_key),
            when_busy=checked_choice("when_busy", when_busy, get_args(WhenBusy)),
            not_before=checked_not_before(not_before),
            lane=lane,
            options=checked_options(options),
            retry_of=retry_of,
            streams=bool(stream),
            trace=span.trace,
        )
        span.sent(sent.turn)
        reached("send.after_commit")
        if sent.interrupted:
            ring_cancel(connections.broker)
        if sent.hint:
            connections.hints.publish(sent, session_id)
    return Turn(client, sent.turn)


class TurnView:
    """What was known of a turn when it was last looked at: what its handles show, for threads and for asyncio."""

    _row: TurnRecord

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
    def prompt(self) -> str | None:
        """None: retention has removed what was said (``content_removed_at``)."""
        return self._row.prompt

    @property
    def parts(self) -> list[dict[str, Any]] | None:
        """The prompt in parts, if it was sent so: with images, for example. None: it is a text."""
        return (self._row.prompt_data or {}).get("parts")

    @property
    def content_removed_at(self) -> datetime | None:
        """When retention last removed what was said in its session up to here, and more perhaps: there is neither prompt nor
        reply any more. None: it did not.
        """
        return self._row.content_removed_at

    @property
    def model(self) -> str:
        """The model that is asked next; in the end, the one that answered, or failed last."""
        return self._row.model

    @property
    def fallbacks(self) -> list[str] | None:
        """The models that are asked if ``model`` fails; None: those that its provider's settings name."""
        return self._row.fallbacks

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
    def partial(self) -> str | None:
        """What was heard of a reply that was cut off; None: nothing was, or the reply is stored. Only of turns that were
        sent with ``stream``. No model is ever shown it.
        """
        return self._row.partial

    @property
    def input_tokens(self) -> int | None:
        """Of all its attempts together, as are ``output_tokens`` and ``price``; None: nobody knows of any."""
        return self._row.input_tokens

    @property
    def output_tokens(self) -> int | None:
        return self._row.output_tokens

    @property
    def price(self) -> float | None:
        """In US dollars; None: nothing was priced."""
        return self._row.price

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


class Turn(TurnView):
    """A handle on a turn, with what was known of it when it was last looked at (``refresh``)."""

    def __init__(self, client: Connected, row: TurnRecord) -> None:
        self._client = client
        self._row = row

    def get_attempts(self) -> list[Attempt]:
        """The calls to models that were made for it, in order: who was asked, what came of it, and what it cost."""
        return reading.list_attempts(self._client.connections.database, self._row.session_id, self._row.number)

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
            ContentRemovedError: there was one, and retention has removed it.
            TurnNotFoundError: its session was deleted.
            NoWorkerError: nobody is alive to reply; the turn stays stored.
        """
        seconds = in_seconds(timeout)
        answered_in = self._client.connections.waiter.until_final(self._row.session_id, self._row.number, seconds)
        if answered_in is None:
            raise SendTimeoutError(self, seconds or 0.0)
        return self._answer(answered_in)

    def get_reply(self) -> Message | None:
        """The reply, if it is stored already; waits for nothing. Of a joined turn, it is to be had from where it went. None
        also where retention has removed it (``content_removed_at``).

        Raises:
            TurnNotFoundError: its session was deleted.
        """
        with self._client.connections.database.reading() as db:
            self._row, reply = reading.find_answer(db, self._row.session_id, self._row.number)
        return None if reply is None else Message.of(reply)

    def _answer(self, answered_in: int) -> Message:
        """What came of it, now that this turn is final. Raises: TurnFailedError, TurnCancelledError, ContentRemovedError."""
        session = self._row.session_id
        with self._client.connections.database.reading() as db:
            row, reply = reading.find_answer(db, session, answered_in)
            self._row = row if answered_in == self._row.number else reading.find_turn(db, session, self._row.number)
        final = f"{row.session_id}.{row.number}"
        if row.state is TurnState.FAILED:
            raise TurnFailedError(
                final, row.error_type or "", row.error_message or "", row.error_status, bool(row.error_retryable)
            )
        if row.state is TurnState.COMPLETED and row.content_removed_at is not None:
            raise ContentRemovedError(final, row.content_removed_at)
        if reply is None:
            raise TurnCancelledError(final)
        return Message.of(reply)

    def stream(self, timeout: Timeout = None) -> Iterator[SessionEvent]:
        """The reply while it is written: pieces (``assistant.message_delta``), then the whole (``assistant.message``). Who
        comes late gets what was missed first, and who comes after the end, all of it.

        When a call is broken off in the middle and made again,
        ``assistant.message_discarded`` says that all pieces so far are void. The pieces since the last of those are
        together what the whole says. A turn that was not sent with ``stream`` comes in one piece.

        Args:
            timeout: for the whole reply, from now: seconds, or a timedelta; None waits for as long as it takes.

        Raises:
            SendTimeoutError, TurnFailedError, TurnCancelledError, ContentRemovedError, TurnNotFoundError, NoWorkerError: as
                ``wait`` does, where the next event would come.
        """
        seconds = in_seconds(timeout)
        _ = self._client.connections
        return self._stream(seconds, math.inf if seconds is None else time.monotonic() + seconds)

    def _stream(self, seconds: float | None, deadline: float) -> Iterator[SessionEvent]:
        transcript, is_final, steps = Transcript(self._row.number), False, Steps(self._client, self._row.session_id)
        waiter = self._client.connections.waiter
        for entries, found in waiter.follow(self._row.session_id, self._row.number, deadline):
            if found is not None:
                is_final = found.state in FINAL
                if found.number != transcript.turn or found.state is TurnState.QUEUED:
                    yield from steps.news(transcript)
                    if not transcript.is_empty:  # its call was broken off
                        yield SessionEvent.discarded(transcript.turn)
                    attempt = transcript.attempt if found.number == transcript.turn else 0
                    transcript = Transcript(found.number)
                    transcript.begin_anew(attempt)
            for entry in entries:
                if is_anew(transcript, entry):
                    yield from steps.news(transcript)
                yield from told(transcript, entry)
        if not is_final:
            raise SendTimeoutError(self, seconds or 0.0)
        message = self._answer(transcript.turn)
        if self._row.attempts > 1:
            yield from steps.news(transcript)
        yield from rest(transcript, message.data.content)
        yield SessionEvent.message(message)

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
            ContentRemovedError: retention has removed its prompt.
        """
        self.refresh()
        if self.state not in (TurnState.FAILED, TurnState.CANCELLED):
            raise InvalidInputError(f"turn {self.id} is {self.state}: only a failed or a cancelled turn is sent again")
        if self.merged_into is not None:
            raise InvalidInputError(
                f"turn {self.id} was joined into turn {self.merged_into}, which answers its prompt: retry that one, if it "
                "failed or was cancelled"
            )
        row, prompt = self._row, self.parts or self.prompt
        if prompt is None:
            raise ContentRemovedError(self.id, row.content_removed_at or row.created_at)
        return send(
            self._client, row.key, row.session_id, prompt,
            retry_of=row.number, options=row.options, lane=row.lane, stream=row.streams,
        )  # fmt: skip


class Steps:
    """The calls of tools in one session's turns, and what they gave, each told once."""

    def __init__(self, client: Connected, session_id: int) -> None:
        self._client, self._session_id = client, session_id
        self._known = (0, 0)

    def news(self, transcript: Transcript) -> Iterator[SessionEvent]:
        """What was stored since, of the turn that this is the transcript of."""
        with self._client.connections.database.reading() as db:
            found = chronicle.steps(db, self._session_id, transcript.turn, self._known)
        if found:
            self._known = (transcript.turn, found[-1].place)
            yield from gone_round(transcript, found)


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
