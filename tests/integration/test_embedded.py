"""The embedded broker with a real server: where it listens, what it keeps, and what stands in its way."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from kombu.connection import Connection

from inturn.models.errors import BrokerUnreachableError, StorageError
from inturn.workers import embedded
from inturn.workers.embedded import (
    broker_answers,
    broker_is_silent,
    broker_socket,
    broker_url,
    remove_socket,
    server_binary,
    start_broker,
)

Start = Callable[[Path], subprocess.Popen[bytes]]


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def start(reports: list[str]) -> Iterator[Start]:
    """Starts the broker of a home; all of them are ended after the test."""
    started: dict[Path, subprocess.Popen[bytes]] = {}

    def start(home: Path) -> subprocess.Popen[bytes]:
        home.mkdir(exist_ok=True, parents=True)
        started[home] = start_broker(home, report=reports.append)
        return started[home]

    yield start
    for home, process in started.items():
        process.terminate()
        process.wait(10)
        remove_socket(home)


def client(home: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(broker_socket(home)), decode_responses=True, socket_timeout=5)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_it_listens_for_its_user_only(tmp_path: Path, start: Start, reports: list[str]):
    assert not broker_answers(tmp_path)
    process = start(tmp_path)
    assert broker_answers(tmp_path)
    assert broker_socket(tmp_path) == tmp_path / "broker.sock"
    assert permissions(tmp_path / "broker.sock") == 0o700
    assert permissions(tmp_path / "broker") == 0o700
    assert permissions(tmp_path / "log" / "broker.log") == 0o600
    with client(tmp_path) as broker:
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        assert {name: broker.config_get(name)[name] for name in wanted} == wanted
    assert os.getsid(process.pid) == process.pid, "Ctrl-C must not reach it"
    assert reports == []


def test_silent_is_one_that_hangs_and_not_one_that_is_away_or_refuses(tmp_path: Path, start: Start):
    assert not broker_is_silent(tmp_path)
    process = start(tmp_path)
    assert not broker_is_silent(tmp_path)
    process.send_signal(signal.SIGSTOP)
    assert broker_is_silent(tmp_path)
    process.send_signal(signal.SIGCONT)
    assert not broker_is_silent(tmp_path)
    with client(tmp_path) as broker:
        broker.config_set("maxclients", 1)
        assert not broker_answers(tmp_path)
        assert not broker_is_silent(tmp_path)


def test_a_socket_at_which_no_more_can_knock_is_silent(tmp_path: Path):
    with contextlib.ExitStack() as queue:
        listener = queue.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "broker.sock"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                knocking = queue.enter_context(socket.socket(socket.AF_UNIX))
                knocking.setblocking(False)
                knocking.connect(str(tmp_path / "broker.sock"))
        assert broker_is_silent(tmp_path)


def test_its_environment_has_no_secrets(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    environment = Path(f"/proc/{start(tmp_path).pid}/environ")
    if not environment.exists():
        pytest.skip("a process's environment can only be read on Linux")
    assert b"sk-secret" not in environment.read_bytes()


@pytest.mark.parametrize("name", ["short", "a b%41#@é'q\"", "long" * 30])
def test_celery_reaches_it_by_its_url_wherever_the_home_is(tmp_path: Path, start: Start, name: str):
    home = tmp_path / name
    start(home)
    assert len(os.fsencode(broker_socket(home))) <= 107
    with Connection(broker_url(home)) as connection, connection.SimpleQueue("lane") as lane:
        lane.put({"session": 1})
        message = lane.get(timeout=5)
        message.ack()
        assert message.payload == {"session": 1}
    with redis.Redis.from_url(broker_url(home).replace("redis+socket", "unix")) as broker:
        assert broker.ping()


def test_the_short_place_of_a_long_home_is_private_and_goes_away(tmp_path: Path, start: Start):
    home = tmp_path / ("long" * 30)
    place = broker_socket(home).parent
    assert broker_socket(home) != home / "broker.sock"
    assert broker_socket(home / ".." / home.name) == broker_socket(home), "the same home has the same socket"
    process = start(home)
    assert permissions(place) == 0o700
    process.terminate()
    process.wait()
    remove_socket(home)
    assert not place.exists()


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_somebody_elses_place_is_refused(tmp_path: Path, kind: str):
    home = tmp_path / ("long" * 30)
    place = broker_socket(home).parent
    try:
        if kind == "open":
            place.mkdir()
            place.chmod(0o777)
        elif kind == "link":
            place.symlink_to(tmp_path)
        else:
            place.touch()
        with pytest.raises(BrokerUnreachableError, match=f"{place} is not a private directory of yours"):
            broker_socket(home)
    finally:
        place.rmdir() if kind == "open" else place.unlink()


def test_hints_outlive_a_kill(tmp_path: Path, start: Start, reports: list[str]):
    process = start(tmp_path)
    with client(tmp_path) as broker:
        broker.lpush("lane", "hint")
        broker.execute_command("WAITAOF", 1, 0, 2000)  # everysec: up to a second of hints is the sweep's to find again
    process.kill()
    process.wait()
    start(tmp_path)
    with client(tmp_path) as broker:
        assert broker.lrange("lane", 0, -1) == ["hint"]
    assert reports == [f"removed a stale socket that nobody listened on ({broker_socket(tmp_path)})"]


def test_a_broker_of_ours_that_was_left_alone_is_stopped(tmp_path: Path, start: Start, reports: list[str]):
    first = start(tmp_path)
    second = start(tmp_path)
    assert first.wait(5) == 0
    assert second.poll() is None
    assert broker_answers(tmp_path)
    assert reports == [f"stopped a broker of this home that had lost its `inturn up` ({broker_socket(tmp_path)})"]


def test_another_homes_broker_on_our_socket_is_left_alone(tmp_path: Path, start: Start):
    theirs = start(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs" / "broker.sock").rename(tmp_path / "ours" / "broker.sock")
    with pytest.raises(BrokerUnreachableError, match=r"keeps its data in .*theirs/broker"):
        start(tmp_path / "ours")
    assert theirs.poll() is None
    with client(tmp_path / "ours") as broker:
        assert broker.ping()


def test_a_socket_of_another_program_is_left_alone(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "ANSWER_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "broker.sock"))
        other.listen()
        with pytest.raises(
            BrokerUnreachableError, match=r"something listens on .*broker.sock that is no broker of ours"
        ):
            start(tmp_path)
        remove_socket(tmp_path)
        assert (tmp_path / "broker.sock").exists()


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path, start: Start):
    (tmp_path / "broker.sock").write_text("mine")
    with pytest.raises(BrokerUnreachableError, match="is in the way: it is no socket"):
        start(tmp_path)
    remove_socket(tmp_path)
    assert (tmp_path / "broker.sock").read_text() == "mine"


def test_without_a_program_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Start):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        BrokerUnreachableError, match=r"neither valkey-server nor redis-server is on the PATH\. Install"
    ):
        start(tmp_path)
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o700)
    assert server_binary() == tmp_path / "redis-server"


def test_a_program_that_cannot_run_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Start):
    (tmp_path / "server").write_bytes(b"\0")
    (tmp_path / "server").chmod(0o700)
    monkeypatch.setattr(embedded, "server_binary", lambda: tmp_path / "server")
    with pytest.raises(BrokerUnreachableError, match=r"server cannot be run \(Exec format error\)"):
        start(tmp_path)


def test_a_program_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Start):
    (tmp_path / "server").write_text("#!/bin/sh\necho it is too early\nexit 3\n")
    (tmp_path / "server").chmod(0o700)
    monkeypatch.setattr(embedded, "server_binary", lambda: tmp_path / "server")
    with pytest.raises(
        BrokerUnreachableError, match=r"ended at its start with code 3\. It said: it is too early\. Look at"
    ):
        start(tmp_path)


def test_a_program_that_never_answers_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Start):
    (tmp_path / "server").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec {shutil.which('sleep')} 60\n")
    (tmp_path / "server").chmod(0o700)
    monkeypatch.setattr(embedded, "server_binary", lambda: tmp_path / "server")
    monkeypatch.setattr(embedded, "READY_SECONDS", 0.5)
    with pytest.raises(BrokerUnreachableError, match=r"did not answer within 0\.5 s"):
        start(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_damaged_file_names_the_way_out(tmp_path: Path, start: Start):
    process = start(tmp_path)
    with client(tmp_path) as broker:
        broker.set("key", "value")
    process.send_signal(signal.SIGTERM)
    process.wait()
    (file,) = (tmp_path / "broker" / "appendonlydir").glob("*.incr.aof")
    file.write_bytes(b"*1\r\n$9\r\nnonsense!\r\n" + file.read_bytes())
    with pytest.raises(BrokerUnreachableError, match=f"delete {tmp_path / 'broker'}: it holds only hints"):
        start(tmp_path)
    shutil.rmtree(tmp_path / "broker")
    start(tmp_path)


def test_a_home_that_cannot_be_written_is_a_sentence(tmp_path: Path, start: Start):
    (tmp_path / "broker").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write .*broker \(File exists\): make it writable for you, or set"):
        start(tmp_path)


def test_an_overgrown_log_is_put_aside(tmp_path: Path, start: Start):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "broker.log").write_bytes(b"\n" * (10 * 1024 * 1024 + 1))
    start(tmp_path)
    assert (tmp_path / "log" / "broker.log.1").stat().st_size > 10 * 1024 * 1024
    assert (tmp_path / "log" / "broker.log").stat().st_size < 10_000
