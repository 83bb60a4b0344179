"""What expires besides sessions, each kind after a time of its own: batches, deliveries, spending, ticks, receipts.

What is due is looked for without a lock, and looked at once more in the transaction that removes it: a batch that is put
back to work meanwhile stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, or_, select, tuple_, type_coerce

from inturn.models.clock import ago, now
from inturn.models.database import Database
from inturn.models.pace import Pace
from inturn.models.store.receipts import note_rows
from inturn.models.store.tally import day_of
from inturn.models.store.webhooks import PENDING
from inturn.models.tables import (
    BATCH_LINES,
    BATCHES,
    PAST_HOLDS,
    REMOVAL_RUNS,
    REMOVALS,
    SPENDING,
    TICKS,
    WEBHOOK_DELIVERIES,
)

MOST = 5000
"""Rows that are removed in one transaction: SQLite takes no more than some ten thousand parameters."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """A kind of rows, and for how long they stay.

    Attributes:
        name: one of ``KINDS``; what receipts call it.
        seconds: since when they were over.
    """

    name: str
    seconds: float

    @property
    def covers(self) -> str:
        """Which rows, in words."""
        return KINDS[self.name][0]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a table that are due.

    Attributes:
        still: the same, as it is looked at once more of a chunk; None: as ``which`` says it.
        counts: those that only go with others are not counted.
    """

    table: Table
    which: ColumnElement[bool]
    still: ColumnElement[bool] | None = None
    counts: bool = True

    @property
    def key(self) -> Sequence[ColumnElement[Any]]:
        return list(self.table.primary_key.columns)

    def find(self, db: Connection, limit: int) -> Sequence[Any]:
        """The keys of some, in order if there are several columns in them."""
        found = select(*self.key).where(self.which).limit(limit)
        return db.execute(found.order_by(*self.key) if len(self.key) > 1 else found).all()

    def count(self, db: Connection) -> int:
        return int(db.execute(select(func.count()).select_from(self.table).where(self.which)).scalar_one())

    def take(self, db: Connection, keys: Sequence[Any]) -> int:
        """Remove those of the keys that are due still. Returns how many."""
        still = self.which if self.still is None else self.still
        return db.execute(delete(self.table).where(self._among(keys), still)).rowcount

    def _among(self, keys: Sequence[Any]) -> ColumnElement[bool]:
        """In a list of single values an index is of use on SQLite; of rows it is in a range of them."""
        if len(self.key) == 1:
            return self.key[0].in_([value for (value,) in keys])
        first, last = (
            tuple_(*(type_coerce(value, column.type) for value, column in zip(key, self.key, strict=True)))
            for key in (keys[0], keys[-1])
        )
        among = self.key[0].between(
            keys[0][0], keys[-1][0]
        )  # says no more than the rows do, but PostgreSQL sees how few
        return and_(among, tuple_(*self.key) >= first, tuple_(*self.key) <= last)


def _batches(dialect: str, seconds: float) -> list[_Rows]:
    is_discarded = or_(~BATCHES.c.discards, BATCHES.c.discarded_at.is_not(None))
    over = and_(BATCHES.c.finished_at.is_not(None), BATCHES.c.read_at < ago(seconds), is_discarded)
    return [_Rows(BATCHES, over), LINES_OF_NONE]


def _unread_batches(dialect: str, seconds: float) -> list[_Rows]:
    return [_Rows(BATCHES, and_(BATCHES.c.finished_at < ago(seconds), BATCHES.c.read_at.is_(None))), LINES_OF_NONE]


def _deliveries(dialect: str, seconds: float) -> list[_Rows]:
    over = WEBHOOK_DELIVERIES.c.finished_at < ago(seconds)
    unsent = PENDING & (WEBHOOK_DELIVERIES.c.ready_at < ago(seconds))  # who sends moves that ahead
    return [_Rows(WEBHOOK_DELIVERIES, over), _Rows(WEBHOOK_DELIVERIES, unsent)]


