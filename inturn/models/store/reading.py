"""What the asking side looks at. Pages go by keys, so that they cost the same at turn 10 and at turn 100,000."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
)

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError, TurnNotFoundError
from inturn.models.states import AttemptOutcome, Lane, Overflow, Retention, Role, SessionState, TurnState
from inturn.models.store.opening import PROMPT, REPLY, SYSTEM
from inturn.models.store.selecting import SessionFilter, has_work
from inturn.models.tables import ATTEMPTS, LEASES, MESSAGES, QUARANTINED, SESSIONS, TURNS


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session, without its text."""

    id: int
    key: str
    model: str
    system_message: str | None
    options: dict[str, Any]
    labels: dict[str, Any]
    fallbacks: list[str] | None
    context_turns: int | None
    context_tokens: int | None
    overflow: Overflow
    tools: list[str] | None
    held: bool
    hold_reason: str | None
    held_by: str | None
    held_at: datetime | None
    retention: Retention
    retention_seconds: float | None
    halts: bool
    halted_by: int | None
    content_removed_at: datetime | None
    content_removed_to: int
    created_at: datetime
    imported_at: datetime | None
    last_activity_at: datetime
    turns: int
    messages: int
    busy: bool


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn with its prompt, unless what was said in it was removed (``content_removed_at``)."""

    session_id: int
    key: str
    number: int
    state: TurnState
    lane: Lane
    model: str
    fallbacks: list[str] | None
    options: dict[str, Any]
    prompt: str | None
    prompt_data: dict[str, Any] | None
    content_removed_at: datetime | None
    attempts: int
    rescues: int
    retry_of: int | None
    merged_into: int | None
    streams: bool
    partial: str | None
    ready_at: datetime
    not_before: datetime | None
    """``ready_at``, while it waits for that moment."""
    cancel_requested_at: datetime | None
    error_type: str | None
    error_message: str | None
    error_status: int | None
    error_retryable: bool | None
    input_tokens: int | None
    output_tokens: int | None
    price: float | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to a model.

    Attributes:
        number: its place among the turn's, from 1; of one that was withdrawn before its call nothing is kept.
        model: who was asked; None: it was made before this was recorded.
        outcome: ``completed``, ``safe`` (the provider did no work), ``ambiguous`` (it may have), ``permanent``,
            ``cancelled``, ``lost`` (its worker died); None: it is under way.
        estimated: whether the tokens are our guess, since the provider did not count them.
        price: in US dollars; None: nobody knows.
        price_table: who says so.
    """

    number: int
    model: str | None
    started_at: datetime
    ended_at: datetime | None
    outcome: AttemptOutcome | None
    error_type: str | None
    status_code: int | None
    request_id: str | None
    input_tokens: int | None
    output_tokens: int | None
    estimated: bool
    price: float | None
    price_table: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a turn stands."""

    number: int
    state: TurnState


@dataclass(frozen=True, slots=True)
class MessageRecord:
    session_id: int
    turn_number: int
    position: int
    role: Role
    content: str
    data: dict[str, Any] | None
    created_at: datetime


def _sessions() -> Select[Any]:
    messages = select(func.count()).where(MESSAGES.c.session_id == SESSIONS.c.id).scalar_subquery()
    system = (
        select(MESSAGES.c.content)
        .where(
            MESSAGES.c.session_id == SESSIONS.c.id,
            MESSAGES.c.turn_number == SESSIONS.c.system_turn,
            MESSAGES.c.position == SYSTEM,
        )
        .scalar_subquery()
    )
    halted_by = select(LEASES.c.halted_by).where(LEASES.c.session_id == SESSIONS.c.id).scalar_subquery()
    return select(
        *columns(SESSIONS, SessionRecord, but=("system_message", "turns", "messages", "busy", "halted_by")),
        halted_by.label("halted_by"),
        system.label("system_message"),
        (SESSIONS.c.next_turn - 1).label("turns"),
        messages.label("messages"),
        has_work().label("busy"),
    )


def columns(table: Table, record: type[Any], but: Sequence[str] = ()) -> list[ColumnElement[Any]]:
    """The table's columns that the record names."""
    return [table.c[name] for name in record.__slots__ if name not in but]


def list_sessions(database: Database, wanted: SessionFilter, after: int = 0, limit: int = 100) -> list[SessionRecord]:
    """A page of sessions in the order in which they were made: rows that arrive meanwhile come at the end."""
    with database.reading() as db:
        page = (
            _sessions()
            .where(*wanted.conditions(database.dialect), SESSIONS.c.id > after)
            .order_by(SESSIONS.c.id)
            .limit(limit)
        )
        return [_session(row) for row in db.execute(page)]


