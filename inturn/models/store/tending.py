"""Batches carried on: what their users, or time, want of them is done in chunks, by whoever looks after them first."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import BatchNotFoundError
from inturn.models.states import BATCH_FINAL
from inturn.models.store import concluding, retention, retrying
from inturn.models.store.batches import START, BatchRecord, Cursor, ended_after, get_batch
from inturn.models.store.webhooks import Hook
from inturn.models.tables import BATCHES, TURNS

CHUNK = 100
"""Sessions that are removed in one transaction."""
DISCARDED = "discard"
"""The rule in ``removals`` of sessions whose batch was submitted to be discarded once it is read."""


def tend(database: Database, hooks: Sequence[Hook]) -> None:
    """Carry on all that are not final, and remove what was read and is not wanted any longer."""
    concluding.give_up(database)
    for key in concluding.list_unfinished(database):
        try:
            carry_on(database, key, hooks)
        except BatchNotFoundError:  # it was removed meanwhile
            continue
    with database.reading() as db:
        waiting = BATCHES.c.discards & BATCHES.c.read_at.is_not(None) & BATCHES.c.discarded_at.is_(None)
        discarding = list(db.execute(select(BATCHES.c.id).where(waiting)).scalars())
    for batch_id in discarding:
        discard(database, batch_id)


def carry_on(database: Database, key: str, hooks: Sequence[Hook]) -> BatchRecord:
    """Send again, or close, what is left of a batch's lines to do so with, and make it final if all of them are.

    Returns: how it is now. Raises: BatchNotFoundError.
    """
    batch = get_batch(database, key)
    while batch.retry_at is not None and retrying.send_again(database, batch.id):
        pass
    while concluding.close(database, batch.id):
        pass
    return concluding.conclude(database, key, hooks)


def note_read(database: Database, key: str) -> BatchRecord:
    """All results of a batch were read. Where it was submitted to be discarded then, the sessions that it made go.

    Returns: how it is now. Raises: BatchNotFoundError.
    """
    final = (BATCHES.c.key == key) & BATCHES.c.state.in_(BATCH_FINAL) & BATCHES.c.read_at.is_(None)
    database.transact(lambda db: db.execute(update(BATCHES).where(final).values(read_at=now())), is_patient=True)
    batch = get_batch(database, key)
    if batch.discards and batch.read_at is not None:
        discard(database, batch.id)
    return batch


def _ended_after(database: Database, batch_id: int, after: Cursor) -> Sequence[Any]:
    page = select(TURNS.c.session_id, TURNS.c.finished_at, TURNS.c.line).where(*ended_after(batch_id, after))
    with database.reading() as db:
        return db.execute(page.order_by(TURNS.c.finished_at, TURNS.c.line).limit(CHUNK)).all()


def discard(database: Database, batch_id: int) -> None:
    """Remove the sessions that a batch made, but for those that somebody uses or holds."""
    after = START
    while found := _ended_after(database, batch_id, after):
        after = (found[-1].finished_at, found[-1].line)
        retention.remove_unused(database, {row.session_id for row in found}, batch_id, DISCARDED)
    mine = (BATCHES.c.id == batch_id) & BATCHES.c.discarded_at.is_(None)
    database.transact(lambda db: db.execute(update(BATCHES).where(mine).values(discarded_at=now())), is_patient=True)
