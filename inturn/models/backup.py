"""Backups: a SQLite file with inturn's own tables, whatever database it was made of.

A backup is written in a directory of its own beside its place and moved there when it is whole and on disk, so that what
was interrupted never looks like one.
"""

import os
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from sqlalchemy import URL, Engine, NullPool, create_engine, delete, event, inspect, text

from inturn.models import migrations
from inturn.models.database import Database, begin_sqlite
from inturn.models.errors import InvalidInputError, SchemaError, StorageError
from inturn.models.refusals import translated
from inturn.models.tables import SESSIONS, WORKER_PROCESSES
from inturn.models.transfer import Progress, carry, refuse_missing, snapshot

MAGIC = b"SQLite format 3\x00"
LOOK_SECONDS = 0.1
"""Between two looks at how much of a backup is written."""
BESIDE = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside a database."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made."""

    schema: str
    size: int
    """In bytes."""
    rows: dict[str, int]
    """By table."""


class BackupFile(Database):
    """A backup as a database. Without a WAL, so that it stays one file; read in place, also where nobody may write. It is
    open only while it is used.

    Args:
        path: where it is.
        mode: ``rw`` for a draft: what is not whole is thrown away, and never repaired.
        name: what people know it by, if it is elsewhere.
    """

    def __init__(self, path: Path, mode: Literal["ro", "rw"], name: Path | None = None) -> None:
        self._path, self._mode = path.absolute(), mode
        address: Any = URL.create("sqlite", database=str(name or path))
        super().__init__(address)

    def _sqlite(self) -> Engine:
        engine = create_engine(self.url, creator=self._connect, poolclass=NullPool)
        event.listen(engine, "begin", begin_sqlite)
        return engine

    def _connect(self) -> sqlite3.Connection:
        address = f"{self._path.as_uri()}?mode={self._mode}"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
        if self._mode == "rw":
            for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=MEMORY", "synchronous=OFF"):
                connection.execute(f"PRAGMA {pragma}").close()
        return connection


def write(database: Database, path: Path, *, replace: bool = False, progress: Progress) -> Backup:
    """Back up a database as it is at this moment, while others go on writing.

    Args:
        replace: whether a file that is there may go; it does when the new one is whole.

    Raises:
        InvalidInputError: the backup cannot be there.
        SchemaError: there is nothing to be backed up, or it is newer than this program.
        StorageError: the database or the disk refused; nothing is left behind.
    """
    refuse_place(database, path, replace)
    refuse_missing(database)
    version = migrations.current(database)
    if version is None:
        raise SchemaError(f"the database {database.url!r} has no inturn tables: there is nothing to be backed up")
    if version > migrations.HEAD:
        raise migrations.newer(database, version)
    with _writable(path), TemporaryDirectory(prefix=f"{path.name}.unfinished-", dir=path.parent) as directory:
        file = Path(directory) / "draft"
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        draft = BackupFile(file, "rw", name=path)
        if database.dialect == "sqlite":
            _vacuum(database, file, progress)
            with draft.writing() as db:
                db.execute(delete(WORKER_PROCESSES))
        else:
            _export(database, version, draft, progress)
        with snapshot(draft) as whole:
            rows = whole.count()
        size = _synced(file).st_size
        refuse_place(database, path, replace)
        file.replace(path)
        _synced(path.parent)
    return Backup(version, size, rows)


def refuse_place(database: Database, path: Path, replace: bool) -> None:
    """Raises: InvalidInputError."""
    mine = Path(database.url.database or "").resolve() if database.dialect == "sqlite" else None
    if mine and path.resolve() in (mine, *(mine.with_name(mine.name + end) for end in BESIDE)):
        raise InvalidInputError(f"{path} belongs to the database itself: name another file for its backup")
    if not path.parent.is_dir():
        raise InvalidInputError(f"there is no directory {path.parent}: make it, or name another file for the backup")
    if not os.path.lexists(path):
        return
    if not stat.S_ISREG(path.lstat().st_mode):
        raise InvalidInputError(f"{path} is there, and no file: name another one for the backup")
    if not replace:
        raise InvalidInputError(f"{path} is there already: name another file, or add --force to replace it")


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write the backup {path} ({error.strerror or error}): see to the room and the rights in {path.parent}. "
            "Nothing is left of it"
        ) from error


def _synced(path: Path) -> os.stat_result:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
        return os.fstat(opened)
    finally:
        os.close(opened)


def _vacuum(database: Database, draft: Path, progress: Progress) -> None:
    """By SQLite itself: quicker than row by row, and what was deleted is not in it, as it is in the file's free pages."""
    with snapshot(database) as before:
        total = sum(before.count().values())
    with translated(database):
        connection = database.engine.raw_connection()
    with closing(connection), ThreadPoolExecutor(1) as thread:
        plain: Any = connection.dbapi_connection
        size = plain.execute(
            "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        ).fetchone()
        size = max(1, size[0] * plain.execute("PRAGMA page_size").fetchone()[0])
        written = thread.submit(plain.execute, "VACUUM INTO ?", (str(draft),))
        try:
            while not wait([written], LOOK_SECONDS).done:
                # Now and then rather than all at the end: an fsync of what others commit may wait for all of this, too.
                progress(min(total, total * _synced(draft).st_size // size), total)
            written.result()
        except sqlite3.Error as error:
            raise StorageError(
                f"the backup of {database.url!r} was broken off ({error}): see to the room on the disk that it goes to, "
                "and to the database's health. Nothing is left of it"
            ) from error
        except BaseException:
            plain.interrupt()
            raise
    progress(total, total)


def _export(database: Database, version: str, draft: BackupFile, progress: Progress) -> None:
    migrations.make(draft, version)
    with snapshot(database) as source, draft.writing() as db:
        carry(source, db, progress)


@contextmanager
def read(path: Path) -> Iterator[Database]:
    """Open a backup, with this program's schema: an older one is upgraded in a copy; the file stays as it is.

    Raises:
        InvalidInputError: it is no backup of inturn, or damaged.
        SchemaError: it is newer than this program.
    """
    refuse_stranger(path)
    backup = BackupFile(path, "ro")
    if _checked_version(backup, path) == migrations.HEAD:
        yield backup
        return
    with TemporaryDirectory(prefix="inturn-") as directory:
        copy = Path(directory) / "copy"
        with closing(sqlite3.connect(copy)) as into, backup.reading() as db:
            plain: Any = db.connection.dbapi_connection
            plain.backup(into)
        migrations.upgrade(BackupFile(copy, "rw", name=path))
        yield BackupFile(copy, "ro", name=path)


def refuse_stranger(path: Path) -> None:
    """Raises: InvalidInputError."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise InvalidInputError(f"cannot read the backup {path}: {error.strerror or error}") from error
    if magic != MAGIC:
        raise InvalidInputError(f"{path} is no backup of inturn: those are SQLite files, which begin differently")


def _checked_version(backup: Database, path: Path) -> str:
    try:
        with backup.reading() as db:
            said = db.execute(text("PRAGMA quick_check(1)")).scalar()
            is_ours = said == "ok" and all(map(inspect(db).has_table, ("alembic_version", SESSIONS.name)))
        version = migrations.current(backup) if is_ours else None
    except StorageError as error:
        said, version = str(getattr(error.__cause__, "orig", error)), None
    if said != "ok":
        raise InvalidInputError(f"{path} is damaged ({said}): use another backup")
    if version is None:
        raise InvalidInputError(f"{path} is a SQLite file, and no backup of inturn: it has no tables of inturn's")
    if version > migrations.HEAD:
        raise migrations.newer(backup, version)
    return version
