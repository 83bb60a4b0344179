"""Bad input, and a machine that does not play along: each is a sentence with the next step, the right exit code, and
nothing half done. The commands are real processes.
"""

import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text

from inturn import Client, SchemaError
from inturn.cli.exits import Exit
from inturn.models import migrations
from inturn.models.database import Database
from inturn.workers.stack import inturn_command
from tests.acceptance.deployment import clean_environment
from tests.servers import PostgresServer, RedisServer, free_port
from tests.stacks import wait_until

PATIENCE_SECONDS = 60
PASSWORD = "hidden-7c1f"
NO_KEY = json.dumps({"keyed": {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NOBODYS_KEY"}})
DISK = ["unshare", "-rm", "--pid", "--fork", "--kill-child", "--mount-proc"]
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


class Inturn:
    """The command line in a home and on a database of its own."""

    def __init__(self, home: Path, database_url: str = "", broker_url: str = "") -> None:
        self.home = home
        self.database_url = database_url or f"sqlite:///{home / 'inturn.db'}"
        urls = {"INTURN_DATABASE_URL": database_url, "INTURN_BROKER_URL": broker_url}
        self.environment = clean_environment(home) | {"INTURN_HOME": str(home)} | urls

    def run(self, *words: str, typed: str = "", **how: Any) -> subprocess.CompletedProcess[str]:
        environment = self.environment | how.pop("environment", {})
        return subprocess.run(
            inturn_command(*words), env=environment, input=typed, capture_output=True, text=True, check=False,
            timeout=PATIENCE_SECONDS, **how,
        )  # fmt: skip

    def ok(self, *words: str, **how: Any) -> str:
        done = self.run(*words, **how)
        assert done.returncode == Exit.OK, done.stderr
        return done.stdout

    def refused(self, code: Exit, *words: str, **how: Any) -> str:
        """The one sentence of a command that fails, which has written nothing."""
        before = self.contents()
        done = self.run(*words, **how)
        assert done.returncode == code, (done.returncode, done.stderr)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stderr
        assert self.contents() == before
        return done.stderr.splitlines()[-1].removeprefix("inturn: ")

    def contents(self) -> dict[str, list[str]]:
        """Every row of every table; empty without a database."""
        if self.database_url.startswith("sqlite") and not (self.home / "inturn.db").exists():
            return {}
        with closing(Database(self.database_url)) as database, database.reading() as db:
            tables = inspect(db).get_table_names()
            return {table: sorted(map(repr, db.execute(text(f"SELECT * FROM {table}")))) for table in tables}

    def pretend(self, version: str) -> None:
        """Let the database look as if another inturn had made it."""
        with closing(Database(self.database_url)) as database, database.writing() as db:
            db.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})


@pytest.fixture(params=["sqlite", "postgresql"])
def inturn(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inturn]:
    """Nobody is at work, and one session is there."""
    home = tmp_path / "home"
    if request.param == "sqlite":
        inturn = Inturn(home)
        yield ready(inturn)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_database()
    broker: RedisServer = request.getfixturevalue("redis")
    yield ready(Inturn(home, url, broker.url))
    server.drop_database(url)


@pytest.fixture
def embedded(tmp_path: Path) -> Inturn:
    return ready(Inturn(tmp_path / "home"))


def ready(inturn: Inturn) -> Inturn:
    inturn.ok("db", "upgrade")
    inturn.ok("session", "create", "s")
    return inturn


WRONG_INPUT: list[tuple[Exit, str, tuple[str, ...]]] = [
    (Exit.NOT_FOUND, "no session 'ghost': .*`inturn session list`", ("send", "ghost", "hello")),
    (Exit.NOT_FOUND, "no session 'ghost': .*`inturn session list`", ("send", "ghost", "hello", "--wait")),
    (Exit.NOT_FOUND, "no session 'ghost': .*`inturn session list`", ("session", "delete", "ghost", "--yes")),
    (Exit.USAGE, r"'a b' is no session ID: use 1 to 200 characters", ("send", "a b", "hello", "--create")),
    (Exit.USAGE, r"'x{200}.*' is no session ID: use 1 to 200 characters", ("session", "create", "x" * 201)),
    (Exit.USAGE, "the prompt is empty", ("send", "s", " \n\t")),
    (Exit.USAGE, "the prompt is empty", ("send", "new", "", "--create")),
    (Exit.USAGE, r"model 'gpt-5' cannot be used: write provider/model", ("session", "create", "m", "--model", "gpt-5")),
    (Exit.USAGE, r"model 'gone/x' .*configured provider \(echo\).* inturn.toml", ("session", "create", "--model", "gone/x")),
    (Exit.USAGE, r"model 'openai/gpt-5' .*Set the provider's key", ("send", "m", "hello", "--create", "--model", "openai/gpt-5")),
    (Exit.NOT_FOUND, r"no turn '1.9': .*`inturn turn list", ("turn", "cancel", "1.9")),
]  # fmt: skip


def test_wrong_input_is_refused_before_anything_is_written(inturn: Inturn):
    for code, sentence, words in WRONG_INPUT:
        said = inturn.refused(code, *words)
        assert matches(sentence, said), said


def matches(pattern: str, sentence: str) -> bool:
    import re

    return re.search(pattern, sentence) is not None


@pytest.mark.parametrize("how", ["typed", "piped"])
def test_an_oversized_prompt_is_refused(inturn: Inturn, how: str):
    size = 256 * 1024 + 1 if how == "piped" else 100_000
    words, typed = ("send", "s", "-"), "x" * size
    if how == "typed":
        words, typed = ("send", "s", "€" * 40_000 + "x"), ""  # 120,001 bytes: what one argument may have, and no more
        assert inturn.ok(*words).strip()
        return
    assert "the prompt has 262,145 bytes, and 262,144 (256 KiB) are the limit: shorten it" in inturn.refused(
        Exit.USAGE, *words, typed=typed
    )
    assert "256 KiB" in inturn.refused(Exit.USAGE, "send", "new", "-", "--create", typed="€" * 100_000)
    assert inturn.ok("send", "s", "-", typed="x" * 256 * 1024).strip()


def test_a_missing_key_is_named(embedded: Inturn):
    """It is the worker's, so only the worker can know; the provider's URL and key stay out of what is said."""
    here = {"environment": {"INTURN_PROVIDERS": NO_KEY}}
    embedded.ok("session", "create", "k", "--model", "keyed/model", **here)
    done = embedded.run("send", "k", "hello", "--wait", **here)
    assert done.returncode == Exit.FAILURE
    assert "failed (no_key): provider keyed has no key: set NOBODYS_KEY in the worker's environment" in done.stderr
    assert json.loads(embedded.ok("turn", "list", "k", "--json"))["attempts"] == 1
    told = embedded.run("doctor", **here)
    assert "NOBODYS_KEY, the key of provider keyed, is not set: export it" in told.stdout


def unreachable_databases(postgres: PostgresServer) -> dict[str, str]:
    from sqlalchemy import make_url

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
    gone = ("--database-url", unreachable_databases(postgres)["is refused"])
    for command in ("session", "list"), ("worker",), ("beat",), ("up",), ("db", "upgrade"):
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
            wait_until(lambda up=up: "broker" in up.said() or "ready" in up.said(), PATIENCE_SECONDS)
            time.sleep(2)
            assert "ready" not in up.said()
            assert f"127.0.0.1:{port}" in up.said()
            assert "INTURN_BROKER_URL" in up.said()
        finally:
            up.stop()


@pytest.mark.parametrize("broker", ["down", "babbling"])
def test_sending_without_a_broker_works_and_says_so(inturn: Inturn, babbler: int, broker: str):
    url = f"redis://127.0.0.1:{babbler if broker == 'babbling' else free_port()}/0"
    done = inturn.run("--broker-url", url, "send", "s", "hello")
    assert done.returncode == Exit.OK
    assert done.stdout.strip().endswith(".1")
    assert "the broker does not answer; what is sent is stored, and workers will find it" in done.stderr
    turn = json.loads(inturn.ok("turn", "list", "s", "--json"))
    assert (turn["state"], turn["attempts"]) == ("queued", 0)


def test_waiting_without_a_worker_says_so(inturn: Inturn):
    done = inturn.run("--broker-url", f"redis://127.0.0.1:{free_port()}/0", "send", "s", "hello", "--wait")
    assert done.returncode == Exit.UNREACHABLE
    assert "no worker is alive" in done.stderr
    assert "`inturn worker`" in done.stderr
    assert json.loads(inturn.ok("turn", "list", "s", "--json"))["state"] == "queued"


COMMANDS = [("send", "s", "hello"), ("session", "list"), ("worker",), ("beat",), ("up",), ("db", "check")]


def test_an_old_schema_is_refused_by_everybody(postgres: PostgresServer, redis: RedisServer, tmp_path: Path):
    inturn = Inturn(tmp_path / "home", postgres.create_database(), redis.url)
    try:
        for words in COMMANDS:
            said = inturn.refused(Exit.FAILURE, *words)
            assert said.endswith("has no inturn tables yet: run `inturn db upgrade`"), said
        ready(inturn).pretend("0000")
        expected = f"has the old schema 0000, and this inturn works with {migrations.HEAD}: run `inturn db upgrade`"
        for words in COMMANDS:
            assert inturn.refused(Exit.FAILURE, *words).endswith(expected)
        client = Client(home=inturn.home, database_url=inturn.database_url, broker_url=redis.url)
        with pytest.raises(SchemaError, match="old schema 0000"):
            client.start()
        celery = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "inturn.workers.app", "worker"], env=inturn.environment,
            capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert celery.returncode == 1, celery.stderr
        assert expected in celery.stderr
        assert "Traceback" not in celery.stderr
    finally:
        postgres.drop_database(inturn.database_url)


