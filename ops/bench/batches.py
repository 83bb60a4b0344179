"""A hundred thousand lines of a batch: how fast they are accepted, worked off and written out."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import psycopg
from sqlalchemy import make_url, text

from inturn import Batch, Client
from inturn.cli.batch.writing import Place, write_out
from inturn.models.database import Database
from inturn.models.migrations import upgrade
from inturn.models.states import Lane, slots_of
from inturn.settings import Settings
from inturn.workers.queues import connect, queued
from ops.bench.databases import Databases, path_of
from ops.bench.filling import PROVIDER, analyze, fill
from ops.bench.inturn_subject import FINISHED, Inturn
from ops.bench.processes import wait_until
from ops.bench.rows import Row, compared
from ops.bench.runs import say
from ops.bench.workload import REPLY
from ops.servers import RedisServer

LINES = 100_000
LOADED = ("sessions", "leases", "turns", "messages")
SLOTS = 800
RUN_LINES = 20 * SLOTS
RUN_SECONDS = 120.0
LOOK_SECONDS = 0.01

ANSWER = (
    (
        "UPDATE turns SET state = 'completed', finished_at = created_at, finish_reason = 'stop', attempts = 1, "
        "input_tokens = 20, output_tokens = 60"
    ),
    (
        "INSERT INTO messages (session_id, turn_number, position, role, content, created_at) "
        "SELECT session_id, number, 2, 'assistant', :reply, created_at FROM turns"
    ),
    "UPDATE leases SET ready_at = NULL",
)


def batch_rows(ours: Inturn, databases: Databases, broker: RedisServer, directory: Path, repeat: int) -> Iterator[Row]:
    """Medians of runs."""
    file = directory / "lines.jsonl"
    with file.open("w") as written:
        for number in range(LINES):
            prompt = f"Is review {number} of the kettle in the corner of the shop positive? One word."
            written.write(json.dumps({"custom_id": f"review-{number}", "prompt": prompt}) + "\n")
    accepted, bare, results, looped = [], [], [], []
    for _ in range(repeat):
        with ours.empty_database() as url, client_of(ours, url) as client:
            seconds, batch = submitted(client, file)
            accepted.append(seconds)
            bare.append(loaded_bare(databases, url))
            results.append(written_out(client, batch, url, directory / "out.jsonl"))
            looped.append(written_bare(databases, url, directory / "bare.jsonl"))
            say(
                f"{databases.kind}: {LINES:,} lines accepted in {seconds:.1f} s, bare {bare[-1]:.1f} s, "
                f"out {results[-1]:.1f} s, bare {looped[-1]:.1f} s"
            )
    name = f"batch of {LINES:,} short lines"
    rate, plain = LINES / median(accepted), LINES / median(bare)
    yield compared(f"{name}: accepted", databases.kind, None, rate, "1/s", plain, "bare load of the same rows")
    rate, plain = LINES / median(results), LINES / median(looped)
    yield compared(f"{name}: results written", databases.kind, None, rate, "1/s", plain, "a bare loop")
    yield from running_rows(ours, databases, broker, repeat)


def client_of(ours: Inturn, url: str) -> Client:
    environment = ours.environment(url, SLOTS)
    return Client(
        Settings.load(
            home=environment["INTURN_HOME"], database_url=url, broker_url=environment["INTURN_BROKER_URL"],
            providers=json.loads(environment["INTURN_PROVIDERS"]),
        )
    )  # fmt: skip


def submitted(client: Client, file: Path) -> tuple[float, Batch]:
    """From the file to the last commit: reading, checking and storing."""
    began = time.perf_counter()
    batch = client.submit_batch(file, model=f"{PROVIDER}/bench")
    return time.perf_counter() - began, batch


def loaded_bare(databases: Databases, url: str) -> float:
    """Seconds for the very rows that were stored, as fast as the database takes them: into empty tables of the same kind,
    in one transaction, out of memory.
    """
    other = databases.create()
    migrated = Database(other)
    upgrade(migrated)
    migrated.close()
    try:
        load = bare_sqlite if databases.kind == "sqlite" else bare_postgresql
        return load(url, other)
    finally:
        databases.drop(other)


def bare_sqlite(source: str, target: str) -> float:
    with closing(sqlite3.connect(path_of(source))) as db:
        tables = [(name, db.execute(f"SELECT * FROM {name}").fetchall()) for name in LOADED]
        columns = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in LOADED}
    with closing(sqlite3.connect(path_of(target))) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA foreign_keys=ON")
        began = time.perf_counter()
        for name, rows in tables:
            places = ", ".join("?" * len(columns[name]))
            db.executemany(f"INSERT INTO {name} ({', '.join(columns[name])}) VALUES ({places})", rows)
        db.commit()
        return time.perf_counter() - began


def bare_postgresql(source: str, target: str) -> float:
    with psycopg.connect(plain(source)) as db:
        tables = []
        for name in LOADED:
            cursor = db.execute(f"SELECT * FROM {name}".encode())
            columns = [column.name for column in cursor.description or ()]
            copied = [
                tuple(json.dumps(value) if isinstance(value, dict | list) else value for value in row) for row in cursor
            ]
            tables.append((name, columns, copied))
    with psycopg.connect(plain(target)) as db:
        began = time.perf_counter()
        for name, columns, rows in tables:
            with db.cursor() as cursor, cursor.copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN".encode()) as copy:
                for row in rows:
                    copy.write_row(row)
        db.commit()
        return time.perf_counter() - began


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def written_out(client: Client, batch: Batch, url: str, output: Path) -> float:
    """Seconds for all results, from the database to a synced file, once every line has a reply."""
    database = Database(url)
    with database.writing() as db:
        for statement in ANSWER:
            db.execute(text(statement), {"reply": REPLY} if ":reply" in statement else {})
    analyze(database)
    batch.progress()
    began = time.perf_counter()
    write_out(client, batch, Place(str(output), None, short=False, force=False), follow=False)
    seconds = time.perf_counter() - began
    output.unlink()
    return seconds


BARE_RESULTS = (
    "SELECT t.line, t.custom_id, t.session_id, t.number, t.model, m.content, t.input_tokens, t.output_tokens "
    "FROM turns t JOIN messages m ON m.session_id = t.session_id AND m.turn_number = t.number AND m.position = 2 "
    "ORDER BY t.finished_at, t.line"
)


def written_bare(databases: Databases, url: str, output: Path) -> float:
    """Seconds for the same entries from all rows at once, by a loop that can neither be broken off nor gone on with."""
    connect: Any = (
        partial(sqlite3.connect, path_of(url)) if databases.kind == "sqlite" else partial(psycopg.connect, plain(url))
    )
    began = time.perf_counter()
    with closing(connect()) as db, output.open("wb") as file:
        for line, custom_id, session, number, model, reply, took, gave in db.execute(BARE_RESULTS):
            message = {"role": "assistant", "content": reply, "refusal": None}
            body = {
                "id": f"chatcmpl-{session}.{number}", "object": "chat.completion", "created": int(began), "model": model,
                "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": took, "completion_tokens": gave, "total_tokens": took + gave},
            }  # fmt: skip
            response = {"status_code": 200, "request_id": f"{session}.{number}", "body": body}
            entry = {"id": f"batch_req_{line}", "custom_id": custom_id, "response": response, "error": None}
            file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    output.unlink()
    return seconds


@dataclass(frozen=True, slots=True)
class Worked:
    """How a worker worked off what was there.

    Attributes:
        rate: turns a second, over the middle half.
        hints: the most that waited in Redis at a time.
    """

    rate: float
    hints: int


def running_rows(ours: Inturn, databases: Databases, broker: RedisServer, repeat: int) -> Iterator[Row]:
    capacity = slots_of(Lane.BATCH, list(Lane), SLOTS, Settings.load().batch_share)
    batches, filled = [], []
    for _ in range(repeat):
        filled.append(worked_off(ours, databases, broker, is_batch=False))
        batches.append(worked_off(ours, databases, broker, is_batch=True))
        say(f"{databases.kind}: {batches[-1]} of a batch, {filled[-1]} of sessions that were there, {capacity} slots")
    rate, there = (median(each.rate for each in runs) for runs in (batches, filled))
    name = f"batch of {RUN_LINES:,} lines, one worker"
    yield compared(f"{name}: turns", databases.kind, capacity, rate, "1/s", there, "the same turns, there before")
    hints = max(each.hints for each in batches)
    yield compared(f"{name}: most hints in Redis", databases.kind, capacity, hints, "", capacity, "the lane's slots")


def worked_off(ours: Inturn, databases: Databases, broker: RedisServer, *, is_batch: bool) -> Worked:
    finished, over, seen = FINISHED[databases.kind], threading.Event(), [0]

    def look() -> None:
        with closing(connect(broker.url)) as redis:
            while not over.wait(LOOK_SECONDS):
                seen[0] = max(seen[0], queued(redis, Lane.BATCH) or 0)

    with ours.empty_database() as url:
        if not is_batch:
            fill(url, RUN_LINES, Lane.BATCH, turns=1)
            ours.hint(SLOTS, Lane.BATCH)
        looker = threading.Thread(target=look)
        looker.start()
        try:
            with ours.worker(ours.environment(url, SLOTS)) as worker, client_of(ours, url) as client:
                ours.wait_ready(worker, url)
                if is_batch:
                    client.submit_batch((f"prompt {n}" for n in range(RUN_LINES)), model=f"{PROVIDER}/bench")
                wait_until(lambda: len(databases.times(url, finished)) >= RUN_LINES, worker, RUN_SECONDS)
                return Worked(middle_rate(sorted(databases.times(url, finished))), seen[0])
        finally:
            over.set()
            looker.join()


def middle_rate(moments: Sequence[float]) -> float:
    """Over the middle half of what was finished."""
    quarter = len(moments) // 4
    return (len(moments) - 2 * quarter) / (moments[-quarter] - moments[quarter])