def _spending(dialect: str, seconds: float) -> list[_Rows]:
    day = select(day_of(dialect, now(-seconds))).scalar_subquery()
    return [_Rows(SPENDING, and_(SPENDING.c.slot != "", SPENDING.c.slot < day))]


def _ticks(dialect: str, seconds: float) -> list[_Rows]:
    later = TICKS.alias()
    is_last = ~exists().where(later.c.name == TICKS.c.name, later.c.slot > TICKS.c.slot)
    return [_Rows(TICKS, and_(TICKS.c.fired_at < ago(seconds), ~is_last))]


def _receipts(dialect: str, seconds: float) -> list[_Rows]:
    """Runs go with the receipts in them; one whose process died has no end."""
    ended_at = func.coalesce(REMOVAL_RUNS.c.ended_at, REMOVAL_RUNS.c.began_at)
    runs = _Rows(REMOVAL_RUNS, ended_at < ago(seconds), counts=False)
    holds = _Rows(PAST_HOLDS, PAST_HOLDS.c.released_at < ago(seconds))
    return [_Rows(REMOVALS, REMOVALS.c.removed_at < ago(seconds)), holds, runs]


def _lines_of_none() -> _Rows:
    """What batches leave: their rows go first, so that nobody reads a part of their lines. Found by leaping from one batch
    to the next, as there may be very many lines, and hardly ever such.
    """
    least = func.min(BATCH_LINES.c.batch_id)
    known = select(least.label("id")).cte("known", recursive=True)
    following = select(least).where(BATCH_LINES.c.batch_id > known.c.id).scalar_subquery()
    known = known.union_all(select(following).where(known.c.id.is_not(None)))
    is_gone = ~exists().where(BATCHES.c.id == known.c.id)
    first = select(func.min(known.c.id)).where(is_gone).scalar_subquery()
    still = ~exists().where(BATCHES.c.id == BATCH_LINES.c.batch_id)
    return _Rows(BATCH_LINES, BATCH_LINES.c.batch_id == first, still, counts=False)


LINES_OF_NONE = _lines_of_none()
KINDS: dict[str, tuple[str, Callable[[str, float], list[_Rows]]]] = {
    "read batches": ("batches whose results were read", _batches),
    "unread batches": ("batches that are over, and that nobody read", _unread_batches),
    "old deliveries": ("deliveries of webhooks that are over, or that nobody sends", _deliveries),
    "past spending": ("what was spent of budgets on past days", _spending),
    "old ticks": ("what the timetable fired, but for each last time", _ticks),
    "old receipts": ("receipts of removals, and past holds", _receipts),
}
"""What each is, in words and in SQL."""


def count_due(database: Database, expiry: Expiry) -> int:
    """How many rows would be removed now."""
    with database.reading() as db:
        return sum(rows.count(db) for rows in _parts(database, expiry) if rows.counts)


def is_due(database: Database, expiry: Expiry) -> bool:
    with database.reading() as db:
        return any(rows.find(db, 1) for rows in _parts(database, expiry))


def remove(database: Database, expiry: Expiry, run: int, pace: Pace) -> int:
    """Remove what is due, chunk by chunk. Returns how many rows.

    Args:
        run: under which they are counted in the receipts.
        pace: in rows.
    """
    total = 0
    for rows in _parts(database, expiry):
        while (many := pace.step(partial(_chunk, database, rows, run))) is not None:
            total += many
    return total


def _chunk(database: Database, rows: _Rows, run: int, limit: int) -> int | None:
    """Returns: None, if nothing is due any more."""
    with database.reading() as db:
        keys = rows.find(db, min(limit, MOST))
    return database.transact(partial(_take, rows=rows, keys=keys, run=run), is_patient=True) if keys else None


def _take(db: Connection, rows: _Rows, keys: Sequence[Any], run: int) -> int:
    many = rows.take(db, keys) * rows.counts
    if many:
        note_rows(db, run, many)
    return many


def _parts(database: Database, expiry: Expiry) -> list[_Rows]:
    return KINDS[expiry.name][1](database.dialect, expiry.seconds)
