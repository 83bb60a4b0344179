"""Many rows at once, as fast as each database takes them: COPY on PostgreSQL, one prepared statement on SQLite."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import DBAPIError

TAKE_IDS = text(
    "SELECT nextval(CAST(pg_get_serial_sequence('sessions', 'id') AS regclass)) FROM generate_series(1, :many)"
)
LAST_ID = text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'sessions'")


def load(db: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Store rows of plain values: JSON as text, moments as ``written`` has them."""
    if not rows:
        return
    named = ", ".join(columns)
    if db.dialect.name == "sqlite":
        places = ", ".join("?" * len(columns))
        db.exec_driver_sql(f"INSERT INTO {table.name} ({named}) VALUES ({places})", list(rows))
        return
    statement = f"COPY {table.name} ({named}) FROM STDIN"
    driver: Any = (
        db.dialect.loaded_dbapi
    )  # imported by who uses it: that takes a tenth of the time of a command's start
    plain: Any = db.connection.cursor()
    try:
        with plain.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except driver.Error as error:
        raise DBAPIError.instance(statement, None, error, driver.Error, dialect=db.dialect) from error
    finally:
        plain.close()


def written(db: Connection, moment: datetime | None) -> Any:
    """A moment as ``load`` takes it."""
    if moment is None or db.dialect.name != "sqlite":
        return moment
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def take_session_ids(db: Connection, many: int) -> list[int]:
    """Surrogate ids that nobody else will ever be given. On SQLite this transaction is the only one that writes."""
    if not many:
        return []
    if db.dialect.name == "sqlite":
        last = int(db.execute(LAST_ID).scalar_one())
        return list(range(last + 1, last + 1 + many))
    return [int(row[0]) for row in db.execute(TAKE_IDS, {"many": many})]
