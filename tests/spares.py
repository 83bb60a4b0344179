"""PostgreSQL databases with inturn's tables and no rows, which go from test to test.

To make one and drop it takes a second, most of it a checkpoint; to take its few rows away, a hundredth. One that a test has
left other than it was given to it, but for rows, goes to nobody else.
"""

from typing import Any, LiteralString

from psycopg import Connection
from sqlalchemy import make_url

from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.tables import SESSIONS
from ops.servers import PostgresServer

MOST_BYTES = 2_000_000
"""By which one may grow: rows that are gone leave room behind, and the planner counts it."""
SHAPE = """
SELECT md5(string_agg(row, ' ' ORDER BY row)) FROM (
    SELECT concat('table', oid, relacl, reloptions, relrowsecurity, CASE relkind WHEN 'r' THEN reltuples END)
      FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat('column', ctid, xmin) FROM pg_attribute
    UNION ALL SELECT concat('index', ctid, xmin) FROM pg_index
    UNION ALL SELECT concat('constraint', ctid, xmin) FROM pg_constraint
    UNION ALL SELECT concat('trigger', ctid, xmin) FROM pg_trigger
    UNION ALL SELECT concat('rule', ctid, xmin) FROM pg_rewrite
    UNION ALL SELECT concat('policy', ctid, xmin) FROM pg_policy
    UNION ALL SELECT concat('function', ctid, xmin) FROM pg_proc
    UNION ALL SELECT concat('schema', ctid, xmin) FROM pg_namespace
    UNION ALL SELECT concat('statistics', starelid) FROM pg_statistic AS s
      JOIN pg_class AS c ON c.oid = s.starelid WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat('version', version_num) FROM alembic_version
    UNION ALL SELECT concat('setting', setrole, setconfig) FROM pg_db_role_setting AS s
      JOIN pg_database AS d ON d.oid = s.setdatabase WHERE d.datname = current_database()
) AS shape (row)
"""
BYTES = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
THROW_OTHERS_OUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
EMPTY = "; ".join(f"DELETE FROM {table.name}" for table in reversed(SESSIONS.metadata.sorted_tables))
COUNT_ANEW = "SELECT setval(seqrelid, 1, false) FROM pg_sequence"


class Spares:
    """Those of one server."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._spare: list[str] = []
        self._known: dict[str, tuple[str, int]] = {}
        url = server.create_database()
        database = Database(url)
        migrations.upgrade(database)
        database.close()
        self._template = name_of(url)

    def take(self) -> str:
        """The URL of one that nobody has."""
        if self._spare:
            return self._spare.pop()
        url = self._server.create_database(self._template)
        with self._server.connect(name_of(url)) as db:
            self._known[url] = one(db, SHAPE), one(db, BYTES)
        return url

    def give_back(self, url: str) -> None:
        """One that was taken, whoever is still connected to it."""
        with self._server.connect(name_of(url)) as db:
            db.execute(THROW_OTHERS_OUT)
            shape, size = self._known[url]
            is_as_it_was = one(db, SHAPE) == shape and one(db, BYTES) <= size + MOST_BYTES
            if is_as_it_was:
                with db.transaction():
                    db.execute(EMPTY)
                db.execute(COUNT_ANEW)
        if is_as_it_was:
            self._spare.append(url)
        else:
            self._server.drop_database(url)


def name_of(url: str) -> str:
    return make_url(url).database or ""


def one(db: Connection[tuple[Any, ...]], query: LiteralString) -> Any:
    return (db.execute(query).fetchone() or (None,))[0]
