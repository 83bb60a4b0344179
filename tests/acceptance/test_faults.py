"""Faults in the middle of work: real processes are killed, stopped and wiped, and the books are compared afterwards.

SEED replays the dice of a run, SECONDS makes it longer (``make chaos SEED=7 SECONDS=60``). Every run prints its figures.
"""

import json
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inturn import Session
from inturn.workers.embedded import broker_url
from ops.chaos.books import Books
from ops.chaos.faults import redis as redis_faults
from ops.chaos.figures import figures, spread
from ops.chaos.fleet import EmbeddedBroker, Fleet
from ops.chaos.model import ModelServer
from ops.chaos.nemesis import Fault
from ops.chaos.producers import Producers
from ops.chaos.spending import repeated_calls, wasted_replies
from ops.servers import PostgresServer, RedisServer

SEED = int(os.environ.get("SEED") or os.environ.get("INTURN_CHAOS_SEED") or secrets.randbelow(10**6))
SECONDS = float(os.environ.get("SECONDS") or os.environ.get("INTURN_CHAOS_SECONDS") or 5)
TURNS = max(1000, round(150 * SECONDS))
SESSIONS = 100
LATENCY = (0.02, 0.2)
DRAIN_SECONDS = 40.0
LEAST = 2
"""Faults of a run, however slow the machine: its last ones may come after the last send."""

FROZEN_SECONDS, DOWN_SECONDS = 1.5, 0.2
"""How long ``send`` may take with Redis frozen, and with Redis down, over what the database takes."""

pytestmark = pytest.mark.timeout(120 + 3 * SECONDS)

Say = Callable[..., None]


@pytest.fixture(scope="module")
def slow_model() -> Iterator[ModelServer]:
    with ModelServer(latency=LATENCY, seed=SEED) as server:
        yield server


@pytest.fixture
def say(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Say:
    """Print figures past pytest's capture."""

    def say(**figures: Any) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name} seed={SEED}", " ".join(f"{key}={value}" for key, value in figures.items()))

    return say


def settings_for(model: ModelServer) -> dict[str, Any]:
    providers = {"server": {"type": "openai", "base_url": model.base_url}}
    return {"providers": providers, "default_model": "server/model"}


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, slow_model: ModelServer) -> Iterator[Fleet]:
    """Two workers and a beat, on SQLite and the embedded broker, or on PostgreSQL and a Redis of their own."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    if request.param == "sqlite":
        broker: EmbeddedBroker | RedisServer = EmbeddedBroker(home)
        database_url = ""
    else:
        broker, postgres = RedisServer(), request.getfixturevalue("postgres")
        database_url = postgres.create_database()
    fleet = Fleet(home, database_url, broker, **settings_for(slow_model))
    try:
        fleet.start()
        yield fleet
    finally:
        broker.thaw()
        fleet.stop()
        broker.stop()
        if database_url:
            postgres.drop_database(database_url)


@contextmanager
def noted(faults: list[Fault], kind: str) -> Iterator[dict[str, Any]]:
    """A fault from its beginning to its end, for the books."""
    began, detail = time.time(), dict[str, Any]()
    yield detail
    faults.append(Fault(kind, kind, began, time.time(), detail))


def kill_workers(fleet: Fleet, dice: random.Random, producers: Producers) -> list[Fault]:
    """SIGKILL for whoever is at work; another one is started at once, and the other one goes on alone meanwhile."""
    faults: list[Fault] = []
    while len(faults) < LEAST or (producers.are_sending and len(faults) < round(SECONDS * 0.6)):
        time.sleep(dice.uniform(0.2, 0.6))
        if victim := fleet.busy_worker() or (None if producers.are_sending else fleet.workers[0]):
            with noted(faults, "kill") as detail:
                detail["sessions"] = fleet.sessions_of(victim)
                fleet.kill(victim)
                fleet.add_worker()
                fleet.await_workers()
    return faults


def roll_workers(fleet: Fleet, dice: random.Random, producers: Producers) -> list[Fault]:
    """SIGTERM for one after the other, each after its successor was started."""
    faults: list[Fault] = []
    while len(faults) < LEAST or (producers.are_sending and len(faults) < SECONDS * 0.3):
        with noted(faults, "deploy") as detail:
            detail["drains"] = []
            for worker in list(fleet.workers):
                time.sleep(dice.uniform(0.1, 0.4))
                fleet.add_worker()
                before = time.monotonic()
                fleet.retire(worker)
                detail["drains"].append(time.monotonic() - before)
            fleet.await_workers()
    return faults


def wipe_redis(fleet: Fleet, dice: random.Random, producers: Producers) -> list[Fault]:
    """FLUSHALL, again and again, and once more after the last send: nobody but the sweep notices."""
    faults: list[Fault] = []
    while producers.are_sending:
        time.sleep(dice.uniform(0.2, 0.8))
        with noted(faults, "redis_wiped"):
            fleet.broker.flush()
    with noted(faults, "redis_wiped"):
        fleet.broker.flush()
    return faults


@pytest.mark.parametrize("hit", [kill_workers, roll_workers, wipe_redis])
def test_nothing_is_lost_doubled_or_out_of_order(
    fleet: Fleet, slow_model: ModelServer, say: Say, hit: Callable[..., list[Fault]]
):
    began, run = time.monotonic(), f"run-{secrets.token_hex(4)}"
    rate = TURNS / SECONDS
    with (
        fleet.client() as client,
        Producers(client, run, SEED, sessions=SESSIONS, rate=rate, seconds=SECONDS) as producers,
    ):
        faults = hit(fleet, random.Random(SEED), producers)
    waiting, sent = fleet.unfinished(), time.monotonic()
    fleet.await_drained(DRAIN_SECONDS + SECONDS)
    drained = time.monotonic() - sent
    books = books_of(fleet, slow_model, producers, faults)
    say(
        **figures(books, faults, producers.log),
        waiting=waiting,
        drained_s=round(drained, 1),
        stored=spread(stored_after(books)),
        took_s=round(time.monotonic() - began, 1),
    )
    assert books.violations() == []
    assert len(producers.log.accepted) >= 1000
    assert producers.log.refused == []
    assert len(faults) >= LEAST, "hardly anything happened"
    if hit is not kill_workers:
        assert {row.outcome for tries in books.tries.values() for row in tries} == {"completed"}
        assert repeated_calls(books) == 0


def books_of(fleet: Fleet, model: ModelServer, producers: Producers, faults: list[Fault]) -> Books:
    return Books(producers.log, model.calls(), fleet.settings, faults).read(fleet.database)


def stored_after(books: Books) -> list[float]:
    """Seconds between the model's reply and the moment in which it was stored."""
    ends = {turn: calls[-1].end or 0.0 for turn, calls in books.calls_of().items()}
    return [books.turns[turn].finished_at.timestamp() - end for turn, end in ends.items()]


