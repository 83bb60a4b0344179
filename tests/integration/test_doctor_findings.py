"""What the check-up finds where something is broken: each time it really is, and the sentence names what mends it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url, null

from inturn.cli import cli
from inturn.cli.checkup import clocks, disks
from inturn.cli.checkup.brokers import check_broker
from inturn.cli.checkup.connections import check_connections
from inturn.cli.checkup.disks import check_disks
from inturn.cli.checkup.finding import Finding
from inturn.cli.checkup.origins import check_origins
from inturn.cli.checkup.work import check_work
from inturn.cli.doctor import check_database, check_server
from inturn.cli.invocation import Invocation
from inturn.cli.top.snapshot import Outlook
from inturn.fingerprints import fingerprints
from inturn.models import migrations
from inturn.models.clock import now
from inturn.models.cron import Cron
from inturn.models.database import Database
from inturn.models.states import Lane, ProcessKind
from inturn.models.store import lanes, presence, schedules
from inturn.models.store.presence import Process, Recent
from inturn.models.store.schedules import NewSchedule
from inturn.models.tables import LEASES, SCHEDULES, TICKS, WORKER_PROCESSES
from inturn.settings import Settings
from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS, connect
from ops.servers import PostgresServer, RedisServer
from tests.integration.stores import WORKER, Store
from tests.stacks import wait_until

SCARCE = 20
"""Connections that the small server takes, of which three are its superuser's."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("INTURN_", "CELERY_", "OPENAI_", "ANTHROPIC_"))]:
        if not name.startswith("INTURN_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INTURN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    server = PostgresServer(connections=SCARCE)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def broker() -> Iterator[RedisServer]:
    """One to be spoilt."""
    server = RedisServer()
    yield server
    server.stop()


def settings_of(store: Store, **more: Any) -> Settings:
    url = store.database.url.render_as_string(hide_password=False)
    return Settings.load(database_url=url, broker_url="redis://127.0.0.1:1/0", **more)


def work(store: Store, **more: Any) -> dict[str, Finding]:
    """What is found of the work, by the check's name."""
    return {finding.check: finding for finding in check_work(settings_of(store, **more), store.database)}


def appear(store: Store, name: str = WORKER, **more: Any) -> None:
    known: dict[str, Any] = {"kind": ProcessKind.WORKER, "lanes": "chat,batch,maintenance", "concurrency": 10}
    recent = more.pop("recent", None)
    store.write(presence.appear, Process(id=name, host="host", pid=7, version="0.1.0", **known | more), recent)


def wait_in_vain(store: Store, key: str = "s", lane: Lane = Lane.CHAT, seconds: float = 60) -> int:
    """A turn that is ready since then, and that nobody takes."""
    session = store.session(key)
    store.send(key, lane=lane)
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now(-seconds))
    return session


def test_nothing_is_found_where_everything_is_well(store: Store):
    appear(store)
    appear(store, "beat", kind=ProcessKind.BEAT, lanes="")
    store.session()
    store.send()
    assert work(store) == {}


def test_a_process_that_fell_silent_is_named_with_what_it_holds(store: Store):
    appear(store)
    session = store.session()
    store.send()
    store.start(session)
    store.change(WORKER_PROCESSES, WORKER_PROCESSES.c.id == WORKER, heartbeat_at=now(-50))
    found = work(store)["processes.silent"]
    assert found.state == "warn"
    assert found.sentence.startswith("worker host/7 was last heard of 5")
    assert "Sessions that it holds: 1" in found.sentence
    assert "(`inturn worker`)" in found.sentence


def test_another_version_is_named(store: Store):
    store.write(presence.appear, Process("old", ProcessKind.WORKER, "host", 7, "chat", 1, "0.0.9"))
    assert "host/7 (0.0.9)" in work(store)["processes.version"].sentence


def test_who_was_started_with_other_settings_is_named_with_what_they_are_about(store: Store):
    def start(kind: ProcessKind, lanes: str, **more: Any) -> None:
        settings = fingerprints(settings_of(store, **more), kind, lanes.split(","))
        appear(store, f"{kind}-{lanes}", kind=kind, lanes=lanes, settings=settings)

    start(ProcessKind.BEAT, "", retention_days=7, concurrency=1)
    start(ProcessKind.WORKER, "chat,batch,maintenance")
    start(ProcessKind.WORKER, "chat", retention_days=30)
    found = work(store, retention_days=7)["processes.settings"]
    assert (found.state, found.more["about"]) == ("warn", ["retention"])
    assert found.sentence.startswith(
        "worker host/7 was started with other settings than there are here (retention). If these were changed since, restart"
    )
    assert found.more["processes"] == ["worker host/7"], "one that cleans nothing up goes by no rules"
    assert "beat host/7, worker host/7 were started" in work(store, batch_days=7)["processes.settings"].sentence
    store.change(WORKER_PROCESSES, WORKER_PROCESSES.c.id != "", settings=null())
    assert work(store, retention_days=7) == {}, "one of an older version does not say"
    store.change(WORKER_PROCESSES, WORKER_PROCESSES.c.id != "", settings={}, version="0.0.9")
    assert list(work(store, retention_days=7)) == ["processes.version"], "another version reads them otherwise"


