"""Webhooks of a whole deployment: turns that end, workers that are killed, and the receiver that the documentation shows."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from inturn import TurnFailedError
from inturn.models.clock import now
from inturn.models.tables import WEBHOOK_DELIVERIES
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer, free_port
from tests.acceptance.failing import PACE, Stage
from tests.integration.receiver import SECRET, Receiver, wait_for

EVENTS = {"turn.completed", "turn.failed", "batch.completed", "batch.cancelled"}
DOCS = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer) -> tuple[str, str]:
    """URLs of a database and a broker of one's own."""
    broker_url = make_url(redis.url).set(database="3").render_as_string(False)
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'inturn.db'}", broker_url
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.create_database(), broker_url


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def stage(
    place: tuple[str, str], tmp_path: Path, model: ModelServer, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """Workers that tell the receiver of turns and batches."""
    hooks = [
        {"name": "turns", "url": receiver.url, "secret_env": "HOOK_SECRET", "events": sorted(EVENTS),
         "allow_http": True, "allow_private": True},
    ]  # fmt: skip
    monkeypatch.setitem(PACE, "webhooks", hooks)
    stage = Stage(tmp_path / "home", *place, model)
    stage._environment |= {"INTURN_WEBHOOKS": json.dumps(hooks), "HOOK_SECRET": SECRET}
    assert stage.command("db", "upgrade").await_end() == 0
    yield stage
    stage.stop()


def make_due(stage: Stage) -> None:
    with stage.database.writing() as db:
        db.execute(WEBHOOK_DELIVERIES.update().values(ready_at=now(-1)))


def test_turns_that_end_are_told_by_workers(stage: Stage, receiver: Receiver) -> None:
    worker, talk = stage.worker(), stage.talk("told-1")
    good, bad = talk.say("hello"), talk.say("goodbye", status=400)
    good.wait(timeout=60)
    with pytest.raises(TurnFailedError):
        bad.wait(timeout=60)
    wait_for(lambda: len(receiver.told) == 2, 60)
    events = {event["type"]: event["data"] for event in (told.verified() for told in receiver.told)}
    assert (events["turn.completed"]["turn_id"], events["turn.completed"]["session_id"]) == (good.id, "told-1")
    assert events["turn.completed"]["output_tokens"] > 0
    failed = events["turn.failed"]
    assert bad.error is not None
    assert (failed["turn_id"], failed["error_type"]) == (bad.id, bad.error.error_type)
    wait_for(lambda: {one.state for one in stage.client.list_webhook_deliveries()} == {"delivered"})
    assert SECRET.removeprefix("whsec_") not in worker.said()
    said = "".join(told.body.decode() for told in receiver.told)
    assert not any(word in said for word in ("hello", "goodbye", "The model server"))


def test_a_batch_that_ends_is_told_once_and_its_lines_are_not(stage: Stage, receiver: Receiver) -> None:
    """By whoever sees it end: nobody waits for it here but the receiver."""
    stage.worker()
    batch = stage.client.submit_batch(["hello", 'goodbye !{"status": 400}', "and hello"], name="greetings")
    wait_for(lambda: receiver.told, 60)
    taken_back = stage.client.submit_batch([f'wait {n} !{{"latency": 60}}' for n in range(3)])
    taken_back.cancel(abort=True)
    wait_for(lambda: len(receiver.told) == 2, 60)
    first, second = (told.verified() for told in receiver.told)
    assert (first["type"], first["data"]["batch_id"], first["data"]["name"]) == (
        "batch.completed",
        batch.id,
        "greetings",
    )
    assert {name: first["data"][name] for name in ("total", "completed", "failed")} == {
        "total": 3, "completed": 2, "failed": 1,
    }  # fmt: skip
    assert (second["type"], second["data"]["batch_id"], second["data"]["cancelled"]) == (
        "batch.cancelled", taken_back.id, 3,
    )  # fmt: skip
    batch.progress()
    assert len(stage.client.connections.hooks) == 1
    assert len(list(stage.client.list_webhook_deliveries())) == 2, "who looks later tells nobody again"
    assert not any(word in told.body for told in receiver.told for word in (b"hello", b"wait"))


def test_a_worker_that_is_killed_between_sending_and_settling(stage: Stage, receiver: Receiver) -> None:
    killed, worker = threading.Event(), stage.worker()

    def kill() -> int:
        os.kill(worker.process.pid, signal.SIGKILL)
        killed.set()
        return 200

    receiver.answer_with(kill, 200)
    turn = stage.client.create_session("killed-1").send("hello")
    turn.wait(timeout=60)
    assert killed.wait(60)
    worker.process.wait(10)
    (before,) = stage.client.list_webhook_deliveries()
    assert (before.state, before.attempts, before.subject) == ("pending", 1, turn.id)
    make_due(stage)  # rather than wait until the hold of the dead one ends
    stage.command("beat")
    wait_for(lambda: len(receiver.told) == 2, 60)
    first, second = receiver.told
    assert first.event_id == second.event_id == before.event_id
    assert first.body == second.body
    wait_for(lambda: [one.state for one in stage.client.list_webhook_deliveries()] == ["delivered"])
    assert second.verified()["data"]["turn_id"] == turn.id


def test_the_receiver_of_the_documentation_takes_what_is_signed_and_nothing_else(tmp_path: Path) -> None:
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "HTTPServer" in block]
    port = free_port()
    path = tmp_path / "receiver.py"
    path.write_text(program.replace("8000", str(port)))
    environment = os.environ | {"HOOK_SECRET": SECRET, "PYTHONUNBUFFERED": "1"}
    home = tmp_path / "home"
    (tmp_path / "inturn.toml").write_text(
        f'[[webhooks]]\nname = "jobs"\nurl = "http://127.0.0.1:{port}/"\nsecret_env = "HOOK_SECRET"\n'
        "allow_http = true\nallow_private = true\n"
    )

    def tried(secret: str) -> subprocess.CompletedProcess[str]:
        inturn = [sys.executable, "-m", "inturn", "webhook", "test", "jobs"]
        values = environment | {"HOOK_SECRET": secret, "INTURN_HOME": str(home)}
        return subprocess.run(inturn, env=values, cwd=tmp_path, capture_output=True, text=True, check=False)

    with subprocess.Popen([sys.executable, str(path)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: tried(SECRET).returncode == 0, 60)
            assert process.stdout is not None
            assert "webhook.test" in process.stdout.readline()
            other = tried("whsec_" + "C2FVsBQIhrscChlQIMV1b5sSYspob7oD")
            assert (other.returncode, "it answered 401" in other.stderr) == (1, True)
        finally:
            process.kill()
