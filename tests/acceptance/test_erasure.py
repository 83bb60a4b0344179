"""A canary: what a person said is in the database, and is nowhere any more once their sessions are erased.

Each place that takes text is given a word of its own that is nowhere else in the world; workers, beat and Flower run, and
log all they can. Then everybody's memory is searched: tables, files, Redis, logs, events, pages.
"""

import json
import re
import secrets
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from sqlalchemy import inspect, text

from inturn import Turn, TurnFailedError
from inturn.models.clock import now
from inturn.models.tables import SCHEDULES
from inturn.workers.app import broker_url, make_app
from inturn.workers.queues import connect
from ops.chaos.fleet import EmbeddedBroker
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer, free_port
from tests.acceptance.failing import FAULT_SECONDS, PACE, REPAIR_SECONDS, Stage, wait_until
from tests.integration.receiver import SECRET, Receiver

pytestmark = pytest.mark.timeout(300)

EVENTS = ["batch.completed", "turn.completed", "turn.failed"]
EACH_YEAR = "0 0 1 1 *"
FLOWER = """
import sys
sys.argv = ["celery", "-A", "inturn.workers.app", "flower", "--address=127.0.0.1", "--logging=debug", *sys.argv[1:]]
from celery.__main__ import main
main()
"""
LISTED = "/tasks/datatable?draw=1&start=0&length=99&columns[0][data]=name&order[0][column]=0&order[0][dir]=asc"
PAGES = (
    "/workers",
    "/tasks",
    LISTED,
    "/broker",
    "/metrics",
    "/api/tasks",
    "/api/workers?refresh=1",
    "/api/queues/length",
)

OURS = ("/sessions", "/sessions?q=ann", "/batches", "/retention", "/retention?session=ann-1")

PLACES = {
    "argument", "error", "held-because", "held-before", "idempotency-key", "label", "line", "prompt", "queued", "reply",
    "schedule", "scheduled", "streamed", "system", "tool-error", "under-way",
}  # fmt: skip
"""Each with a word of its own."""


class Canary:
    """Words to say, and whether bytes hold any."""

    def __init__(self) -> None:
        self._stem = f"canary{secrets.token_hex(6)}"

    def __call__(self, place: str) -> str:
        assert place in PLACES
        return f"{self._stem}-{place}"

    def in_(self, *held: object) -> set[str]:
        """The places whose words are in there."""
        found = set[str]()
        for each in held:
            data = each if isinstance(each, bytes) else str(each).encode()
            found |= {word.decode() for word in re.findall(rf"{self._stem}-([a-z-]+)".encode(), data)}
            if not found and self._stem.encode() in data:
                found.add("a part of a word")
        return found


