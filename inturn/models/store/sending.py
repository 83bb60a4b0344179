"""What the asking side changes: sessions made and resumed, prompts accepted, turns cancelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, case, delete, func, insert, null, select, update
from sqlalchemy.dialects import postgresql, sqlite

from inturn.models.clock import now
from inturn.models.content import storable
from inturn.models.database import Database
from inturn.models.errors import (
    IdempotencyConflictError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    TurnNotFoundError,
)
from inturn.models.states import UNFINISHED, Lane, Retention, Role, SessionState, TurnState
from inturn.models.store import retention
from inturn.models.tables import LEASES, MESSAGES, SESSIONS, TURNS

HINT_STALE_SECONDS = 5.0
"""A ready session whose hint is older is hinted again by the next send: it may have been lost."""

UPSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
SYSTEM, PROMPT = 0, 1
"""Positions of messages within a turn."""


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a session is made from."""

    key: str
    model: str
    system_message: str | None = None
    options: dict[str, Any] | None = None
    labels: dict[str, Any] | None = None
    context_turns: int | None = None
    retention: Retention = Retention.POLICY
    retention_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A session with work that waits for a hint."""

    session_id: int
    key: str
    lane: Lane


@dataclass(frozen=True, slots=True)
class Sent:
    """An accepted prompt, and whether a worker must be told."""

    session_id: int
    number: int
    lane: Lane
    hint: bool


def create_session(database: Database, new: NewSession) -> int:
    """Make a session; returns its surrogate id.

    Raises:
        SessionExistsError: the ID is taken; nothing was changed.
    """
    created = database.transact(lambda db: _create(db, new))
    if created is None and retention.finish_removal(database, new.key):
        created = database.transact(lambda db: _create(db, new))
    if created is None:
        raise SessionExistsError(new.key)
    return created


def _create(db: Connection, new: NewSession) -> int | None:
    insert_session = (
        UPSERT[db.dialect.name](SESSIONS)
        .values(
            key=new.key,
            model=new.model,
            system_turn=1 if new.system_message else None,
            options=new.options or {},
            labels=new.labels or {},
            context_turns=new.context_turns,
            held=False,
            retention=new.retention,
            retention_seconds=new.retention_seconds,
            state=SessionState.ACTIVE,
            next_turn=1,
            created_at=now(),
            last_activity_at=now(),
        )
        .on_conflict_do_nothing(index_elements=["key"])
        .returning(SESSIONS.c.id)
    )
    session_id: int | None = db.execute(insert_session).scalar()
    if session_id is None:
        return None
    db.execute(insert(LEASES).values(session_id=session_id, token=0, lane=Lane.CHAT))
    if new.system_message:
        _write(db, session_id, 1, SYSTEM, Role.SYSTEM, new.system_message)
    return session_id


def _write(db: Connection, session_id: int, turn: int, position: int, role: Role, content: str) -> None:
    values = {
        "session_id": session_id,
        "turn_number": turn,
        "position": position,
        "role": role,
        "content": storable(content),
        "created_at": now(),
    }
    statement = UPSERT[db.dialect.name](MESSAGES).values(values)
    # A system message that was changed twice before a send replaces itself: no model was ever shown the first.
    if position == SYSTEM:
        statement = statement.on_conflict_do_update(
            index_elements=["session_id", "turn_number", "position"], set_={"content": values["content"]}
        )
    db.execute(statement)


def _unsay(db: Connection, session_id: int, turn: int) -> None:
    """Take back a system message before anything was sent under it."""
    said = (MESSAGES.c.session_id == session_id) & (MESSAGES.c.turn_number == turn) & (MESSAGES.c.position == SYSTEM)
    db.execute(delete(MESSAGES).where(said))


def resume_session(database: Database, key: str, model: str | None = None, system_message: str | None = None) -> int:
    """Take a session up again, from now on with another model or system message if given; returns its surrogate id.

    Raises:
        SessionNotFoundError: there is none of that ID.
    """

    def resume(db: Connection) -> int:
        changes: dict[str, Any] = {"last_activity_at": now()}
        if model is not None:
            changes["model"] = model
        if system_message is not None:
            changes["system_turn"] = SESSIONS.c.next_turn if system_message else None
        row = db.execute(
            update(SESSIONS)
            .where(SESSIONS.c.key == key, SESSIONS.c.state == SessionState.ACTIVE)
            .values(changes)
            .returning(SESSIONS.c.id, SESSIONS.c.next_turn)
        ).one_or_none()
        if row is None:
            raise SessionNotFoundError(key)
        if system_message:
            _write(db, row.id, row.next_turn, SYSTEM, Role.SYSTEM, system_message)
        elif system_message is not None:
            _unsay(db, row.id, row.next_turn)
        return int(row.id)

    return database.transact(resume)


def hold(database: Database, key: str, held: bool) -> None:
    """Exempt a session from retention, or no longer. Raises: SessionNotFoundError."""

    def change(db: Connection) -> None:
        mine = (SESSIONS.c.key == key) & (SESSIONS.c.state == SessionState.ACTIVE)
        if not db.execute(update(SESSIONS).where(mine).values(held=held)).rowcount:
            raise SessionNotFoundError(key)

    database.transact(change)


@dataclass(frozen=True, slots=True)
class _Prompted:
    """A prompt on its way in; see ``send``."""

    key: str
    prompt: str
    session_id: int | None
    idempotency_key: str | None
    when_busy: Literal["enqueue", "reject"]
    options: dict[str, Any]
    lane: Lane
    retry_of: int | None

    def session(self) -> ColumnElement[bool]:
        mine = (SESSIONS.c.key == self.key) & (SESSIONS.c.state == SessionState.ACTIVE)
        return mine if self.session_id is None else mine & (SESSIONS.c.id == self.session_id)


def send(
    database: Database,
    key: str,
    prompt: str,
    *,
    session_id: int | None = None,
    idempotency_key: str | None = None,
    when_busy: Literal["enqueue", "reject"] = "enqueue",
    options: dict[str, Any] | None = None,
    lane: Lane = Lane.CHAT,
    retry_of: int | None = None,
) -> Sent:
    """Accept a prompt: number it, store it, and make the session ready. Returned means stored.

    Args:
        key: the session's ID.
        session_id: the surrogate id that the caller's handle stands for; a session that was deleted and made again
            under the same key is another one.
        idempotency_key: the same key and prompt again is the same turn.

    Raises:
        SessionNotFoundError, SessionBusyError, IdempotencyConflictError: nothing was stored.
    """
    new = _Prompted(key, prompt, session_id, idempotency_key, when_busy, options or {}, lane, retry_of)
    return database.transact(lambda db: _sent_before(db, new) or _accept(db, new))


def _sent_before(db: Connection, new: _Prompted) -> Sent | None:
    """The turn that the idempotency key stands for already. Takes the session's lock, so that two of a kind wait."""
    if new.idempotency_key is None:
        return None
    locked = db.execute(select(SESSIONS.c.id).where(new.session()).with_for_update(key_share=True)).scalar()
    if locked is None:
        raise SessionNotFoundError(new.key)
    row = db.execute(
        select(TURNS.c.number, TURNS.c.lane, MESSAGES.c.content)
        .join(MESSAGES, (MESSAGES.c.session_id == TURNS.c.session_id) & (MESSAGES.c.turn_number == TURNS.c.number))
        .where(
            TURNS.c.session_id == locked,
            TURNS.c.idempotency_key == new.idempotency_key,
            MESSAGES.c.position == PROMPT,
        )
    ).one_or_none()
    if row is None:
        return None
    if row.content != storable(new.prompt):
        raise IdempotencyConflictError(new.key, new.idempotency_key)
    return Sent(locked, row.number, Lane(row.lane), hint=False)


