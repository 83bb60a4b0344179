"""Rows on their way from one database into another: everything or nothing, a chunk at a time.

The source is read in one snapshot and waits for nobody, nor anybody for it; the target is filled in one transaction. Rows
keep their surrogate keys, and the counters of those go on above everything that was ever given out, on either side: ids
of sessions that are gone are in logs, and in the hands of workers that come back late.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Table, func, inspect, select, text
from sqlalchemy import column as plain_column
from sqlalchemy import table as plain_table
from sqlalchemy.exc import DataError, IntegrityError

from inturn.models import migrations
from inturn.models.database import Database, be_patient
from inturn.models.errors import SchemaError, StorageError
from inturn.models.refusals import translated
from inturn.models.rows import Row
from inturn.models.states import TurnState
from inturn.models.store import sweeping
from inturn.models.store.opening import UPSERT
from inturn.models.store.sweeping import Caps
from inturn.models.store.tally import COUNTS
from inturn.models.tables import LANE_PAUSES, LEASES, PAST_USAGE, SESSIONS, SPENDING, TICKS, TURNS, WORKER_PROCESSES

CHUNK = 250
"""Rows that are in memory at a time: replies may have 4 MiB each."""

LEFT_BEHIND = {WORKER_PROCESSES}
"""Who is alive there is nobody here."""
MAY_BE_THERE = {TICKS, LANE_PAUSES}
"""A beat writes them also where nothing was ever sent, and a lane may be paused before it is filled."""
SUMS = {SPENDING: ("usd", "tokens"), PAST_USAGE: COUNTS}
"""What stays of sessions that were deleted by hand: whatever a target has of it is added to."""
NUMBERED = [table for table in Row.metadata.sorted_tables if table.autoincrement_column is not None]
"""The tables that count their surrogate keys."""

GIVEN_OUT = {
    "sqlite": "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = :table",
    "postgresql": """
SELECT coalesce(pg_sequence_last_value(CAST(pg_get_serial_sequence(:table, :column) AS regclass)), 0)""",
}
"""The highest key that was ever given out. PostgreSQL's is no part of the snapshot: it can only be higher."""
GIVE_OUT_ABOVE = {
    "sqlite": (
        "DELETE FROM sqlite_sequence WHERE name = :table",
        "INSERT INTO sqlite_sequence VALUES (:table, :given)",
    ),
    "postgresql": ("SELECT setval(CAST(pg_get_serial_sequence(:table, :column) AS regclass), :given)",),
}

Progress = Callable[[int, int], object]
"""Told how many rows are done, out of how many."""


class Snapshot:
    """Everything in a database as it was at one moment. See ``snapshot``."""

    def __init__(self, database: Database, db: Connection) -> None:
        self._database, self._db = database, db
        with translated(database):
            catalog = inspect(db)
            known = [table for table in Row.metadata.sorted_tables if catalog.has_table(table.name)]
            there = {table: {column["name"] for column in catalog.get_columns(table.name)} for table in known}
        # Of an older schema, what it has: it is not upgraded to be backed up.
        self._columns = {table: [column for column in table.c if column.name in there[table]] for table in known}

    @property
    def tables(self) -> list[Table]:
        """The tables whose rows go along, those that are referred to first."""
        return [table for table in self._columns if table not in LEFT_BEHIND]

    def count(self) -> dict[str, int]:
        """How many rows go along, by table."""
        with translated(self._database):
            return {table.name: count_rows(self._db, table) for table in self.tables}

    def chunks(self, table: Table) -> Iterator[list[dict[str, Any]]]:
        """The table's rows in the order of its primary key."""
        ordered = select(*self._columns[table]).order_by(*table.primary_key)
        with (
            translated(self._database),
            self._db.execute(ordered, execution_options={"yield_per": CHUNK}) as rows,
        ):
            for chunk in rows.mappings().partitions():
                yield [dict(row) for row in chunk]

    def given_out(self, table: Table) -> int:
        """The highest surrogate key of a table that was ever given out."""
        with translated(self._database):
            return highest_given_out(self._db, table)

    def last_use(self) -> Any:
        """When any session was last created, resumed or sent to."""
        with translated(self._database):
            return self._db.execute(select(func.max(SESSIONS.c.last_activity_at))).scalar()


@contextmanager
def snapshot(database: Database) -> Iterator[Snapshot]:
    """Look at a database as it is at this moment, for however long; writers go on meanwhile."""
    with database.snapshot() as db:
        yield Snapshot(database, db)


def count_rows(db: Connection, table: Table) -> int:
    return int(db.execute(select(func.count()).select_from(table)).scalar_one())


def highest_given_out(db: Connection, table: Table) -> int:
    counter = db.execute(text(GIVEN_OUT[db.dialect.name]), {"table": table.name, "column": key_of(table).name}).scalar()
    return max(int(counter or 0), db.execute(select(func.max(key_of(table)))).scalar() or 0)


def key_of(table: Table) -> Column[Any]:
    column = table.autoincrement_column
    assert column is not None, f"{table.name} counts nothing"
    return column


def carry(source: Snapshot, db: Connection, progress: Progress) -> dict[str, int]:
    """Put everything into tables that are there, and empty of it. Returns how many rows of each table.

    Raises:
        StorageError: a row was refused, which is named with its table and key.
    """
    counted, done = source.count(), 0
    total = sum(counted.values())
    for table in source.tables:
        carried = 0
        for rows in source.chunks(table):
            _insert(db, table, rows)
            carried += len(rows)
            progress(done + carried, total)
        done += carried
        _verify(db, table, carried)
    for table in NUMBERED:
        if table in source.tables:
            _give_out_above(db, table, source.given_out(table))
    return counted


