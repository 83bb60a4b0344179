"""``inturn up`` with real processes: it starts, watches and stops its children, also those of a killed predecessor."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inturn.workers.embedded import broker_answers
from inturn.workers.processes import ProcessIdentity
from inturn.workers.stack import StackInfo, running_stack
from tests.stacks import Stack, wait_until


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path / "home")
    yield stack
    stack.clean_up()


def test_up_starts_everything_and_leaves_nothing(stack: Stack) -> None:
    up = stack.up(workers=2)
    assert broker_answers(stack.home)
    info = running_stack(stack.home)
    assert info is not None
    assert set(info.children) == {"broker", "worker-1", "worker-2", "beat"}
    assert info.supervisor == ProcessIdentity.of(up.pid)
    assert all(identity.is_alive() for identity in info.children.values())
    assert stack.home.stat().st_mode & 0o777 == 0o700
    files = [path for path in stack.home.rglob("*") if path.is_file() and path.name != "events"]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files if path.stat().st_mode & 0o077} == {}

    said = stack.end(up, signal.SIGINT)

    assert up.returncode == 0
    assert "ready" in said
    assert said.endswith("stopped\n")
    assert sorted(stack.events()[-3:]) == ["beat stopped", "worker stopped", "worker stopped"]
    assert running_stack(stack.home) is None
    stack.assert_nothing_left()


def test_a_second_up_says_who_runs_and_disturbs_nobody(stack: Stack) -> None:
    up = stack.up()
    said = stack.refused()
    assert f"AlreadyRunningError: a stack runs in {stack.home} already (PID {up.pid}, since 20" in said
    assert f"`kill {up.pid}`" in said
    assert stack.info(up.pid).ready
    assert len(stack.processes()) == 4


def test_stopping_is_warm_and_in_order(stack: Stack) -> None:
    up = stack.up(worker="slow")
    broker = stack.info().children["broker"]
    up.send_signal(signal.SIGTERM)
    wait_until(lambda: stack.info().stopping)
    time.sleep(0.3)
    assert broker.is_alive(), "the worker still needs it"
    up.wait()
    assert "killed" not in stack.said(up)
    assert "worker stopped" in stack.events()
    stack.assert_nothing_left()


def test_a_second_ctrl_c_kills(stack: Stack) -> None:
    up = stack.up(worker="stubborn", grace=60)
    up.send_signal(signal.SIGINT)
    wait_until(lambda: stack.info().stopping)
    time.sleep(0.3)
    assert up.poll() is None
    assert "killed worker, which had not stopped yet" in stack.end(up, signal.SIGINT)
    stack.assert_nothing_left()


def test_a_worker_that_outlives_the_grace_is_killed(stack: Stack) -> None:
    up = stack.up(worker="stubborn", grace=0.6)
    assert "killed worker" in stack.end(up)
    stack.assert_nothing_left()


def test_dead_children_are_started_again(stack: Stack) -> None:
    up = stack.up()
    broker, worker = stack.info().children["broker"], stack.info().children["worker"]
    worker.signal(signal.SIGKILL)
    broker.signal(signal.SIGKILL)
    wait_until(lambda: stack.pid("worker") not in (0, worker.pid) and stack.pid("broker") not in (0, broker.pid))
    wait_until(lambda: stack.info().ready)
    assert broker_answers(stack.home)
    said = stack.end(up)
    for child in worker, broker:
        assert f"(PID {child.pid}) was killed by SIGKILL; starting it again" in said
    assert "again in" not in said, "they had run before: there is nothing to wait for"
    stack.assert_nothing_left()


def test_a_broker_that_hangs_is_killed_and_started_again_and_one_that_stumbles_is_not(stack: Stack) -> None:
    up = stack.up()
    broker = stack.info().children["broker"]
    broker.signal(signal.SIGSTOP)
    time.sleep(4)
    broker.signal(signal.SIGCONT)
    wait_until(lambda: broker_answers(stack.home))
    assert stack.pid("broker") == broker.pid
    broker.signal(signal.SIGSTOP)
    wait_until(lambda: stack.pid("broker") not in (0, broker.pid), 40)
    wait_until(lambda: broker_answers(stack.home) and stack.info().ready)
    said = stack.end(up)
    assert f"broker (PID {broker.pid}) has not answered for 12 s: killing it" in said
    assert f"broker (PID {broker.pid}) was killed by SIGKILL; starting it again" in said
    assert said.count("killing it") == 1
    stack.assert_nothing_left()


def test_a_worker_that_fails_is_tried_ever_more_seldom_and_quoted(stack: Stack) -> None:
    up = stack.run(*stack.command(worker="failing")[2:])
    wait_until(lambda: "in 2 s" in stack.said(up))
    said = stack.end(up)
    assert "ended with code 1; starting it again in 1 s: no such luck" in said
    assert "ended with code 1; starting it again in 2 s: no such luck" in said
    assert "again in 1 s" not in said.partition("in 2 s")[2]
    assert "ready" not in said.splitlines()
    stack.assert_nothing_left()


def test_a_worker_that_refuses_its_settings_is_not_tried_again(stack: Stack) -> None:
    said = stack.refused(worker="refusing")
    assert "SettingsError: worker cannot work with these settings: its sleeves are too long\n" in said
    assert "starting it again" not in said
    stack.assert_nothing_left()


def test_a_stack_that_was_at_work_goes_on_when_its_settings_are_spoilt(stack: Stack) -> None:
    up = stack.up(worker="fickle")
    stack.info().children["worker"].signal(signal.SIGKILL)
    wait_until(lambda: "ended with code 2; starting it again" in stack.said(up))
    assert up.poll() is None
    stack.end(up)
    stack.assert_nothing_left()


def test_a_module_of_tools_that_is_not_there_lets_nothing_start(stack: Stack) -> None:
    said = stack.refused(tool_modules=["nowhere_tools"])
    assert "SettingsError: tool_modules (flag) names 'nowhere_tools', which is not found" in said
    assert stack.events() == []
    assert not stack.home.exists()


def test_after_kill_9_the_next_up_stops_the_orphans_and_says_so(stack: Stack) -> None:
    killed = stack.up(worker="stubborn")
    left = stack.info().children
    killed.kill()
    killed.wait()
    assert all(orphan.is_alive() for orphan in left.values())
    assert running_stack(stack.home) is None

    up = stack.up(orphan_grace_seconds=0.5)

    assert not any(orphan.is_alive() for orphan in left.values())
    assert not set(stack.info().children.values()) & set(left.values())
    said = stack.end(up)
    assert f"the stack before this one was killed (PID {killed.pid}, since 20" in said
    assert all(f"{name} (PID {orphan.pid})" in said for name, orphan in left.items())
    assert "killed worker, which did not stop within 0.5 s" in said
    stack.assert_nothing_left()


def test_a_broker_that_nobody_wrote_down_is_found_by_its_socket(stack: Stack) -> None:
    killed = stack.up()
    left = stack.info().children
    killed.kill()
    killed.wait()
    for name in ("worker", "beat"):
        left[name].signal(signal.SIGKILL)
    (stack.home / "up.json").unlink()
    said = stack.end(stack.up())
    assert "stopped a broker of this home that had lost its `inturn up`" in said
    assert not left["broker"].is_alive()
    stack.assert_nothing_left()


def test_a_pid_that_belongs_to_somebody_else_now_is_left_alone(stack: Stack) -> None:
    innocent = stack.run("import time; time.sleep(60)")
    mine = ProcessIdentity.of(innocent.pid)
    assert mine is not None
    former = ProcessIdentity(mine.boot_id, mine.pid_namespace, mine.pid, mine.started - 1)
    other_boot = ProcessIdentity("another", mine.pid_namespace, mine.pid, mine.started)
    stack.home.mkdir()
    StackInfo(former, datetime.now(UTC), children={"worker": former, "beat": other_boot}).write(stack.home)
    said = stack.end(stack.up())
    assert "nothing of it runs" in said
    assert innocent.poll() is None


def test_with_a_broker_of_ones_own_none_is_started(stack: Stack) -> None:
    up = stack.up(broker_url="redis://127.0.0.1:1")
    assert set(stack.info().children) == {"worker", "beat"}
    assert not broker_answers(stack.home)
    stack.end(up)
    stack.assert_nothing_left()


def test_when_preparing_fails_nothing_stays(stack: Stack) -> None:
    assert "StorageError: the database is in a bad mood" in stack.refused(fail=True)
    assert stack.events() == []
    stack.assert_nothing_left()


def test_a_home_that_cannot_be_written_is_a_sentence(stack: Stack) -> None:
    stack.home.write_text("a file")
    said = stack.refused()
    assert f"StorageError: cannot write {stack.home} (" in said
    assert "set INTURN_HOME" in said


@pytest.mark.parametrize(
    ("options", "used", "sentence"),
    [
        ("size=16k", "12k", "full: free some space"),
        ("size=16k", "64k", "full: free some space"),
        ("ro", "0", "the file system is read-only: set INTURN_HOME"),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence(stack: Stack, options: str, used: str, sentence: str) -> None:
    can_mount = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    if not (sys.platform == "linux" and can_mount):
        pytest.skip("needs a small disk of our own, which this machine does not let us mount")
    stack.home.mkdir()
    script = f'mount -t tmpfs -o {options} none "$0" && head -c {used} /dev/zero > "$0/filler"; exec "$@"'
    full = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(stack.home), *stack.command()],
        env=stack.environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "StorageError" in full.stderr
    assert sentence in full.stderr
    assert stack.processes() == []
