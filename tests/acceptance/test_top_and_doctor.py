"""``inturn top`` and ``inturn doctor --send`` on real deployments: with turns under way, in a real terminal, and with
workers that are frozen or were never started.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from inturn import Client
from inturn.models.states import ProcessKind
from inturn.workers.stack import inturn_command
from tests.acceptance.deployment import SLOTS, Deployment
from tests.stacks import wait_until

PATIENCE_SECONDS = 40
SECRET = "nobody-but-the-model-may-see-this"
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
STEPS = ["stored", "hinted", "picked up", "answered", "reply stored", "heard"]

pytestmark = pytest.mark.timeout(180)


def records(deployment: Deployment, *words: str, code: int = 0) -> list[dict[str, Any]]:
    done = deployment.command(*words)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def under_way(client: Client, name: str, many: int = 3) -> Iterator[list[str]]:
    """Turns whose model takes its time, and one that failed."""
    sessions = [client.create_session(f"{name}-slow-{number}", model="server/m") for number in range(many)]
    turns = [session.send(f'{SECRET} slow !{{"latency": 15}}') for session in sessions]
    failed = client.create_session(f"{name}-failed", model="server/m").send(f'{SECRET} !{{"status": 400}}')
    wait_until(lambda: failed.refresh().state == "failed", PATIENCE_SECONDS)
    wait_until(lambda: all(turn.refresh().state == "running" for turn in turns), PATIENCE_SECONDS)
    yield [session.session_id for session in sessions]
    for turn in turns:
        turn.cancel()


def test_a_look_tells_what_is_under_way_and_nothing_of_what_was_said(deployment: Deployment, client: Client, name: str):
    with under_way(client, name) as slow:
        record: dict[str, Any] = {}

        def is_told() -> bool:
            """Rates come with heartbeats, and a worker that another test ended may still be on its way."""
            record.update(*records(deployment, "top", "--json"))
            chat = record["lanes"][0]
            return bool(chat["turns_per_second"] > 0 and chat["workers"] == 2)

        wait_until(is_told, PATIENCE_SECONDS)
        chat = record["lanes"][0]
        assert (chat["lane"], chat["workers"], chat["paused_at"]) == ("chat", 2, None)
        assert chat["in_flight"] >= len(slow)
        assert set(slow) <= {one["session_id"] for one in record["running"]}
        assert record["failures"]["invalid_request"] >= 1
        workers = [one for one in record["workers"] if one["kind"] == "worker"]
        assert [one["concurrency"] for one in workers] == [SLOTS] * 2
        assert sum(one["in_flight"] for one in workers) >= len(slow)
        assert (record["database"]["error"], record["broker"]["error"]) == (None, None)
        assert [one["model"] for one in record["spent_today"]]

        plain = deployment.command("top")
        assert plain.returncode == 0
        assert plain.stdout.startswith("inturn top")
        assert slow[0] in plain.stdout
        assert "\x1b" not in plain.stdout
        assert SECRET not in plain.stdout + json.dumps(record)


@pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)
def test_objects_come_at_intervals_until_somebody_ends_it(deployment: Deployment):
    with in_pipe(deployment, "top", "--json", "--interval", "0.3") as (program, lines):
        found = [json.loads(lines()) for _ in range(3)]
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE_SECONDS) == 130
    moments = [one["at"] for one in found]
    assert moments == sorted(set(moments))


def test_a_terminal_is_drawn_obeys_keys_and_is_left_as_it_was(deployment: Deployment, client: Client, name: str):
    with under_way(client, name) as slow, Terminal(deployment, "top", "--interval", "0.5") as terminal:
        terminal.wait_for(lambda lines: any(slow[0] in line for line in lines))
        lines = terminal.frame()
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        assert lines[-1].startswith("q quits")
        assert SECRET not in terminal.all()
        terminal.press("p")
        terminal.wait_for(lambda lines: "paused: p goes on" in lines[0])
        terminal.press("p")
        terminal.wait_for(lambda lines: "paused" not in lines[0])
        terminal.press("s")
        terminal.wait_for(lambda lines: "sorts workers: name" in lines[-1])
        terminal.resize(140, 40)
        terminal.wait_for(lambda lines: len(lines) == 40 and "every 0.5 s" in lines[-1])
        terminal.resize(30, 8)
        terminal.wait_for(lambda lines: len(lines) == 8 and max(map(len, lines)) <= 30)
        terminal.press("\x1a")  # Ctrl-Z
        wait_until(lambda: psutil.Process(terminal.program.pid).status() == psutil.STATUS_STOPPED)
        terminal.assert_is_as_before()
        terminal.program.send_signal(signal.SIGCONT)
        terminal.resize(80, 24)
        terminal.wait_for(lambda lines: len(lines) == 24)
        terminal.press("q")
        assert terminal.ended() == 0
        terminal.assert_is_as_before()


@pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whatever_ends_it_leaves_a_clean_terminal(deployment: Deployment, number: signal.Signals, code: int):
    with Terminal(deployment, "top") as terminal:
        terminal.wait_for(lambda lines: any("WORKER" in line for line in lines))
        terminal.program.send_signal(number)
        assert terminal.ended() == code
        terminal.assert_is_as_before()


def test_a_prompt_of_its_own_goes_through_the_real_queue_and_is_gone(deployment: Deployment, client: Client):
    def sends() -> list[str]:
        *findings, sent = records(deployment, "doctor", "--send", "--json", "--offline")
        names = {one["check"] for one in findings}
        assert names >= {"database", "workers", "broker", "settings.origins"}
        assert "processes.settings" not in names
        assert (sent["check"], sent["state"]) == ("send", "ok")
        assert all(step["took_ms"] >= 0 for step in sent["steps"])
        return [step["step"] for step in sent["steps"]]

    wait_until(lambda: sends() == STEPS, PATIENCE_SECONDS)  # what is told of the first word may be lost
    told = deployment.command("doctor", "--send", "--offline")
    assert told.returncode == 0
    assert re.search(r"the reply was heard here +[0-9.]+ m?s +▇", told.stdout)
    assert list(client.list_sessions(prefix="inturn-doctor-")) == []


def test_processes_that_were_started_before_settings_were_changed_are_named(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
):
    assert "processes.settings" not in found(deployment)
    there = deployment._place()
    changed = {"INTURN_RETENTION_DAYS": "3", "INTURN_CONCURRENCY": "5", "INTURN_LOG_FORMAT": "text"}
    monkeypatch.setattr(deployment, "_place", lambda: there | {"env": there["env"] | changed})
    [workers] = [
        one for one in records(deployment, "doctor", "--json", "--offline") if one["check"] == "processes.settings"
    ]
    assert workers["about"] == ["retention"]
    assert sorted(one.partition(" ")[0] for one in workers["processes"]) == ["beat", "worker", "worker"]
    shown = deployment.command("retention", "show")
    assert "were started with other rules than these" in shown.stderr


def test_where_nobody_works_it_starts_what_commands_start_or_says_what_is_missing(deserted: Deployment):
    if deserted.is_embedded:
        sent = records(deserted, "doctor", "--send", "--json", "--offline")[-1]
        assert [step["step"] for step in sent["steps"] if step["step"] != "answered"] == [
            "started", *(step for step in STEPS if step != "answered"),
        ]  # fmt: skip
    else:
        sent = records(deserted, "doctor", "--send", "--timeout", "3", "--json", "--offline", code=1)[-1]
        assert (sent["check"], sent["state"]) == ("send.picked_up", "fail")
        assert "inturn worker" in sent["sentence"]
        assert [step["step"] for step in sent["steps"]] == ["stored", "hinted"]
        assert sent["see"] == "docs/runbook.md#inturnchatwaits"
    with deserted.client() as client:
        assert list(client.list_sessions()) == []


@pytest.mark.parametrize("deserted", ["postgresql"], indirect=True)
def test_a_worker_that_takes_nothing_is_found_and_one_that_is_frozen(
    deserted: Deployment, monkeypatch: pytest.MonkeyPatch
):
    """At first its ledger hangs behind its first claim, and its heart beats on."""
    monkeypatch.setattr(deserted, "_place", stalling(deserted._place))
    deserted.start(1)
    with deserted.client() as client:
        taken = client.create_session("taken").send("hello")
        wait_until(lambda: taken.refresh().state == "running", PATIENCE_SECONDS)
        for number in range(2):
            client.create_session(f"waits-{number}").send("hello")
        deserted.change(
            "UPDATE leases SET ready_at = now() - interval '60 seconds' WHERE owner IS NULL AND ready_at IS NOT NULL"
        )
        seen = found(deserted)
        assert seen["workers"]["state"] == "ok", "it is alive"
        assert (seen["queue.stalled"]["state"], seen["queue.stalled"]["free_slots"]) == ("fail", SLOTS - 1)
        assert "take nothing: stalled" in seen["queue.stalled"]["sentence"]
        sent = records(deserted, "doctor", "--send", "--timeout", "2", "--json", "--offline", code=1)[-1]
        assert sent["check"] == "send.picked_up"
        assert "was not picked up" in sent["sentence"]
        assert list(client.list_sessions(prefix="inturn-doctor-")) == [], "its session is removed in any case"

        [worker] = [one for one in client.list_workers() if one.kind is ProcessKind.WORKER]
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: "processes.silent" in found(deserted), PATIENCE_SECONDS)
        seen = found(deserted)
        assert f"/{worker.pid} was last heard of" in seen["processes.silent"]["sentence"]
        assert "and nobody serves it: start `inturn worker --lanes chat`" in seen["queue.unserved"]["sentence"]
        assert seen["queue.unserved"]["state"] == "fail"
    deserted.wreck()


def found(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """What the check-up finds, by the names of the checks."""
    lines = deployment.command("doctor", "--json", "--offline").stdout.splitlines()
    return {one["check"]: one for one in map(json.loads, lines)}


def stalling(place: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def with_failpoint() -> dict[str, Any]:
        found = place()
        return found | {"env": found["env"] | {"INTURN_FAILPOINT": "claim.after_commit:sleep=100"}}

    return with_failpoint


@contextmanager
def in_pipe(deployment: Deployment, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], bytes]]]:
    program = subprocess.Popen(inturn_command(*words), stdout=subprocess.PIPE, **deployment._place())
    assert program.stdout is not None
    try:
        yield program, program.stdout.readline
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


class Terminal:
    """A real terminal, 80 by 24 at first, with a program in it."""

    def __init__(self, deployment: Deployment, *words: str) -> None:
        self._deployment, self._words = deployment, words
        self._seen = b""

    def __enter__(self) -> "Terminal":
        self._master, self._ours = pty.openpty()
        self.resize(80, 24, told=False)
        self._before = termios.tcgetattr(self._ours)
        place = self._deployment._place()
        place["env"] = place["env"] | {"TERM": "xterm-256color"}
        for name in "COLUMNS", "LINES", "NO_COLOR":
            place["env"].pop(name, None)
        ours = self._ours
        self.program: subprocess.Popen[bytes] = subprocess.Popen(
            inturn_command(*self._words), stdin=ours, stdout=ours, stderr=ours, start_new_session=True, **place
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._master)
        os.close(self._ours)

    def resize(self, columns: int, lines: int, *, told: bool = True) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if told:
            self.program.send_signal(signal.SIGWINCH)

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def all(self) -> str:
        """All that was written so far."""
        while select.select([self._master], [], [], 0)[0]:
            self._seen += os.read(self._master, 65536)
        return self._seen.decode(errors="replace")

    def frame(self) -> list[str]:
        """The lines of the last whole picture."""
        pictures = self.all().split("\x1b[H")
        whole = pictures[-2] if len(pictures) > 2 else ""
        return [line.rstrip() for line in ESCAPES.sub("", whole).replace("\r", "").split("\n")]

    def wait_for(self, condition: Callable[[list[str]], bool]) -> None:
        try:
            wait_until(lambda: condition(self.frame()), PATIENCE_SECONDS)
        except AssertionError as error:
            raise AssertionError("\n".join(self.frame())) from error

    def ended(self) -> int:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.program.poll() is None and time.monotonic() < deadline:
            self.all()  # a terminal that is not read holds up who writes to it
            time.sleep(0.02)
        return self.program.wait(1)

    def assert_is_as_before(self) -> None:
        assert termios.tcgetattr(self._ours) == self._before
        told = self.all()
        for begun, ended in ("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h"):
            assert begun in told
            assert told.rindex(ended) > told.rindex(begun), f"{ended!r} is missing"
        assert "Traceback" not in told
