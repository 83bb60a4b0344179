"""Schedules of a whole deployment: a beat and a worker as processes, and a beat that is killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from inturn.models.clock import now
from inturn.models.failpoints import ACTIONS
from inturn.models.tables import SCHEDULES
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer
from tests.acceptance.failing import FAULT_SECONDS, REPAIR_SECONDS, Actor, Stage, wait_until

pytestmark = pytest.mark.timeout(240)

EVERY_MINUTE = "* * * * *"
EACH_YEAR = "0 0 1 1 *"
"""What is due only when a test says so."""


@pytest.fixture(params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer, model: ModelServer) -> Iterator[Stage]:
    broker_url = make_url(redis.url).set(database="4").render_as_string(False)
    database_url = f"sqlite:///{tmp_path / 'home' / 'inturn.db'}"
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        database_url = postgres.create_database()
    stage = Stage(tmp_path / "home", database_url, broker_url, model)
    assert stage.command("db", "upgrade").await_end() == 0
    yield stage
    stage.stop()


def make_due(stage: Stage, name: str) -> None:
    with stage.database.writing() as db:
        db.execute(SCHEDULES.update().where(SCHEDULES.c.name == name).values(next_at=now(-0.5)))


def turns(stage: Stage, session: str) -> list[str]:
    return [turn.state for turn in stage.client.get_session(session).get_turns()]


def last_turn(stage: Stage, name: str) -> str | None:
    return stage.client.get_schedule(name).last_turn


def test_a_beat_fires_what_is_due_and_a_worker_answers(stage: Stage) -> None:
    client = stage.client
    client.create_session("minutely")
    added = client.add_schedule("minutely", "what is new", cron=EVERY_MINUTE, timezone="Asia/Kathmandu", name="news")
    beat, _worker = stage.command("beat"), stage.worker()
    make_due(stage, "news")
    wait_until(lambda: last_turn(stage, "news") is not None, FAULT_SECONDS)
    turn = client.get_turn(last_turn(stage, "news") or "")
    assert turn.wait(timeout=60).data.content.startswith("reply to: what is new")
    fired = client.get_schedule("news")
    assert fired.next_at is not None
    assert added.next_at is not None
    assert fired.next_at >= added.next_at
    assert fired.next_at.second == 0
    assert "action=schedule_fired schedule=news session=minutely" in beat.said()
    assert "what is new" not in beat.said()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_beat_fails_after_its_commit(stage: Stage, action: str) -> None:
    """Nobody was told of the turn, and another beat comes: it is answered, and is not sent again."""
    client, name = stage.client, "schedule.after_commit"
    client.create_session("yearly")
    client.add_schedule("yearly", "happy new year", cron=EACH_YEAR, name="wishes")
    stage.worker()
    failing = stage.command("beat", failpoint=f"{name}:{action}")
    wait_until(lambda: alive_beats(stage) == 1, FAULT_SECONDS)
    make_due(stage, "wishes")
    failing.await_fault(name, action)
    wait_until(lambda: turns(stage, "yearly") == ["completed"], FAULT_SECONDS)
    beat = stage.command("beat")
    client.add_schedule("later", "hello", cron=EACH_YEAR, name="later", new_session=True)
    make_due(stage, "later")
    wait_until(lambda: last_turn(stage, "later") is not None, FAULT_SECONDS)
    if action == "stop":
        failing.go_on()
        failing.await_words("action=schedule_fired schedule=wishes", REPAIR_SECONDS)
    assert turns(stage, "yearly") == ["completed"]
    assert not client.get_schedule("wishes").is_paused
    assert fired([beat], "wishes") == 0


def test_two_beats_fire_once_and_a_dead_one_is_missed(stage: Stage) -> None:
    client = stage.client
    client.create_session("yearly")
    client.add_schedule("yearly", "happy new year", cron=EACH_YEAR, name="wishes")
    client.add_schedule("lost", "hello", cron=EACH_YEAR, name="for-each", new_session=True)
    beats = [stage.command("beat"), stage.command("beat")]
    worker = stage.worker()
    wait_until(lambda: alive_beats(stage) == 2, FAULT_SECONDS)
    make_due(stage, "wishes")
    make_due(stage, "for-each")
    wait_until(lambda: turns(stage, "yearly") == ["completed"], FAULT_SECONDS)
    wait_until(lambda: last_turn(stage, "for-each") is not None, FAULT_SECONDS)
    assert len(list(client.list_sessions(labels={"schedule": "for-each"}))) == 1
    assert fired(beats, "wishes") == 1

    for beat in beats:
        beat.kill()
    make_due(stage, "wishes")
    worker.await_words("action=beat_missing schedules=2", REPAIR_SECONDS)
    assert turns(stage, "yearly") == ["completed"]
    stage.command("beat")
    wait_until(lambda: turns(stage, "yearly") == ["completed"] * 2, FAULT_SECONDS)


def alive_beats(stage: Stage) -> int:
    return sum(one.alive and one.kind == "beat" for one in stage.client.list_workers())


def fired(beats: list[Actor], name: str) -> int:
    return sum(beat.said().count(f"action=schedule_fired schedule={name} ") for beat in beats)
