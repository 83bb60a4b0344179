"""A thousand replies at once that are heard while they are written, and how late they are heard."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from sqlalchemy import update

from inturn.models.database import Database
from inturn.models.tables import TURNS
from ops.bench.databases import Databases
from ops.bench.filling import PROVIDER, fill
from ops.bench.inturn_subject import FINISHED, Inturn
from ops.bench.meter import cpu_seconds, part
from ops.bench.model_server import ModelServer, model_server
from ops.bench.processes import Child, ChildFailedError, first_line, module, running, wait_until
from ops.bench.rows import Row, in_ms
from ops.bench.runs import say
from ops.servers import RedisServer

REPLIES = 1000
DELTAS = 200
PACE_SECONDS = 0.1
"""Ten deltas a second and reply, ten thousand a second in all: a worker takes most of a core for that."""
LISTENERS = 48
"""Of all that are told: each costs a process that listens a thread, and this machine has other things to do."""
LONGEST_SECONDS = 240.0

STARTED = {
    "postgresql": "SELECT extract(epoch FROM max(started_at)) FROM attempts",
    "sqlite": "SELECT (julianday(max(started_at)) - 2440587.5) * 86400 FROM attempts",
}
"""When all of them were under way."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Of one run.

    Attributes:
        delays: seconds, of each delta that was heard.
        at_first: the same of those that were sent before all replies were under way: a thousand calls begin in that time.
        cpu: seconds of each process, by its name, for one reply.
        seconds: from the first call to the last reply stored.
    """

    delays: list[float]
    at_first: list[float]
    cpu: dict[str, float]
    seconds: float


def stream_rows(ours: Inturn, databases: Databases, broker: RedisServer, seed: int, repeat: int) -> Iterator[Row]:
    """Medians of runs; in each, every session's one turn is streamed, all at the same time."""
    runs = []
    with model_server(seed, 0, 0, DELTAS, PACE_SECONDS) as model:
        for _ in range(repeat):
            runs.append(run := streamed(ours, databases, broker, model))
            p50, p99, at_first = part(run.delays, 50), part(run.delays, 99), part(run.at_first, 99)
            cpu = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in run.cpu.items())
            say(
                f"{ours.database}: {REPLIES} streams of {DELTAS} deltas in {run.seconds:.1f} s, {cpu} a reply; "
                f"{len(run.delays)} deltas heard by {LISTENERS}, p50 {p50:.4f} s, p99 {p99:.4f} s "
                f"({at_first:.4f} s while the calls began)"
            )
    for name in ("worker", "broker"):
        value = median(run.cpu[name] for run in runs)
        yield in_ms(f"streamed replies: {name} CPU per reply of {DELTAS} deltas", ours.database, value, REPLIES)
    for hundredths in 50, 99:
        value = median(part(run.delays, hundredths) for run in runs)
        yield in_ms(f"streamed replies: delay of a delta to a listener, p{hundredths}", ours.database, value, REPLIES)
    value = median(part(run.at_first, 99) for run in runs)
    yield in_ms("streamed replies: the same while the calls begin, p99", ours.database, value, REPLIES)


def streamed(ours: Inturn, databases: Databases, broker: RedisServer, model: ModelServer) -> Heard:
    with ours.empty_database() as url:
        fill(url, REPLIES, turns=1)
        ask_to_hear(url)
        ours.hint(REPLIES)
        with running(listening(url, ours.broker_url)) as listeners:
            first_line(listeners)
            with ours.worker(ours.environment(url, REPLIES, **{PROVIDER: model})) as worker:
                ours.wait_ready(worker, url)
                return measured(worker, listeners, databases, broker, url)


def ask_to_hear(url: str) -> None:
    database = Database(url)
    with database.writing() as db:
        db.execute(update(TURNS).values(streams=True))
    database.close()


def listening(url: str, broker_url: str) -> list[str]:
    some = (str(number) for number in range(1, REPLIES + 1, REPLIES // LISTENERS))
    addresses = (f"--database-url={url}", f"--broker-url={broker_url}")
    return module("ops.bench.listeners", *addresses, "--sessions", *list(some)[:LISTENERS])


def measured(worker: Child, listeners: Child, databases: Databases, broker: RedisServer, url: str) -> Heard:
    """From the worker's first call to the last reply."""
    parts = {"worker": worker.pid, "broker": broker.pid, "listeners": listeners.pid, **databases.parts}
    before, began = {name: cpu_seconds(pid) for name, pid in parts.items()}, time.monotonic()
    finished = FINISHED[databases.kind]
    wait_until(lambda: len(databases.times(url, finished)) >= REPLIES, worker, LONGEST_SECONDS)
    seconds = time.monotonic() - began
    cpu = {name: (cpu_seconds(pid) - before[name]) / REPLIES for name, pid in parts.items()}
    deltas: list[tuple[float, float]] = json.loads(first_line(listeners))
    if len(deltas) != LISTENERS * DELTAS:
        raise ChildFailedError(f"{len(deltas)} deltas were heard, and {LISTENERS * DELTAS} were sent to who listened")
    (all_began,) = databases.times(url, STARTED[databases.kind])
    at_first = [delay for sent_at, delay in deltas if sent_at < all_began]
    return Heard([delay for _, delay in deltas], at_first, cpu, seconds)
