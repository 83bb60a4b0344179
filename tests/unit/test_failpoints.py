"""Fail-points: what the variable may say, when one is due, and that every place is there once."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import inturn
from inturn.cli.doctor import check_settings
from inturn.models import failpoints
from inturn.models.errors import SettingsError
from inturn.models.failpoints import ACTIONS, EXIT_CODE, NAMES, VARIABLE, Failpoint, FailpointError, Failpoints, armed
from inturn.settings import Settings

SOURCE = Path(inturn.__file__).parent
REACH_ALL = f"from inturn.models.failpoints import *\nfor name in {NAMES}: reached(name)\nprint(reached.__name__)"


def run(value: str | None, program: str = REACH_ALL) -> subprocess.CompletedProcess[str]:
    environment = {name: each for name, each in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: value} if value is not None else {}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("heartbeat.skip:exit", Failpoint("heartbeat.skip", "exit")),
        (" heartbeat.skip:stop@3 ", Failpoint("heartbeat.skip", "stop", time=3)),
        ("heartbeat.skip:sleep", Failpoint("heartbeat.skip", "sleep", 30.0)),
        ("heartbeat.skip:sleep=0.5@2", Failpoint("heartbeat.skip", "sleep", 0.5, 2)),
    ],
)
def test_what_may_be_said(words: str, meant: Failpoint) -> None:
    assert Failpoint.parse(words) == meant


@pytest.mark.parametrize("words", ["sleep=x", "exit=1", "exit@0", "exit@x", "sleep=-1", "sleep=inf"])
def test_what_may_not(words: str) -> None:
    with pytest.raises(SettingsError, match="NAME:ACTION"):
        Failpoint.parse(f"heartbeat.skip:{words}")


def test_an_unknown_name_or_action_is_answered_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"no fail-point 'claim'.*claim\.after_commit"):
        armed("claim:exit")
    with pytest.raises(SettingsError, match=r"no action 'explode' at heartbeat\.skip: there are exit, stop"):
        armed("heartbeat.skip:exit,heartbeat.skip:explode")


def test_only_the_time_that_was_said() -> None:
    points = Failpoints([Failpoint("heartbeat.skip", "raise", time=time) for time in (2, 3)])
    points.reached("heartbeat.skip")
    points.reached("sweep.after_mark")
    for _ in range(2):
        with pytest.raises(FailpointError, match=r"heartbeat\.skip"):
            points.reached("heartbeat.skip")
    points.reached("heartbeat.skip")


def test_without_the_variable_nothing_happens() -> None:
    done = run(None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing\n", "")
    assert run("").stdout == "nothing\n"


def test_exit_leaves_at_once() -> None:
    done = run("start.after_commit:exit", f"import atexit\natexit.register(print, 'in order')\n{REACH_ALL}")
    assert (done.returncode, done.stdout) == (EXIT_CODE, "")
    assert "action=failpoint_reached name=start.after_commit time=1 does=exit" in done.stderr


def test_stop_stands_still_until_it_is_continued() -> None:
    program = ["-c", f"import sys\n{REACH_ALL}"]
    process = subprocess.Popen(
        [sys.executable, *program], env=os.environ | {VARIABLE: "call.after_send:stop"}, stdout=subprocess.PIPE
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert said == b"reached\n"


def test_a_process_with_a_mistake_in_it_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTURN_HOME", str(tmp_path))
    done = run("nowhere:exit", "import sys\nfrom inturn.cli import main\nsys.argv[1:] = ['worker']\nmain()")
    assert done.returncode == 2
    assert done.stderr.count("\n") <= 2
    assert "INTURN_FAILPOINT names no fail-point 'nowhere': there are send.after_commit" in done.stderr


def test_every_place_is_there_once() -> None:
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "failpoints.py")
    found = Counter(re.findall(r'"(\w+\.\w+)"', source))
    # A removal has two kinds of chunks: sessions, and the turns of a long one.
    assert {name: found[name] for name in NAMES} == dict.fromkeys(NAMES, 1) | {"cleanup.between_chunks": 4}
    assert set(re.findall(r'reached\("([^"]+)"\)', source)) <= set(NAMES)
    assert set(ACTIONS) == {"exit", "stop", "sleep", "raise"}


def test_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTURN_HOME", str(tmp_path))
    monkeypatch.setattr(failpoints, "ARMED", armed("heartbeat.skip:exit"))
    assert any(VARIABLE in finding.sentence for finding in check_settings(Settings.load()))