def test_a_newer_schema_is_refused_by_everybody(embedded: Inturn):
    embedded.pretend("9999")
    for words in *COMMANDS, ("db", "upgrade"):
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


def bound_by_permissions() -> None:
    """As root: give up what lets root write where nobody may. Permissions bind root's own files from then on."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH:
            assert libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


@pytest.fixture
def readonly() -> Iterator[Callable[[Path], None]]:
    """Takes the right to write away from everybody, until the test is over."""
    if os.geteuid() == 0 and sys.platform != "linux":
        pytest.skip("permissions do not bind root here")
    paths: list[Path] = []

    def close(directory: Path) -> None:
        for path in (*directory.rglob("*"), directory):
            paths.append(path)
            path.chmod(path.stat().st_mode & ~0o222)

    yield close
    for path in reversed(paths):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_a_home_that_is_read_only(embedded: Inturn, readonly: Callable[[Path], None], tmp_path: Path):
    how: dict[str, Any] = {"preexec_fn": bound_by_permissions}
    before = embedded.contents()
    readonly(embedded.home)
    for words in ("send", "s", "hello"), ("send", "s", "hello", "--wait"), ("session", "create", "t"), ("worker",):
        done = embedded.run(*words, **how)
        assert done.returncode == Exit.FAILURE, done.stderr
        assert "inturn.db is read-only: give this user the right to write to the file and its directory" in done.stderr
        assert "Traceback" not in done.stderr
    done = embedded.run("up", **how)
    assert done.returncode == Exit.FAILURE
    assert (
        f"cannot write {embedded.home} (Permission denied): make it writable for you, or set INTURN_HOME" in done.stderr
    )
    (tmp_path / "empty").mkdir()
    readonly(tmp_path / "empty")
    for home in tmp_path / "empty", tmp_path / "empty" / "new":
        done = Inturn(home).run("session", "create", "s", **how)
        assert done.returncode == Exit.FAILURE
        assert f"cannot open sqlite:///{home}/inturn.db: Permission denied. Check INTURN_HOME" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []
    for path in (*embedded.home.rglob("*"), embedded.home):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert embedded.contents() == before


def on_a_small_disk(tmp_path: Path, script: str) -> list[str]:
    """What a shell script says, line by line, that has a disk of 8 MB to itself in ``$disk``; ``i`` is inturn."""
    if sys.platform != "linux" or subprocess.run([*DISK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a small disk of our own, which this machine does not let us mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    prelude = f"""
