"""Fills an inturn database with waiting turns.

One session is made and sent to as any client does it; the others are copies of its rows under other numbers, whatever
columns the tables have, since thousands of sends would take longer than all that is measured.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select, text

from inturn.models.database import Database
from inturn.models.migrations import upgrade
from inturn.models.states import Lane
from inturn.models.store import opening, sending
from inturn.models.tables import Row, SessionRow
from ops.bench.workload import PROMPT, TURNS_PER_SESSION

PROVIDER = "bench"


def fill(url: str, sessions: int, lane: Lane = Lane.CHAT) -> None:
    """Give an empty database the schema and so many sessions, each with its turns waiting."""
    database = Database(url)
    upgrade(database)
    opening.create_session(database, opening.NewSession(key="bench-1", model=f"{PROVIDER}/bench"))
    for _ in range(TURNS_PER_SESSION):
        sending.send(database, "bench-1", PROMPT, lane=lane)
    with database.writing() as db:
        for table in Row.metadata.sorted_tables:
            multiply(db, table, sessions)
        if database.dialect == "postgresql":
            db.execute(text("SELECT setval(pg_get_serial_sequence('sessions', 'id'), :last)"), {"last": sessions})
    with database.writing() as db:
        db.execute(text("ANALYZE"))
    database.close()


def multiply(db: Connection, table: Table, sessions: int) -> None:
    """Copy the rows of the first session for all the others."""
    seeds = [dict(row) for row in db.execute(select(table)).mappings()]
    copies = [copied(table.name, seed, session) for session in range(2, sessions + 1) for seed in seeds]
    if copies:
        db.execute(insert(table), copies)


def copied(table: str, seed: Mapping[str, Any], session: int) -> dict[str, Any]:
    """A row of the first session as another one's."""
    if table == SessionRow.__tablename__:
        return {**seed, "id": session, "key": f"bench-{session}"}
    return {**seed, "session_id": session}