def _insert(db: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    # Not the table itself: the columns that an older schema does not have would get their defaults.
    columns = (plain_column(name, table.c[name].type) for name in rows[0])
    statement = UPSERT[db.dialect.name](plain_table(table.name, *columns))
    if table in MAY_BE_THERE:
        statement = statement.on_conflict_do_nothing()
    elif table in SUMS:
        more = {name: table.c[name] + statement.excluded[name] for name in SUMS[table]}
        statement = statement.on_conflict_do_update(index_elements=table.primary_key.columns.keys(), set_=more)
    until_here = db.begin_nested()
    try:
        db.execute(statement, rows)
        until_here.commit()
    except (IntegrityError, DataError, ValueError) as refused:  # anything else ends the transaction, savepoint and all
        until_here.rollback()
        if len(rows) == 1:
            raise StorageError(_refusal(table, rows[0], refused)) from refused
        for row in rows:
            _insert(db, table, [row])
        raise


def _refusal(table: Table, row: dict[str, Any], refused: Exception) -> str:
    key = ", ".join(f"{column.name} {row[column.name]!r:.80}" for column in table.primary_key)
    reason = (str(getattr(refused, "orig", None) or refused).splitlines() or [type(refused).__name__])[0]
    return (
        f"the row {key} of table {table.name} is refused by the database that it goes to: {reason}. Nothing was changed"
    )


def _verify(db: Connection, table: Table, carried: int) -> None:
    """A trigger, a rule or a policy of theirs may swallow rows without a word."""
    found = count_rows(db, table)
    if found < carried or (found > carried and table not in MAY_BE_THERE | SUMS.keys()):
        raise StorageError(
            f"table {table.name} has {found} rows after {carried} were copied into it. Nothing was changed"
        )


def _give_out_above(db: Connection, table: Table, given: int) -> None:
    given = max(given, highest_given_out(db, table))
    if given:
        for statement in GIVE_OUT_ABOVE[db.dialect.name]:
            db.execute(text(statement), {"table": table.name, "column": key_of(table).name, "given": given})


@dataclass(frozen=True, slots=True)
class Moved:
    """What has arrived."""

    rows: dict[str, int]
    """By table."""
    waiting: int
    """Turns that wait for a worker."""
    paused: list[str]
    """Lanes that nobody works on there until they are resumed."""


def move(
    source: Database,
    target: Database,
    caps: Caps,
    *,
    progress: Progress,
    recheck: Callable[[], object] = lambda: None,
) -> Moved:
    """Fill an empty database with everything from another one, so that workers can go on in it at once.

    Args:
        source: has this program's schema.
        target: gets it if it has no tables.
        caps: as for any other turn whose worker is gone.
        recheck: called before the commit; what it raises undoes everything.

    Raises:
        StorageError: the target is not empty, or the source was used meanwhile; nothing was changed.
        SchemaError: the target's schema is another one.
    """
    if migrations.current(target) is None:
        migrations.upgrade(target)
    migrations.prepare(target)
    with snapshot(source) as before, target.writing() as db:
        be_patient(db)
        keep_for_ourselves(db)
        refuse_full(target, db)
        rows = carry(before, db, progress)
        let_go(db, caps)
        waiting = select(func.count()).where(TURNS.c.state == TurnState.QUEUED)
        paused = select(LANE_PAUSES.c.lane).order_by(LANE_PAUSES.c.lane)
        moved = Moved(rows, db.execute(waiting).scalar_one(), list(db.execute(paused).scalars()))
        with snapshot(source) as after:
            if after.last_use() != before.last_use():
                raise StorageError(
                    f"somebody used {source.url!r} while it was copied, and that would be missing: stop all that sends "
                    "to it, and copy again. Nothing was changed"
                )
        recheck()
    return moved


def keep_for_ourselves(db: Connection) -> None:
    """Whoever would create a session, or fill the same database, waits until we are done (on SQLite, any writer does)."""
    if db.dialect.name == "postgresql":
        db.execute(text("LOCK TABLE sessions IN EXCLUSIVE MODE"))


def refuse_full(database: Database, db: Connection) -> None:
    found = {table.name: count_rows(db, table) for table in NUMBERED}
    if any(found.values()):
        held = " and ".join(f"{count:,} {name}" for name, count in found.items() if count)
        raise StorageError(
            f"the database {database.url!r} holds {held}, and only an empty one can be filled: name another one, or move "
            f"{away(database)} (`inturn db backup` keeps what is in it)"
        )


def away(database: Database) -> str:
    """The files that go together: what is in a WAL is nowhere else."""
    if database.dialect != "sqlite":
        return "this one away"
    path = database.url.database
    return f"{path} away, with {path}-wal and -shm if they are there"


def let_go(db: Connection, caps: Caps) -> None:
    """Take all sessions back from their workers, who are not here, as the sweep would once their leases have run out."""
    owners = select(LEASES.c.owner).where(LEASES.c.owner.is_not(None)).distinct()
    while gone := db.execute(owners).scalars().all():
        sweeping.rescue_owned(db, [owner for owner in gone if owner is not None], caps)


def refuse_missing(database: Database) -> None:
    """Opening a SQLite file makes it: what is not there must be noticed before.

    Raises:
        SchemaError: there is no database.
    """
    if database.dialect == "sqlite" and not Path(database.url.database or "").exists():
        raise SchemaError(
            f"there is no database {database.url!r}: nothing was ever stored there. Check INTURN_HOME and "
            "INTURN_DATABASE_URL (`inturn config show`)"
        )
