"""Rehearsals: everything is destroyed, and a backup brings it back; a home with a queue moves to PostgreSQL."""

import json
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from sqlalchemy import make_url

from inturn import Client, Session
from inturn.cli.exits import Exit
from inturn.models.database import Database
from inturn.models.states import ProcessKind
from inturn.models.store import presence
from inturn.models.store.presence import Process
from inturn.workers.processes import ProcessIdentity
from ops.chaos.model import Call
from ops.servers import PostgresServer, RedisServer, free_port
from tests.acceptance.command import PASSWORD, Inturn
from tests.acceptance.deployment import Deployment
from tests.stacks import wait_until

SESSIONS, SENDERS = 12, 3
LATENCY = 0.2
DRAIN_SECONDS = 60
UNFINISHED = "SELECT count(*) FROM turns WHERE state IN ('queued', 'running')"
COPIED_BROKER = "15"
"""A Redis database that no other deployment of these tests counts up to."""

pytestmark = pytest.mark.timeout(180)

Turns = dict[tuple[int, int], str]
"""Prompts by the turns that they became."""


class Senders:
    """Threads that send without a pause, and keep a log of what was accepted."""

    def __init__(self, client: Client, run: str) -> None:
        self._run = run
        self._sessions = [client.create_session(f"{run}-{number}", model="server/m") for number in range(SESSIONS)]
        self._stop, self._log = threading.Event(), list[tuple[tuple[int, int], str]]()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)]

    def accepted(self) -> Turns:
        return dict(list(self._log))

    def _send(self, name: int) -> None:
        count = 0
        while not self._stop.is_set():
            session = self._sessions[(count * SENDERS + name) % SESSIONS]
            prompt = f"{self._run} {name}.{count} " + json.dumps({"latency": LATENCY}).replace("{", "!{", 1)
            turn = session.send(prompt)
            surrogate, number = map(int, turn.id.split("."))
            self._log.append(((surrogate, number), prompt))
            count += 1
            time.sleep(0.04)

    def __enter__(self) -> "Senders":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def prompts(deployment: Deployment) -> Turns:
    rows = deployment.query("SELECT session_id, turn_number, content FROM messages WHERE position = 1")
    return {(row.session_id, row.turn_number): row.content for row in rows}


def replies(deployment: Deployment) -> dict[tuple[int, int], list[Any]]:
    found: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for row in deployment.query("SELECT * FROM messages WHERE role = 'assistant' ORDER BY turn_number"):
        found[row.session_id, row.turn_number].append(row)
    return found


def assert_all_answered_in_order(deployment: Deployment) -> None:
    """Every prompt has the one reply that is its own, and no session stored its replies in another order."""
    asked, answered = prompts(deployment), replies(deployment)
    assert answered.keys() == asked.keys()
    for turn, rows in answered.items():
        assert len(rows) == 1
        assert rows[0].content.startswith(f"reply to: {asked[turn]} (seen"), turn
    by_session: dict[int, list[Any]] = defaultdict(list)
    for (session, _), rows in sorted(answered.items()):
        by_session[session] += rows
    for session, rows in by_session.items():
        assert [row.turn_number for row in rows] == list(range(1, len(rows) + 1)), session
        assert [str(row.created_at) for row in rows] == sorted(str(row.created_at) for row in rows), session


def await_drained(deployment: Deployment) -> None:
    wait_until(lambda: not deployment.query(UNFINISHED)[0][0], DRAIN_SECONDS)


def start_anew(deployment: Deployment, request: pytest.FixtureRequest) -> None:
    """Nothing is left of the deployment but its addresses: neither database, nor home, nor what was in Redis."""
    deployment.wreck()
    shutil.rmtree(deployment.home)
    deployment.furnish()
    if deployment.is_embedded:
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    name = sql.Identifier(make_url(deployment.settings.database_url).database or "")
    with postgres.connect() as db:
        db.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
    RedisServer(deployment.settings.broker_url).flush()


