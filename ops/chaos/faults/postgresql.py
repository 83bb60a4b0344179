"""Faults of PostgreSQL. All but the restart work over its URL."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
from sqlalchemy import make_url

from ops.chaos.nemesis import Attack
from ops.servers import PostgresServer

CONNECT_SECONDS = 5
MOST_CONNECTIONS = 1000

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'inturn'"


def attacks_over_url(url: str, longest: float) -> list[Attack]:
    length = (0.5, longest)
    return [
        Attack("postgresql.terminate", "postgresql_other", partial(terminate, url)),
        Attack("postgresql.lock_tables", "postgresql_other", partial(lock_tables, url), length, silences=True),
        Attack("postgresql.lock_rows", "postgresql_other", partial(lock_rows, url), length, silences=True),
        Attack("postgresql.full", "postgresql_other", partial(full, url), length, silences=True),
    ]


def attacks_on_server(server: PostgresServer) -> list[Attack]:
    return [
        Attack(f"postgresql.restart_{mode}", "postgresql_restarted", partial(restart, server, mode), silences=True)
        for mode in ("immediate", "fast")
    ]


def connected(url: str) -> "closing[psycopg.Connection[tuple[Any, ...]]]":
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return closing(psycopg.connect(plain, connect_timeout=CONNECT_SECONDS))


@contextmanager
def terminate(url: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """The server ends inturn's connections, whatever they are at."""
    with connected(url) as db:
        ended = db.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}").fetchall()
    yield {"connections": len(ended)}


@contextmanager
def lock_tables(url: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """A stranger's migration: nobody reads or writes a table."""
    table = dice.choice(("leases", "turns", "sessions", "attempts"))
    with connected(url) as db:
        db.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield {"table": table}
        db.rollback()


@contextmanager
def lock_rows(url: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """Somebody's forgotten transaction: a third of the rows cannot be written."""
    table, column = dice.choice((("leases", "session_id"), ("sessions", "id")))
    with connected(url) as db:
        # Those that are free: to wait for the others could be a deadlock, in which others than we might be undone.
        query = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {column} % 3 = 0 FOR UPDATE SKIP LOCKED) AS locked"
        (row,) = db.execute(query.encode()).fetchall()
        yield {"table": table, "rows": row[0]}
        db.rollback()


@contextmanager
def full(url: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """No connection is left, and inturn's own are ended: it cannot come back until others go."""
    with ExitStack() as opened, suppress(psycopg.OperationalError):
        with connected(url) as db:
            db.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}")
        count = 0
        with suppress(psycopg.OperationalError):
            while count < MOST_CONNECTIONS:
                opened.enter_context(connected(url))
                count += 1
        yield {"connections": count}


@contextmanager
def restart(server: PostgresServer, mode: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """``immediate`` is a crash, with recovery from the log; ``fast`` is what an upgrade does."""
    server.restart(mode)
    yield {}