def test_turns_that_nobody_takes_though_slots_are_free_are_a_stalled_consumer(store: Store):
    appear(store)
    wait_in_vain(store)
    found = work(store)["queue.stalled"]
    assert (found.state, found.more["free_slots"], found.more["lane"]) == ("fail", 10, Lane.CHAT)
    assert "host/7 with 10 free slots in all take nothing: stalled" in found.sentence
    lanes.pause(store.database, Lane.CHAT)
    assert work(store) == {}, "a paused lane waits as it should"
    lanes.resume(store.database, Lane.CHAT)
    appear(store, recent=Recent(10.0, {"chat": {"completed": 1}}))
    assert work(store) == {}, "it moves"


def test_a_lane_that_is_only_slow_is_not_called_stalled(store: Store):
    appear(store, concurrency=1)
    for key in "busy", "next":
        wait_in_vain(store, key)
    store.start()
    found = work(store)
    assert list(found) == ["queue.full"]
    assert "Start another worker" in found["queue.full"].sentence
    wait_in_vain(store, "lines", Lane.BATCH, 7200)
    assert list(work(store)) == ["queue.full"], "batches wait for slots"


def test_turns_in_a_lane_that_nobody_serves_name_the_command(store: Store):
    appear(store, lanes="chat")
    wait_in_vain(store, lane=Lane.BATCH)
    found = work(store)["queue.unserved"]
    assert found.state == "fail"
    assert "start `inturn worker --lanes batch`" in found.sentence


def test_leases_that_nobody_takes_back_are_stuck(store: Store):
    appear(store, "alive")
    session = store.session("held-for-long")
    store.send("held-for-long")
    store.start(session, owner="gone")
    store.change(LEASES, LEASES.c.session_id == session, expires_at=now(-10))
    assert work(store) == {}, "the sweep may be on its way"
    store.change(LEASES, LEASES.c.session_id == session, expires_at=now(-300))
    found = work(store)["leases.stuck"]
    assert (found.state, found.more["sessions"]) == ("fail", 1)
    assert "held-for-long for 5 min" in found.sentence
    assert "action=sweep_failed" in found.sentence
    store.write(presence.disappear, ["alive"])
    assert "start `inturn worker`" in work(store)["leases.stuck"].sentence


def test_a_beat_that_lives_and_does_nothing_is_told(store: Store):
    appear(store, "beat", kind=ProcessKind.BEAT, lanes="")
    store.session()
    schedules.add(store.database, NewSchedule("weekly", "s", "hello", Cron("0 0 1 1 *", "UTC")))
    assert work(store) == {}
    store.change(SCHEDULES, SCHEDULES.c.name == "weekly", next_at=now(-90))
    store.change(WORKER_PROCESSES, WORKER_PROCESSES.c.id == "beat", started_at=now(-20_000))
    assert "1 schedule should have been fired" in work(store)["beat.schedules"].sentence
    assert "no cleanup has begun for 5 h 33 min" in work(store)["beat.overdue"].sentence
    store.write(presence.tick, REMOVE_EXPIRED_SESSIONS, 1)
    assert "beat.overdue" not in work(store)
    store.change(TICKS, TICKS.c.slot == 1, fired_at=now(-15_000))
    assert "for 4 h 10 min (one is due every 1 h 0 min)" in work(store)["beat.overdue"].sentence


def test_a_schema_that_is_old_has_a_name_of_its_own(store: Store):
    store.write(lambda db: db.exec_driver_sql("UPDATE alembic_version SET version_num = '0014'"))
    found = [one for one in check_database(settings_of(store)) if one.state == "fail"]
    assert [one.check for one in found] == ["database.schema"]
    assert "run `inturn db upgrade`" in found[0].sentence


def test_connections_that_will_not_do(small: PostgresServer):
    url = small.create_database()
    with closing(Store(url)) as store, ExitStack() as others:
        settings = settings_of(store)
        appear(store, "one")
        [enough] = check_connections(store.database, [])
        assert enough.state == "ok"
        found = {one.check: one for one in check_server(settings, store.database)}
        few = found["database.connections"]
        assert (few.state, few.more["most"], few.more["may_need"]) == ("warn", SCARCE - 3, 21)
        assert "1 worker, 0 beats and one client may open up to 21" in few.sentence
        assert "Raise max_connections" in few.sentence
        for _ in range(SCARCE - 3 - few.more["used"]):
            others.enter_context(small.connect())
        full = {one.check: one for one in check_server(settings, store.database)}["database.connections"]
        assert full.state == "fail"
        assert f"{SCARCE - 3} of the {SCARCE - 3} that max_connections leaves are used" in full.sentence


