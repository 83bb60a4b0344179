"""What the SDK gives out: messages, turns' errors and sessions' metadata. Plain values; the handles are in ``client``."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from inturn.models.errors import InvalidInputError
from inturn.models.states import Retention, Role, TurnState
from inturn.models.store.chronicle import END, EventRecord
from inturn.models.store.reading import MessageRecord, SessionRecord
from inturn.models.tables import SUMMARY

LONGEST_RETENTION = timedelta(days=365_000)
"""No calendar of a database goes back much further."""

LONGEST_DELAY = timedelta(days=36_500)

MessageType = Literal[
    "session.content_removed",
    "system.message",
    "user.message",
    "assistant.message",
    "tool.message",
    "summary.message",
]
EventType = Literal[
    "session.start",
    "session.content_removed",
    "system.message",
    "user.message",
    "assistant.message",
    "tool.message",
    "summary.message",
    "assistant.message_delta",
    "assistant.message_discarded",
    "session.error",
    "abort",
]

ENDED = "end"
"""In an event's ID, in place of a message's position."""

TYPES: dict[Role, MessageType] = {
    Role.SYSTEM: "system.message",
    Role.USER: "user.message",
    Role.ASSISTANT: "assistant.message",
    Role.TOOL: "tool.message",
}


def type_of(role: Role, place: int) -> MessageType:
    return "summary.message" if place == SUMMARY else TYPES[role]


@dataclass(frozen=True, slots=True)
class MessageData:
    """What was said; what does not concern a message is None.

    Attributes:
        content: the text; of a tool's message, what the tool said.
        parts: of a prompt that was sent in parts.
        tool_calls: what the model wanted called, each with ``id`` and ``function`` (``name``, ``arguments``: a JSON text).
        tool_call_id: of a tool's message: which call it answers.
        name: of a tool's message: the tool.
    """

    content: str
    parts: list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance of a session.

    Attributes:
        id: ``<session>.<turn>.<position>``, for paging; never reused.
        type: ``user.message``, ``assistant.message``, ``system.message``, ``tool.message``, or ``summary.message``: what
            was said up to here, in short, for models to be shown in its place; or ``session.content_removed``, which stands
            for all that retention has removed, and is said by nobody.
        data: with ``content``, the text.
        timestamp: when it was stored (UTC, timezone-aware).
        turn: the number of its turn; of what was removed, the last one.
    """

    id: str
    type: MessageType
    data: MessageData
    timestamp: datetime
    turn: int

    @classmethod
    def of(cls, row: MessageRecord) -> "Message":
        return cls(
            f"{row.session_id}.{row.turn_number}.{row.position}",
            type_of(row.role, row.position),
            MessageData(row.content, **row.data or {}),
            row.created_at,
            row.turn_number,
        )

    @classmethod
    def removed(cls, session: SessionRecord, at: datetime) -> "Message":
        """What stands where retention has removed the content."""
        what = (
            f"what was said up to turn {session.content_removed_to}" if session.content_removed_to else "what was said"
        )
        data = MessageData(f"{what} was removed by retention on {at:%Y-%m-%d %H:%M} UTC")
        return cls(f"{session.id}.0.1", "session.content_removed", data, at, session.content_removed_to)