def _session(row: Row[*tuple[Any, ...]]) -> SessionRecord:
    values = dict(row._mapping)
    kinds = {"retention": Retention(values["retention"]), "overflow": Overflow(values["overflow"])}
    return SessionRecord(**(values | kinds | {"busy": bool(values["busy"])}))


def get_session(database: Database, key: str) -> SessionRecord:
    """Raises: SessionNotFoundError."""
    found = list_sessions(database, SessionFilter(key=key), limit=1)
    if not found:
        raise SessionNotFoundError(key)
    return found[0]


def last_session_key(database: Database) -> str | None:
    """The session that was last created, resumed, or sent to."""
    active = select(SESSIONS.c.key).where(SESSIONS.c.state == SessionState.ACTIVE)
    with database.reading() as db:
        return db.execute(active.order_by(SESSIONS.c.last_activity_at.desc(), SESSIONS.c.id.desc()).limit(1)).scalar()


NOT_OF_TURNS = ("key", "prompt", "prompt_data", "content_removed_at", "not_before")


def _turns() -> Select[Any]:
    asked = MESSAGES.alias("asked")
    is_prompt = (
        (asked.c.session_id == TURNS.c.session_id)
        & (asked.c.turn_number == TURNS.c.number)
        & (asked.c.position == PROMPT)
    )
    is_put_off = (TURNS.c.state == TurnState.QUEUED) & (TURNS.c.ready_at > now())
    chosen = select(
        *columns(TURNS, TurnRecord, but=NOT_OF_TURNS),
        asked.c.content.label("prompt"),
        asked.c.data.label("prompt_data"),
        case((is_put_off, TURNS.c.ready_at)).label("not_before"),
        case((TURNS.c.number <= SESSIONS.c.content_removed_to, SESSIONS.c.content_removed_at)).label(
            "content_removed_at"
        ),
        SESSIONS.c.key,
    )
    return chosen.join(SESSIONS, SESSIONS.c.id == TURNS.c.session_id).outerjoin(asked, is_prompt)


def _turn(row: dict[str, Any]) -> TurnRecord:
    typed = {"state": TurnState(row["state"]), "lane": Lane(row["lane"]), "streams": bool(row["streams"])}
    return TurnRecord(**{**row, **typed})


ONE_TURN = _turns().where(TURNS.c.session_id == bindparam("session"), TURNS.c.number == bindparam("of_number"))


def get_turn(database: Database, session_id: int, number: int) -> TurnRecord:
    """Raises: TurnNotFoundError."""
    with database.reading() as db:
        return find_turn(db, session_id, number)


def get_turns(database: Database, places: Sequence[tuple[int, int]]) -> list[TurnRecord]:
    """Turns by session and number, in this order."""
    mine = _turns().where(tuple_(TURNS.c.session_id, TURNS.c.number).in_(places))
    with database.reading() as db:
        found = {(row.session_id, row.number): _turn(dict(row._mapping)) for row in db.execute(mine)}
    return [found[place] for place in places]


def find_turn(db: Connection, session_id: int, number: int) -> TurnRecord:
    """Raises: TurnNotFoundError."""
    row = db.execute(ONE_TURN, {"session": session_id, "of_number": number}).one_or_none()
    if row is None:
        raise no_turn(db, session_id, number)
    return _turn(dict(row._mapping))


def no_turn(db: Connection, session_id: int, number: int) -> TurnNotFoundError:
    """What to raise; where the session is there, it says how far its turns go."""
    active = (SESSIONS.c.id == session_id) & (SESSIONS.c.state == SessionState.ACTIVE)
    session = db.execute(select(SESSIONS.c.key, SESSIONS.c.next_turn).where(active)).one_or_none()
    if session is None:
        return TurnNotFoundError(f"{session_id}.{number}")
    last = session.next_turn - 1
    has = f"turns up to {session_id}.{last} (`inturn turn list {session.key}`)" if last else "no turns yet"
    return TurnNotFoundError(f"{session_id}.{number}", f"session {session.key!r} has {has}")


def list_turns(
    database: Database, session_id: int, state: TurnState | None = None, after: int = 0, limit: int = 100
) -> list[TurnRecord]:
    """A page of a session's turns, by number."""
    page = _turns().where(TURNS.c.session_id == session_id, TURNS.c.number > after)
    if state is not None:
        page = page.where(TURNS.c.state == state)
    with database.reading() as db:
        return [_turn(dict(row._mapping)) for row in db.execute(page.order_by(TURNS.c.number).limit(limit))]


