"""``inturn demo``: the story holds, it touches nothing of the user's, and it leaves nothing behind, however it ends."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inturn import Client
from inturn.cli.scenes import Figures, check_replies, in_order
from inturn.cli.stage import CheckFailedError
from ops.chaos.model import ModelServer
from tests.acceptance.deployment import clean_environment

COMMAND = [sys.executable, "-m", "inturn", "demo"]
PATIENCE_SECONDS = 240
COLUMNS = 80


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has an inturn of their own, that a demo must not touch."""
    (tmp_path / "inturn.toml").write_text('database_url = "postgresql://nobody@127.0.0.1:9/mine"\n')
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return clean_environment(tmp_path / "config") | {
        "INTURN_HOME": str(tmp_path / "mine"),
        "INTURN_BROKER_URL": "redis://127.0.0.1:9/0",
        "TMPDIR": str(temporary),
    }


def demo(tmp_path: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND[:3], *words, "demo"],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def home_of(said: str) -> str:
    found = re.search(r"export INTURN_HOME=(\S+)", said)
    assert found, said
    return found[1]


def processes_of(home: str) -> Iterator[psutil.Process]:
    """Everything that runs there."""
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("INTURN_HOME") == home:
                yield process
        except psutil.Error:
            continue


def assert_nothing_left(home: str) -> None:
    assert [process.cmdline() for process in processes_of(home)] == []
    assert not Path(home).exists()


@pytest.mark.timeout(PATIENCE_SECONDS)
def test_the_story_holds_and_leaves_nothing_behind(tmp_path: Path, own: dict[str, str]) -> None:
    done = demo(tmp_path, own)

    assert done.returncode == 0, done.stderr
    assert 'We were discussing: "Let\'s discuss TypeScript generics".' in done.stdout
    assert "none: 500 prompts accepted, 500 of them have a reply" in done.stdout
    assert "none: 200 prompts accepted, 200 of them have a reply" in done.stdout
    assert re.search(r"was killed by SIGKILL; starting it again", done.stdout)
    assert re.search(r"^ok    rescued     [1-9]", done.stdout, re.MULTILINE)
    assert "guest-42\town\t" in done.stdout
    assert done.stdout.count("none of them runs any more") == 2
    assert "fail" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "answered: 500 of 500" in done.stderr
    assert_nothing_left(home_of(done.stdout))
    assert not (tmp_path / "mine").exists()


@pytest.mark.timeout(PATIENCE_SECONDS)
def test_a_wrong_answer_ends_it_with_1_and_its_home_is_kept(
    tmp_path: Path, own: dict[str, str], model: ModelServer
) -> None:
    done = demo(tmp_path, own | {"OPENAI_API_KEY": "sk-of-the-demo", "OPENAI_BASE_URL": model.base_url})

    assert done.returncode == 1
    assert "openai/gpt-5 answers the conversation" in done.stdout
    assert "reply to: What were we discussing? (seen 3 messages)" in done.stdout
    assert "fail  remembered" in done.stdout
    assert "inturn: the demo failed: asked what was discussed" in done.stderr
    home = home_of(done.stdout)
    assert home in done.stderr
    assert list(processes_of(home)) == []
    shutil.rmtree(home)  # it is there


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
@pytest.mark.timeout(PATIENCE_SECONDS)
def test_ctrl_c_cleans_up(tmp_path: Path, own: dict[str, str], more: dict[str, str], coloured: bool) -> None:
    screen = Screen(COMMAND, own | more, tmp_path)
    screen.read_until("Scene 2")
    screen.type(b"\x03")
    screen.read_until(None)

    assert screen.process.wait(PATIENCE_SECONDS) == 130
    assert ("\x1b[" in screen.said) is coloured
    home = home_of(screen.said)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.said).splitlines()
    assert [line for line in lines if len(line) > COLUMNS and home not in line] == []
    assert_nothing_left(home)


@pytest.mark.timeout(PATIENCE_SECONDS)
def test_a_reader_that_leaves_and_a_polite_kill_clean_up(tmp_path: Path, own: dict[str, str]) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(COMMAND, env=own, cwd=tmp_path, stdout=writing, stderr=subprocess.DEVNULL)
    os.close(writing)
    said = ""
    while "up --workers" not in said:
        said += os.read(reading, 4096).decode()
    home = home_of(said)
    while not any("worker" in other.cmdline() for other in processes_of(home)):
        time.sleep(0.05)
    os.close(reading)
    process.send_signal(signal.SIGTERM)

    assert process.wait(PATIENCE_SECONDS) == 130
    assert_nothing_left(home)


@pytest.mark.parametrize(
    "wrong", [{"turns": 9}, {"completed": 9}, {"answered": 9, "replies": 9}, {"replies": 11}], ids=str
)
def test_a_reply_too_few_or_too_many_is_noticed(wrong: dict[str, int]) -> None:
    right = Figures(
        turns=10, completed=10, tried_again=0, rescues=0, seconds=1, last_rescue=None,
        replies=10, answered=10, call_seconds=1, most_calls=1,
    )  # fmt: skip
    check_replies(right, sent=10)
    with pytest.raises(CheckFailedError):
        check_replies(replace(right, **wrong), sent=10)


def test_a_history_that_is_not_in_order_is_noticed(tmp_path: Path) -> None:
    with Client(home=tmp_path / "home") as client:
        session = client.create_session("mine")
        assert in_order(session, range(1, 1))
        session.send("question 1")
        assert not in_order(session, range(1, 2))
        assert not in_order(session, range(1, 1))


def test_it_refuses_what_is_in_use(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "inturn.db").write_text("dear to somebody")
    done = demo(tmp_path, own, "--home", str(tmp_path / "used"))
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert (tmp_path / "used" / "inturn.db").read_text() == "dear to somebody"

    done = demo(tmp_path, own, "--database-url", "postgresql://nobody@127.0.0.1:9/mine")
    assert done.returncode == 2
    assert "leave --database-url and --broker-url" in " ".join(done.stderr.split())
    assert list((tmp_path / "tmp").iterdir()) == []


class Screen:
    """A terminal of eighty columns with a program in it."""

    def __init__(self, command: list[str], environment: dict[str, str], directory: Path) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            command,
            env=environment | {"TERM": "xterm-256color"},
            cwd=directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(theirs)
        self.said = ""
        self._terminal = ours

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def read_until(self, words: str | None) -> None:
        """Read until these words have come, or to the end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while words is None or words not in self.said:
            assert time.monotonic() < deadline, self.said
            if not select.select([self._terminal], [], [], 1)[0]:
                continue
            try:
                self.said += os.read(self._terminal, 65536).decode(errors="replace")
            except OSError:  # the program has gone
                assert words is None, self.said
                return
