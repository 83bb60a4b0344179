"""A provider's limit, and three workers that keep to it together."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inturn import Client
from inturn.workers.queues import limit_keys
from ops.bench.limits import busiest
from ops.chaos.fleet import EmbeddedBroker, Fleet
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer
from tests.overhearing import overheard
from tests.stacks import wait_until

A_SECOND = 15.0
"""Calls that are allowed: few enough for three workers to make all of them on any machine."""
SHARE = 0.2
SESSIONS, TURNS = 40, 6
AHEAD_SECONDS = 0.7
"""How far the limits let calls be ahead of the rate."""
LATE_SECONDS = 0.5
"""What nine calls in ten take at most from being allowed to being noted by the server."""
DRAIN_SECONDS = 90


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, model: ModelServer) -> Iterator[Fleet]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    if request.param == "sqlite":
        broker: EmbeddedBroker | RedisServer = EmbeddedBroker(home)
        database_url = ""
    else:
        broker = RedisServer()
        postgres: PostgresServer = request.getfixturevalue("postgres")
        database_url = postgres.create_database()
    limited = {"base_url": model.base_url, "requests_per_minute": round(60 * A_SECOND), "chat_share": SHARE}
    fleet = Fleet(home, database_url, broker, providers={"limited": limited}, default_model="limited/model")
    try:
        for _ in range(3):
            fleet.add_worker()
        fleet.await_workers()
        yield fleet
    finally:
        fleet.stop()
        broker.stop()
        if database_url:
            postgres.drop_database(database_url)


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer(latency=(0.02, 0.1)) as server:
        yield server


def waits_of_chat(client: Client, count: int) -> list[float]:
    """How long so many turns took, one after the other, that were sent in the middle of it."""
    session, waits = client.create_session("chat"), []
    for _ in range(count):
        began = time.monotonic()
        session.send_and_wait("hello", timeout=60)
        waits.append(time.monotonic() - began)
    return waits


def test_three_workers_keep_to_it_together_and_chat_comes_first(fleet: Fleet, model: ModelServer):
    with overheard(fleet.broker_url) as commands, fleet.client() as client:
        for number in range(SESSIONS):
            session = client.create_session(f"batch-{number}")
            for _ in range(TURNS):
                session.send("hello", lane="batch")
        wait_until(lambda: len(model.calls()) > SESSIONS, 30)
        chat = waits_of_chat(client, 5)
        fleet.await_drained(DRAIN_SECONDS)
        states = {
            turn.state for number in range(SESSIONS) for turn in client.get_session(f"batch-{number}").get_turns()
        }
    calls = sorted(call.start for call in model.calls())
    begins = f"ZADD {limit_keys('limited')[2]} "
    allowed = [told.at for told in commands if told.command.startswith(begins)]
    assert states == {"completed"}
    assert len(calls) == SESSIONS * TURNS + len(chat), "none was made twice, and none was left out"
    for seconds in 1, 5, 10:
        most = A_SECOND * (seconds + AHEAD_SECONDS) + 2
        assert busiest(allowed, seconds) <= most, f"in {seconds} s, with one of chat's besides"
    late = sorted(call - permission for call, permission in zip(calls, allowed, strict=True))
    assert late[0] > 0, "none was made before it was allowed"
    assert late[len(late) * 9 // 10] <= LATE_SECONDS
    assert len(calls) / (calls[-1] - calls[0]) > A_SECOND * (1 - SHARE / 2), "batch had chat's share as well"
    assert sorted(chat)[len(chat) // 2] < 2.0, f"alone, each had {A_SECOND * SHARE} calls a second to itself: {chat}"
    attempts = fleet.query("SELECT count(*) AS made FROM attempts")[0].made
    assert attempts == len(calls), "a turn that waits for the limit has made no attempt"