def times_of_sending(sessions: list[Session], prompt: str) -> list[float]:
    """How long each send took, in seconds."""
    times = []
    for session in sessions:
        before = time.monotonic()
        session.send(prompt)
        times.append(time.monotonic() - before)
    return times


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def test_sending_with_redis_frozen_and_down(fleet: Fleet, slow_model: ModelServer, say: Say):
    """The first send waits for Redis for a moment, the others not at all; workers find every prompt in the end."""
    with fleet.client() as client:
        sessions = [client.create_session(f"session-{number}") for number in range(40)]
        healthy = times_of_sending(sessions, "healthy")
        fleet.await_drained(DRAIN_SECONDS)
        fleet.broker.freeze()
        frozen = times_of_sending(sessions[:20], "frozen")
    with fleet.client() as newcomer:
        (frozen_for_a_newcomer,) = times_of_sending([newcomer.resume_session("session-20")], "frozen")
    fleet.broker.thaw()
    fleet.broker.kill()
    with fleet.client() as client:
        sessions = [client.resume_session(f"session-{number}") for number in range(21, 40)]
        down = times_of_sending(sessions, "down")
    back = time.monotonic()
    fleet.broker.start()
    fleet.await_drained(DRAIN_SECONDS)
    say(
        healthy=spread(healthy), frozen_first_s=round(frozen[0], 2), frozen_newcomer_s=round(frozen_for_a_newcomer, 2),
        frozen_later=spread(frozen[1:]), down_first_s=round(down[0], 3), down_later=spread(down[1:]),
        answered_after_s=round(time.monotonic() - back, 1),
    )  # fmt: skip
    allowed = median(healthy) + DOWN_SECONDS
    assert max(frozen) < FROZEN_SECONDS
    assert frozen_for_a_newcomer < FROZEN_SECONDS
    assert median(frozen[1:]) < allowed, "once is enough"
    assert median(down) < allowed
    assert down[0] < max(healthy) + DOWN_SECONDS
    states = {(row.state, row.attempts) for row in fleet.query("SELECT state, attempts FROM turns")}
    assert states == {("completed", 1)}


def test_a_redis_that_is_out_of_memory_ends_no_worker(fleet: Fleet, slow_model: ModelServer, say: Say):
    """It refuses what a worker writes when it takes a hint. That is waited for, and forgotten."""
    with fleet.client() as client:
        sessions = [client.create_session(f"session-{number}") for number in range(20)]
        for worker in fleet.workers:
            worker.send_signal(signal.SIGSTOP)
        times_of_sending(sessions, "hinted before")
        with redis_faults.full(fleet.settings.broker_url or broker_url(fleet.home), random.Random(SEED)):
            for worker in fleet.workers:
                worker.send_signal(signal.SIGCONT)
            time.sleep(1)
            times_of_sending(sessions, "not hinted")
        back = time.monotonic()
        fleet.await_drained(DRAIN_SECONDS)
    say(answered_after_s=round(time.monotonic() - back, 1))
    assert fleet.crashes == []
    assert all(worker.poll() is None for worker in fleet.workers)
    assert fleet.query("SELECT 1 FROM turns WHERE state <> 'completed' OR attempts <> 1") == []


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.stop()


def test_postgresql_restarted_in_the_middle(own_postgres: PostgresServer, redis: RedisServer, tmp_path: Path, say: Say):
    """As after a crash. What was accepted is there, and a reply that came meanwhile waits until it can be stored."""
    run, directive = f"run-{secrets.token_hex(4)}", json.dumps({"latency": [0.3, 1.5]})
    with ModelServer(seed=SEED) as model:
        fleet = Fleet(tmp_path, own_postgres.create_database(), redis, **settings_for(model))
        try:
            fleet.start()
            faults: list[Fault] = []
            with (
                fleet.client() as client,
                Producers(client, run, SEED, sessions=50, rate=200 / 3, seconds=3, after=f" !{directive}") as producers,
            ):
                time.sleep(random.Random(SEED).uniform(1, 1.5))
                with noted(faults, "postgresql_restarted"):
                    own_postgres.restart("immediate")
            (fault,) = faults
            in_flight = sum(call.end is None or call.end > fault.began for call in model.calls())
            fleet.await_drained(DRAIN_SECONDS)
            books = books_of(fleet, model, producers, faults)
            say(**figures(books, faults, producers.log), in_flight=in_flight)
            assert books.violations() == []
            assert len(producers.log.accepted) == 200
            assert wasted_replies(books) == 0, "every reply that was paid for was kept"
        finally:
            fleet.stop()