def test_a_limit_of_the_role_counts_as_well(small: PostgresServer):
    url = small.create_database()
    name = make_url(url).database
    with closing(Store(url)) as store, small.connect() as db:
        db.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 4')
        [found] = check_connections(store.database, [])
        assert found.state == "warn"
        assert "the database's connection limit" in found.sentence


def test_a_database_whose_clock_is_wrong_is_told(small: PostgresServer):
    """SQL asks for the time by a name that is looked up: another one of that name stands in its way."""
    url = small.create_database()
    name = make_url(url).database
    with closing(Store(url)) as store:
        [right] = [one for one in check_server(settings_of(store), store.database) if one.check == "database.clock"]
        assert right.state == "ok"
    with small.connect(name) as db:
        db.execute(
            "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            "$$ SELECT pg_catalog.clock_timestamp() + interval '90 seconds' $$"
        )
        db.execute(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
    with closing(Database(url)) as database:
        ahead, unsure = clocks.database_offset(database)
        found = clocks.about_clock("the database", ahead, unsure, "database.clock")
        assert ahead == pytest.approx(90, abs=5)
    assert found.state == "warn"
    assert "90 s ahead of the one of this machine" in found.sentence
    assert "NTP" in found.sentence


def brokers(server: RedisServer) -> dict[str, Finding]:
    return {one.check or one.subject: one for one in check_broker(Settings.load(broker_url=server.url))}


def test_a_broker_that_is_well(broker: RedisServer):
    found = brokers(broker)
    assert [(one, found[one].state) for one in found] == [("broker", "ok"), ("broker.clock", "ok")]


def test_a_broker_whose_clock_is_wrong(broker: RedisServer, monkeypatch: pytest.MonkeyPatch):
    """Ours is, which is the same: they differ."""
    assert clocks.offset.__defaults__ is not None
    monkeypatch.setattr(clocks.offset, "__defaults__", (lambda: time.time() + 40,))
    found = brokers(broker)["broker.clock"]
    assert found.state == "warn"
    assert "the broker's is 40 s behind the one of this machine" in found.sentence


def test_a_broker_that_evicts_or_is_full_or_keeps_nothing(broker: RedisServer):
    with broker.client() as client:
        before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy", "appendonly")}
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            found = brokers(broker)["broker.eviction"]
            assert found.state == "note"
            assert "would evict (allkeys-lru) once it gets one: set maxmemory-policy noeviction" in found.sentence
            client.config_set("maxmemory", "200mb")
            found = brokers(broker)["broker.eviction"]
            assert found.state == "warn"
            assert "evicts (allkeys-lru), which delays turns" in found.sentence
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "no")
            kept = brokers(broker)
            assert kept["broker.persistence"].state == "note"
            assert "`appendonly yes`" in kept["broker.persistence"].sentence
            client.config_set("save", "3600 1")
            assert "broker.persistence" not in brokers(broker), "snapshots do"
            client.config_set("save", "")
            client.config_set("maxmemory", "1")
            full = brokers(broker)
            assert (full["broker.writes"].state, full["broker.memory"].state) == ("fail", "warn")
            assert "raise maxmemory" in full["broker.writes"].sentence
            assert "broker" not in full, "nothing says that it is well"
        finally:
            client.config_set("maxmemory", "0")
            for name, value in before.items():
                client.config_set(name, value)


def test_a_broker_that_is_a_replica_takes_no_writes(broker: RedisServer):
    with broker.client() as client:
        client.replicaof("127.0.0.1", 1)
        try:
            found = brokers(broker)["broker.writes"]
        finally:
            client.replicaof("NO", "ONE")
    assert found.state == "fail"
    assert "name the primary in INTURN_BROKER_URL" in found.sentence


