"""What it means when a database refuses: each in a sentence, with the next step."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Protocol

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from inturn.models.errors import (
    DatabaseLockedError,
    DatabaseUnreachableError,
    InturnError,
    SchemaError,
    StorageError,
)

DEADLOCKS = {"40P01", "40001"}


class Asked(Protocol):
    """The database that refused."""

    @property
    def url(self) -> URL: ...
    @property
    def dialect(self) -> str: ...
    @property
    def instead(self) -> str: ...


@contextmanager
def translated(database: Asked) -> Iterator[None]:
    """Say in a sentence what a refusal of the database means."""
    try:
        yield
    except InturnError:
        raise
    except PoolTimeout as error:
        raise StorageError(f"all connections of this process to {database.url!r} are in use: {error}") from error
    except OSError as error:
        raise StorageError(
            f"cannot open {database.url!r}: {error.strerror or error}. Check INTURN_HOME and INTURN_DATABASE_URL"
        ) from error
    except DBAPIError as error:
        raise explain(database, error) from error


LOCKED = "database is locked"
NO_ROOM = "has no room left: free some space; what was accepted before is kept"
FULL_BYTES = 64 * 1024  # less than that is free: SQLite has no place for its shared memory

REFUSALS = (
    ("readonly database", "is read-only: give this user the right to write to the file and its directory"),
    ("unable to open database", "cannot be opened: check that its directory exists and that this user may write there"),
    ("database or disk is full", NO_ROOM),
    ("disk i/o error", "could not be read or written (disk I/O error): check the disk's space and health"),
    (LOCKED, "stayed locked by another process for too long: see who writes to it, and try again"),
    ("no space left", NO_ROOM),
    ("not a database", "is no SQLite database: set INTURN_DATABASE_URL, or move the file away"),
    ("malformed", "is damaged: move the file away, and restore a backup (`inturn db restore`)"),
    ("read-only transaction", "is read-only: connect to the primary, not to a standby"),
)


def is_on_a_full_disk(database: Asked) -> bool:
    """Whether a SQLite file's disk is so full that all of SQLite's complaints come from that, in whatever words."""
    try:
        return database.dialect == "sqlite" and disk_usage(Path(database.url.database or "").parent).free < FULL_BYTES
    except OSError:
        return False


def explain(database: Asked, error: DBAPIError) -> Exception:
    """The error of ours that a database driver's error stands for; its own, if it stands for a mistake in inturn."""
    text = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    for sign, sentence in REFUSALS:
        if sign in text.lower():
            said = NO_ROOM if is_on_a_full_disk(database) else sentence
            kind = DatabaseLockedError if said != NO_ROOM and sign == LOCKED else StorageError
            return kind(f"the database {database.url!r} {said} ({text})")
    state = getattr(error.orig, "sqlstate", None)
    if state == "42P01" or "no such table" in text:
        return SchemaError(f"the database {database.url!r} has no inturn tables yet: run `inturn db upgrade`")
    if state == "42703" or "no such column" in text or "has no column named" in text:
        return SchemaError(f"the database {database.url!r} has an older schema ({text}): run `inturn db upgrade`")
    if state == "42501":
        return StorageError(
            f"the database {database.url!r} does not let its role do this ({text}): use the role that owns the tables, or "
            "have it grant what is missing"
        )
    if is_deadlock(error):
        return StorageError(f"the database {database.url!r} undid the transaction: {text}")
    is_operational = isinstance(error, OperationalError)
    if database.dialect == "sqlite":
        return StorageError(f"the database {database.url!r} refused: {text}") if is_operational else error
    too_much = (state or "").startswith("54")  # for the server's limits: nothing that would pass
    if error.connection_invalidated or (is_operational and not too_much):
        return DatabaseUnreachableError(
            f"no connection to the database {database.url!r}: {text}. {first_step(text)}, or {database.instead}"
        )
    return error


def first_step(text: str) -> str:
    """What lets PostgreSQL answer. A refused connection comes with no SQLSTATE (3D000 would be it), only with words."""
    missing = re.search(r'FATAL: +database "(.+)" does not exist', text)
    return f"Create it: `createdb {shlex.quote(missing[1])}`" if missing else "Start it"


def is_deadlock(error: BaseException | None) -> bool:
    return getattr(getattr(error, "orig", None), "sqlstate", None) in DEADLOCKS
