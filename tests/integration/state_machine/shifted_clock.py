"""The database's clock, and that of processes, in the hands of a test. Neither goes on by itself.

The product asks the database what time it is, in one way per database (``models/clock.py``). Here something of the same
name answers: on PostgreSQL functions in a schema that is looked in ahead of ``pg_catalog``, which count up a sequence
(and a sequence is the same for all connections, whatever they have committed); on SQLite a function of the connection.
So every moment differs from the one before, by ``TICK``, and one run is like the other. A statement begins after all that
was stored before it.
"""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, event, text

from inturn.models.clock import SQLITE_FORMAT
from inturn.models.database import Database

START = datetime(2030, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
DAY = "%Y-%m-%d"

ON_POSTGRESQL = (
    "CREATE SCHEMA shifted",
    "CREATE SEQUENCE shifted.clock",
    """
    CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
        SELECT timestamptz '1970-01-01 00:00+00' + nextval('shifted.clock') * interval '1 microsecond'
    $$
    """,
    """
    CREATE FUNCTION shifted.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS $$
        SELECT timestamptz '1970-01-01 00:00+00' + (last_value + 1) * interval '1 microsecond' FROM shifted.clock
    $$
    """,
    "ALTER DATABASE {name} SET search_path = shifted, pg_catalog, public",
    # A crash of the server is for other tests; here it would only be slow.
    "ALTER DATABASE {name} SET synchronous_commit = off",
)


class ShiftedClock:
    """Stands in for the module ``time`` too, where the product asks how long something took."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._moment = START
        self._seconds = 0.0
        if database.dialect == "postgresql":
            with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as db:
                for statement in ON_POSTGRESQL:
                    db.exec_driver_sql(statement.format(name=database.url.database))
            database.engine.dispose()
        self.reset()

    def rule(self, database: Database) -> None:
        """Make this the clock of one more way to the database."""
        if database.dialect == "sqlite":
            event.listen(database.engine, "connect", self._teach)
            event.listen(database.engine, "before_cursor_execute", self._tick)
            database.engine.dispose()

    def _teach(self, connection: Any, _record: Any) -> None:
        connection.create_function("strftime", -1, self._strftime)
        connection.execute("PRAGMA synchronous=OFF").close()

    def _tick(self, *_: Any) -> None:
        """SQLite's present stands still for the length of a statement."""
        self._moment += TICK

    def _strftime(self, form: str, moment: str, *shifts: str | None) -> str | None:
        if form == DAY:  # which the product asks of moments that are stored, and of the present
            return self._moment.strftime(DAY) if moment == "now" else moment[:10]
        assert (form, moment) == (SQLITE_FORMAT, "now")
        if None in shifts:
            return None
        seconds = sum(float(str(shift).removesuffix(" seconds")) for shift in shifts)
        return (self._moment + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.%f")

    def reset(self) -> None:
        self._moment, self._seconds = START, 0.0
        if self.database.dialect == "postgresql":
            self._set("SELECT setval('shifted.clock', :by)", int(START.timestamp() * 1e6))

    def pass_by(self, seconds: float) -> None:
        """Time passes, for everybody."""
        self._seconds += seconds
        self.jump(seconds)

    def jump(self, seconds: float) -> None:
        """Somebody sets the clock of the database's host, forward or back."""
        self._moment += timedelta(seconds=seconds)
        if self.database.dialect == "postgresql":
            self._set("SELECT setval('shifted.clock', nextval('shifted.clock') + :by)", int(seconds * 1e6))

    def _set(self, statement: str, by: int) -> None:
        with self.database.reading() as db:
            db.execute(text(statement), {"by": by})

    def now(self) -> datetime:
        """What the database would say."""
        if self.database.dialect == "sqlite":
            return self._moment
        with self.database.reading() as db:
            return datetime.fromtimestamp(
                db.execute(text("SELECT last_value FROM shifted.clock")).scalar_one() / 1e6, UTC
            )

    def monotonic(self) -> float:
        return self._seconds

    def time(self) -> float:
        return START.timestamp() + self._seconds


class Gate:
    """Where one thread's next commit stands still until it is opened. For all ways to the database that it is put on."""

    def __init__(self) -> None:
        self._guarded: int | None = None
        self.reached, self._opened = threading.Event(), threading.Event()

    def put_on(self, database: Database) -> None:
        event.listen(database.engine, "commit", self._pass_through)

    def guard(self) -> None:
        """From here on the commit of the thread that calls this."""
        self._guarded = threading.get_ident()

    def _pass_through(self, _connection: Connection) -> None:
        if self._guarded == threading.get_ident():
            self.reached.set()
            assert self._opened.wait(20), "nobody opened the gate"

    def done(self) -> None:
        """The guarded thread has nothing more to commit, or never had."""
        self._guarded = None
        self.reached.set()

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        self.reached.clear()
        self._opened.clear()