def test_a_backup_made_under_load_brings_everything_back(
    deserted: Deployment, request: pytest.FixtureRequest, tmp_path: Path, calls: Callable[[str], list[Call]]
) -> None:
    deployment, run, path = deserted, f"run-{secrets.token_hex(4)}", tmp_path / "inturn.backup"
    deployment.start()
    with deployment.client() as client, Senders(client, run) as senders:
        wait_until(lambda: len(senders.accepted()) > 60)
        before = senders.accepted()
        made = deployment.command("db", "backup", str(path), "--json")
        assert made.returncode == Exit.OK, made.stderr
        after = senders.accepted()
    assert len(before) < len(after), "nobody sent meanwhile"
    everything = {turn: [row.content for row in rows] for turn, rows in replies(deployment).items()}
    start_anew(deployment, request)

    restored = deployment.command("db", "restore", str(path), "--json")
    assert restored.returncode == Exit.OK, restored.stderr
    record = json.loads(restored.stdout)
    assert {name: record[name] for name in ("sessions", "turns", "messages")}.items() <= json.loads(made.stdout).items()
    assert record["waiting"] > 0, "nothing was under way when the backup was made"
    assert before.items() <= prompts(deployment).items() <= senders.accepted().items()
    final, asked = replies(deployment), len(calls(run))
    assert final, "nothing was answered before the backup"
    assert all([row.content for row in rows] == everything[turn] for turn, rows in final.items())

    deployment.start()
    await_drained(deployment)
    assert_all_answered_in_order(deployment)
    again = {call.prompt for call in calls(run)[asked:]}
    assert not again & {prompts(deployment)[turn] for turn in final}, "what had its reply was asked again"
    assert deployment.query("SELECT count(*) FROM turns WHERE state <> 'completed'")[0][0] == 0
    with deployment.client() as client:
        session = client.resume_session(f"{run}-0")
        history = len(list(session.get_messages(limit=40)))
        goes_on = session.send_and_wait("and now?")
        assert f"(seen {min(history, 40) + 1} messages)" in goes_on.data.content
        new = client.create_session(f"{run}-new", model="server/m").send("hello")
        assert int(new.id.split(".")[0]) > SESSIONS


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, providers: dict[str, Any]) -> Iterator[Deployment]:
    """One that needs nothing set up."""
    deployment = Deployment(tmp_path_factory.mktemp("home") / "inturn", providers)
    yield deployment
    deployment.stop()


@pytest.fixture
def grown_up(
    tmp_path_factory: pytest.TempPathFactory,
    providers: dict[str, Any],
    postgres: PostgresServer,
    redis: RedisServer,
) -> Iterator[Deployment]:
    """An empty PostgreSQL database, without even tables, and a Redis."""
    broker_url = make_url(redis.url).set(database=COPIED_BROKER).render_as_string(hide_password=False)
    deployment = Deployment(
        tmp_path_factory.mktemp("home") / "inturn", providers, postgres.create_database(), broker_url
    )
    yield deployment
    deployment.stop()


def await_attempt(deployment: Deployment, session: Session) -> None:
    """Wait until the session's first turn was refused by the model, and waits for its next try."""
    tried = "SELECT count(*) FROM turns AS t JOIN sessions AS s ON s.id = t.session_id WHERE s.key = :key AND t.attempts = 1"
    wait_until(lambda: deployment.query(f"{tried} AND t.state = 'queued'", key=session.session_id)[0][0])