def list_attempts(database: Database, session_id: int, number: int) -> list[Attempt]:
    """The attempts at a turn, in order."""
    mine = (ATTEMPTS.c.session_id == session_id) & (ATTEMPTS.c.turn_number == number)
    with database.reading() as db:
        rows = db.execute(select(*columns(ATTEMPTS, Attempt)).where(mine).order_by(ATTEMPTS.c.number))
        return [_attempt(dict(row._mapping)) for row in rows]


def _attempt(row: dict[str, Any]) -> Attempt:
    outcome = None if row["outcome"] is None else AttemptOutcome(row["outcome"])
    return Attempt(**{**row, "outcome": outcome, "estimated": bool(row["estimated"])})


def list_quarantined(
    database: Database, session_id: int | None = None, before: TurnRecord | None = None, limit: int = 100
) -> list[TurnRecord]:
    """A page of quarantined turns, of all sessions or of one, newest first; ``before``: the last one seen."""
    # As text: only in the words of the index is it plain to both databases that the index has them all.
    page = _turns().where(text(f"turns.{QUARANTINED}"))
    newest_first = (TURNS.c.finished_at, TURNS.c.session_id, TURNS.c.number)
    if session_id is not None:
        page = page.where(TURNS.c.session_id == session_id)
    if before is not None:
        last = (literal(getattr(before, column.name), column.type) for column in newest_first)
        page = page.where(TURNS.c.finished_at <= before.finished_at, tuple_(*newest_first) < tuple_(*last))
    with database.reading() as db:
        rows = db.execute(page.order_by(*(column.desc() for column in newest_first)).limit(limit))
        return [_turn(dict(row._mapping)) for row in rows]


def list_messages(
    database: Database, session_id: int, after: tuple[int, int] = (0, 0), limit: int = 100
) -> list[MessageRecord]:
    """A page of a session's history, in order. ``after``: turn and position of the last message before it."""
    turn, position = after
    later = or_(
        MESSAGES.c.turn_number > turn,
        (MESSAGES.c.turn_number == turn) & (MESSAGES.c.position > position),
    )
    with database.reading() as db:
        rows = db.execute(
            select(*columns(MESSAGES, MessageRecord))
            .where(MESSAGES.c.session_id == session_id, MESSAGES.c.turn_number >= turn, later)
            .order_by(MESSAGES.c.turn_number, MESSAGES.c.position)
            .limit(limit)
        ).all()
    return [_message(row) for row in rows]


def _message(row: Row[*tuple[Any, ...]]) -> MessageRecord:
    return MessageRecord(**(dict(row._mapping) | {"role": Role(row.role)}))


OUTCOME = select(TURNS.c.state, TURNS.c.merged_into).where(
    TURNS.c.session_id == bindparam("session"), TURNS.c.number == bindparam("of_number")
)


def outcome(db: Connection, session_id: int, number: int) -> Outcome | None:
    """Where the turn stands, or the one that it is joined into: what a waiter looks at again and again."""
    while True:
        row = db.execute(OUTCOME, {"session": session_id, "of_number": number}).one_or_none()
        if row is None or row.merged_into is None:
            return None if row is None else Outcome(number, TurnState(row.state))
        number = row.merged_into


REPLIES = MESSAGES.alias("reply")
ANSWER = ONE_TURN.add_columns(*(REPLIES.c[name].label(f"reply_{name}") for name in MessageRecord.__slots__)).outerjoin(
    REPLIES,
    (REPLIES.c.session_id == TURNS.c.session_id)
    & (REPLIES.c.turn_number == TURNS.c.number)
    & (REPLIES.c.position == REPLY + TURNS.c.steps),
)


def find_answer(db: Connection, session_id: int, number: int) -> tuple[TurnRecord, MessageRecord | None]:
    """A turn and its reply, if it has one. Raises: TurnNotFoundError."""
    row = db.execute(ANSWER, {"session": session_id, "of_number": number}).one_or_none()
    if row is None:
        raise no_turn(db, session_id, number)
    values = dict(row._mapping)
    reply = {name: values.pop(f"reply_{name}") for name in MessageRecord.__slots__}
    return _turn(values), None if reply["role"] is None else MessageRecord(**reply | {"role": Role(reply["role"])})
