"""Metrics of running workers and beats, read by HTTP: every one there is, and what they say is what was done."""

import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import make_url

from inturn import Client, TurnCancelledError, TurnFailedError
from inturn.models.clock import now
from inturn.models.states import ProcessKind
from inturn.models.tables import SCHEDULES
from inturn.workers.telemetry import DEFINITIONS
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer, free_port
from tests.acceptance.failing import FAULT_SECONDS, REPAIR_SECONDS, Stage, wait_until
from tests.acceptance.scrapes import Scrape, scrape, url_of

pytestmark = pytest.mark.timeout(240)

CANARY = "c4n4ry"
"""In every session ID and in every text of these tests."""
EACH_YEAR = "0 0 1 1 *"
PATIENT = {"attempt_deadline_seconds": 100, "shutdown_grace_seconds": 101, "cleanup_interval_seconds": 2}
"""A slow call is not over before its test takes it back."""


@pytest.fixture(params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer, model: ModelServer) -> Iterator[Stage]:
    database_url = f"sqlite:///{tmp_path / 'home' / 'inturn.db'}"
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        database_url = postgres.create_database()
    stage = Stage(tmp_path / "home", database_url, broker_of(redis), model, **PATIENT)
    assert stage.command("db", "upgrade").await_end() == 0
    yield stage
    stage.stop()


def broker_of(redis: RedisServer) -> str:
    return make_url(redis.url).set(database="5").render_as_string(False)


def base() -> str:
    return str(free_port())


def counted_until(url: str, is_enough: Callable[[Scrape], bool]) -> Scrape:
    """What is said once it is so: a reply can be read a moment before its worker counts it."""
    wait_until(lambda: is_enough(scrape(url)), FAULT_SECONDS)
    return scrape(url)


def session(client: Client, name: str, **how: object) -> str:
    unique = f"{CANARY}-{name}-{secrets.token_hex(4)}"  # the model counts how often it misbehaved to each
    return client.create_session(unique, labels={"who": CANARY}, **how).session_id  # type: ignore[arg-type]


