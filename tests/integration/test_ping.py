"""Health, asked for over HTTP and by ``inturn ping``: each answer for its own reason."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client import CollectorRegistry

from inturn import cli
from inturn.cli import ping
from inturn.models.states import ProcessKind
from inturn.settings import Settings
from inturn.workers import health
from inturn.workers.exposition import Exposition
from inturn.workers.health import comes_round, health_pages
from inturn.workers.maintenance import Round, describe_process
from inturn.workers.meter import Sources
from ops.servers import free_port
from tests.stacks import wait_until

SILENT_SECONDS = 15.0


def at_once(call: Callable[[], object]) -> object:
    return call()


def never(call: Callable[[], object]) -> None:
    """A loop that hangs."""


@contextmanager
def serving(age: float = 0.0, call_soon: Callable[[Callable[[], object]], object] = at_once) -> Iterator[int]:
    """A process whose heartbeat is so old, and whose loop does that; its port."""
    process = describe_process(Settings(), ProcessKind.WORKER, [], 0)
    sources = Sources(process, [], hints=None, heartbeat_age=lambda: age, call_soon=call_soon)  # type: ignore[arg-type]
    port = free_port()
    served = Exposition(CollectorRegistry(), "127.0.0.1", port, health_pages(sources, SILENT_SECONDS))
    served.start()
    try:
        assert served.url == f"http://127.0.0.1:{port}/metrics"
        yield port
    finally:
        served.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comes_round, "__defaults__", (0.1,))
    for name in ("INTURN_METRICS_PORT", "INTURN_METRICS_HOST"):
        monkeypatch.delenv(name, raising=False)


def test_who_is_at_work_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as port:
        assert cli.run(["ping", "--metrics-port", str(port)]) == 0
        assert capsys.readouterr().out == f"ok    process     http://127.0.0.1:{port}/readyz says that all is well\n"
        assert cli.run(["ping", "--live", "--json", "--metrics-port", str(port)]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == "ok"


def test_a_database_that_is_away_takes_one_off_duty_and_is_no_reason_to_start_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(age=40) as port:
        assert cli.run(["ping", "--metrics-port", str(port)]) == 1
        assert "its last heartbeat was stored 40 s ago" in capsys.readouterr().out
        assert cli.run(["ping", "--live", "--metrics-port", str(port)]) == 0


@pytest.mark.parametrize("words", [(), ("--live",)])
def test_a_loop_that_hangs_is_neither_at_work_nor_alive(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(call_soon=never) as port:
        assert cli.run(["ping", *words, "--metrics-port", str(port)]) == 1
        assert "the loop that its turns run on has not come round" in capsys.readouterr().out


def test_a_loop_that_is_held_up_does_not_come_round_until_it_is_let_go() -> None:
    loop, held = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert comes_round(loop.call_soon_threadsafe, 30)
        loop.call_soon_threadsafe(held.wait)
        assert not comes_round(loop.call_soon_threadsafe, 0.2)
        held.set()
        assert comes_round(loop.call_soon_threadsafe, 30)
    finally:
        held.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_nobody_there_is_said_with_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert cli.run(["ping", "--metrics-port", str(port)]) == 1
    assert f"http://127.0.0.1:{port}/readyz does not answer" in capsys.readouterr().out


def test_no_port_is_said_with_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ping", "--metrics-port", "0"]) == 1
    assert "set INTURN_METRICS_PORT" in capsys.readouterr().out


def test_what_listens_everywhere_is_asked_on_loopback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTURN_METRICS_HOST", "0.0.0.0")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as port:
        assert cli.run(["ping", "--metrics-port", str(port)]) == 0
    assert f"http://127.0.0.1:{port}/readyz" in capsys.readouterr().out


def test_another_page_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as port:
        assert cli.run(["ping", "--url", f"http://127.0.0.1:{port}/livez"]) == 0
        assert f"http://127.0.0.1:{port}/livez says that all is well" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["localhost:5555/healthcheck", "https://localhost/", "http://localhost:many/"])
def test_what_is_no_page_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ping", "--url", url]) == 2
    assert f"{url!r} is no http:// address of a page" in capsys.readouterr().err


def test_somebody_elses_server_is_not_taken_for_ours(capsys: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer(("127.0.0.1", free_port()), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert cli.run(["ping", "--metrics-port", str(server.server_port)]) == 1
        assert "answers 501, as no process of inturn does" in capsys.readouterr().out
    finally:
        server.shutdown()
        server.server_close()


def test_who_takes_the_connection_and_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a process that is frozen."""
    monkeypatch.setattr(ping, "PATIENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert cli.run(["ping", "--metrics-port", str(port)]) == 1
    assert "does not answer (timed out)" in capsys.readouterr().out


def test_a_round_is_as_old_as_its_last_success(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = threading.Event()
    rounds = 0

    def do() -> None:
        nonlocal rounds
        rounds += 1
        if fails.is_set():
            raise RuntimeError("as it is asked to")

    member = Round("pulse", lambda: 0.01, do)
    member.start()
    wait_until(lambda: rounds > 2)
    fails.set()
    seen = rounds
    wait_until(lambda: rounds > seen + 1)
    before = member.age
    seen = rounds
    wait_until(lambda: rounds > seen + 3)
    assert member.age > before, "what goes wrong makes nobody younger"
    fails.clear()
    wait_until(lambda: member.age < before)
    member.end()


def test_a_probe_has_its_answer_before_it_gives_up() -> None:
    assert health.TURN_SECONDS < ping.PATIENCE_SECONDS
