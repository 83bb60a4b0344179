"""Removal: on request, and by policy."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, insert, null, or_, select, update
from sqlmodel import col

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import UNFINISHED, Retention, SessionState
from inturn.models.tables import AttemptRow, LeaseRow, MessageRow, RemovalRow, SessionRow, TurnRow

TURNS_A_TRANSACTION = 1000
"""A session with more turns is removed in several transactions, so that no other statement waits long for one."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A session that retention removed, or would remove."""

    session_id: str
    rule: str
    turns: int
    messages: int
    last_activity_at: datetime


def remove(database: Database, key: str, session_id: int | None = None) -> int:
    """Remove a session with all it owns, whatever it is doing: a call under way finds its lease gone and stores nothing.

    Returns: its surrogate id. Raises: SessionNotFoundError.
    """

    def mark(db: Connection) -> tuple[int, int]:
        row = db.execute(
            select(SessionRow.id, SessionRow.next_turn)  # type: ignore[call-overload]
            .where(SessionRow.key == key, SessionRow.id == session_id if session_id else SessionRow.id > 0)
            .with_for_update(key_share=True)
        ).one_or_none()
        if row is None:
            raise SessionNotFoundError(key)
        fence_off(db, row.id)
        if row.next_turn <= TURNS_A_TRANSACTION:
            db.execute(delete(SessionRow).where(SessionRow.id == row.id))
        return row.id, row.next_turn

    marked, next_turn = database.transact(mark)
    if next_turn > TURNS_A_TRANSACTION:
        take_away(database, marked, next_turn)
    return marked


def fence_off(db: Connection, session_id: int) -> None:
    """From here on the session takes no sends, and its worker's token is stale. The caller holds the session's lock."""
    db.execute(
        update(LeaseRow)
        .where(LeaseRow.session_id == session_id)  # type: ignore[arg-type]
        .values(owner=null(), expires_at=null(), ready_at=null(), token=LeaseRow.token + 1)
    )
    db.execute(update(SessionRow).where(SessionRow.id == session_id).values(state=SessionState.DELETING))  # type: ignore[arg-type]


def take_away(database: Database, session_id: int, next_turn: int) -> None:
    """Remove the rows of a session that is ``deleting``, oldest turns first, and at last the session itself."""
    for upto in range(TURNS_A_TRANSACTION, next_turn + TURNS_A_TRANSACTION, TURNS_A_TRANSACTION):
        with database.writing() as db:
            for rows, number in (
                (MessageRow, MessageRow.turn_number),
                (AttemptRow, AttemptRow.turn_number),
                (TurnRow, TurnRow.number),
            ):
                db.execute(delete(rows).where(rows.session_id == session_id, number <= upto))  # type: ignore[arg-type]
    with database.writing() as db:
        db.execute(delete(SessionRow).where(SessionRow.id == session_id))  # type: ignore[arg-type]


def finish_removal(database: Database, key: str | None = None) -> bool:
    """Finish what a remover that died had begun: all such sessions, or the one named. Returns whether there was any."""
    with database.reading() as db:
        begun = select(SessionRow.id, SessionRow.next_turn).where(SessionRow.state == SessionState.DELETING)  # type: ignore[arg-type]
        rows = db.execute(begun if key is None else begun.where(SessionRow.key == key)).all()  # type: ignore[arg-type]
    for session_id, next_turn in rows:
        take_away(database, session_id, next_turn)
    return bool(rows)


def expired(default_seconds: float) -> ColumnElement[bool]:
    """The policy: idle for longer than its time, not held, and with no work queued or running."""
    work = exists().where(TurnRow.session_id == SessionRow.id, TurnRow.state.in_(UNFINISHED))  # type: ignore[arg-type, attr-defined]
    by_policy = and_(SessionRow.retention == Retention.POLICY, SessionRow.last_activity_at < now(-default_seconds))  # type: ignore[arg-type]
    return and_(
        or_(by_policy, and_(SessionRow.retention == Retention.IDLE, idle_longer_than_its_own())),  # type: ignore[arg-type]
        SessionRow.held.is_(False),  # type: ignore[attr-defined]
        SessionRow.state == SessionState.ACTIVE,  # type: ignore[arg-type]
        ~work,
    )


def idle_longer_than_its_own() -> ColumnElement[bool]:
    return SessionRow.last_activity_at < now(-col(SessionRow.retention_seconds))  # type: ignore[operator, no-any-return]


def list_expired(
    database: Database, default_seconds: float, after: int = 0, limit: int = 100
) -> list[tuple[int, Removal]]:
    """Sessions that the policy would remove now, by ascending surrogate id."""
    with database.reading() as db:
        return list(_removals(db, _counted().where(expired(default_seconds), SessionRow.id > after).limit(limit)))  # type: ignore[arg-type]


def _counted() -> Select[tuple[int, str, Retention, datetime, int, int]]:
    turns = select(func.count()).where(TurnRow.session_id == SessionRow.id).scalar_subquery()  # type: ignore[arg-type]
    messages = select(func.count()).where(MessageRow.session_id == SessionRow.id).scalar_subquery()  # type: ignore[arg-type]
    return select(  # type: ignore[call-overload, no-any-return]
        SessionRow.id, SessionRow.key, SessionRow.retention, SessionRow.last_activity_at, turns, messages
    ).order_by(SessionRow.id)


def _removals(
    db: Connection, statement: Select[tuple[int, str, Retention, datetime, int, int]]
) -> Iterator[tuple[int, Removal]]:
    for session_id, key, rule, active, turns, messages in db.execute(statement):
        yield session_id, Removal(key, f"{Retention(rule)}", turns, messages, active)


def remove_expired(database: Database, default_seconds: float, limit: int = 100) -> list[Removal]:
    """Remove a chunk of expired sessions in one transaction, each with its row in ``removals``.

    They are chosen and locked in the transaction that removes them: one that was used since anybody listed it stays.
    """

    def chunk(db: Connection) -> list[Removal]:
        locked = select(SessionRow.id).where(expired(default_seconds)).order_by(SessionRow.id).limit(limit)  # type: ignore[arg-type]
        ids = [row.id for row in db.execute(locked.with_for_update(skip_locked=True, key_share=True))]
        if not ids:
            return []
        # Counted anew under the locks, in a statement of its own: its snapshot is younger than any send it waited for.
        found = dict(_removals(db, _counted().where(SessionRow.id.in_(ids), expired(default_seconds))))  # type: ignore[attr-defined]
        for session_id, removal in found.items():
            fence_off(db, session_id)
            db.execute(
                insert(RemovalRow).values(
                    session_key=removal.session_id,
                    rule=removal.rule,
                    turns=removal.turns,
                    messages=removal.messages,
                    last_activity_at=removal.last_activity_at,
                    removed_at=now(),
                )
            )
        db.execute(delete(SessionRow).where(SessionRow.id.in_(found)))  # type: ignore[attr-defined]
        return list(found.values())

    return database.transact(chunk)