def test_counters_say_what_was_done_and_every_metric_is_there(stage: Stage) -> None:
    port, client = base(), stage.client
    worker, beat = stage.worker("--metrics-port", port), stage.command("beat", "--metrics-port", port)
    urls = url_of(worker), url_of(beat)
    talk = client.resume_session(session(client, "talk"))
    for number in range(3):
        talk.send_and_wait(f"{CANARY} {number}", timeout=REPAIR_SECONDS)
    refused = talk.send(f'{CANARY} !{{"status": 400}}')
    with pytest.raises(TurnFailedError):
        refused.wait(timeout=REPAIR_SECONDS)
    talk.send_and_wait(f'{CANARY} again !{{"status": 503, "times": 2}}', timeout=REPAIR_SECONDS)
    talk.send_and_wait(f"{CANARY} in batch", lane="batch", timeout=REPAIR_SECONDS)
    free = client.resume_session(session(client, "free", model="echo/echo"))
    free.send_and_wait(CANARY, timeout=REPAIR_SECONDS)

    slow = client.resume_session(session(client, "slow"))
    cancelled, waiting = (slow.send(f'{CANARY} {name} !{{"latency": 60}}') for name in ("one", "two"))
    held = counted_until(urls[0], lambda seen: seen.total("inturn_leases_held") == 1)
    assert held.total("inturn_database_connections_in_use") < 10
    assert waiting.cancel()
    assert cancelled.cancel()
    with pytest.raises(TurnCancelledError):
        cancelled.wait(timeout=REPAIR_SECONDS)

    doomed = client.resume_session(session(client, "doomed"))
    doomed.send(f'{CANARY} !{{"latency": 60}}')
    counted_until(urls[0], lambda seen: seen.total("inturn_leases_held") == 1)
    client.delete_session(doomed.session_id)
    old = client.resume_session(session(client, "old", retention=timedelta(seconds=1)))
    old.send_and_wait(CANARY, timeout=REPAIR_SECONDS)

    seen = counted_until(
        urls[0],
        lambda seen: (
            seen.total("inturn_leases_lost_total") > 0
            and seen.total("inturn_removed_sessions_total") > 0
            and seen.total("inturn_cleanups_total", outcome="completed") > 0  # the one that removed it may still run
        ),
    )
    turns = {
        (dict(labels)["outcome"], dict(labels)["model"], dict(labels)["lane"]): value
        for labels, value in seen.values["inturn_turns_total"].items()
    }
    assert turns == {
        ("completed", "server/model", "chat"): 5,
        ("completed", "server/model", "batch"): 1,
        ("completed", "echo/echo", "chat"): 1,
        ("failed", "server/model", "chat"): 1,
        ("cancelled", "server/model", "chat"): 1,
    }, "the turn that was cancelled while it waited is not this worker's, and the deleted one is nobody's"
    assert seen.total("inturn_turn_seconds_count") == sum(turns.values())
    assert seen.total("inturn_turn_seconds_count", outcome="failed", lane="chat") == 1
    errors = {frozenset({("provider", "server"), ("error", "unavailable")}): 2.0}
    errors[frozenset({("provider", "server"), ("error", "invalid_request")})] = 1.0
    assert seen.values["inturn_provider_errors_total"] == errors
    # Each turn has one, the one that was asked for three times two more, and the deleted one its own.
    assert seen.total("inturn_call_seconds_count") == seen.total("inturn_turn_wait_seconds_count") == 12
    assert seen.total("inturn_call_seconds_count", model="echo/echo") == 1
    used = stage.query("SELECT sum(input_tokens) AS shown, sum(output_tokens) AS written FROM attempts")[0]
    gone = stage.query("SELECT sum(input_tokens) AS shown, sum(output_tokens) AS written FROM past_usage")[0]
    assert seen.total("inturn_tokens_total", direction="input") == used.shown + (gone.shown or 0)
    assert seen.total("inturn_tokens_total", direction="output") == used.written + (gone.written or 0)
    assert seen.values["inturn_cost_dollars_total"] == {frozenset({("model", "echo/echo")}): 0.0}, (
        "it has a price: none"
    )
    assert seen.total("inturn_ledger_visits_sum") >= 2 * sum(turns.values())
    assert seen.total("inturn_ledger_visits_count") == seen.total("inturn_ledger_commit_seconds_count") > 0
    assert seen.total("inturn_leases_lost_total") == 1
    assert seen.total("inturn_leases_held") == seen.total("inturn_leases_reaped_total") == 0
    assert seen.total("inturn_hints_failed_total") == 0
    assert seen.values["inturn_removed_sessions_total"] == {frozenset({("rule", "own")}): 1.0}
    assert seen.total("inturn_removed_turns_total") == 1
    assert (
        seen.total("inturn_removed_bytes_total")
        == stage.query("SELECT bytes FROM removals WHERE rule = 'own'")[0].bytes
    )
    assert seen.total("inturn_cleanups_total", outcome="completed") >= 1
    told, said = (
        counted_until(
            url,
            lambda seen: (
                seen.total("inturn_processes", kind="worker") == 1
                and seen.total("inturn_beat_last_tick_timestamp_seconds") > 0
            ),
        )
        for url in urls
    )
    assert said.total("inturn_build_info", kind="beat") == 1

    for each in told, said:
        assert each.total("inturn_database_up") == 1
        assert abs(each.total("inturn_beat_last_tick_timestamp_seconds") - time.time()) < 60
        check_names(each)
    missing = [what.name for what in DEFINITIONS if not any(name in told.values for name in scraped(what.name))]
    assert missing == []
    assert {"process_cpu_seconds_total", "python_gc_collections_total", "python_info"} <= seen.values.keys()


def scraped(name: str) -> tuple[str, str]:
    return name, f"{name}_bucket"


def check_names(seen: Scrape) -> None:
    """Nothing but what is defined, and nothing of a conversation in it."""
    labels = {
        name: set(what.labels) for what in DEFINITIONS for name in (what.name, f"{what.name}_sum", f"{what.name}_count")
    }
    labels |= {f"{what.name}_bucket": {*what.labels, "le"} for what in DEFINITIONS}
    for name, series in seen.values.items():
        if name.startswith("inturn_"):
            assert all({label for label, _ in each} == labels[name] for each in series), name
    assert CANARY not in seen.text


def test_a_dead_beat_is_told_by_the_workers(stage: Stage) -> None:
    port, client = base(), stage.client
    url = url_of(stage.worker("--metrics-port", port))
    assert scrape(url).total("inturn_beat_last_tick_timestamp_seconds") == 0, "none ever fired"
    beat = stage.command("beat", "--metrics-port", port)
    alive = counted_until(url, lambda seen: seen.total("inturn_processes", kind="beat") == 1)
    assert alive.total("inturn_processes", kind=ProcessKind.WORKER) == 1
    counted_until(url, lambda seen: seen.total("inturn_beat_last_tick_timestamp_seconds") > 0)
    client.add_schedule(session(client, "yearly"), CANARY, cron=EACH_YEAR, name=CANARY)
    assert scrape(url).total("inturn_schedules_due") == 0

    beat.kill()
    with stage.database.writing() as db:
        db.execute(SCHEDULES.update().values(next_at=now(-0.5)))
    dead = counted_until(url, lambda seen: seen.total("inturn_processes", kind="beat") == 0)
    assert dead.total("inturn_processes", kind="worker") == 1
    late = counted_until(url, lambda seen: seen.total("inturn_schedules_due") == 1)
    assert late.total("inturn_beat_last_tick_timestamp_seconds") > 0, "how long it has been dead"
    check_names(late)


