"""Bad input: each is a sentence with the next step, the right exit code, and nothing half done. The commands are real
processes.
"""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from inturn import Client, SchemaError
from inturn.cli.exits import Exit
from inturn.models import migrations
from ops.servers import PostgresServer, RedisServer, free_port
from tests.acceptance.command import PASSWORD, PATIENCE_SECONDS, Inturn, Up

LIMIT = 256 * 1024
NO_KEY = json.dumps({"keyed": {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NOBODYS_KEY"}})


@pytest.fixture(params=["sqlite", "postgresql"])
def inturn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inturn]:
    """Nobody is at work, and one session is there."""
    home = tmp_path / "home"
    if request.param == "sqlite":
        yield Inturn(home).prepare()
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_database()
    broker: RedisServer = request.getfixturevalue("redis")
    yield Inturn(home, url, broker.url).prepare()
    server.drop_database(url)


@pytest.fixture
def embedded(tmp_path: Path) -> Inturn:
    return Inturn(tmp_path / "home").prepare()


WRONG_INPUT: list[tuple[Exit, str, tuple[str, ...]]] = [
    (Exit.NOT_FOUND, "no session 'ghost': .*`inturn session list`", ("send", "ghost", "hello")),
    (Exit.NOT_FOUND, "no session 'ghost': .*`inturn session list`", ("send", "ghost", "hello", "--wait")),
    (Exit.NOT_FOUND, "no session 'ghost': .*`inturn session list`", ("session", "delete", "ghost", "--yes")),
    (Exit.USAGE, r"'a b' is no session ID: use 1 to 200 characters", ("send", "a b", "hello", "--create")),
    (Exit.USAGE, r"'x{200}.*' is no session ID: use 1 to 200 characters", ("session", "create", "x" * 201)),
    (Exit.USAGE, "the prompt is empty", ("send", "s", " \n\t")),
    (Exit.USAGE, "the prompt is empty", ("send", "new", "", "--create")),
    (Exit.USAGE, r"model 'gpt-5' cannot be used: write provider/model", ("session", "create", "m", "--model", "gpt-5")),
    (Exit.USAGE, r"model 'gone/x' .*configured provider \(echo\).*inturn.toml", ("session", "create", "--model", "gone/x")),
    (Exit.USAGE, r"model 'openai/x' .*Set the provider's key", ("send", "m", "hello", "--create", "--model", "openai/x")),
    (Exit.NOT_FOUND, r"no turn '1.9': session 's' has no turns yet", ("turn", "cancel", "1.9")),
]  # fmt: skip


def test_wrong_input_is_refused_before_anything_is_written(inturn: Inturn):
    for code, sentence, words in WRONG_INPUT:
        said = inturn.refused(code, *words)
        assert matches(sentence, said), said


def matches(pattern: str, sentence: str) -> bool:
    return re.search(pattern, sentence) is not None


def test_an_oversized_prompt_is_refused(inturn: Inturn):
    said = inturn.refused(Exit.USAGE, "send", "s", "-", typed="x" * (LIMIT + 1))
    assert said.startswith("the prompt has 262,145 bytes, and 262,144 (256 KiB) are the limit: shorten it")
    assert "256 KiB" in inturn.refused(Exit.USAGE, "send", "new", "-", "--create", typed="€" * 100_000)
    assert inturn.ok("send", "s", "-", typed="x" * LIMIT).strip()


def test_a_missing_key_is_named(embedded: Inturn):
    """It is the worker's, so only the worker can know; the provider's URL and key stay out of what is said."""
    embedded.environment["INTURN_PROVIDERS"] = NO_KEY
    embedded.ok("session", "create", "k", "--model", "keyed/model")
    done = embedded.run("send", "k", "hello", "--wait")
    assert done.returncode == Exit.FAILURE
    assert "failed (no_key): provider keyed has no key: set NOBODYS_KEY in the worker's environment" in done.stderr
    assert json.loads(embedded.ok("turn", "list", "k", "--json"))["attempts"] == 1
    told = embedded.run("doctor")
    assert "NOBODYS_KEY, the key of provider keyed, is not set: export it" in told.stdout


def unreachable_databases(postgres: PostgresServer) -> dict[str, str]:
    url = make_url(postgres.url())
    wrong = {
        "is refused": url.set(port=free_port(), password=PASSWORD),
        "password authentication failed": url.set(password=PASSWORD),
        'database "nobodys" does not exist': url.set(database="nobodys"),
        "failed to resolve host": url.set(host="no-such-host.invalid", password=PASSWORD),
    }
    return {sign: url.render_as_string(hide_password=False) for sign, url in wrong.items()}


def test_a_database_that_cannot_be_reached(embedded: Inturn, postgres: PostgresServer, redis: RedisServer):
    embedded.environment["INTURN_BROKER_URL"] = redis.url
    for sign, url in unreachable_databases(postgres).items():
        said = embedded.refused(Exit.UNREACHABLE, "--database-url", url, "send", "s", "hello")
        assert matches("no connection to the database postgresql.*set INTURN_DATABASE_URL", said), said
        assert sign in said or sign == "is refused", said
        assert ("Create it: `createdb nobodys`" in said) == ("nobodys" in url), said
        said = embedded.refused(Exit.UNREACHABLE, "db", "copy", url)
        assert matches("no connection to the database postgresql.*, or name another one to copy into", said), said
    gone = ("--database-url", unreachable_databases(postgres)["is refused"])
    for command in ("worker",), ("up",), ("db", "upgrade"):
        said = embedded.refused(Exit.UNREACHABLE, *gone, *command)
        assert "refused" in said, said


@pytest.fixture
def babbler() -> Iterator[int]:
    """The port of a server that speaks something else than anybody expects."""
    listener = socket.create_server(("127.0.0.1", free_port()))

    def babble() -> None:
        while True:
            try:
                with listener.accept()[0] as caller:
                    caller.recv(1000)
                    caller.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            except OSError:
                return

    threading.Thread(target=babble, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_port_at_which_something_else_listens(embedded: Inturn, babbler: int):
    url = f"postgresql://u:{PASSWORD}@127.0.0.1:{babbler}/x"
    said = embedded.refused(Exit.UNREACHABLE, "--database-url", url, "session", "list")
    assert matches(rf"no connection to the database .*:{babbler}/x.*set INTURN_DATABASE_URL", said), said
    url = f"redis://:{PASSWORD}@127.0.0.1:{babbler}/0"
    told = embedded.run("--broker-url", url, "doctor")
    assert told.returncode == Exit.FAILURE
    assert f"redis://:***@127.0.0.1:{babbler}/0 does not answer" in told.stdout
    assert "set INTURN_BROKER_URL" in told.stdout


def test_up_is_not_ready_while_its_broker_does_not_answer(embedded: Inturn, babbler: int, tmp_path: Path):
    """A worker that gets no hints answers nothing."""
    for port in babbler, free_port():
        home = Inturn(tmp_path / f"home-{port}", broker_url=f"redis://127.0.0.1:{port}/0")
        up = Up(home)
        try:
            up.await_words(f"127.0.0.1:{port}", "ready:")
            time.sleep(2)
            assert "ready" not in up.said()
            assert "INTURN_BROKER_URL" in up.said()
        finally:
            up.stop()


def test_sending_without_a_broker_works_and_says_so(inturn: Inturn, babbler: int):
    for session, port in ("down", free_port()), ("babbling", babbler):
        done = inturn.run("--broker-url", f"redis://127.0.0.1:{port}/0", "send", session, "hello", "--create")
        assert done.returncode == Exit.OK
        assert done.stdout.strip().endswith(".1")
        assert "the broker does not answer; what is sent is stored, and workers will find it" in done.stderr
        turn = json.loads(inturn.ok("turn", "list", session, "--json"))
        assert (turn["state"], turn["attempts"]) == ("queued", 0)


def test_waiting_without_a_worker_says_so(embedded: Inturn):
    done = embedded.run("--broker-url", f"redis://127.0.0.1:{free_port()}/0", "send", "s", "hello", "--wait")
    assert done.returncode == Exit.UNREACHABLE
    assert "no worker is alive" in done.stderr
    assert "`inturn worker`" in done.stderr
    assert json.loads(embedded.ok("turn", "list", "s", "--json"))["state"] == "queued"


COMMANDS = [("send", "s", "hello"), ("worker",), ("beat",), ("up",), ("db", "check")]


def test_an_old_schema_is_refused_by_everybody(postgres: PostgresServer, redis: RedisServer, tmp_path: Path):
    inturn = Inturn(tmp_path / "home", postgres.create_database(), redis.url)
    try:
        for words in COMMANDS[:2]:
            said = inturn.refused(Exit.FAILURE, *words)
            assert said.endswith("has no inturn tables yet: run `inturn db upgrade`"), said
        inturn.prepare().pretend("0000")
        expected = f"has the old schema 0000, and this inturn works with {migrations.HEAD}: run `inturn db upgrade`"
        for words in COMMANDS:
            assert inturn.refused(Exit.FAILURE, *words).endswith(expected)
        client = Client(home=inturn.home, database_url=inturn.database_url, broker_url=redis.url)
        with pytest.raises(SchemaError, match="old schema 0000"):
            client.start()
        for word in ("worker", "beat"):
            celery = subprocess.run(
                [sys.executable, "-m", "celery", "-A", "inturn.workers.app", word], env=inturn.environment,
                capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
            )  # fmt: skip
            assert celery.returncode == 1, celery.stderr
            assert expected in celery.stderr
            assert "Traceback" not in celery.stderr
    finally:
        postgres.drop_database(inturn.database_url)


def test_a_newer_schema_is_refused_by_everybody(embedded: Inturn):
    embedded.pretend("9999")
    for words in (*COMMANDS, ("db", "upgrade")):
        said = embedded.refused(Exit.FAILURE, *words)
        assert matches(rf"has schema 9999, newer than .*{migrations.HEAD}.*: install the inturn that wrote it", said), (
            said
        )


def test_what_is_no_database(embedded: Inturn, tmp_path: Path):
    (tmp_path / "letter.db").write_text("Dear database, " * 100)
    for url, sentence in {
        f"sqlite:///{tmp_path / 'letter.db'}": r"letter\.db is no SQLite database: .*move the file away",
        f"sqlite:///{tmp_path}": "cannot be opened: check that its directory exists",
        "sqlite:////proc/nowhere/x.db": "cannot open sqlite:////proc/nowhere/x.db: .*Check .*INTURN_DATABASE_URL",
    }.items():
        said = embedded.refused(Exit.FAILURE, "--database-url", url, "session", "list")
        assert matches(sentence, said), said
    assert (tmp_path / "letter.db").read_text().startswith("Dear database")


def test_a_database_that_keeps_no_unicode_is_refused(tmp_path: Path, postgres: PostgresServer, redis: RedisServer):
    url = postgres.create_database(encoding="SQL_ASCII")
    try:
        done = Inturn(tmp_path / "home", url, redis.url).run("db", "upgrade")
        assert done.returncode == Exit.FAILURE
        assert "keeps text as SQL_ASCII, and not as UTF8: make another one (`createdb --encoding UTF8" in done.stderr
        assert "bug" not in done.stderr
    finally:
        postgres.drop_database(url)
