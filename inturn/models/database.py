"""One database: its engine, its transactions, and what its refusals mean.

The same code runs on SQLite and PostgreSQL. What differs on SQLite, and why:

* every write is ``BEGIN IMMEDIATE``: a read that turns into a write later would fail instead of wait;
* one writer at a time per process, by a lock, and a gap after each: SQLite's own waiting polls, so threads and
  processes would starve one another;
* what is deleted is overwritten (``secure_delete``): not every SQLite does so by itself;
* ``auto_vacuum`` is set before WAL, as it is ignored afterwards; ``synchronous=FULL``, as NORMAL may lose a commit that
  was answered for.
"""

import logging
import math
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from inturn.models.errors import DatabaseLockedError, StorageError
from inturn.models.refusals import is_deadlock, translated

logger = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_TIMEOUT_SECONDS = 10
PATIENCE_SECONDS = 60.0
"""For how long work of many steps tries again to write to a SQLite file that stays locked."""
LOOK_SECONDS = (0.0002, 0.0005)
"""Between two looks whether another process has finished writing to a SQLite file."""
GAP_SECONDS = 0.0006
"""Between two writes of one process to a SQLite file: who looks meanwhile gets in."""
WAL_BYTES = 16 * 1024 * 1024
"""A WAL that has grown beyond it, as during a backup or a long read, is cut when it begins anew. Usual are 4 MB."""
WAL_RESET_BACKPORTS = ((3, 44, 6), (3, 50, 7))
CONNECT_TIMEOUT_SECONDS = 5
NOTICED = {"tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}
"""Of PostgreSQL's server, in milliseconds and seconds. Who is cut off from it, or whose server lost its power, is told
nothing, and TCP would go on for a quarter of an hour. A statement may take as long as it likes: the server's kernel answers.
"""
REST_SECONDS = 1.0
"""After so long without use, a connection to PostgreSQL may have gone."""
CHECKPOINT_TRIES, CHECKPOINT_SECONDS = 20, 0.05
"""How often a checkpoint is tried, and how long it keeps writers waiting each time for those who read."""
LET_GO = "SET idle_in_transaction_session_timeout = '5s'"
"""A process that is frozen within a transaction loses it: everybody who needs its rows would wait for as long."""
ALONE = "SET max_parallel_workers_per_gather = 0"
"""Pages and claims are short: to start parallel workers takes 10 ms, which a page of results takes in all without them."""
UNCOMPILED = "SET jit = off"
"""To compile a statement takes 40 ms. PostgreSQL does so wherever it fears many rows, of which there are few."""
ENCODING = "UTF8"
TRANSACTION_TRIES = 5


class Database:
    """The store's way to the database; shared by the threads of a process.

    Args:
        url: a SQLAlchemy URL: ``sqlite:///PATH`` or ``postgresql+psycopg://...``.
        connections: how many connections the process may keep open.
        session_settings: statements that every new connection begins with (PostgreSQL).
        instead: what else helps where it cannot be reached: as it was named.
    """

    def __init__(
        self,
        url: str,
        connections: int = 10,
        session_settings: Sequence[str] = (),
        *,
        instead: str = "set INTURN_DATABASE_URL",
    ) -> None:
        self.url, self.instead = make_url(url), instead
        self.dialect = self.url.get_backend_name()
        self._writer, self._left_at = threading.Lock(), 0.0
        self._session_settings = session_settings
        self.engine = self._sqlite() if self.dialect == "sqlite" else self._postgresql(connections)
        event.listen(self.engine, "do_connect", self._note_pool)
        event.listen(self.engine, "checkin", self._note_return)
        # On PostgreSQL one statement is its own snapshot: without BEGIN and ROLLBACK around it, a look is one round trip.
        alone = {} if self.dialect == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        self._looking = self.engine.execution_options(**alone)

    def _postgresql(self, connections: int) -> Engine:
        engine = create_engine(
            self.url,
            pool_size=connections,
            max_overflow=0,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": "inturn", **NOTICED},
        )
        event.listen(engine, "connect", self._set_session, insert=True)
        event.listen(engine, "checkout", partial(ping_after_rest, engine.dialect))
        return engine

    def _set_session(self, connection: Any, _record: Any) -> None:
        """Raises: StorageError: the database keeps another encoding than any prompt can be written in."""
        if (encoding := connection.info.parameter_status("server_encoding")) != ENCODING:
            connection.close()
            raise StorageError(
                f"{self.url!r} keeps text as {encoding}, and not as {ENCODING}: make another one "
                "(`createdb --encoding UTF8 --template template0`)"
            )
        connection.execute("; ".join((LET_GO, ALONE, UNCOMPILED, *self._session_settings)))
        connection.commit()

    def dedicated(self, session_settings: Sequence[str]) -> "Database":
        """A database with one connection for a kind of statements; on SQLite, where one writes at a time, this one."""
        if self.dialect == "sqlite":
            return self
        return Database(self.url.render_as_string(hide_password=False), 1, session_settings)

    def _sqlite(self) -> Engine:
        engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False})
        event.listen(engine, "do_connect", lambda dialect, record, args, kwargs: keep_to_owner(self.url.database))
        event.listen(engine, "connect", prepare_sqlite)
        event.listen(engine, "begin", begin_sqlite)
        return engine

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One writer of this process at a time, and a gap after each for other processes."""
        with self._writer:
            time.sleep(max(0.0, self._left_at + GAP_SECONDS - time.monotonic()))
            try:
                yield
            finally:
                self._left_at = time.monotonic()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that writes. Commits at the end of the block; an exception undoes all of it.

        Raises:
            StorageError: the database refused, with the reason in a sentence.
        """
        alone: AbstractContextManager[Any] = self._turn() if self.dialect == "sqlite" else nullcontext()
        with alone, translated(self), self.engine.connect() as plain:
            db = plain.execution_options(inturn_writes=True)
            with db.begin():
                yield db

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Statements that only read: on SQLite in one snapshot, which waits for no writer."""
        with translated(self), self._looking.connect() as db:
            yield db

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Statements that only read, and all see the same moment, for however long; writers go on meanwhile."""
        if self.dialect == "sqlite":
            with self.reading() as db:
                yield db
            return
        frozen = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with translated(self):
            connection = frozen.connect()
        with connection as db:
            be_patient(db)
            yield db

    def transact(self, work: Callable[[Connection], T], *, is_patient: bool = False) -> T:
        """Do ``work`` in a writing transaction, again if the database chose it as a deadlock's victim.

        Args:
            is_patient: it is a step of many, such as a batch's: a SQLite file that stays locked is waited for longer, up to
                ``PATIENCE_SECONDS``. (What has a PostgreSQL locked lets go after 5 s: ``LET_GO``.)
        """
        over = time.monotonic() + PATIENCE_SECONDS * is_patient
        left = TRANSACTION_TRIES
        while True:
            try:
                with self.writing() as db:
                    return work(db)
            except DatabaseLockedError:
                if time.monotonic() >= over:
                    raise
                logger.info("action=locked_database_waited_for")
            except StorageError as error:
                left -= 1
                if not left or not is_deadlock(error.__cause__):
                    raise
                logger.info("action=deadlock_retried tries_left=%d", left)

    def connections_in_use(self) -> int:
        pool = self.engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    def empty_wal(self) -> bool:
        """Bring all that is in SQLite's WAL into the file, where it is overwritten, and cut the WAL off: pages as they were
        stand in there until others need the place.

        Returns: False, if somebody read or wrote all the time, or the disk is full.
        """
        if self.dialect != "sqlite":
            return True
        refusals = suppress(StorageError, sqlite3.OperationalError)
        with refusals, translated(self), closing(self.engine.raw_connection()) as connection:
            plain: Any = connection.driver_connection
            plain.execute(f"PRAGMA busy_timeout={CHECKPOINT_SECONDS * 1000:.0f}").close()
            try:
                for _ in range(CHECKPOINT_TRIES):
                    with self._turn():
                        is_busy, *_ = plain.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    if not is_busy:
                        return True
                    time.sleep(random.uniform(0, CHECKPOINT_SECONDS))
            finally:
                plain.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}").close()
        return False

    def close(self) -> None:
        """Close all connections; one that a thread is using, when it comes back."""
        self.engine.dispose()  # gives the engine another pool, and those in use come back to the old one

    def _note_pool(self, _dialect: Any, record: ConnectionPoolEntry, _args: Any, _kwargs: Any) -> None:
        """Before it is made: another thread may close the database meanwhile."""
        record.info["pool"] = self.engine.pool

    def _note_return(self, _connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["returned_at"] = time.monotonic()
        if record.info.get("pool", self.engine.pool) is not self.engine.pool:  # a broken one has no info any more
            record.invalidate()


def ping_after_rest(dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """Before a connection that nobody used for a while is used: does it still stand? One in use shows it by itself, and
    asking it each time (``pool_pre_ping``) is a round trip in each transaction.

    Raises:
        DisconnectionError: it does not; the pool opens another.
    """
    if time.monotonic() - record.info.get("returned_at", math.inf) > REST_SECONDS:
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error


def be_patient(db: Connection) -> None:
    """Let this transaction stand idle for as long as it takes: others wait for none of its rows, or have to."""
    if db.dialect.name == "postgresql":
        db.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def keep_to_owner(path: str | None) -> None:
    """Make the file before SQLite does, readable by its owner only; its WAL takes over the mode."""
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not Path(path).exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    # It takes the file's lock for writing even where it changes nothing: whoever only reads would wait for writers.
    is_new = connection.execute("PRAGMA page_count").fetchone() == (0,)
    for pragma in (
        *(["auto_vacuum=INCREMENTAL"] if is_new else []),
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
        f"journal_size_limit={WAL_BYTES}",
        f"busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def has_wal_reset_bug(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite may, very rarely, damage a database that several connections write and checkpoint at once
    (https://www.sqlite.org/wal.html#walresetbug). Fixed in 3.51.3, and in 3.44.6 and 3.50.7.
    """
    mended = version >= (3, 51, 3) or any(
        version[:2] == since[:2] and version >= since for since in WAL_RESET_BACKPORTS
    )
    return version >= (3, 7, 0) and not mended


def begin_sqlite(db: Connection) -> None:
    if db.get_execution_options().get("inturn_writes"):
        begin_writing(db)
    else:
        db.exec_driver_sql("BEGIN")


def begin_writing(db: Connection) -> None:
    """``BEGIN IMMEDIATE``, asking often. SQLite's own waiting sleeps for up to 100 ms between two looks, so that a process
    whose threads write one after the other keeps the others out for seconds: replies would wait for those who send.
    """
    plain: Any = db.connection.dbapi_connection
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    plain.execute("PRAGMA busy_timeout=0").close()
    try:
        while time.monotonic() < deadline:
            try:
                plain.execute("BEGIN IMMEDIATE").close()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
                time.sleep(random.uniform(*LOOK_SECONDS))
            else:
                return
        db.exec_driver_sql("BEGIN IMMEDIATE")  # SQLAlchemy says why not
    finally:
        plain.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}").close()
