"""Deploys in a hurry: a worker that is not given the time to finish its calls. What is broken off is in the ledger, and
goes on elsewhere. (Deploys with time are in ``test_faults.py``: nothing fails, and nothing is asked twice.)
"""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops.chaos.fleet import EmbeddedBroker, Fleet, Process
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer
from tests.acceptance.test_faults import settings_for

SESSIONS, TURNS = 12, 2
CALL_SECONDS = (3.0, 5.0)
GOODBYE_SECONDS = 15

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def slow_model() -> Iterator[ModelServer]:
    with ModelServer(latency=CALL_SECONDS) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, slow_model: ModelServer) -> Iterator[Fleet]:
    """One worker and a beat."""
    is_embedded = request.param == "sqlite"
    (tmp_path / "home").mkdir(mode=0o700)
    postgres: PostgresServer | None = None if is_embedded else request.getfixturevalue("postgres")
    broker = EmbeddedBroker(tmp_path / "home") if is_embedded else RedisServer()
    fleet = Fleet(tmp_path / "home", postgres.create_database() if postgres else "", broker, **settings_for(slow_model))
    try:
        fleet.start(workers=1)
        yield fleet
    finally:
        fleet.stop()
        broker.stop()


def cold(worker: Process) -> None:
    """What process managers that know Celery send."""
    worker.send_signal(signal.SIGQUIT)


def impatient(worker: Process) -> None:
    """Two Ctrl-C in a terminal."""
    worker.send_signal(signal.SIGINT)
    time.sleep(0.5)
    worker.send_signal(signal.SIGINT)


def killed_after_warm(worker: Process) -> None:
    """A process manager whose grace is shorter than the calls."""
    worker.terminate()
    time.sleep(0.5)
    worker.kill()


@pytest.mark.parametrize("stop", [cold, impatient, killed_after_warm])
def test_only_what_the_ledger_shows(fleet: Fleet, slow_model: ModelServer, stop: Callable[[Process], None]):
    (former,) = fleet.workers
    with fleet.client() as client:
        sessions = [client.create_session(f"s{number}") for number in range(SESSIONS)]
        turns = [session.send(f"{session.session_id}: prompt {n}") for session in sessions for n in range(TURNS)]
        while len(slow_model.calls()) < SESSIONS:
            time.sleep(0.05)
        fleet.workers.remove(former)
        stop(former)
        began = time.monotonic()
        former.wait(GOODBYE_SECONDS)
        goodbye = time.monotonic() - began
        fleet.add_worker()
        fleet.await_drained(40)
        for turn in turns:
            turn.refresh()
    said = fleet.said(former)
    assert "Traceback" not in said
    assert goodbye < 5, "nobody waits for the calls"
    assert {(turn.state, turn.error) for turn in turns} == {("completed", None)}
    rows = fleet.query("SELECT session_id, turn_number, outcome, ended_at FROM attempts")
    assert [row for row in rows if row.outcome is None or row.ended_at is None] == []
    broken_off = [row for row in rows if row.outcome != "completed"]
    assert broken_off
    assert {row.outcome for row in broken_off} == {"lost"}
    tries = Counter(f"s{row.session_id - 1}" for row in rows)
    calls = Counter(call.prompt.partition(":")[0] for call in slow_model.calls())
    assert all(calls[key] <= tries[key] for key in calls)
    assert sum(calls.values()) - len(turns) == sum(tries.values()) - len(turns) == len(broken_off)
    answers = Counter(call.prompt for call in slow_model.calls() if call.outcome == "200")
    assert set(answers.values()) == {1}, "what was broken off was not answered twice"
