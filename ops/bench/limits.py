"""A provider's limit that three workers use up together, and what chat waits meanwhile."""

import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from inturn import Client
from inturn.models.states import Lane
from inturn.settings import Settings
from ops.bench.databases import Databases
from ops.bench.filling import PROVIDER, fill
from ops.bench.inturn_subject import FINISHED, Inturn
from ops.bench.meter import part
from ops.bench.model_server import ModelServer, model_server
from ops.bench.processes import ChildFailedError, wait_until
from ops.bench.rows import Row, compared, in_ms
from ops.bench.runs import say
from ops.bench.workload import PROMPT
from ops.servers import RedisServer

A_MINUTE = 600
WORKERS = 3
SLOTS = 50
"""Of each worker: fifteen times what the limit lets be under way."""
BATCH_TURNS = 2000
MODEL_SECONDS = 0.5
UNDER_WAY = 100
"""Calls, after which chat begins."""
PEOPLE, TURNS_A_PERSON = 2, 100
PAUSE_SECONDS = 1.0
"""Two people ask 1.3 times a second together; chat's fifth of the limit is 2 a second."""
LONGEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What one run showed.

    Attributes:
        moments: when each call came to the model, in order.
        waits: seconds that each chat turn took longer than its model did.
        completed: turns that have their reply.
    """

    moments: Sequence[float]
    waits: Sequence[float]
    completed: int


def limit_rows(ours: Inturn, databases: Databases, broker: RedisServer, seed: int) -> Iterator[Row]:
    """One run, whatever ``--repeat`` says: it takes as long as the limit makes it, nearly four minutes."""
    with model_server(seed, MODEL_SECONDS, MODEL_SECONDS) as model:
        run = limited(ours, databases, broker, model)
    turns = BATCH_TURNS + PEOPLE * TURNS_A_PERSON
    most, rate = busiest(run.moments, 60.0), a_minute(run.moments)
    lost, twice = turns - run.completed, len(run.moments) - turns
    p50, longest = part(run.waits, 50), max(run.waits)
    say(
        f"{databases.kind}: {most} calls in the busiest minute, {rate:.1f} a minute over {len(run.moments)}, "
        f"{lost} lost, {twice} made twice; chat waited {p50:.3f} s (p50), {longest:.3f} s (the longest)"
    )
    name = f"{turns:,} turns, {WORKERS} workers, {A_MINUTE} a minute"
    yield compared(f"{name}: calls in the busiest 60 s", databases.kind, None, most, "", A_MINUTE, "the limit")
    yield compared(f"{name}: calls a minute over the run", databases.kind, None, rate, "", A_MINUTE, "the limit")
    yield Row(f"{name}: turns lost", databases.kind, None, lost, "")
    yield Row(f"{name}: calls made twice", databases.kind, None, twice, "")
    yield in_ms(f"{name}: chat over the model, p50", databases.kind, p50)
    yield in_ms(f"{name}: chat over the model, longest", databases.kind, longest)


def busiest(moments: Sequence[float], seconds: float) -> int:
    """How many of them lie in the busiest so many seconds; the moments are in order."""
    most = first = 0
    for place, moment in enumerate(moments):
        while moment - moments[first] > seconds:
            first += 1
        most = max(most, place - first + 1)
    return most


def a_minute(moments: Sequence[float]) -> float:
    """How many came in a minute, from the first to the last of them."""
    return 60 * (len(moments) - 1) / (moments[-1] - moments[0])


def limited(ours: Inturn, databases: Databases, broker: RedisServer, model: ModelServer) -> Kept:
    with ours.empty_database() as url, ExitStack() as stack:
        fill(url, BATCH_TURNS, Lane.BATCH, turns=1)
        ours.hint(WORKERS * SLOTS, Lane.BATCH)
        provider = {"type": "openai", "base_url": model.base_url, "requests_per_minute": A_MINUTE}
        providers = {PROVIDER: provider}
        environment = ours.environment(url, SLOTS) | {"INTURN_PROVIDERS": json.dumps(providers)}
        worker, *_ = [stack.enter_context(ours.worker(environment)) for _ in range(WORKERS)]
        ours.wait(worker, lambda: model.served() >= UNDER_WAY)
        with Client(Settings.load(database_url=url, broker_url=broker.url, providers=providers)) as client:
            waits = chat(client)
        finished, turns = FINISHED[databases.kind], BATCH_TURNS + PEOPLE * TURNS_A_PERSON
        with suppress(ChildFailedError):  # what is missing then is what was lost
            wait_until(lambda: len(databases.times(url, finished)) >= turns, worker, LONGEST_SECONDS)
        return Kept(model.moments(), waits, len(databases.times(url, finished)))


def chat(client: Client) -> list[float]:
    """A few conversations at once, at a person's pace."""
    waits: list[float] = []
    people = [threading.Thread(target=converse, args=(client, number, waits)) for number in range(PEOPLE)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    return waits


def converse(client: Client, number: int, waits: list[float]) -> None:
    session = client.create_session(f"person-{number}", model=f"{PROVIDER}/bench")
    for _ in itertools.repeat(None, TURNS_A_PERSON):
        began = time.monotonic()
        session.send_and_wait(PROMPT, timeout=120)
        waits.append(time.monotonic() - began - MODEL_SECONDS)
        time.sleep(PAUSE_SECONDS)