def test_a_broker_that_cannot_save_refuses_writes(broker: RedisServer):
    """Something is in the way of its file: what it says then is its own."""
    with broker.client() as client:
        place = client.config_get("dir")["dir"]
        client.config_set("appendonly", "no")
        client.config_set("save", "3600 1")
        blocked = Path(str(place)) / "dump.rdb"  # Redis' own name for it
        blocked.unlink(missing_ok=True)
        blocked.mkdir()
        (blocked / "in-the-way").touch()
        try:
            client.set("something", "to save")
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            found = brokers(broker)
        finally:
            (blocked / "in-the-way").unlink()
            blocked.rmdir()
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")
            client.config_set("save", "")
            client.config_set("appendonly", "yes")
    assert found["broker.writes"].state == "fail"
    assert "it cannot save to its disk" in found["broker.writes"].sentence
    assert found["broker.persistence"].state == "warn"


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "home").mkdir(mode=0o700)
    [well] = check_disks(Settings.load())
    free = well.more["free_bytes"]
    monkeypatch.setattr(disks, "LOW_BYTES", free + 10**12)
    monkeypatch.setattr(disks, "LOW_SHARE", 1.0)
    [low] = check_disks(Settings.load())
    assert low.state == "warn"
    assert "nothing is accepted once it is full" in low.sentence
    monkeypatch.setattr(disks, "NONE_BYTES", free + 10**12)
    [full] = check_disks(Settings.load())
    assert full.state == "fail"
    assert "Free some space now" in full.sentence


def test_logs_that_have_grown(tmp_path: Path):
    log = tmp_path / "home" / "log"
    log.mkdir(parents=True, mode=0o700)
    for name, length in ("worker.1.log", 300 * 10**6), ("beat.log", 10):
        with (log / name).open("wb") as file:
            file.truncate(length)
    [found] = [one for one in check_disks(Settings.load()) if one.check == "disk.logs"]
    assert found.state == "warn"
    assert f"300 MB in {log}, 300 MB of it in worker.1.log" in found.sentence


def test_settings_that_override_one_another_say_which_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Path("inturn.toml").write_text("retention_days = 7\nbatch_days = 10\nlease_seconds = 30\n")
    monkeypatch.setenv("INTURN_RETENTION_DAYS", "90")
    monkeypatch.setenv("INTURN_LEASE_SECONDS", "30")
    summary, *notes = check_origins(Settings.load(context_turns=5))
    assert "retention_days (environment INTURN_RETENTION_DAYS)" in summary.sentence
    assert summary.more["origins"]["batch_days"] == "./inturn.toml"
    assert summary.more["origins"]["context_turns"] == "flag"
    assert [note.more["setting"] for note in notes] == ["retention_days"], (
        "what is said twice, and the same, is no surprise"
    )
    assert notes[0].sentence == (
        "retention_days is what environment INTURN_RETENTION_DAYS says, and what ./inturn.toml says is not used: take it "
        "out, or take the other one out"
    )
    monkeypatch.setenv("INTURN_CONTEXT_TURNS", "9")
    told = [one.sentence for one in check_origins(Settings.load(context_turns=5))][1:]
    assert "context_turns is what the flag says, and what environment INTURN_CONTEXT_TURNS says is not used" in told[0]


def test_hints_that_stay_on_this_machine_are_noticed():
    found = list(check_origins(Settings.load(database_url="postgresql://db.example.org/inturn")))
    assert [one.check for one in found] == ["settings.origins", "settings.broker"]


def test_json_names_every_check_and_every_section_of_the_runbook_is_there(store: Store):
    migrations.check(store.database)
    wait_in_vain(store)
    runner = CliRunner()
    url = store.database.url.render_as_string(hide_password=False)
    words = ["doctor", "--offline", "--json", "--database-url", url, "--broker-url", "redis://127.0.0.1:1/0"]
    done = runner.invoke(cli, words, standalone_mode=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.return_value == 1
    states = {one["check"]: one["state"] for one in found}
    assert (states["queue.unserved"], states["broker.reachable"], states["database"]) == ("fail", "fail", "ok")
    assert all(one["sentence"] and one["check"] for one in found)
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    sections = {line.removeprefix("## ").strip().lower() for line in runbook.splitlines() if line.startswith("## ")}
    checks = (ROOT / "inturn" / "cli").rglob("*.py")
    named = {part.split('"')[0] for path in checks for part in path.read_text().split("{RUNBOOK}")[1:]}
    assert {one for one in named if not one.startswith("{")} <= sections


def test_top_says_what_is_away_and_goes_on_when_it_is_back(small: PostgresServer, broker: RedisServer):
    url = small.create_database()
    Store(url).close()
    outlook = Outlook(Invocation({"database_url": url, "broker_url": broker.url}))
    with outlook.watch(0.1) as watching:
        wait_until(lambda: outlook.snapshot(watching).activity is not None)
        assert outlook.snapshot(watching).database_error == ""
        broker.kill()
        small.restart("immediate")
        wait_until(lambda: outlook.snapshot(watching).broker_error)
        broker.start()
        wait_until(lambda: not outlook.snapshot(watching).broker_error)
        wait_until(lambda: not outlook.snapshot(watching).database_error)
        seen = outlook.snapshot(watching).activity
        assert seen is not None
        wait_until(lambda: (outlook.snapshot(watching).activity or seen).at > seen.at)
    with closing(connect(broker.url)) as client:
        assert client.ping()
