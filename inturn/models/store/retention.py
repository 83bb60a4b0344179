"""Removal: on request, and by policy."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.failpoints import reached
from inturn.models.states import UNFINISHED, Retention, SessionState
from inturn.models.store.budgets import session_key
from inturn.models.store.lines import SESSION_DELETED
from inturn.models.store.tally import INSERT, keep_usage
from inturn.models.tables import ATTEMPTS, BATCH_LINES, BATCHES, LEASES, MESSAGES, REMOVALS, SESSIONS, SPENDING, TURNS

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
            _take_whole(db, [row.id])
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


def _take_whole(db: Connection, sessions: Collection[int]) -> None:
    """What they used stays, as a sum. The caller has fenced them off, and holds their locks."""
    keep_usage(db, ATTEMPTS.c.session_id.in_(sessions))
    _keep_lines(db, TURNS.c.session_id.in_(sessions))
    db.execute(delete(SESSIONS).where(SESSIONS.c.id.in_(sessions)))
    db.execute(delete(SPENDING).where(SPENDING.c.scope.in_(list(map(session_key, sessions)))))


def take_away(database: Database, session_id: int, next_turn: int) -> None:
    """Remove the rows of a session that is ``deleting``, oldest turns first, and at last the session itself. Several may be
    at it: who comes second finds nothing left of a chunk, also nothing to count.
    """
    for upto in range(TURNS_A_TRANSACTION, next_turn + TURNS_A_TRANSACTION, TURNS_A_TRANSACTION):
        database.transact(partial(_take_turns, session_id=session_id, upto=upto))
        reached("cleanup.between_chunks")
    database.transact(lambda db: _take_whole(db, _locked(db, session_id)))


def _take_turns(db: Connection, session_id: int, upto: int) -> None:
    if _locked(db, session_id):
        keep_usage(db, and_(ATTEMPTS.c.session_id == session_id, ATTEMPTS.c.turn_number <= upto))
        _keep_lines(db, and_(TURNS.c.session_id == session_id, TURNS.c.number <= upto))
    for rows, number in (
        (MESSAGES, MESSAGES.c.turn_number),
        (ATTEMPTS, ATTEMPTS.c.turn_number),
        (TURNS, TURNS.c.number),
    ):
        db.execute(delete(rows).where(rows.c.session_id == session_id, number <= upto))


def _keep_lines(db: Connection, which: ColumnElement[bool]) -> None:
    """Before turns are taken away: those that are lines of a batch stay in its results, unless all of them were read, and
    nobody wanted them any longer.
    """
    names = ("batch_id", "line", "custom_id", "error_type", "error_message")
    said = "its session was deleted before its result was read"
    wanted = ~exists().where(BATCHES.c.id == TURNS.c.batch_id, BATCHES.c.discards, BATCHES.c.read_at.is_not(None))
    lost = select(TURNS.c.batch_id, TURNS.c.line, TURNS.c.custom_id, literal(SESSION_DELETED), literal(said)).where(
        which, TURNS.c.batch_id.is_not(None), TURNS.c.line.is_not(None), wanted
    )
    db.execute(INSERT[db.dialect.name](BATCH_LINES).from_select(names, lost).on_conflict_do_nothing())


def _locked(db: Connection, session_id: int) -> list[int]:
    """The session, if it is still there. Two removers would count the same attempts otherwise, each before the other's
    deletion is to be seen.
    """
    mine = select(SESSIONS.c.id).where(SESSIONS.c.id == session_id).with_for_update(key_share=True)
    return list(db.execute(mine).scalars())


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
    by_policy = and_(SESSIONS.c.retention == Retention.POLICY, SESSIONS.c.last_activity_at < now(-default_seconds))
    by_its_own = and_(SESSIONS.c.retention == Retention.IDLE, idle_longer_than_its_own())
    return and_(or_(by_policy, by_its_own), removable())


def removable() -> ColumnElement[bool]:
    """Neither held, nor at work."""
    work = exists().where(TURNS.c.session_id == SESSIONS.c.id, TURNS.c.state.in_(UNFINISHED))
    return and_(SESSIONS.c.held.is_(False), SESSIONS.c.state == SessionState.ACTIVE, ~work)


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
    removed = database.transact(partial(_remove_chunk, which=expired(default_seconds), limit=limit), is_patient=True)
    if removed:
        reached("cleanup.between_chunks")
    return removed


def _remove_chunk(db: Connection, which: ColumnElement[bool], limit: int, rule: str | None = None) -> list[Removal]:
    locked = select(SESSIONS.c.id).where(which).order_by(SESSIONS.c.id).limit(limit)
    ids = [row.id for row in db.execute(locked.with_for_update(skip_locked=True, key_share=True))]
    if not ids:
        return []
    # Counted anew under the locks, in a statement of its own: its snapshot is younger than any send it waited for.
    found = dict(_removals(db, _counted().where(SESSIONS.c.id.in_(ids), which)))
    for session_id, removal in found.items():
        fence_off(db, session_id)
        db.execute(
            insert(REMOVALS).values(
                session_key=removal.session_id,
                rule=rule or removal.rule,
                turns=removal.turns,
                messages=removal.messages,
                last_activity_at=removal.last_activity_at,
                removed_at=now(),
            )
        )
    _take_whole(db, found)
    return list(found.values())


def remove_unused(database: Database, sessions: Collection[int], batch_id: int, rule: str) -> int:
    """Remove those of the sessions that a batch made and nobody uses: no work waits, and they are not held.

    Returns: how many.
    """
    made = and_(SESSIONS.c.id.in_(sessions), SESSIONS.c.batch_id == batch_id)
    return len(
        database.transact(
            partial(_remove_chunk, which=and_(made, removable()), limit=len(sessions), rule=rule), is_patient=True
        )
    )
