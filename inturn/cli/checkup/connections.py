"""What a check-up finds of PostgreSQL's connections: whether there are enough for all who are alive."""

from collections.abc import Iterator, Sequence

from sqlalchemy import text

from inturn.cli import render
from inturn.cli.checkup.finding import RUNBOOK, Finding
from inturn.models.database import Database
from inturn.models.states import ProcessKind
from inturn.models.store.presence import WorkerInfo

OF_WORKER, OF_OTHERS = 11, 10
"""A process has a pool of ten connections that are opened when they are needed; a worker's ledger has one of its own."""
SCARCE = 0.8

LIMITS = text("""
SELECT current_setting('max_connections')::int AS most,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS of_role,
    (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS of_database,
    (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL) AS used,
    (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usename = current_user) AS used_by_role,
    (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS used_here
""")


def check_connections(database: Database, alive: Sequence[WorkerInfo]) -> Iterator[Finding]:
    """The server's limit, the role's, and the database's: what is used now, and what those who are alive may open."""
    if database.dialect != "postgresql":
        return
    with database.reading() as db:
        row = db.execute(LIMITS).one()
    limits = [("max_connections", row.most - row.reserved, row.used)]
    if row.of_role >= 0:
        limits.append(("the role's connection limit", row.of_role, row.used_by_role))
    if row.of_database >= 0:
        limits.append(("the database's connection limit", row.of_database, row.used_here))
    workers = sum(one.kind is ProcessKind.WORKER for one in alive)
    needed = workers * OF_WORKER + (len(alive) - workers) * OF_OTHERS + OF_OTHERS
    name, most, used = min(limits, key=lambda limit: limit[1] - limit[2])
    _, least, _ = min(limits, key=lambda limit: limit[1])
    figures = {"used": used, "most": most, "may_need": needed}
    they = f"{render.counted(workers, 'worker')}, {render.counted(len(alive) - workers, 'beat')} and one client"
    if used >= most * SCARCE:
        said = "hardly any is left, and whoever finds none is refused"
    elif needed > least:
        said = f"{they} may open up to {needed}"
    else:
        said = f"{used} of {most} are used; {they} may open up to {needed}"
        yield Finding("ok", "connections", said, "database.connections", more=figures)
        return
    yield Finding(
        "fail" if used >= most else "warn",
        "connections",
        f"{used} of the {most} that {name} leaves are used: {said}. Raise {name}, or run fewer workers (one serves up to "
        "`concurrency` sessions)",
        "database.connections",
        f"{RUNBOOK}inturndatabasedown",
        figures,
    )