def _accept(db: Connection, new: _Prompted) -> Sent:
    row = db.execute(
        update(SESSIONS)
        .where(new.session())
        .values(next_turn=SESSIONS.c.next_turn + 1, last_activity_at=now())
        .returning(SESSIONS.c.id, SESSIONS.c.next_turn, SESSIONS.c.model, SESSIONS.c.system_turn)
    ).one_or_none()
    if row is None:
        raise SessionNotFoundError(new.key)
    number = row.next_turn - 1
    if new.when_busy == "reject" and _is_busy(db, row.id):
        raise SessionBusyError(new.key)
    db.execute(
        insert(TURNS).values(
            session_id=row.id,
            number=number,
            state=TurnState.QUEUED,
            lane=new.lane,
            model=row.model,
            system_turn=row.system_turn,
            options=new.options,
            idempotency_key=new.idempotency_key,
            ready_at=now(),
            attempts=0,
            ambiguous=0,
            rescues=0,
            retry_of=new.retry_of,
            created_at=now(),
        )
    )
    _write(db, row.id, number, PROMPT, Role.USER, new.prompt)
    return _wake(db, row.id, number, new.lane)


def _is_busy(db: Connection, session_id: int) -> bool:
    unfinished = select(TURNS.c.number).where(
        TURNS.c.session_id == session_id,
        TURNS.c.state.in_(UNFINISHED),
    )
    return db.execute(unfinished.limit(1)).first() is not None


