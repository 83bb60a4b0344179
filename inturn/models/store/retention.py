"""Removal: on request, and by policy."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, insert, null, or_, select, update

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.failpoints import reached
from inturn.models.states import UNFINISHED, Retention, SessionState
from inturn.models.tables import ATTEMPTS, LEASES, MESSAGES, REMOVALS, SESSIONS, TURNS

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
            select(SESSIONS.c.id, SESSIONS.c.next_turn)
            .where(SESSIONS.c.key == key, SESSIONS.c.id == session_id if session_id else SESSIONS.c.id > 0)
            .with_for_update(key_share=True)
        ).one_or_none()
        if row is None:
            raise SessionNotFoundError(key)
        fence_off(db, row.id)
        if row.next_turn <= TURNS_A_TRANSACTION:
            db.execute(delete(SESSIONS).where(SESSIONS.c.id == row.id))
        return row.id, row.next_turn

    marked, next_turn = database.transact(mark)
    if next_turn > TURNS_A_TRANSACTION:
        take_away(database, marked, next_turn)
    return marked


def fence_off(db: Connection, session_id: int) -> None:
    """From here on the session takes no sends, and its worker's token is stale. The caller holds the session's lock."""
    db.execute(
        update(LEASES)
        .where(LEASES.c.session_id == session_id)
        .values(owner=null(), expires_at=null(), ready_at=null(), token=LEASES.c.token + 1)
    )
    db.execute(update(SESSIONS).where(SESSIONS.c.id == session_id).values(state=SessionState.DELETING))


def take_away(database: Database, session_id: int, next_turn: int) -> None:
    """Remove the rows of a session that is ``deleting``, oldest turns first, and at last the session itself."""
    for upto in range(TURNS_A_TRANSACTION, next_turn + TURNS_A_TRANSACTION, TURNS_A_TRANSACTION):
        with database.writing() as db:
            for rows, number in (
                (MESSAGES, MESSAGES.c.turn_number),
                (ATTEMPTS, ATTEMPTS.c.turn_number),
                (TURNS, TURNS.c.number),
            ):
                db.execute(delete(rows).where(rows.c.session_id == session_id, number <= upto))
        reached("cleanup.between_chunks")
    with database.writing() as db:
        db.execute(delete(SESSIONS).where(SESSIONS.c.id == session_id))


def finish_removal(database: Database, key: str | None = None) -> bool:
    """Finish what a remover that died had begun: all such sessions, or the one named. Returns whether there was any."""
    with database.reading() as db:
        begun = select(SESSIONS.c.id, SESSIONS.c.next_turn).where(SESSIONS.c.state == SessionState.DELETING)
        rows = db.execute(begun if key is None else begun.where(SESSIONS.c.key == key)).all()
    for session_id, next_turn in rows:
        take_away(database, session_id, next_turn)
    return bool(rows)


def expired(default_seconds: float) -> ColumnElement[bool]:
    """The policy: idle for longer than its time, not held, and with no work queued or running."""
    work = exists().where(TURNS.c.session_id == SESSIONS.c.id, TURNS.c.state.in_(UNFINISHED))
    by_policy = and_(SESSIONS.c.retention == Retention.POLICY, SESSIONS.c.last_activity_at < now(-default_seconds))
    return and_(
        or_(by_policy, and_(SESSIONS.c.retention == Retention.IDLE, idle_longer_than_its_own())),
        SESSIONS.c.held.is_(False),
        SESSIONS.c.state == SessionState.ACTIVE,
        ~work,
    )


def idle_longer_than_its_own() -> ColumnElement[bool]:
    return SESSIONS.c.last_activity_at < now(-SESSIONS.c.retention_seconds)


def list_expired(
    database: Database, default_seconds: float, after: int = 0, limit: int = 100
) -> list[tuple[int, Removal]]:
    """Sessions that the policy would remove now, by ascending surrogate id."""
    with database.reading() as db:
        return list(_removals(db, _counted().where(expired(default_seconds), SESSIONS.c.id > after).limit(limit)))


def _counted() -> Select[int, str, Retention, datetime, int, int]:
    turns = select(func.count()).where(TURNS.c.session_id == SESSIONS.c.id).scalar_subquery()
    messages = select(func.count()).where(MESSAGES.c.session_id == SESSIONS.c.id).scalar_subquery()
    return select(
        SESSIONS.c.id, SESSIONS.c.key, SESSIONS.c.retention, SESSIONS.c.last_activity_at, turns, messages
    ).order_by(SESSIONS.c.id)


def _removals(
    db: Connection, statement: Select[int, str, Retention, datetime, int, int]
) -> Iterator[tuple[int, Removal]]:
    for session_id, key, rule, active, turns, messages in db.execute(statement):
        yield session_id, Removal(key, f"{Retention(rule)}", turns, messages, active)


def remove_expired(database: Database, default_seconds: float, limit: int = 100) -> list[Removal]:
    """Remove a chunk of expired sessions in one transaction, each with its row in ``removals``.

    They are chosen and locked in the transaction that removes them: one that was used since anybody listed it stays.
    """

    def chunk(db: Connection) -> list[Removal]:
        locked = select(SESSIONS.c.id).where(expired(default_seconds)).order_by(SESSIONS.c.id).limit(limit)
        ids = [row.id for row in db.execute(locked.with_for_update(skip_locked=True, key_share=True))]
        if not ids:
            return []
        # Counted anew under the locks, in a statement of its own: its snapshot is younger than any send it waited for.
        found = dict(_removals(db, _counted().where(SESSIONS.c.id.in_(ids), expired(default_seconds))))
        for session_id, removal in found.items():
            fence_off(db, session_id)
            db.execute(
                insert(REMOVALS).values(
                    session_key=removal.session_id,
                    rule=removal.rule,
                    turns=removal.turns,
                    messages=removal.messages,
                    last_activity_at=removal.last_activity_at,
                    removed_at=now(),
                )
            )
        db.execute(delete(SESSIONS).where(SESSIONS.c.id.in_(found)))
        return list(found.values())

    removed = database.transact(chunk)
    if removed:
        reached("cleanup.between_chunks")
    return removed
