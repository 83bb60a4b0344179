"""The space of what was deleted from a SQLite file, given back to the disk a few pages at a time.

Free pages are filled with those at the file's end, which is cut off then (``auto_vacuum=INCREMENTAL``). It is a write like
any other, so each step is as small as others wait gladly for. On PostgreSQL autovacuum sees to all of it.
"""

import math
import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from inturn.models.database import Database
from inturn.models.errors import StorageError
from inturn.models.pace import Pace
from inturn.models.refusals import translated

SPARE = 0.05
"""The share of a file that may stay free: it would be needed again soon."""
INCREMENTAL = 2


@dataclass(frozen=True, slots=True)
class Space:
    """Of a SQLite file, in bytes: its size, and what is free in it."""

    size: int
    free: int
    page: int

    @property
    def spare(self) -> int:
        """How many pages are to be given back."""
        return max(0, math.ceil((self.free - self.size * SPARE) / self.page))


def look(database: Database) -> Space | None:
    """What a file holds; None on PostgreSQL, and of a file that can give nothing back."""
    if database.dialect != "sqlite":
        return None
    with database.reading() as db:
        asked = ("page_size", "page_count", "freelist_count", "auto_vacuum")
        page, many, free, kind = (_run(db, name)[0][0] for name in asked)
        return Space(many * page, free * page, page) if kind == INCREMENTAL else None


def give_back(database: Database, pace: Pace) -> int:
    """Give back what is free, but for ``SPARE``; in the end what the WAL holds is written into the file, for which nobody
    waits: only then it is shorter.

    Args:
        pace: in pages.

    Returns: how many bytes were given back.
    """
    before = after = look(database)
    while after is not None and after.spare:
        pace.step(partial(_step, database, after.spare))
        after = look(database)
    if before is None or after is None or before == after:
        return 0
    with translated(database), database.engine.connect() as db:
        _run(db, "wal_checkpoint(PASSIVE)")
    return before.size - after.size


def _step(database: Database, spare: int, pages: int) -> None:
    def move(db: Connection) -> None:
        for _ in range(min(pages, spare)):
            _run(db, "incremental_vacuum(1)")  # of more, the driver asks for the first one only

    database.transact(move, is_patient=True)


def _run(db: Connection, pragma: str) -> Any:
    """Raises: StorageError."""
    plain: Any = db.connection.dbapi_connection
    try:
        return plain.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error as error:
        raise StorageError(
            f"the space of what was deleted was not given back by {db.engine.url!r} ({error}): see to the room on its disk"
        ) from error
