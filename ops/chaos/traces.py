"""7. After a delete nothing is left: no row, no Redis key, no log line; and retention removes only what lies idle."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import String, Table, cast, or_, select

from inturn.models.database import Database
from inturn.models.rows import Row
from inturn.models.store.retention import ERASURE
from ops.chaos.entries import Entries
from ops.chaos.promises import Deleted, Population

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
    canaries = [deleted.canary for deleted in books.log.deleted]
    for trace in books.traces:
        yield from (f"{canary} was deleted, and is in {trace[:200]}" for canary in canaries if canary in trace)


def removed(books: Entries) -> Iterator[str]:
    """Retention removes no prompt that waits: everything that was accepted there had its call, unless the model could not
    be reached meanwhile: a turn that failed of that waits for nothing. And who deletes has a receipt of it as an erasure.
    """
    counts, called = Counter(one.session for one in books.log.accepted), books.calls_of().keys()
    expired = {deleted.session: deleted.at for deleted in books.log.deleted if deleted.expired}
    cut_off = [fault for fault in books.faults if fault.kind == "model"]
    for one in books.log.accepted:
        if one.population is Population.HELD and one.session in books.gone:
            yield f"session {one.session} was held, and is gone"
        if one.session not in expired or one.turn in called:
            continue
        if not any(fault.began <= expired[one.session] and one.at - one.seconds <= fault.ended for fault in cut_off):
            yield f"turn {one.session}.{one.number} was removed before a model was asked"
    for deleted in books.log.deleted:
        if deleted.expired:
            yield from removed_once(books, deleted, counts[deleted.session])
    for row in books.removals:
        if not any(is_of(row, deleted) and deleted.expired == (row.rule != ERASURE) for deleted in books.log.deleted):
            yield f"session {row.session_key} was removed at {row.removed_at} by {row.rule!r}, and nobody noticed"


def is_of(row: Any, gone: Deleted) -> bool:
    return bool(row.session_key == gone.key and gone.since <= row.removed_at.timestamp() <= gone.at)


def removed_once(books: Entries, gone: Deleted, prompts: int) -> Iterator[str]:
    """It was removed with all its turns. Others that were made before, their answers lost, came and went without any."""
    rows = [row.turns for row in books.removals if is_of(row, gone)]
    if not rows:
        yield f"session {gone.session} expired, and no removal is on record"
    elif rows[-1] < prompts or any(rows[:-1]):
        yield f"session {gone.session} was removed with {rows} turns of {prompts}"


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