@dataclass(frozen=True, slots=True)
class EventData:
    """What an event is about; what does not concern its type is empty.

    Attributes:
        content: the text of a message.
        delta_content: the next piece of a reply that is being written.
        error_type, message, status_code: of ``session.error``, as in ``TurnError``; ``message`` of ``abort`` says why.
        tool_calls, tool_call_id, name: as in ``MessageData``.
    """

    content: str = ""
    delta_content: str = ""
    error_type: str | None = None
    message: str | None = None
    status_code: int | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something that happened in a session.

    Attributes:
        id: of what is stored: of a message, its own; None of a delta or a discarding, which is not.
        type: ``session.start``, ``user.message``, ``assistant.message_delta``, ``assistant.message``, ...
        data: with ``content``, ``delta_content`` or what went wrong.
        timestamp: when it was stored; of what is not, when it was heard (UTC, timezone-aware).
        turn: the number of its turn; None of ``session.start``.
    """

    id: str | None
    type: EventType
    data: EventData
    timestamp: datetime
    turn: int | None

    @classmethod
    def start(cls, session: SessionRecord) -> "SessionEvent":
        return cls(f"{session.id}.0.0", "session.start", EventData(), session.created_at, None)

    @classmethod
    def message(cls, message: Message) -> "SessionEvent":
        data = EventData(message.data.content, tool_calls=message.data.tool_calls)
        return cls(message.id, message.type, data, message.timestamp, message.turn)

    @classmethod
    def of(cls, row: EventRecord) -> "SessionEvent":
        kind: EventType
        if isinstance(row.what, Role):
            beside = {name: value for name, value in (row.data or {}).items() if name != "parts"}
            data, kind, place = EventData(row.text, **beside), type_of(row.what, row.place), str(row.place)
        elif row.what is TurnState.FAILED:
            data = EventData(error_type=row.error_type, message=row.text, status_code=row.error_status)
            kind, place = "session.error", ENDED
        else:
            joined = turn_id(row.session_id, row.merged_into)
            data, kind, place = EventData(message=f"joined into turn {joined}" if joined else None), "abort", ENDED
        return cls(f"{row.session_id}.{row.turn_number}.{place}", kind, data, row.happened_at, row.turn_number)

    @classmethod
    def delta(cls, turn: int, text: str) -> "SessionEvent":
        return cls(None, "assistant.message_delta", EventData(delta_content=text), datetime.now(UTC), turn)

    @classmethod
    def discarded(cls, turn: int) -> "SessionEvent":
        """All deltas of this turn so far are void: its call was broken off, or called tools; the next one begins anew."""
        return cls(None, "assistant.message_discarded", EventData(), datetime.now(UTC), turn)


@dataclass(frozen=True, slots=True)
class TurnError:
    """Why a turn failed, or its last attempt did.

    Attributes:
        error_type: for machines: ``rate_limited``, ``timeout``, ``invalid_request``, ...
        message: for people.
        status_code: the provider's HTTP status, if it sent one.
        retryable: whether sending the prompt again may succeed.
    """

    error_type: str | None
    message: str
    status_code: int | None
    retryable: bool | None


@dataclass(frozen=True, slots=True)
class SessionMetadata:
    """A session without its messages.

    Attributes:
        fallbacks: who is asked if the model fails; None: those that its provider's settings name.
        overflow: ``"truncate"``, ``"fail"`` or ``"summarise"``.
        tools: names of those that its model may call; None: none.
        turns: how many were sent, in whatever state they are.
        messages: how many are stored.
        busy: whether a turn is queued or running.
        retention: ``"policy"``, an idle time of its own, or None: never removed for being idle.
        held: exempt from retention: cleanup never removes it; ``hold_reason``, ``held_by`` and ``held_at`` say why, for whom
            and since when.
        halts: whether it stops behind a quarantined turn.
        halted_by: the ID of the quarantined turn behind which it stands still; None: it goes on.
        imported_at: when it was made of a transcript or an archive, whose ``created_at`` it has; None: it was not. Its age
            counts from here.
        content_removed_at: when retention last removed what was said in it, and kept the rest; None: it never did.
        content_removed_to: the number of the last turn of which it did; what was said since is there.
        cursor: goes into ``list_sessions(after=...)`` to go on behind this one.
    """

    session_id: str
    model: str
    fallbacks: list[str] | None
    system_message: str | None
    options: dict[str, Any] = field(repr=False)
    labels: dict[str, Any]
    context_turns: int | None
    context_tokens: int | None
    overflow: str
    tools: list[str] | None
    retention: timedelta | Literal["policy"] | None
    held: bool
    hold_reason: str | None
    held_by: str | None
    held_at: datetime | None
    halts: bool
    halted_by: str | None
    content_removed_at: datetime | None
    content_removed_to: int
    created_at: datetime
    imported_at: datetime | None
    last_activity_at: datetime
    turns: int
    messages: int
    busy: bool
    cursor: str

    @classmethod
    def of(cls, row: SessionRecord) -> "SessionMetadata":
        return cls(
            session_id=row.key,
            model=row.model,
            fallbacks=row.fallbacks,
            system_message=row.system_message,
            options=dict(row.options),
            labels=dict(row.labels),
            context_turns=row.context_turns,
            context_tokens=row.context_tokens,
            overflow=str(row.overflow),
            tools=row.tools,
            retention=retention_of(row),
            held=row.held,
            hold_reason=row.hold_reason,
            held_by=row.held_by,
            held_at=row.held_at,
            halts=row.halts,
            halted_by=turn_id(row.id, row.halted_by),
            content_removed_at=row.content_removed_at,
            content_removed_to=row.content_removed_to,
            created_at=row.created_at,
            imported_at=row.imported_at,
            last_activity_at=row.last_activity_at,
            turns=row.turns,
            messages=row.messages,
            busy=row.busy,
            cursor=str(row.id),
        )


def turn_id(session: int, number: int | None) -> str | None:
    """As users name a turn; None where there is none."""
    return None if number is None else f"{session}.{number}"


def retention_of(row: SessionRecord) -> timedelta | Literal["policy"] | None:
    if row.retention is Retention.IDLE and row.retention_seconds is not None:
        return timedelta(seconds=row.retention_seconds)
    return "policy" if row.retention is Retention.POLICY else None


def retention_rule(retention: timedelta | Literal["policy"] | None) -> tuple[Retention, float | None]:
    """As it is stored. Raises: InvalidInputError."""
    if retention is None:
        return Retention.NEVER, None
    if retention == "policy":
        return Retention.POLICY, None
    if isinstance(retention, timedelta) and timedelta(0) < retention <= LONGEST_RETENTION:
        return Retention.IDLE, retention.total_seconds()
    raise InvalidInputError(
        f"retention is {retention!r}: use a positive timedelta of {LONGEST_RETENTION.days:,} days at most, "
        "'policy', or None for never"
    )


def checked_moment(moment: datetime | None) -> datetime | None:
    """Raises: InvalidInputError."""
    if moment is not None and not isinstance(moment, datetime):
        raise InvalidInputError(
            f"{moment!r:.100} is no moment: use a datetime with its timezone, for example datetime.now(UTC) - "
            "timedelta(days=7)"
        )
    if moment is not None and moment.tzinfo is None:
        raise InvalidInputError(f"{moment.isoformat()} has no timezone, so it names no moment: use moment.astimezone()")
    return moment


def checked_not_before(moment: datetime | timedelta | None) -> datetime | timedelta | None:
    """Raises: InvalidInputError."""
    if moment is None or (isinstance(moment, timedelta) and timedelta(0) < moment <= LONGEST_DELAY):
        return moment
    if isinstance(moment, datetime):
        try:
            return (checked_moment(moment) or moment).astimezone(UTC)
        except OverflowError:
            pass
    raise InvalidInputError(
        f"not_before is {moment!r:.100}: use a datetime with its timezone, or a positive timedelta of "
        f"{LONGEST_DELAY.days:,} days at most"
    )


def checked_cursor(cursor: str | None) -> int:
    """Raises: InvalidInputError."""
    if cursor is None:
        return 0
    if not (isinstance(cursor, str) and cursor.isdecimal() and len(cursor) < 19):
        raise InvalidInputError(f"{cursor!r:.100} is no cursor: use the `cursor` of the last session seen")
    return int(cursor)


def checked_limit(name: str, limit: int | None) -> int | None:
    """How many at most. Raises: InvalidInputError."""
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidInputError(
            f"{name} is {limit!r:.50}: it is a number from 0" + ", or None: all" * (name == "limit")
        )
    return limit


def checked_event_id(event_id: str | None, session_id: int) -> tuple[int, int] | None:
    """Turn and place. Raises: InvalidInputError."""
    if event_id is None:
        return None
    name, _, place = str(event_id).rpartition(".")
    try:
        turn, position = checked_message_id(f"{name}.0" if place == ENDED else event_id, session_id)
    except InvalidInputError:
        raise InvalidInputError(f"{event_id!r:.100} is no ID of an event of this session") from None
    return turn, END if place == ENDED else position


def checked_message_id(message_id: str | None, session_id: int) -> tuple[int, int]:
    """Turn and position. Raises: InvalidInputError."""
    if message_id is None:
        return 0, 0
    parts = str(message_id).split(".")
    if (
        len(parts) != 3
        or not all(part.isdecimal() and len(part) < 10 for part in parts[1:])
        or parts[0] != str(session_id)
    ):
        raise InvalidInputError(f"{message_id!r:.100} is no ID of a message of this session")
    return int(parts[1]), int(parts[2])