def test_a_home_moves_to_postgresql_with_history_and_queue(home: Deployment, grown_up: Deployment) -> None:
    url = grown_up.settings.database_url
    home.start()
    with home.client() as client:
        session = client.create_session("s", model="server/m", system_message="Be brief.")
        session.send_and_wait("what is said here is history")
        retried = client.create_session("retried", model="server/m")
        retried.send('later !{"status": 503, "retry_after": 8, "times": 1}')
        retried.send("and behind it")
        await_attempt(home, retried)

        refused = home.command("db", "copy", url)
        assert refused.returncode == Exit.FAILURE
        assert "at work on sqlite" in refused.stderr
        assert "worker" in refused.stderr
        home.stop()
        for number in range(3):
            session.send(f"waits {number}")
        put_off = client.create_session("put-off", model="server/m")
        put_off.send("not before", not_before=timedelta(seconds=10))
        put_off.send("and after it")
        copied = home.command("db", "copy", url, "--json")
    assert copied.returncode == Exit.OK, copied.stderr
    record = json.loads(copied.stdout)
    assert (record["sessions"], record["turns"], record["waiting"]) == (3, 8, 7)
    password = str(make_url(url).password)
    assert password not in refused.stdout + refused.stderr + copied.stdout + copied.stderr
    assert f"INTURN_DATABASE_URL={record['to']}" in copied.stderr

    grown_up.start()
    await_drained(grown_up)
    assert_all_answered_in_order(grown_up)
    with grown_up.client() as client:
        [system, *history] = client.resume_session("s").get_messages()
        assert (system.data.content, len(history)) == ("Be brief.", 8)
        assert [message.turn for message in history] == [1, 1, 2, 2, 3, 3, 4, 4]
        first, second = client.get_session("put-off").get_turns()
        assert first.started_at is not None
        assert second.started_at is not None
        assert first.started_at - first.created_at >= timedelta(seconds=9)
        assert second.started_at >= first.started_at
        assert [turn.attempts for turn in client.get_session("retried").get_turns()] == [2, 1]
    assert home.query(UNFINISHED)[0][0] == 7, "the old database is as it was"


@pytest.fixture
def inturn(tmp_path: Path) -> Inturn:
    (tmp_path / "home").mkdir(mode=0o700)
    return Inturn(tmp_path / "home").prepare()


def test_what_the_commands_refuse(inturn: Inturn, tmp_path: Path) -> None:
    path = str(tmp_path / "inturn.backup")
    inturn.ok("db", "backup", path)
    nobody = f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/x"
    refusals: list[tuple[Exit, str, tuple[str, ...]]] = [
        (Exit.USAGE, "is there already: name another file, or add --force", ("backup", path)),
        (Exit.USAGE, "belongs to the database itself", ("backup", "--force", str(inturn.home / "inturn.db"))),
        (Exit.USAGE, "a backup is a file, and no stream", ("backup", "-")),
        (Exit.USAGE, "a backup is a file, and no stream", ("restore", "-")),
        (Exit.USAGE, "No such file", ("restore", f"{path}.missing")),
        (Exit.FAILURE, f"move {inturn.home / 'inturn.db'} away, with", ("restore", path)),
        (Exit.USAGE, "'mysql://h/x' names no database", ("copy", "mysql://h/x")),
        (Exit.USAGE, "is the database that is copied", ("copy", inturn.database_url)),
        (Exit.UNREACHABLE, "no connection", ("copy", nobody)),
    ]
    for code, reason, words in refusals:
        assert reason in inturn.refused(code, "db", *words)
    missing = Inturn(tmp_path / "elsewhere")
    assert "there is no database" in missing.refused(Exit.FAILURE, "db", "backup", f"{path}.2")
    assert "there is no database" in missing.refused(Exit.FAILURE, "db", "copy", "sqlite:///x.db")
    assert {one.name for one in tmp_path.iterdir()} == {"home", "inturn.backup"}, "a refusal left something"


def test_nothing_is_copied_while_somebody_is_at_work(inturn: Inturn, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path / 'copy.db'}"
    here = ProcessIdentity.mine()
    killed = replace(here, started=here.started - 1)  # its PID was given to another process
    with closing(Database(inturn.database_url)) as database:

        def appear(who: str) -> None:
            database.transact(lambda db: presence.appear(db, Process(who, ProcessKind.WORKER, "h", 7, "chat", 1, "0")))

        appear("another-host/1/7/1")
        assert "worker h/7" in inturn.refused(Exit.FAILURE, "db", "copy", target)
        assert not (tmp_path / "copy.db").exists()
        database.transact(lambda db: presence.disappear(db, ["another-host/1/7/1"]))
        appear(str(killed))
    inturn.ok("db", "copy", target)
    assert "echo/echo" in inturn.ok("--database-url", target, "session", "list")
