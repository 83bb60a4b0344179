"""A batch on its way out: cancelled, expired, given up, or done. Everything is done in chunks, by whoever comes first, and
goes on where it stopped.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, null, or_, select, update

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import BatchNotFoundError
from inturn.models.states import BatchState, TurnState
from inturn.models.store.batches import COUNTS, BatchRecord, Progress, count, find_batch, get_batch
from inturn.models.store.lines import EXPIRED, EXPIRED_SENTENCE
from inturn.models.store.waking import make_all_ready
from inturn.models.store.webhooks import Hook, announce_batch
from inturn.models.tables import BATCHES, LEASES, TURNS

CHUNK = 500
GIVEN_UP_SECONDS = 86400.0
"""After so long without a line, a submission that was cut off is given up."""

ENDING = (BatchState.VALIDATING, BatchState.IN_PROGRESS)


def cancel(database: Database, key: str, *, aborts: bool = False) -> bool:
    """Take a batch back: no call is begun for it any more. Its lines are closed by ``close``.

    Args:
        aborts: calls under way are broken off; else they finish.

    Returns: False, if it was final already. Raises: BatchNotFoundError.
    """

    def mark(db: Connection) -> bool:
        mine = select(BATCHES.c.state, BATCHES.c.aborts).where(BATCHES.c.key == key).with_for_update()
        row = db.execute(mine).one_or_none()
        if row is None:
            raise BatchNotFoundError(key)
        if row.state not in (*ENDING, BatchState.CANCELLING):
            return False
        asked = {"state": BatchState.CANCELLING, "cancel_requested_at": now(), "retry_at": null()}
        db.execute(update(BATCHES).where(BATCHES.c.key == key).values(**asked, aborts=aborts or row.aborts))
        return True

    return database.transact(mark, is_patient=True)


def close(database: Database, batch_id: int) -> bool:
    """Close a chunk of the waiting lines of a batch that is cancelled, given up or over its time.

    Returns: whether there was any.
    """

    def chunk(db: Connection) -> bool:
        row = db.execute(
            select(BATCHES.c.state, BATCHES.c.aborts, (BATCHES.c.expires_at <= now()).label("is_over"))
            .where(BATCHES.c.id == batch_id)
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if row is None or not (row.state == BatchState.CANCELLING or (row.state in ENDING and row.is_over)):
            return False
        closed = _close(db, batch_id, _cancelled() if row.state == BatchState.CANCELLING else _expired())
        if not closed and row.aborts:
            mine = (TURNS.c.batch_id == batch_id) & TURNS.c.finished_at.is_(None)
            wanted = update(TURNS).where(
                mine, TURNS.c.state == TurnState.RUNNING, TURNS.c.cancel_requested_at.is_(None)
            )
            db.execute(wanted.values(cancel_requested_at=now()))
        return closed

    return database.transact(chunk, is_patient=True)


def _cancelled() -> dict[str, Any]:
    return {"state": TurnState.CANCELLED, "cancel_requested_at": now()}


def _expired() -> dict[str, Any]:
    why = {"error_type": EXPIRED, "error_message": EXPIRED_SENTENCE, "error_retryable": True}
    return {"state": TurnState.FAILED, **why}


def _close(db: Connection, batch_id: int, becomes: dict[str, Any]) -> bool:
    waiting = (TURNS.c.batch_id == batch_id) & TURNS.c.finished_at.is_(None) & (TURNS.c.state == TurnState.QUEUED)
    found = db.execute(select(TURNS.c.session_id, TURNS.c.number).where(waiting).limit(CHUNK)).all()
    if not found:
        return False
    sessions = {row.session_id for row in found}
    # As a claim takes them: what is waiting under the leases' locks waits until they are let go.
    locked = select(LEASES.c.session_id).where(LEASES.c.session_id.in_(sessions)).order_by(LEASES.c.session_id)
    db.execute(locked.with_for_update()).all()
    mine = waiting & TURNS.c.session_id.in_(sessions) & TURNS.c.number.in_({row.number for row in found})
    db.execute(update(TURNS).where(mine).values(**becomes, finished_at=now()))
    make_all_ready(db, sessions)
    return True


def unfinished(batch: ColumnElement[int]) -> ColumnElement[bool]:
    return exists().where(TURNS.c.batch_id == batch, TURNS.c.finished_at.is_(None))


def list_unfinished(database: Database) -> list[str]:
    """The batches that are not final, oldest first."""
    with database.reading() as db:
        return list(
            db.execute(select(BATCHES.c.key).where(BATCHES.c.finished_at.is_(None)).order_by(BATCHES.c.id)).scalars()
        )


def give_up(database: Database) -> None:
    """Submissions that were cut off, and that nobody went on with."""
    since = BATCHES.c.finished_at.is_(None) & (BATCHES.c.stored_at < now(-GIVEN_UP_SECONDS))
    cut_off = since & (BATCHES.c.state == BatchState.VALIDATING)
    with database.reading() as db:
        if db.execute(select(BATCHES.c.id).where(cut_off).limit(1)).first() is None:
            return
    database.transact(
        lambda db: db.execute(update(BATCHES).where(cut_off).values(state=BatchState.CANCELLING)), is_patient=True
    )


def conclude(database: Database, key: str, hooks: Sequence[Hook]) -> BatchRecord:
    """Make a batch final if all of its lines are, and tell the webhooks that want to know.

    Returns: how it is now. Raises: BatchNotFoundError.
    """
    batch = get_batch(database, key)
    if batch.is_final or (batch.state is not BatchState.FINALIZING and not _is_over(database, batch)):
        return batch
    database.transact(lambda db: _finalize(db, batch), is_patient=True)
    database.transact(lambda db: _count(db, batch, hooks), is_patient=True)
    return get_batch(database, key)


def _is_over(database: Database, batch: BatchRecord) -> bool:
    """A look that locks nothing, as many look again and again."""
    mine = (BATCHES.c.id == batch.id) & _done()
    with database.reading() as db:
        return db.execute(select(BATCHES.c.id).where(mine)).first() is not None


def _done() -> ColumnElement[bool]:
    whole = (BATCHES.c.state == BatchState.IN_PROGRESS) & BATCHES.c.retry_at.is_(None)
    return or_(whole, BATCHES.c.state == BatchState.CANCELLING) & ~unfinished(BATCHES.c.id)


def _finalize(db: Connection, batch: BatchRecord) -> None:
    db.execute(select(BATCHES.c.id).where(BATCHES.c.id == batch.id).with_for_update())
    # A statement of its own, behind the lock: what stored lines, or sent some again, meanwhile is seen.
    db.execute(update(BATCHES).where(BATCHES.c.id == batch.id, _done()).values(state=BatchState.FINALIZING))


def _count(db: Connection, batch: BatchRecord, hooks: Sequence[Hook]) -> None:
    mine = select(BATCHES.c.state).where(BATCHES.c.id == batch.id).with_for_update()
    if db.execute(mine).scalar() != BatchState.FINALIZING:
        return  # it goes on, or somebody else has counted
    batch = find_batch(db, batch.key)
    found = count(db, batch)
    counts = {name: getattr(found, name) for name in COUNTS}
    state = _becomes(batch, found)
    db.execute(update(BATCHES).where(BATCHES.c.id == batch.id).values(**counts, state=state, finished_at=now()))
    announce_batch(db, hooks, batch.id)


def _becomes(batch: BatchRecord, found: Progress) -> BatchState:
    if batch.cancel_requested_at is not None and (found.cancelled or batch.stored < batch.total):
        return BatchState.CANCELLED
    if batch.stored < batch.total:
        return BatchState.FAILED
    return BatchState.EXPIRED if found.expired else BatchState.COMPLETED
