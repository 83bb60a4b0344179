"""The suite can fail: with one of inturn's guards taken away, the same events are violations of the right kind."""

import random
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from inturn import Client
from ops.chaos import fleet as fleets
from ops.chaos.books import Books
from ops.chaos.fleet import EmbeddedBroker, Fleet, freeze, wait_until
from ops.chaos.lodgers import Lodgers
from ops.chaos.model import ModelServer
from ops.chaos.nemesis import Fault
from ops.chaos.producers import Producers
from ops.chaos.promises import Log
from ops.chaos.rules import retention
from ops.servers import RedisServer

SEED = 12
PATIENCE_SECONDS = 30.0
STUCK_SECONDS = 5.0
"""After as long nothing more is to be hoped for where a fault is planted."""
TRIES = 3
PACE: dict[str, Any] = {
    "lease_seconds": 1.5,
    "heartbeat_seconds": 0.5,
    "sweep_seconds": 0.5,
    "cancel_poll_seconds": 0.5,
    "attempt_deadline_seconds": 15,
    "shutdown_grace_seconds": 20,
    "retry_base_seconds": 0.1,
    "retry_cap_seconds": 1,
}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer(seed=SEED) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Fleet]]:
    """Starts two workers, with a planted fault or without."""
    home, started = tmp_path / "home", list[Fleet]()
    for directory in (home, tmp_path / "archives"):
        directory.mkdir(mode=0o700)
    if request.param == "sqlite":
        broker: EmbeddedBroker | RedisServer = EmbeddedBroker(home)
        database_url = ""
    else:
        broker, postgres = RedisServer(), request.getfixturevalue("postgres")
        database_url = postgres.create_database()

    def start(planted: str) -> Fleet:
        if planted:
            command = (sys.executable, "-m", "ops.chaos.planted", planted)
            monkeypatch.setattr(fleets, "inturn_command", lambda *words: [*command, *words])
        providers = {"server": {"type": "openai", "base_url": model.base_url}}
        rules = retention(tmp_path / "archives") | {"cleanup_interval_seconds": 1}
        if "work" in planted.split("+"):  # of a session that stays, nobody would ever take up again what it took away
            rules["retention"] = [rule for rule in rules["retention"] if "keep" not in rule]
        fleet = Fleet(home, database_url, broker, providers, pace=PACE, default_model="server/model", **rules)
        started.append(fleet)
        for _ in range(2):
            fleet.add_worker()
        fleet.await_workers()
        return fleet

    try:
        yield start
    finally:
        for each in started:
            each.stop()
        broker.stop()
        if database_url:
            postgres.drop_database(database_url)


def send(client: Client, sessions: int, turns: int, latency: float) -> Producers:
    """At once: so many turns, each of which the model takes so many seconds over."""
    run, after = f"run-{secrets.token_hex(4)}", f' !{{"latency": {latency}}}'
    return Producers(client, run, SEED, sessions=sessions, rate=turns / 0.3, seconds=0.3, after=after)


def calls_under_way(fleet: Fleet) -> int:
    (row,) = fleet.query("SELECT count(*) AS number FROM turns WHERE state = 'running'")
    return int(row.number)


def come_back_late(fleet: Fleet) -> list[Fault]:
    """A worker is stopped for longer than its leases last, and answered meanwhile. Others have its sessions by then."""
    wait_until(lambda: calls_under_way(fleet) > 6, PATIENCE_SECONDS)
    worker, began = fleet.busy_worker(), time.time()
    assert worker is not None
    try:
        with nobody_writing(fleet):
            freeze(worker.pid)
        sessions = fleet.sessions_of(worker)
        wait_until(lambda: all_taken_over(fleet, sessions), PATIENCE_SECONDS)
        time.sleep(max(0.0, began + SLOW - time.time()))
    finally:
        worker.send_signal(signal.SIGCONT)
    return [Fault("pause", "pause", began, time.time(), {"outlasts_lease": True, "sessions": sessions})]


@contextmanager
def nobody_writing(fleet: Fleet) -> Iterator[None]:
    """A worker that is stopped meanwhile holds no lock of the database: its sessions can be taken over."""
    with fleet.database.writing() as db:
        if fleet.database.dialect == "postgresql":
            db.execute(text("LOCK TABLE leases IN SHARE ROW EXCLUSIVE MODE"))
        yield


def all_taken_over(fleet: Fleet, sessions: list[int]) -> bool:
    rows = fleet.query("SELECT session_id FROM attempts WHERE number > 1")
    return len({row.session_id for row in rows} & set(sessions)) >= len(sessions)


