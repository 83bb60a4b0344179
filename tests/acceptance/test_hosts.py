"""Several hosts, with a network between them that is cut in mid-call, and healed: nothing is lost, and nothing comes twice.

Two workers and a producer have a host each, database and Redis one more. A model answers on each worker's own host, so that
a worker that is cut off has a reply in hand which it cannot store; when it is back, others have long stored theirs.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ops.chaos.fleet import Process
from ops.chaos.hosts import Host, Network, Spread
from ops.chaos.model import Call, ModelServer
from ops.servers import PostgresServer, RedisServer
from tests.acceptance.failing import wait_until

pytestmark = pytest.mark.timeout(400)

SECONDS = 60
SESSIONS, PROMPTS = 6, 3
MODEL_PORT = 8080
SLOW = {"latency": 3}
"""Of the first prompts: longer than it takes to cut a cable, and shorter than a lease."""
PACE: dict[str, Any] = {"attempt_deadline_seconds": 30, "shutdown_grace_seconds": 31}
"""What is cut off is not over before it is taken over."""

PRODUCER = """
import json, sys
from inturn import Client

prefix, sessions, prompts, slow = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with Client() as client:
    talks = [client.create_session(f"{prefix}-{number}", model="server/model") for number in range(sessions)]
    turns = []
    for number in range(prompts):
        for talk in talks:
            turns.append(talk.send(f"{talk.session_id} says {number}" + (slow if number == 0 else "")))
    print("sent", flush=True)
    print(json.dumps([(turn.prompt, turn.wait(timeout=100).data.content) for turn in turns]), flush=True)
"""


@dataclass
class Place:
    """A worker's host, and who answers there."""

    host: Host
    model: ModelServer
    way: dict[str, Any]
    worker: Process


class Land:
    """All of it."""

    def __init__(self, home: Path, held: ExitStack) -> None:
        self.network = held.enter_context(Network())
        postgres = PostgresServer(host=self.network.servers)
        held.callback(postgres.stop)
        redis = RedisServer(host=self.network.servers)
        held.callback(redis.stop)
        url = postgres.create_database()
        self._urls = {"database_url": postgres.url_there(url), "broker_url": redis.url_there}
        hosts = [self.network.add() for _ in range(3)]
        models = [held.enter_context(ModelServer(port=MODEL_PORT, within=host.within)) for host in hosts[:2]]
        ways = [self._urls | {"host": host} for host in hosts]
        server = {"type": "openai", "base_url": models[0].base_url}
        self.fleet = Spread(home, url, redis, {"server": server}, ways=ways, **PACE)
        held.callback(self.fleet.stop)
        workers = [self.fleet.add_worker() for _ in models]
        self.fleet.await_workers()
        self.places = [Place(*each) for each in zip(hosts[:2], models, ways[:2], workers, strict=True)]
        self._away = ways[2]

    def produce(self, prefix: str, slow: dict[str, Any] | None = None) -> Process:
        """Start somebody who sends from the third host, and waits for all replies."""
        words = (prefix, str(SESSIONS), str(PROMPTS), f" !{json.dumps(slow)}" if slow else "")
        return self.fleet.begin_on(self._away, [sys.executable, "-c", PRODUCER, *words])

    def said(self, producer: Process) -> list[str]:
        return self.fleet.said(producer).splitlines()

    def replies(self, producer: Process) -> dict[str, str]:
        """Once it has all of them: by prompt."""
        assert producer.wait(SECONDS) == 0, self.fleet.said(producer)
        return dict(json.loads(self.said(producer)[-1]))

    def held_by(self, place: Place) -> list[int]:
        return self.fleet.sessions_of(place.worker)

    def calls(self, place: Place) -> list[Call]:
        return place.model.calls()


@pytest.fixture
def land(tmp_path: Path) -> Iterator[Land]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with ExitStack() as held:
        yield Land(home, held)


def test_a_host_that_is_cut_off_loses_nothing_and_doubles_nothing(land: Land) -> None:
    lonely, other = land.places
    producer = land.produce("talk", SLOW)
    wait_until(lambda: "sent" in land.said(producer) or producer.poll() is not None, SECONDS)
    wait_until(lambda: land.held_by(lonely) and land.held_by(other), SECONDS)
    wait_until(lambda: under_way(land, lonely), SECONDS)
    land.network.cut(lonely.host)
    cut_off = [call.prompt for call in under_way(land, lonely)]
    assert cut_off, "in mid-call"

    # The other one takes over once the leases have run out, and answers everything, while nobody mends the cable.
    replies = land.replies(producer)
    assert len(replies) == SESSIONS * PROMPTS
    assert not land.held_by(lonely)
    wait_until(lambda: all(call.end for call in land.calls(lonely)), SECONDS)
    assert {call.prompt for call in land.calls(lonely) if call.outcome == "200"} >= set(cut_off), "it has their replies"
    assert {call.prompt for call in land.calls(other)} >= set(cut_off)
    check(land, replies)
    # It does not wait for a quarter of an hour, as TCP would, until it knows that nobody hears it.
    wait_until(lambda: "action=settle_retried" in land.fleet.said(lonely.worker), SECONDS)

    # Mended, it hears that it is too late, and goes on by itself.
    land.network.heal(lonely.host)
    wait_until(lambda: refused(land, lonely) >= len(cut_off), 2 * SECONDS)
    check(land, replies)
    assert "action=reply_unstorable" not in land.fleet.said(lonely.worker), "the fence is ahead of all other guards"
    before = len(land.calls(lonely))
    land.fleet.retire(other.worker)
    again = land.replies(land.produce("again"))
    assert len(land.calls(lonely)) - before >= len(again) == SESSIONS * PROMPTS
    check(land, replies | again)
    assert lonely.worker.poll() is None


def under_way(land: Land, place: Place) -> list[Call]:
    return [call for call in land.calls(place) if call.end is None]


def refused(land: Land, place: Place) -> int:
    return land.fleet.said(place.worker).count("action=lease_lost")


def check(land: Land, replies: dict[str, str]) -> None:
    """Each prompt has its reply, one, in order, and it is the one that was waited for."""
    rows = land.fleet.query(
        "SELECT s.key, t.number, t.state, t.finished_at, "
        "min(m.content) FILTER (WHERE m.role = 'user') AS prompt, "
        "array_agg(m.content) FILTER (WHERE m.role = 'assistant') AS replies "
        "FROM turns AS t JOIN sessions AS s ON s.id = t.session_id "
        "JOIN messages AS m ON m.session_id = t.session_id AND m.turn_number = t.number "
        "GROUP BY t.session_id, s.key, t.number, t.state, t.finished_at ORDER BY t.session_id, t.number"
    )
    assert {row.prompt: row.replies for row in rows} == {prompt: [reply] for prompt, reply in replies.items()}
    assert {row.state for row in rows} == {"completed"}
    for before, after in pairwise(rows):
        assert before.key != after.key or before.finished_at < after.finished_at
    for row in rows:
        assert row.prompt.startswith(f"{row.key} says {row.number - 1}")
        # What it was shown: the prompt, and a prompt and a reply for each turn before it.
        assert row.replies == [f"reply to: {row.prompt} (seen {2 * row.number - 1} messages)"]
