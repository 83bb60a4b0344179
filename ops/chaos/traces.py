"""7. After a delete nothing is left: no row, no Redis key, no log line."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import String, Table, cast, or_, select

from inturn.models.database import Database
from inturn.models.rows import Row
from ops.chaos.entries import Entries

CANARY = "canary-"


def undeleted(books: Entries) -> Iterator[str]:
    """No row belongs to a deleted session, and its text is nowhere."""
    gone = books.gone
    rows = {
        "sessions": {row.id for row in books.sessions},
        "leases": {row.session_id for row in books.leases},
        "turns": {session for session, _ in books.turns},
        "messages": {session for (session, _), said in books.messages.items() if said},
        "attempts": {session for (session, _), tries in books.tries.items() if tries},
    }
    for table, sessions in rows.items():
        for session in sessions & gone:
            yield f"session {session} was deleted, and has rows in {table}"
        for session in sessions - rows["sessions"] - gone:
            yield f"session {session} is not there, and has rows in {table}"
    canaries = [deleted.canary for deleted in books.log.deleted]
    for trace in books.traces:
        yield from (f"{canary} was deleted, and is in {trace[:200]}" for canary in canaries if canary in trace)


def search(database: Database, logs: Iterable[Path], broker_url: str) -> Iterator[str]:
    """Every line, key and row that holds a canary of any kind.

    Args:
        logs: files that processes of inturn write.
        broker_url: empty looks into no Redis.
    """
    for path in logs:
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines()
            yield from (f"{path.name}: {line}" for line in lines if CANARY in line)
    if broker_url:
        yield from (f"Redis: {entry}" for entry in redis_entries(broker_url) if CANARY in entry)
    for table in Row.metadata.tables.values():
        yield from rows_with_canary(database, table)


def rows_with_canary(database: Database, table: Table) -> Iterator[str]:
    texts = [cast(column, String) for column in table.c if "CHAR" in str(column.type) or "TEXT" in str(column.type)]
    if not texts:
        return
    with database.reading() as db:
        for row in db.execute(select(*texts).where(or_(*(each.contains(CANARY) for each in texts)))):
            yield f"{table.name}: {row}"


def redis_entries(url: str) -> Iterator[str]:
    """Every key with its value, as text."""
    with redis.Redis.from_url(url.replace("redis+socket://", "unix://"), socket_timeout=5) as client:
        for key in client.scan_iter(count=1000):
            yield f"{key!r} {redis_value(client, key)!r}"


def redis_value(client: redis.Redis, key: bytes) -> Any:
    """DUMP knows all types, but compresses what is long: queues and what is unacknowledged are read as they are."""
    match client.type(key):
        case b"list":
            return client.lrange(key, 0, -1)
        case b"hash":
            return client.hgetall(key)
        case _:
            return client.dump(key)
