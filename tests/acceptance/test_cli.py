"""The command line as people use it: real processes, on the embedded default."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inturn.cli.exits import Exit
from inturn.workers.home import ROTATE_BYTES
from tests.acceptance.failing import wait_until

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Shell:
    """Runs ``inturn`` in a home of its own, where nobody else's settings are."""

    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        theirs = ("INTURN_", "CELERY_", "OPENAI_", "ANTHROPIC_", "NO_COLOR")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return ours | {"INTURN_HOME": str(self.home), "PYTHONPATH": path, "XDG_CONFIG_HOME": str(self.home)} | more

    def run(self, *arguments: str, typed: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "inturn", *arguments],
            env=self.environment(**more),
            cwd=self.home.parent,
            input=typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def start(self, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "inturn", *arguments], env=self.environment(), cwd=self.home.parent, **streams
        )

    def ok(self, *arguments: str, typed: str = "") -> str:
        """What a command prints that is expected to work."""
        done = self.run(*arguments, typed=typed)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def records(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints with ``--json``: every line one object."""
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Shell]:
    """A home where nothing runs."""
    with tempfile.TemporaryDirectory(prefix="inturn-cli-") as directory:
        yield Shell(Path(directory) / "home")


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """A home with `inturn up` running."""
    with tempfile.TemporaryDirectory(prefix="inturn-cli-") as directory:
        shell = Shell(Path(directory) / "home")
        up = shell.start("up", stderr=subprocess.PIPE)
        try:
            assert up.stderr is not None
            said = iter(up.stderr.readline, b"")
            assert any(line.startswith(b"ready") for line in said), "up ended before it was ready"
            yield shell
        finally:
            up.send_signal(signal.SIGINT)
            _, rest = up.communicate(timeout=PATIENCE_SECONDS)
        assert rest.endswith(b"stopped\n")
        assert up.returncode == 0
        assert not list(shell.home.glob("*.sock"))


def test_logs_are_put_aside_while_their_processes_write_them(alone: Shell) -> None:
    command = [sys.executable, "-m", "inturn", "up", "--flower"]
    environment, place = alone.environment(INTURN_FLOWER_PORT="0"), alone.home.parent
    with subprocess.Popen(command, env=environment, cwd=place, stderr=subprocess.PIPE) as up:
        assert up.stderr is not None
        try:
            assert any(line.startswith(b"ready") for line in up.stderr)
            logs = {name: alone.home / "log" / f"{name}.log" for name in ("broker", "worker", "beat", "flower")}
            wait_until(lambda: "Flower: http" in logs["flower"].read_text(), PATIENCE_SECONDS)
            first = {name: log.read_bytes() for name, log in logs.items()}
            for log in logs.values():
                with log.open("ab") as file:
                    file.write(b"\n" * (ROTATE_BYTES + 1))
            aside = {name: log.with_name(f"{log.name}.1") for name, log in logs.items()}
            wait_until(lambda: all(log.exists() for log in aside.values()), PATIENCE_SECONDS)
        finally:
            up.send_signal(signal.SIGINT)
            up.communicate(timeout=PATIENCE_SECONDS)
    assert all(log.read_bytes().startswith(first[name]) for name, log in aside.items())
    assert b"Warm shutdown" in logs["worker"].read_bytes()
    assert b"bye bye" in logs["broker"].read_bytes()
    assert all(log.stat().st_size < 10_000 for log in logs.values())


def test_send_and_wait_for_the_reply(shell: Shell) -> None:
    reply = shell.ok("send", "bob-1", "my name is Bob", "--create", "--wait")
    assert reply.startswith('You said: "my name is Bob"')
    [message] = shell.records("send", "bob-1", "what did I say?", "--wait")
    assert (message["type"], message["turn"]) == ("assistant.message", 2)
    assert "my name is Bob" in message["data"]["content"]
    history = shell.records("session", "show", "bob-1")[0]["history"]
    assert [one["type"] for one in history] == ["user.message", "assistant.message"] * 2


def test_send_returns_at_once_and_the_turn_can_be_looked_at(shell: Shell) -> None:
    done = shell.run("send", "bob-2", "-", "--create", typed="piped\nin\n")
    turn = done.stdout.strip()
    assert (done.returncode, done.stderr) == (0, "")
    assert shell.ok("send", "bob-2", "and then?", "--wait")
    [record] = shell.records("turn", "show", turn)
    told = shell.ok("turn", "show", turn)
    assert (record["price"], told.count("0.00")) == (0, 2), "of the turn, and of its attempt"
    assert (record["state"], record["prompt"], record["attempts"]) == ("completed", "piped\nin", 1)
    assert record["reply"].startswith('You said: "piped')
    assert next(one["id"] for one in shell.records("turn", "list", "bob-2")) == turn
    assert shell.ok("turn", "list", "bob-2", "--state", "failed") == ""
    assert "already" in shell.run("turn", "cancel", turn).stderr


def test_waiting_may_take_too_long_and_the_turn_goes_on(shell: Shell) -> None:
    shell.ok("session", "create", "slow-1", "--option", "latency=100")
    late = shell.run("send", "slow-1", "slowly", "--timeout", "0.5")
    assert late.returncode == 124
    assert "inturn turn show" in late.stderr
    assert "turn.wait" not in late.stderr
    [turn] = shell.records("turn", "list", "slow-1")
    assert turn["state"] in ("queued", "running")
    assert shell.run("send", "slow-1", "more", "--when-busy", "reject").returncode == 1
    assert [one["session_id"] for one in shell.records("session", "list", "--busy")] == ["slow-1"]

    shell.ok("turn", "cancel", turn["id"])
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := shell.records("turn", "show", turn["id"])[0]["state"]) != "cancelled":
        assert (state, time.monotonic() < deadline) == ("running", True)
    again = shell.ok("turn", "retry", turn["id"]).strip()
    assert shell.records("turn", "show", again)[0]["retry_of"] == turn["id"]
    shell.ok("turn", "cancel", again)


def test_ctrl_c_ends_the_waiting_and_not_the_turn(shell: Shell) -> None:
    shell.ok("session", "create", "slow-2", "--option", "latency=100")
    waiting = shell.start("send", "slow-2", "slowly", "--wait", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not shell.ok("turn", "list", "slow-2", "--state", "running"):
        assert time.monotonic() < deadline
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=PATIENCE_SECONDS)
    assert waiting.returncode == 130
    assert b"Traceback" not in said
    assert b"inturn turn show" in said
    [turn] = shell.records("turn", "list", "slow-2")
    assert turn["state"] == "running"
    shell.ok("turn", "cancel", turn["id"])


def test_a_failed_turn_says_why(shell: Shell) -> None:
    shell.ok("session", "create", "bad-1", "--option", 'fail="invalid_request"')
    failed = shell.run("send", "bad-1", "hello", "--wait")
    assert failed.returncode == 1
    assert "invalid_request" in failed.stderr
    [turn] = shell.records("turn", "list", "bad-1", "--state", "failed")
    assert (turn["error"]["error_type"], turn["error"]["status_code"]) == ("invalid_request", 400)
    assert "invalid_request" in shell.ok("turn", "show", turn["id"])


def test_what_others_stored_does_not_steer_the_terminal(shell: Shell) -> None:
    shell.ok("send", "evil-1", "\x1b]0;owned\x07\x1b[2Jhello", "--create", "--wait")
    shown = shell.ok("session", "show", "evil-1") + shell.ok("session", "show", "evil-1", "--json")
    assert "\x1b" not in shown
    assert "hello" in shown


def test_the_doctor_finds_a_healthy_stack(shell: Shell) -> None:
    found = {one["subject"]: one["state"] for one in shell.records("doctor")}
    assert {subject: found[subject] for subject in ("database", "workers", "beat", "broker")} == dict.fromkeys(
        ("database", "workers", "beat", "broker"), "ok"
    )
    assert shell.run("doctor", CELERY_BROKER_URL="redis://elsewhere").returncode == 2


def test_a_second_up_says_that_one_runs(shell: Shell) -> None:
    second = shell.run("up")
    assert second.returncode == 1
    assert "runs in" in second.stderr


def test_sending_needs_no_worker_and_waiting_starts_one(alone: Shell) -> None:
    sent = alone.run("send", "first-1", "hello", "--create")
    assert sent.returncode == 0
    assert "no worker is alive: `inturn up`" in sent.stderr
    assert alone.ok("send", "first-1", "what did I say?", "--wait").startswith('We were discussing: "hello"')
    deadline = time.monotonic() + PATIENCE_SECONDS
    while list(alone.home.glob("*.sock")):
        assert time.monotonic() < deadline, "the stack outlived its last user"
        time.sleep(0.1)


def test_a_piped_chat_says_how_to_go_on(shell: Shell) -> None:
    chat = shell.run("chat", "pipe-1", typed="one\n\nwhat did I say?\n")
    assert chat.returncode == 0
    assert "new session pipe-1" in chat.stderr
    assert "inturn chat pipe-1" in chat.stderr
    assert 'We were discussing: "one".' in chat.stdout
    again = shell.run("chat", "--last", typed="")
    assert "session pipe-1, model echo/echo, 2 turns so far" in again.stderr


def test_a_reply_is_printed_while_it_is_written(shell: Shell) -> None:
    shell.ok("session", "create", "live-1", "--option", "pace=0.05")
    reply = shell.ok("send", "live-1", "one two three four five", "--stream")
    assert reply.startswith('You said: "one two three four five"')
    assert reply.endswith(")\n")
    events = shell.records("send", "live-1", "a b c d e f g h i j", "--stream")
    assert [one["type"] for one in events[:-1]] == ["assistant.message_delta"] * (len(events) - 1)
    assert len(events) > 3
    assert "".join(one["data"]["delta_content"] for one in events[:-1]) == events[-1]["data"]["content"]
    assert (events[0]["id"], events[-1]["turn"]) == (None, 2)


def test_a_reply_that_is_cut_off_ends_its_line_and_stays_readable(shell: Shell) -> None:
    evil = "\x1b]0;owned\x07 " + "word " * 1000
    shell.ok("session", "create", "live-2", "--option", "pace=0.05", "--option", f"reply={json.dumps(evil)}")
    late = shell.run("send", "live-2", "go on", "--stream", "--timeout", "1.5")
    assert late.returncode == 124
    assert "inturn turn show" in late.stderr
    assert late.stdout.rstrip(" ").endswith("word \n") or late.stdout.endswith("word\n")
    assert "\x1b" not in late.stdout
    [turn] = shell.records("turn", "list", "live-2")
    shell.ok("turn", "cancel", turn["id"])
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (shown := shell.records("turn", "show", turn["id"])[0])["state"] != "cancelled":
        assert time.monotonic() < deadline
    assert shown["partial"].count("word") > 5
    assert shown["reply"] is None
    told = shell.ok("turn", "show", turn["id"])
    assert "assistant (cut off, no part of the history): " in told
    assert "\x1b" not in told


def test_the_tail_of_a_session(shell: Shell) -> None:
    shell.ok("session", "create", "live-3", "--option", "pace=0.05")
    for prompt in ("first", "second"):
        shell.ok("send", "live-3", prompt, "--wait")
    assert shell.ok("session", "tail", "live-3", "-n", "2").startswith("you: second\nassistant: You said: ")
    assert [one["type"] for one in shell.records("session", "tail", "live-3", "-n", "3")] == [
        "assistant.message", "user.message", "assistant.message",
    ]  # fmt: skip
    with in_terminal(shell, "session", "tail", "live-3", "-f", "-n", "1") as (tail, screen):
        screen.wait_for(b"I remember 2 messages")
        shell.ok("send", "live-3", "third", "--stream")
        screen.wait_for(b"you:")
        screen.wait_for(b" third\r\n")
        screen.wait_for(b"assistant:")
        screen.wait_for(b'"third"')
        shell.ok("send", "live-3", "fourth", "--wait")
        screen.wait_for(b"I remember 4 messages")
        tail.send_signal(signal.SIGINT)
        assert tail.wait(PATIENCE_SECONDS) == 130


def test_a_chat_draws_the_reply_while_it_is_written(shell: Shell) -> None:
    reply = "# Title\n\n" + "some **bold** words " * 20 + "\n\n- one\n- two\n\nThe end."
    shell.ok("session", "create", "live-4", "--option", "pace=0.02", "--option", f"reply={json.dumps(reply)}")
    with in_terminal(shell, "chat", "live-4") as (chat, screen):
        screen.wait_for(b"you: ")
        screen.type(b"hello\n")
        screen.wait_for(b"assistant:")
        screen.wait_for(b"Title")
        screen.wait_for(b"bold")
        screen.wait_for(b"The end.")
        screen.wait_for(b"you: ")
        screen.type(b"hello\n")
        screen.wait_for(b"Title")
        chat.send_signal(signal.SIGINT)
        screen.wait_for(b"was cancelled")
        screen.wait_for(b"you: ")
        screen.type(b"\x04")
        assert chat.wait(PATIENCE_SECONDS) == 0
    assert [one["state"] for one in shell.records("turn", "list", "live-4")] == ["completed", "cancelled"]


def test_a_chat_in_a_terminal(shell: Shell) -> None:
    shell.ok("session", "create", "tty-1", "--option", "latency=100")
    with in_terminal(shell, "chat", "tty-1") as (chat, screen):
        screen.wait_for(b"you: ")
        screen.type(b"hello\n")
        screen.wait_for(b"Ctrl-C cancels")
        chat.send_signal(signal.SIGINT)
        screen.wait_for(b"was cancelled")
        screen.wait_for(b"you: ")
        screen.type(b"\x04")
        screen.wait_for(b"\r\neverything is kept: `inturn chat tty-1`")
        assert chat.wait(PATIENCE_SECONDS) == 0
    assert [one["state"] for one in shell.records("turn", "list", "tty-1")] == ["cancelled"]


def test_who_says_no_is_told_that_nothing_was_removed(shell: Shell) -> None:
    shell.ok("session", "create", "stays")
    one, many = ("session", "delete", "stays"), ("session", "delete", "--pattern", "stay*")
    for arguments in one, many, ("cleanup", "--older-than", "1s"):
        with in_terminal(shell, *arguments) as (program, screen):
            screen.wait_for(b"[y/N]")
            screen.type(b"n\n")
            screen.wait_for(b"nothing was removed\r\n")
            assert program.wait(PATIENCE_SECONDS) == Exit.INTERRUPTED
    assert [found["session_id"] for found in shell.records("session", "list", "--prefix", "stays")] == ["stays"]


class Screen:
    """What has appeared in a terminal."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, words: bytes) -> None:
        """Read on until the words appear; what is behind them is kept for the next."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while words not in self._seen:
            readable, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert readable, f"{words!r} did not appear in {self._seen!r}"
            try:
                self._seen += os.read(self._master, 4096)
            except OSError:  # the program has gone, and its terminal with it
                raise AssertionError(f"{words!r} did not appear in {self._seen!r}") from None
        self._seen = self._seen.partition(words)[2]


@contextmanager
def in_terminal(shell: Shell, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Screen]]:
    """Run ``inturn`` in a terminal of its own."""
    master, terminal = pty.openpty()
    program = shell.start(*arguments, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    try:
        yield program, Screen(master)
    finally:
        program.kill()
        program.wait()
        os.close(master)