class House:
    """A deployment, and all the places in it where something may be kept."""

    def __init__(self, stage: Stage, directories: list[Path], receiver: Receiver, canary: Canary) -> None:
        self.stage, self.directories, self.receiver, self.canary = stage, directories, receiver, canary
        self.events = list[dict[str, Any]]()
        self.flower = f"http://127.0.0.1:{free_port()}"
        self.metrics = f"http://127.0.0.1:{free_port()}/metrics"
        self.worker = stage.command("worker", "--loglevel=debug", f"--metrics-port={urlsplit(self.metrics).port}")
        self.beat = stage.command("beat", "--loglevel=debug")
        self._flower = stage.python(FLOWER, f"--port={self.flower.rpartition(':')[2]}", failpoint="")
        wait_until(
            lambda: {one.kind for one in stage.client.list_workers() if one.alive} == {"worker", "beat"}, FAULT_SECONDS
        )
        self._shows = f"http://127.0.0.1:{free_port()}"
        stage.command("flower", f"--port={urlsplit(self._shows).port}", "--show-content")
        wait_until(lambda: self.page("/workers") and self._fetched(f"{self._shows}/sessions"), FAULT_SECONDS)

    def page(self, path: str) -> bytes:
        return self._fetched(self.flower + path)

    def _fetched(self, url: str) -> bytes:
        with suppress(OSError), urllib.request.urlopen(url, timeout=20) as answer:
            return bytes(answer.read())
        return b""

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """The worker's metrics, and all of Flower's pages: lists, and each task's own."""
        metrics = self._fetched(self.metrics)
        assert b"inturn_" in metrics
        yield self.metrics, metrics
        tasks = list(json.loads(self.page("/api/tasks")))
        assert tasks
        for path in (*PAGES, *(f"/task/{task}" for task in tasks), *(f"/api/task/info/{task}" for task in tasks)):
            content = self.page(path)
            assert content, path
            yield path, content

    def shown(self) -> set[str]:
        """The places whose words are in pages of ours that may show content."""
        pages = [self._fetched(self._shows + path) for path in (*OURS, *(f"/session/ann-{n}" for n in range(1, 7)))]
        assert b"ben-1" in pages[0]
        return self.canary.in_(*pages)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Every row of every table, and what PostgreSQL knows of them, as text."""
        known = ["pg_stats"] if self.stage.database.dialect == "postgresql" else []
        with self.stage.database.reading() as db:
            for table in [*inspect(db).get_table_names(), *known]:
                for row in db.execute(text(f"SELECT * FROM {table}")):
                    yield table, repr(tuple(row))

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Every file of ours, those of the database and of the broker among them."""
        for directory in self.directories:
            for path in sorted(directory.rglob("*")):
                if path.is_file():
                    yield str(path.relative_to(directory)), path.read_bytes()

    def keys(self) -> Iterator[tuple[str, object]]:
        """Every key in Redis, in all of its databases, and what it holds."""
        with connect(broker_url(self.stage.settings)) as client:
            known: Any = client.info("keyspace")
            number = client.connection_pool.connection_kwargs.get("db", 0)
            assert set(known) <= {f"db{number}"}
            for key in client.scan_iter(count=1000):
                with suppress(redis.ResponseError):  # it has gone
                    yield key.decode(), held_by(client, key)

    def everywhere(self) -> dict[str, set[str]]:
        """Where words are, but for the files that PostgreSQL keeps."""
        found = dict[str, set[str]]()
        for name, look in {"row": self.rows, "file": self.files, "key": self.keys, "page": self.pages}.items():
            for where, held in look():
                if words := self.canary.in_(where, held):
                    found[f"{name} {where}"] = found.get(f"{name} {where}", set()) | words
        for event in self.events:
            if words := self.canary.in_(event):
                found[f"event {event['type']}"] = words
        for told in self.receiver.told:
            if words := self.canary.in_(told.body, told.headers):
                found["webhook"] = words
        return found

    def analyze(self) -> None:
        """What PostgreSQL does by itself now and then."""
        if self.stage.database.dialect == "postgresql":
            alone = self.stage.database.engine.execution_options(isolation_level="AUTOCOMMIT")
            with alone.connect() as db:
                db.execute(text("VACUUM (ANALYZE)"))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Celery's events are kept, as any monitor gets them."""
        app, over = make_app(self.stage.settings, producer=True), threading.Event()

        def listen() -> None:
            with app.connection_for_read() as connection:
                receiver = app.events.Receiver(connection, handlers={"*": self.events.append})
                while not over.is_set():
                    with suppress(TimeoutError):
                        receiver.capture(limit=None, timeout=1, wakeup=True)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            app.control.enable_events()
            wait_until(lambda: self.events, FAULT_SECONDS)
            yield
        finally:
            over.set()
            thread.join(10)


def held_by(client: redis.Redis, key: bytes) -> object:
    readers: dict[bytes, Callable[[], object]] = {
        b"string": lambda: client.get(key),
        b"list": lambda: client.lrange(key, 0, -1),
        b"hash": lambda: client.hgetall(key),
        b"set": lambda: client.smembers(key),
        b"zset": lambda: client.zrange(key, 0, -1),
        b"stream": lambda: client.xrange(key),
        b"none": lambda: None,
    }
    kind: Any = client.type(key)
    return readers[kind]()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(params=["sqlite", "postgresql"])
