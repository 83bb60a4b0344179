"""Fills an inturn database with waiting turns.

One session is made and sent to as any client does it; the others are copies of its rows under other numbers, whatever
columns the tables have, since thousands of sends would take longer than all that is measured.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select, text, update

from inturn.models.database import Database
from inturn.models.migrations import upgrade
from inturn.models.rows import Row
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store import opening, sending, working
from inturn.models.tables import ATTEMPTS, MESSAGES, SESSIONS, TURNS, SessionRow
from ops.bench.workload import PROMPT, REPLY, TURNS_PER_SESSION

PROVIDER = "bench"
SESSIONS_AT_ONCE = 2000
"""Sessions that are copied in one transaction."""


def fill(url: str, sessions: int, lane: Lane = Lane.CHAT, turns: int = TURNS_PER_SESSION) -> None:
    """Give an empty database the schema and so many sessions, each with its turns waiting."""
    database = Database(url)
    upgrade(database)
    opening.create_session(database, opening.NewSession(key="bench-1", model=f"{PROVIDER}/bench"))
    for _ in range(turns):
        sending.send(database, "bench-1", PROMPT, lane=lane)
    with database.writing() as db:
        for table in Row.metadata.sorted_tables:
            multiply(db, table, sessions)
        if database.dialect == "postgresql":
            db.execute(text("SELECT setval(pg_get_serial_sequence('sessions', 'id'), :last)"), {"last": sessions})
    analyze(database)


def converse(url: str, key: str, model: str, turns: int) -> None:
    """Give a database a session that so many turns were answered in."""
    database = Database(url)
    opening.create_session(database, opening.NewSession(key=key, model=model))
    session = sending.send(database, key, PROMPT).session_id
    with database.writing() as db:
        (started,) = working.claim(db, "bench", 60, 1, [working.Claim(Lane.CHAT, session)])
        assert started is not None
        done = working.Settlement(
            session, started.token, 1, 1, TurnState.COMPLETED, AttemptOutcome.COMPLETED, reply=REPLY
        )
        working.settle(db, "bench", 60, [done])
    with database.writing() as db:
        for table, number in (TURNS, "number"), (MESSAGES, "turn_number"), (ATTEMPTS, "turn_number"):
            seeds = db.execute(select(table).where(table.c.session_id == session)).mappings().all()
            insert_all(db, table, ({**seed, number: turn} for turn in range(2, turns + 1) for seed in seeds))
        db.execute(update(SESSIONS).where(SESSIONS.c.id == session).values(next_turn=turns + 1))
    analyze(database)


def analyze(database: Database) -> None:
    """Let the planner know what there is, and close."""
    with database.writing() as db:
        db.execute(text("ANALYZE"))
    database.close()


def insert_all(db: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    if found := list(rows):
        db.execute(insert(table), found)


def multiply(db: Connection, table: Table, sessions: int) -> None:
    """Copy the rows of the first session for all the others."""
    seeds = [dict(row) for row in db.execute(select(table)).mappings()]
    insert_all(db, table, (copied(table.name, seed, session) for session in range(2, sessions + 1) for seed in seeds))


def copied(table: str, seed: Mapping[str, Any], session: int) -> dict[str, Any]:
    """A row of the first session as another one's."""
    if table == SessionRow.__tablename__:
        return {**seed, "id": session, "key": f"bench-{session}"}
    return {**seed, "session_id": session}


def grow_old(url: str, sessions: int, expired: int, turns: int) -> None:
    """Give an empty database so many sessions of so many answered turns; the first ones were last used two months ago, the
    others today. The database makes the copies itself: there may be millions of rows.
    """
    database = Database(url)
    upgrade(database)
    converse(url, "bench-1", f"{PROVIDER}/bench", turns)
    seeds = [
        table for table in Row.metadata.sorted_tables if table is SESSIONS or "session_id" in table.primary_key.columns
    ]
    with database.writing() as db:
        for table in seeds:
            db.execute(text(f"CREATE TABLE seed_{table.name} AS SELECT * FROM {table.name}"))
    for first in range(2, sessions + 1, SESSIONS_AT_ONCE):
        last = min(sessions, first + SESSIONS_AT_ONCE - 1)
        with database.writing() as db:
            for table in seeds:
                db.execute(text(_copies(database.dialect, table, expired)), {"first": first, "last": last})
    with database.writing() as db:
        for table in seeds:
            db.execute(text(f"DROP TABLE seed_{table.name}"))
        if database.dialect == "postgresql":
            db.execute(text("SELECT setval(pg_get_serial_sequence('sessions', 'id'), :last)"), {"last": sessions})
    analyze(database)


def _copies(dialect: str, table: Table, expired: int) -> str:
    number, age = "session_id", f"CASE WHEN n <= {expired} THEN 60 ELSE 0 END + (1000000 - n) / 1e7"
    changed = {"session_id": "n"}
    if table is SESSIONS:
        moment = {
            "postgresql": f"clock_timestamp() - make_interval(secs => 86400 * ({age}))",
            "sqlite": f"strftime('%Y-%m-%d %H:%M:%f000', julianday('now') - ({age}))",
        }[dialect]
        number, changed = "id", {"id": "n", "key": "'bench-' || n", "created_at": moment, "last_activity_at": moment}
    many = {
        "postgresql": "generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS many(n)",
        "sqlite": (
            "(WITH RECURSIVE many(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM many WHERE n < :last) "
            "SELECT n FROM many)"
        ),
    }[dialect]
    columns = [column.name for column in table.columns]
    values = ", ".join(changed.get(name, name) for name in columns)
    seed = f"SELECT {values} FROM {many} CROSS JOIN seed_{table.name} WHERE {number} = 1 ORDER BY n"
    return f"INSERT INTO {table.name} ({', '.join(columns)}) {seed}"