def _wake(db: Connection, session_id: int, number: int, lane: Lane) -> Sent:
    """Make the session ready, also while it is owned: its owner looks again under this row's lock when it releases."""
    mine = LEASES.c.session_id == session_id
    stale = LEASES.c.hinted_at < now(-HINT_STALE_SECONDS)
    lease = db.execute(
        select(LEASES.c.owner, LEASES.c.ready_at, case((stale, True), else_=False).label("stale"))
        .where(mine)
        .with_for_update()
    ).one()
    hint = lease.owner is None and (lease.ready_at is None or lease.stale)
    changes: dict[str, Any] = {"ready_at": func.coalesce(LEASES.c.ready_at, now())}
    if lease.owner is None and lease.ready_at is None:
        changes["lane"] = lane
    if hint:
        changes["hinted_at"] = now()
    db.execute(update(LEASES).where(mine).values(changes))
    return Sent(session_id, number, lane, hint)


def cancel(database: Database, session_id: int, number: int) -> tuple[TurnState, Ready | None]:
    """Take a turn back: a waiting one at once, a running one by a flag that its worker looks for. Final ones stay.

    Returns:
        The state in which the turn was found, and the session if its next turn needs a hint now.

    Raises:
        TurnNotFoundError: there is no such turn.
    """

    def take_back(db: Connection) -> tuple[TurnState, Ready | None]:
        owner = db.execute(select(LEASES.c.owner).where(LEASES.c.session_id == session_id).with_for_update()).scalar()
        turn = (TURNS.c.session_id == session_id) & (TURNS.c.number == number)
        state = db.execute(select(TURNS.c.state).where(turn)).scalar()
        if state is None:
            raise TurnNotFoundError(f"{session_id}.{number}")
        if state == TurnState.QUEUED:
            db.execute(
                update(TURNS)
                .where(turn)
                .values(state=TurnState.CANCELLED, finished_at=now(), cancel_requested_at=now())
            )
            ready = list_ready(db, [session_id]) if owner is None and make_ready(db, session_id) else []
            return TurnState.QUEUED, next(iter(ready), None)
        if state == TurnState.RUNNING:
            db.execute(
                update(TURNS).where(turn, TURNS.c.cancel_requested_at.is_(None)).values(cancel_requested_at=now())
            )
        return TurnState(state), None

    return database.transact(take_back)


def list_ready(db: Connection, sessions: Sequence[int]) -> list[Ready]:
    """The sessions, as their hints name them."""
    rows = db.execute(
        select(LEASES.c.session_id, SESSIONS.c.key, LEASES.c.lane)
        .join(SESSIONS, SESSIONS.c.id == LEASES.c.session_id)
        .where(LEASES.c.session_id.in_(sessions))
    )
    return [Ready(row.session_id, row.key, Lane(row.lane)) for row in rows]


def make_ready(db: Connection, session_id: int) -> bool:
    """Set an unowned lease by the session's lowest waiting turn; the caller holds its lock. Returns whether it may run."""
    waiting = db.execute(
        select(TURNS.c.ready_at, TURNS.c.lane)
        .where(TURNS.c.session_id == session_id, TURNS.c.state == TurnState.QUEUED)
        .order_by(TURNS.c.number)
        .limit(1)
    ).one_or_none()
    changes: dict[str, Any] = (
        {"ready_at": null()} if waiting is None else {"ready_at": waiting.ready_at, "lane": waiting.lane}
    )
    db.execute(update(LEASES).where(LEASES.c.session_id == session_id).values(changes))
    return waiting is not None