def test_two_workers_on_one_host_have_a_port_each_and_one_tells_of_the_others_death(stage: Stage) -> None:
    port, client = base(), stage.client
    survivor, other = (stage.worker("--metrics-port", port) for _ in range(2))
    url, theirs = url_of(survivor), url_of(other)
    assert url != theirs
    assert f"{port} was taken" in other.said()
    assert counted_until(theirs, lambda seen: seen.total("inturn_processes", kind="worker") == 2)
    survivor.freeze()  # the other one has to take the turn
    talk = client.resume_session(session(client, "rescued"))
    turn = talk.send(f'{CANARY} !{{"act": "hang", "times": 1}}')
    counted_until(theirs, lambda seen: seen.total("inturn_leases_held") == 1)
    wait_until(lambda: any("act" in call.prompt for call in stage.model.calls()), FAULT_SECONDS)  # only one call hangs
    other.kill()
    survivor.go_on()
    assert turn.wait(timeout=REPAIR_SECONDS)
    seen = counted_until(url, lambda seen: seen.total("inturn_turns_total", outcome="completed") == 1)
    assert seen.total("inturn_leases_reaped_total") == 1
    counted_until(url, lambda seen: seen.total("inturn_processes", kind="worker") == 1)

    client.pause_lane("batch")
    waits = talk.send(f"{CANARY} later", lane="batch")
    waiting = counted_until(url, lambda seen: seen.total("inturn_oldest_ready_age_seconds", lane="batch") > 1)
    assert waiting.total("inturn_ready_sessions", lane="batch") == 1
    assert waiting.total("inturn_ready_sessions", lane="chat") == 0
    client.resume_lane("batch")
    waits.wait(timeout=REPAIR_SECONDS)
    done = counted_until(url, lambda seen: seen.total("inturn_ready_sessions") == 0)
    assert done.total("inturn_oldest_ready_age_seconds") == 0
    assert done.total("inturn_turn_wait_seconds_sum", lane="batch") > 1


@pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
def test_a_worker_without_a_port_for_its_metrics_works_on_and_says_so(stage: Stage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 65_535))
        taken.listen()
        worker = stage.worker("--metrics-port", "65535")
        worker.await_words(
            "action=metrics_not_served: all ports of 127.0.0.1 from 65535 to 65535 are taken", FAULT_SECONDS
        )
    talk = stage.client.resume_session(session(stage.client, "talk"))
    assert talk.send_and_wait(CANARY, timeout=REPAIR_SECONDS)
    worker.process.terminate()
    assert worker.await_end() == 0


def test_an_address_that_is_not_this_hosts_is_said(tmp_path: Path, redis: RedisServer, model: ModelServer) -> None:
    database_url = f"sqlite:///{tmp_path / 'home' / 'inturn.db'}"
    stage = Stage(tmp_path / "home", database_url, broker_of(redis), model, metrics_host="203.0.113.1")
    with ExitStack() as stack:
        stack.callback(stage.stop)
        worker = stage.worker("--metrics-port", base())
        worker.await_words("action=metrics_not_served: 203.0.113.1 port", FAULT_SECONDS)
        assert "Cannot assign requested address" in worker.said()


@pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
def test_a_stack_says_where_its_metrics_are_and_each_process_has_its_own(stage: Stage) -> None:
    port = base()
    up = stage.command("up", "--metrics-port", port)
    try:
        up.await_words(
            f"metrics: http://127.0.0.1:{port}/metrics and the next free ports, one for each of 2", FAULT_SECONDS
        )
        for name in "worker", "beat":
            [url] = served(stage.home / "log" / f"{name}.log")
            assert scrape(url).total("inturn_build_info", kind=name) == 1
    finally:
        up.process.terminate()
        assert up.await_end() == 0


def served(log: Path) -> list[str]:
    """Where the process that writes this log says that it is read."""
    wait_until(lambda: "action=metrics_served" in log.read_text(), FAULT_SECONDS)
    return re.findall(r"action=metrics_served url=(http://\S+/metrics)", log.read_text())