disk={disk}
mount -t tmpfs -o size=8m none $disk || exit 99
i() {{ {" ".join(inturn_command())} "$@" < /dev/null 2>&1; echo "code $?"; }}
fill() {{ cat /dev/zero > $disk/filler 2> /dev/null; }}
"""
    done = subprocess.run(
        [*DISK, "sh", "-c", prelude + script], env=Inturn(disk / "home").environment, capture_output=True, text=True,
        check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk(tmp_path: Path):
    said = on_a_small_disk(
        tmp_path,
        """
i session create s
fill
i session create t; i send s hello; i session list; i up
truncate -s -80k $disk/filler
i send s "$(head -c 90000 /dev/zero | tr '\\0' x)"
rm $disk/filler
i session list --json
i turn list s --json
i send s hello
""",
    )
    full = r"has no room left: free some space; what was accepted before is kept"
    assert said[:2] == ["s", "code 0"]
    for sentence, code in zip(said[2:8:2], said[3:8:2], strict=True):
        assert full in sentence
        assert code == "code 1"
    rest = said[8:]
    assert "the disk is full: free some space" in rest[rest.index("code 1") - 1]
    rest = rest[rest.index("code 1") + 1 :]
    assert full in rest[0]
    assert rest[1] == "code 1"
    assert [json.loads(line)["session_id"] for line in rest if line.startswith("{")] == ["s"], "nothing half done"
    assert rest[-3] == "1.1"
    assert rest[-1] == "code 0"


def test_a_reply_that_came_while_the_disk_was_full_is_kept(tmp_path: Path):
    said = on_a_small_disk(
        tmp_path,
        """