def die(fleet: Fleet) -> list[Fault]:
    """A worker is killed in the middle of its calls."""
    wait_until(lambda: calls_under_way(fleet) > 6, PATIENCE_SECONDS)
    worker, began = fleet.busy_worker(), time.time()
    assert worker is not None
    sessions = fleet.sessions_of(worker)
    fleet.kill(worker)
    fleet.add_worker()
    return [Fault("kill", "kill", began, time.time(), {"sessions": sessions})]


def nothing(fleet: Fleet) -> list[Fault]:
    return []


SLOW = 2.5
SCENES: dict[str, tuple[Callable[[Fleet], list[Fault]], dict[str, Any], set[str]]] = {
    "fence": (come_back_late, {"sessions": 60, "turns": 16, "latency": SLOW}, {"stale"}),
    "unique": (nothing, {"sessions": 5, "turns": 12, "latency": 0.1}, {"doubled"}),
    "recheck": (nothing, {"sessions": 4, "turns": 16, "latency": 0.5}, {"lost", "left"}),
    "precount": (die, {"sessions": 60, "turns": 16, "latency": 2}, {"uncounted"}),
}
"""What happens, what is sent, and the violations that it must be if the guard is missing."""


def violations(fleet: Fleet, model: ModelServer, scene: str, patience: float = PATIENCE_SECONDS) -> list[str]:
    happens, sent, _ = SCENES[scene]
    with fleet.client() as client:
        with send(client, **sent) as producers:
            pass
        faults = happens(fleet)
    deadline = time.monotonic() + patience
    while fleet.unfinished() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)  # leases are released with the last reply; a late one may still be on its way
    return Books(producers.log, model.calls(), fleet.settings, faults).read(fleet.database).violations()


@pytest.mark.parametrize("planted", SCENES)
def test_a_planted_fault_is_found(fleet: Callable[[str], Fleet], model: ModelServer, planted: str):
    """In one of some tries: a worker that comes back may hear that its leases are gone before it reads its replies."""
    ours, wanted = fleet(planted), SCENES[planted][2]
    found: list[str] = []
    for _ in range(TRIES):
        found += violations(ours, model, planted, STUCK_SECONDS)
        if wanted <= kinds_of(found):
            break
    assert wanted <= kinds_of(found), found


LODGINGS = {
    "hold+receipt+words+figures": (
        "removed: .* was held, and is gone",
        "removed: .* no removal is on record",
        "stripped: .* was held, and what was said in it is gone",
        "unstripped: what was said in turn .* was removed, and is there",
        "diminished: turn .* has lost its figures",
    ),
    "work+order+archive": (
        "interrupted: .* was removed",
        "removed: .* was to be kept for ever, and is gone",
        "unarchived: .* is not in the archive",
    ),
}
"""What must be found if a cleanup lacks these guards."""
RUNS = "SELECT count(*) AS number FROM removal_runs WHERE ended_at IS NOT NULL"


def lodge(fleet: Fleet, model: ModelServer, runs: int = 10) -> list[str]:
    """Sessions that beat's cleanups come for, until those had so many runs more; calls take longer than one may lie idle."""
    log, stopping, errors = Log(f"run-{secrets.token_hex(4)}"), threading.Event(), list[BaseException]()

    def send() -> None:
        try:
            lodgers.lodge(random.Random(SEED))
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    with fleet.client() as client:
        lodgers = Lodgers(client, log, log.run, stopping, after=' !{"latency": 2}')
        fleet.add_beat()
        had = fleet.query(RUNS)[0].number
        thread = threading.Thread(target=send)
        thread.start()
        try:
            wait_until(lambda: fleet.query(RUNS)[0].number >= had + runs, PATIENCE_SECONDS)
        finally:
            stopping.set()
            thread.join()
        fleet.await_drained(PATIENCE_SECONDS)
        fleet.rest()
        lodgers.bury()
    assert not errors, errors
    return Books(log, model.calls(), fleet.settings).read(fleet.database).violations()


@pytest.mark.parametrize("planted", LODGINGS)
def test_a_cleanup_without_its_guards_is_found(fleet: Callable[[str], Fleet], model: ModelServer, planted: str):
    ours, found, missing = fleet(planted), list[str](), LODGINGS[planted]
    for _ in range(TRIES):
        found += lodge(ours, model)
        missing = tuple(wanted for wanted in missing if not re.search(wanted, "\n".join(found)))
        if not missing:
            break
        ours.add_worker()
    assert not missing, found


def kinds_of(found: list[str]) -> set[str]:
    return {sentence.partition(":")[0] for sentence in found}


def test_nothing_is_found_where_none_is_planted(fleet: Callable[[str], Fleet], model: ModelServer):
    ours = fleet("")
    assert {scene: violations(ours, model, scene) for scene in SCENES} == {scene: [] for scene in SCENES}
    assert lodge(ours, model) == []
