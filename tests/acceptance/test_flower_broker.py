"""``inturn flower`` where the broker is not there, goes away, hangs, and comes back."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from inturn.cli.exits import Exit
from ops.chaos.model import ModelServer
from ops.servers import RedisServer
from tests.acceptance.failing import FAULT_SECONDS, Stage
from tests.stacks import wait_until

AWAY, BACK = "action=broker_away", "action=broker_back"
TRIES_SECONDS = 6
"""In which Flower tries to reach the broker several times."""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """One to be stopped."""
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def stage(tmp_path: Path, broker: RedisServer, model: ModelServer) -> Iterator[Stage]:
    made = Stage(tmp_path / "home", "", broker.url, model, flower_port=0)
    yield made
    made.stop()


def test_it_does_not_start_without_one(stage: Stage, broker: RedisServer) -> None:
    broker.kill()
    flower = stage.command("flower")
    assert flower.await_end() == Exit.UNREACHABLE
    [sentence] = flower.said().splitlines()
    assert sentence.startswith(f"inturn: {broker.url} does not answer")
    assert sentence.endswith("start it, or set INTURN_BROKER_URL")

    stage._environment["INTURN_BROKER_URL"] = ""
    flower = stage.command("flower")
    assert flower.await_end() == Exit.UNREACHABLE
    assert "the embedded broker does not run" in flower.said()
    assert "`inturn up --flower` starts it" in flower.said()


@pytest.mark.parametrize("waits", [False, True])
def test_it_says_once_that_it_went_away_and_once_that_it_is_back(
    stage: Stage, broker: RedisServer, waits: bool
) -> None:
    if waits:
        broker.kill()
    flower = stage.command("flower", *(["--waits"] if waits else []))
    flower.await_words("Flower: http://", FAULT_SECONDS)
    url = re.findall(r'Flower: (http://[^\s"]+)', flower.said())[0]
    if not waits:
        broker.freeze()
        flower.await_words(AWAY, FAULT_SECONDS)
        broker.thaw()
        flower.await_words(BACK, FAULT_SECONDS)
        broker.kill()
    wait_until(lambda: flower.said().count(AWAY) == 2 - waits, FAULT_SECONDS)
    with httpx.Client(timeout=60) as client:
        assert client.get(f"{url}/workers?refresh=1").status_code == 200
        assert client.get(f"{url}/sessions").status_code == 200
        time.sleep(TRIES_SECONDS)
        broker.start()
        wait_until(lambda: flower.said().count(BACK) == 2 - waits, FAULT_SECONDS)
        stage.worker()
        wait_until(lambda: "flower_worker_online{" in client.get(f"{url}/metrics").text, FAULT_SECONDS)
    lines = [json.loads(line) for line in flower.said().splitlines()]
    assert {line["role"] for line in lines} == {"flower"}, "each line is an object, where nobody sits there"
    assert [line["level"] for line in lines if line["level"] != "INFO"] == ["WARNING"] * (2 - waits), flower.said()


def test_it_logs_for_people_where_that_is_set(stage: Stage) -> None:
    stage._environment["INTURN_LOG_FORMAT"] = "text"
    flower = stage.command("flower", "--waits")
    flower.await_words("Flower: http://", FAULT_SECONDS)
    assert re.fullmatch(r"Flower: http://\S+", flower.said().splitlines()[0])