i session create s --option latency=2 > /dev/null
i up > $disk/said &
until grep -q ready $disk/said; do sleep 0.2; done
i send s hello
until i turn list s --json | grep -q running; do sleep 0.1; done
fill
sleep 4
rm $disk/filler
until i turn list s --json | grep -q -e completed -e failed; do sleep 0.3; done
i turn list s --json
i session show s
kill -INT $(pgrep -o -f 'inturn up')
wait
""",
    )
    (turn,) = [json.loads(line) for line in said if line.startswith("{")]
    assert (turn["state"], turn["attempts"], turn["error"]) == ("completed", 1, None)


class Up:
    """``inturn up`` in the background."""

    def __init__(self, inturn: Inturn) -> None:
        self._output = inturn.home.with_name(f"{inturn.home.name}.said.{time.monotonic_ns()}")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                inturn_command("up"), env=inturn.environment, stdout=output, stderr=output, start_new_session=True
            )

    def said(self) -> str:
        return self._output.read_text()

    def await_ready(self) -> None:
        wait_until(lambda: "ready" in self.said() or self.process.poll() is not None, PATIENCE_SECONDS)
        assert self.process.poll() is None, self.said()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(PATIENCE_SECONDS / 2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def test_a_second_up_and_a_stale_socket(embedded: Inturn):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(embedded.home / "broker.sock"))
    stale.close()
    up = Up(embedded)
    try:
        up.await_ready()
        assert f"removed a stale socket that nobody listened on ({embedded.home / 'broker.sock'})" in up.said()
        second = embedded.run("up")
        assert second.returncode == Exit.FAILURE
        assert f"PID {up.process.pid}" in second.stderr
        assert second.stdout == ""
        assert "Traceback" not in second.stderr
        assert embedded.ok("send", "s", "are you still there?", "--wait").strip()
    finally:
        code = up.stop()
    assert code in (Exit.OK, Exit.INTERRUPTED)
    assert not (embedded.home / "broker.sock").exists()
    assert embedded.ok("send", "s", "for later").strip()