def house(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model: ModelServer,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[House]:
    """On SQLite with the embedded broker, and all of it in the home; or on PostgreSQL with a Redis of its own."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    for directory in (home, temporary):
        directory.mkdir(mode=0o700)
    hook = {"name": "all", "url": receiver.url, "secret_env": "HOOK_SECRET", "events": EVENTS}
    monkeypatch.setitem(PACE, "webhooks", [hook | {"allow_http": True, "allow_private": True}])
    if request.param == "sqlite":
        broker: EmbeddedBroker | RedisServer = EmbeddedBroker(home)
        database_url = f"sqlite:///{home / 'inturn.db'}"  # named, or who waits would start a stack of its own
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        broker, database_url = RedisServer(), postgres.create_database()
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "1")
    monkeypatch.setenv("TMPDIR", str(temporary))
    stage = Stage(home, database_url, broker.url, model)
    stage._environment |= {"INTURN_WEBHOOKS": json.dumps(PACE["webhooks"]), "HOOK_SECRET": SECRET}
    try:
        assert stage.command("db", "upgrade").await_end() == 0
        yield House(stage, [home, temporary], receiver, Canary())
    finally:
        stage.stop()
        broker.stop()


def speak(house: House) -> Turn:
    """All that a person may say. Returns a turn whose reply is being written, and heard, while others wait."""
    client, canary = house.stage.client, house.canary
    labels = {"owner": "ann", "note": canary("label")}
    made: dict[str, Any] = {"model": "echo/echo", "labels": labels}
    talk = client.create_session("ann-1", system_message=canary("system"), **made)
    talk.send_and_wait(canary("prompt"), idempotency_key=canary("idempotency-key"))
    talk.send_and_wait("and you?", options={"reply": canary("reply")})
    list(talk.stream(canary("streamed"), options={"pace": 0.01}))
    talk.fork("ann-2").send_and_wait("once more")
    with pytest.raises(TurnFailedError):
        talk.send_and_wait("hello", options={"latency": canary("error")})
    tools = client.create_session("ann-3", tools=["note", "choke"], **made)
    calls = [{"name": "note", "arguments": {"text": canary("argument")}}]
    calls.append({"name": "choke", "arguments": {"text": canary("tool-error")}})
    tools.send_and_wait("write it down", options={"call": calls})
    refused = client.create_session("ann-4", model="server/model", labels=labels)
    with pytest.raises(TurnFailedError):
        refused.send_and_wait(f'{canary("prompt")} !{{"status": 400, "say": "prompt"}}')
    client.hold_session("ann-4", canary("held-because"))
    client.hold_session("ann-3", canary("held-before"))
    client.release_session("ann-3")
    lines = [{"prompt": canary("line"), "labels": labels, "custom_id": str(n), "model": "echo/echo"} for n in range(3)]
    list(client.submit_batch(lines).results())
    client.add_schedule("ann-1", canary("schedule"), cron=EACH_YEAR, name="later")
    client.add_schedule("ann-2", canary("scheduled"), cron=EACH_YEAR, name="fired")
    with house.stage.database.writing() as db:
        db.execute(SCHEDULES.update().where(SCHEDULES.c.name == "fired").values(next_at=now(-0.5)))
    wait_until(lambda: client.get_schedule("fired").last_turn, FAULT_SECONDS)
    client.get_turn(client.get_schedule("fired").last_turn or "").wait(60)
    waits = client.create_session("ann-5", model="server/busy", labels=labels)
    waits.send(f'{canary("queued")} !{{"status": 429, "retry_after": 300}}')
    talks = client.create_session("ann-6", **made)
    turn = talks.send(canary("under-way"), stream=True, options={"reply": f"{canary('under-way')} " * 500, "pace": 0.5})
    next(event for event in turn.stream(60) if event.type == "assistant.message_delta")
    return turn


def test_what_a_person_said_is_gone_everywhere(house: House) -> None:
    client = house.stage.client
    client.create_session("ben-1", model="echo/echo", labels={"owner": "ben"}).send_and_wait("I stay")
    client.add_schedule("ben-1", "and so do I", cron=EACH_YEAR)  # PostgreSQL looks into no table that is empty
    with house.listening():
        turn = speak(house)
        wait_until(lambda: len(json.loads(house.page("/api/tasks"))) > 4, FAULT_SECONDS)
        # It can be found, and is in the database, and in Redis what is being heard, and in nothing else.
        assert {"system", "prompt", "reply", "argument", "label", "held-because"} <= house.shown()
        house.analyze()
        before = house.everywhere()
        assert {word for where, words in before.items() if where.startswith("row ") for word in words} == PLACES
        heard = f"key inturn:live:{turn.id.partition('.')[0]}"
        assert "under-way" in before[heard]
        assert all("DEBUG" in actor.said() for actor in (house.worker, house.beat))
        places = {where.partition(" ")[0] for where in before}
        assert places == ({"row", "key", "file"} if house.stage.database.dialect == "sqlite" else {"row", "key"})
        assert {where for where in before if where.startswith("file ")} <= {"file inturn.db", "file inturn.db-wal"}

        with connect(broker_url(house.stage.settings)) as broker:
            broker.bgrewriteaof()  # what is being heard is in there now
            wait_until(lambda: not is_rewriting(broker), REPAIR_SECONDS)
            deleted = house.stage.command("session", "delete", "--label", "owner=ann", "--held", "--yes")
            assert deleted.await_end() == 0, deleted.said()
            assert "9 sessions (9 by erasure" in deleted.said()
            wait_until(lambda: not is_rewriting(broker), REPAIR_SECONDS)
        house.analyze()
        assert house.everywhere() == {}
        assert house.shown() == set()
        wait_until(lambda: "action=call_broken_off session=ann-6" in house.worker.said(), REPAIR_SECONDS)
        assert client.get_session("ben-1").send_and_wait("am I here?").data.content
        assert house.everywhere() == {}
    assert {event["type"] for event in house.events} >= {"task-received", "task-succeeded", "worker-heartbeat"}
    assert len(house.receiver.told) >= 5
    assert len(client.list_receipts("ann-1")) == 1


def is_rewriting(broker: redis.Redis) -> bool:
    state: Any = broker.info("persistence")
    return bool(state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])
