"""Cleaning up: what a look costs that finds nothing, how fast sessions go, and what live turns feel of it."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from statistics import median

from sqlalchemy import text

from inturn import Client
from inturn.cleaning import Cleanup
from inturn.models.database import Database
from inturn.models.states import Lane
from inturn.models.store import retention
from inturn.models.store.rules import OWN, default_rule
from inturn.session import Session
from inturn.settings import Settings
from inturn.workers.app import make_app
from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS
from ops.bench.databases import Databases, copy_of
from ops.bench.filling import grow_old
from ops.bench.inturn_subject import Inturn
from ops.bench.latency import MODEL_SECONDS, PROBED
from ops.bench.meter import memory_bytes, part
from ops.bench.model_server import ModelServer, model_server
from ops.bench.processes import ChildFailedError
from ops.bench.rows import Row, compared, in_ms
from ops.bench.runs import say
from ops.bench.workload import PROMPT
from ops.servers import RedisServer

SESSIONS = 100_000
TURNS = 10
"""Of a session: twenty messages."""
EXPIRED_SHARE = 0.1
RULES = (OWN, default_rule(30 * 86400.0))
CHUNK = Settings.model_fields["cleanup_chunk"].default
LOOKS = 5
PEOPLE, PAUSE_SECONDS = 16, 0.1
LIVE_SECONDS = 20.0
BARE = "DELETE FROM sessions WHERE id > 1 AND id <= :last"
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Live:
    """What people saw who were talking meanwhile, in seconds.

    Attributes:
        turns: that each turn took longer than its model.
        sends: that each send took.
    """

    turns: Sequence[float]
    sends: Sequence[float]


def retention_rows(
    ours: Inturn, databases: Databases, broker: RedisServer, seed: int, repeat: int, sessions: int = SESSIONS
) -> Iterator[Row]:
    """Of so many sessions, a tenth of which is due; each run has a copy of the database."""
    expired = round(EXPIRED_SHARE * sessions)
    full = databases.create()
    say(f"{databases.kind}: {sessions:,} sessions of {TURNS} turns are being made")
    grow_old(full, sessions, 1 + expired, TURNS)
    kind, name = databases.kind, f"{sessions:,} sessions of {2 * TURNS} messages"
    plain, removed = [], []
    for _ in range(repeat):
        with copy_of(databases, full) as url:
            plain.append(expired / timed_bare(url, 1 + expired))
        with copy_of(databases, full) as url:
            removed.append(expired / timed_removal(url, expired))
            looks = [timed_look(url) for _ in range(LOOKS)]
        say(f"{kind}: removed {removed[-1]:,.0f}/s, bare {plain[-1]:,.0f}/s, a look that finds none {max(looks):.4f} s")
    yield in_ms(f"{name}: a look that finds none due", kind, median(looks))
    against = "one cascading DELETE"
    yield compared(f"{name}: {expired:,} removed, unpaced", kind, None, median(removed), "1/s", median(plain), against)
    with copy_of(databases, full) as url, model_server(seed, MODEL_SECONDS, MODEL_SECONDS) as model:
        yield from live_rows(ours, broker, url, model, f"{name}: paced cleanup")


def timed_bare(url: str, last: int) -> float:
    database = Database(url)
    began = time.perf_counter()
    with database.writing() as db:
        db.execute(text(BARE), {"last": last})
    took = time.perf_counter() - began
    database.close()
    return took


def timed_removal(url: str, expired: int) -> float:
    database = Database(url)
    began = time.perf_counter()
    removed = sum(1 for _ in Cleanup(database, RULES, "bench", CHUNK).run())
    took = time.perf_counter() - began
    database.close()
    if removed != expired:
        raise ChildFailedError(f"{removed:,} sessions were removed, and {expired:,} were due")
    return took


def timed_look(url: str) -> float:
    database = Database(url)
    retention.count_due(database, RULES)  # connects
    began = time.perf_counter()
    due = retention.count_due(database, RULES)
    took = time.perf_counter() - began
    database.close()
    if sum(due.values()):
        raise ChildFailedError(f"{due} are due, and none was to be")
    return took


def live_rows(ours: Inturn, broker: RedisServer, url: str, model: ModelServer, name: str) -> Iterator[Row]:
    """A worker that answers people, and cleans up while it does, as beat tells it to."""
    kind = ours.database
    broker.flush()
    providers = {PROBED: {"type": "openai", "base_url": model.base_url}}
    settings = Settings.load(database_url=url, broker_url=broker.url, providers=providers)
    with ours.worker(ours.environment(url, 100, **{PROBED: model})) as worker, Client(settings) as client:
        ours.wait_ready(worker, url)
        people = [client.create_session(f"person-{number}", model=f"{PROBED}/model") for number in range(PEOPLE)]
        talk(people, LIVE_SECONDS / 4)
        before, memory = talk(people, LIVE_SECONDS), memory_bytes(worker.pid)
        with closing(make_app(settings, producer=True)) as app:
            app.send_task(REMOVE_EXPIRED_SESSIONS, queue=str(Lane.MAINTENANCE))
        began = time.monotonic()
        beside = talk(people, LIVE_SECONDS)
        removed = sum(run.sessions for run in client.list_removal_runs())
        rate, grown = removed / (time.monotonic() - began), memory_bytes(worker.pid) - memory
    p99, quiet = part(beside.turns, 99), part(before.turns, 99)
    say(
        f"{kind}: {removed:,} removed beside {len(beside.turns)} turns; p99 {p99:.4f} s ({quiet:.4f} without), "
        f"longest send {max(beside.sends):.4f} s ({max(before.sends):.4f}), {grown / MIB:.1f} MiB"
    )
    if not removed:
        raise ChildFailedError("the worker removed nothing")
    yield Row(f"{name}: sessions removed", kind, PEOPLE, rate, "1/s")
    yield in_ms(f"{name}: p99 of live turns", kind, p99, PEOPLE, quiet, "without")
    yield in_ms(f"{name}: longest send", kind, max(beside.sends), PEOPLE, max(before.sends), "without")
    yield Row(f"{name}: memory of its worker grew by", kind, PEOPLE, grown / MIB, "MiB")


def talk(people: Sequence[Session], seconds: float) -> Live:
    """All of them at once, each at a person's pace, for so long."""
    turns, sends, over = list[float](), list[float](), time.monotonic() + seconds

    def converse(session: Session) -> None:
        while time.monotonic() < over:
            began = time.perf_counter()
            turn = session.send(PROMPT)
            sends.append(time.perf_counter() - began)
            turn.wait(timeout=120)
            turns.append(time.perf_counter() - began - MODEL_SECONDS)
            time.sleep(PAUSE_SECONDS)

    with ThreadPoolExecutor(len(people)) as threads:
        for done in [threads.submit(converse, person) for person in people]:
            done.result()
    return Live(turns, sends)
