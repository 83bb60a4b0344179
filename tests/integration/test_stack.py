"""Linked stacks with real processes: the first user starts one, the last one stops it, also when users are killed."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import psutil
import pytest

from inturn.models.errors import NoWorkerError, StorageError
from inturn.settings import Settings
from inturn.workers.children import launch_program
from inturn.workers.embedded import broker_answers
from inturn.workers.home import ROTATE_BYTES, FileLock, last_lines, lock_holders, log_file
from inturn.workers.processes import ProcessIdentity
from inturn.workers.stack import (
    StackInfo,
    StackUse,
    child_environment,
    running_stack,
    said_once,
    stack_lock,
    users_lock,
)
from tests.stacks import PATIENCE_SECONDS, Stack, wait_until

USER = """
import json, sys, time
from inturn.settings import Settings
from inturn.workers.stack import StackUse
use = StackUse(Settings.load(), command=json.loads(sys.argv[1]), report=print)
use.get_ready()
print("served", flush=True)
time.sleep(60)
"""

Use = Callable[..., StackUse]


@pytest.fixture
def stack(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    stack = Stack(tmp_path / "home")
    for name in set(os.environ) - set(stack.environment()):
        monkeypatch.delenv(name)
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield stack
    stack.clean_up()


@pytest.fixture
def use(stack: Stack) -> Iterator[Use]:
    """Become a user of the stack; ends with the test."""
    uses: list[StackUse] = []

    def use(start_seconds: float = 15, report: Callable[[str], None] = print, **options: object) -> StackUse:
        settings = Settings.load(shutdown_grace_seconds=5, attempt_deadline_seconds=0.5)
        uses.append(StackUse(settings, command=linked(stack, **options), start_seconds=start_seconds, report=report))
        try:
            assert uses[-1].get_ready()
        except NoWorkerError:
            uses[-1].close()
            raise
        return uses[-1]

    yield use
    for each in uses:
        each.close()


def linked(stack: Stack, **options: object) -> list[str]:
    return stack.command(**{"linked": True, "linger_seconds": 0.3} | options)


def supervisor(stack: Stack) -> ProcessIdentity:
    info = running_stack(stack.home)
    assert info is not None
    assert info.supervisor is not None
    return info.supervisor


def test_the_first_user_starts_it_and_the_last_one_stops_it(stack: Stack, use: Use):
    first = use()
    assert broker_answers(stack.home)
    assert stack.info().linked
    assert stack.info().ready
    started = supervisor(stack)
    assert os.getsid(started.pid) == started.pid, "it outlives the terminal of its first user"
    with use() as second:
        assert second is not first
        assert supervisor(stack) == started
        first.close()
        time.sleep(0.8)
        assert started.is_alive(), "it still has a user"
    second.close()
    wait_until(lambda: not started.is_alive())
    stack.assert_nothing_left()
    assert (stack.home / "log" / "up.log").read_text().endswith("stopped\n")


def test_users_at_once_start_one_supervisor_and_the_killed_do_not_count(stack: Stack):
    users = [stack.run(USER, json.dumps(linked(stack))) for _ in range(3)]
    wait_until(lambda: all("served" in stack.said(user) for user in users))
    assert sum("starting the embedded" in stack.said(user) for user in users) == 1
    log = stack.home / "log" / "up.log"
    wait_until(lambda: "ready" in log.read_text())  # it serves a moment before it says so
    assert log.read_text().splitlines().count("ready") == 1
    assert lock_holders(users_lock(stack.home)) == sorted(user.pid for user in users)
    started = supervisor(stack)
    for user in users:
        user.kill()
        user.wait()
    wait_until(lambda: not started.is_alive())
    stack.assert_nothing_left()


def test_who_comes_while_it_stops_gets_a_new_one(stack: Stack, use: Use):
    use(worker="slow").close()
    first = supervisor(stack)
    wait_until(lambda: stack.info().stopping)
    use()
    wait_until(lambda: not first.is_alive())
    assert supervisor(stack) != first
    assert stack.info().ready


def test_who_comes_again_and_again_is_always_served(stack: Stack, use: Use):
    for pause in (0, 0.3, 0.45, 0.6):  # around the moment in which the linked stack decides to go
        with use(linger_seconds=0.2):
            assert stack.info().ready
            assert broker_answers(stack.home)
        time.sleep(pause)


def test_up_takes_over_from_a_linked_one(stack: Stack, use: Use):
    hold = use()
    former = supervisor(stack)
    up = stack.up()
    wait_until(lambda: not former.is_alive())  # it has let the lock go; its interpreter may still be ending
    assert (
        f"taking over from a stack that was started for the processes {os.getpid()} (PID {former.pid},"
        in stack.said(up)
    )
    use().close()
    hold.close()
    time.sleep(0.8)
    assert stack.info(up.pid).ready, "a permanent stack does not go with its users"
    stack.end(up)
    stack.assert_nothing_left()


def test_a_user_whose_stack_was_taken_over_and_stopped_starts_another(stack: Stack, use: Use):
    hold = use()
    former, up = supervisor(stack), stack.up()
    wait_until(lambda: not former.is_alive())
    wait_until(lambda: stack.info(up.pid).ready)
    assert hold.stands()
    stack.end(up)
    assert not hold.stands()
    assert hold.get_ready()
    assert hold.stands()
    assert stack.info().linked


def test_a_user_whose_stack_was_killed_starts_another(stack: Stack, use: Use):
    hold = use()
    supervisor(stack).signal(signal.SIGKILL)
    wait_until(lambda: not hold.stands())
    assert hold.get_ready()
    assert hold.stands()


def test_a_permanent_stack_is_used_as_it_is(stack: Stack, use: Use):
    up = stack.up()
    use(report=pytest.fail)
    assert supervisor(stack).pid == up.pid


def test_after_kill_9_the_next_user_starts_a_new_one(stack: Stack, use: Use):
    use()
    first, left = supervisor(stack), stack.info().children
    first.signal(signal.SIGKILL)
    wait_until(lambda: running_stack(stack.home) is None)
    use()
    assert not any(orphan.is_alive() for orphan in left.values())
    assert "the stack before this one was killed" in (stack.home / "log" / "up.log").read_text()
    assert stack.info().ready


def test_a_start_that_fails_is_quoted(stack: Stack, use: Use):
    with pytest.raises(
        NoWorkerError, match=r"ended at its start with code 1\..*the database is in a bad mood.*`inturn up`"
    ):
        use(fail=True)
    stack.assert_nothing_left()


def test_a_worker_that_does_not_start_is_quoted(stack: Stack, use: Use):
    with pytest.raises(NoWorkerError, match=r"did not get ready within 5 s\. It said: .*no such luck"):
        use(start_seconds=5, worker="failing")
    wait_until(lambda: not stack.processes())
    stack.assert_nothing_left()


def test_settings_that_are_refused_are_told_at_once(stack: Stack, use: Use):
    with pytest.raises(NoWorkerError, match=r"ended at its start with code 1\. .*'nowhere_tools', which is not found"):
        use(tool_modules=["nowhere_tools"])
    with pytest.raises(NoWorkerError, match=r"ended at its start with code 1\. .*settings: its sleeves are too long"):
        use(worker="refusing")
    stack.assert_nothing_left()


def test_what_a_stack_said_again_and_again_is_quoted_once():
    lines = [
        "worker (PID 12) ended with code 1; starting it again: no such luck",
        "beat (PID 13) ended with code 1; starting it again: no such luck",
        "worker (PID 14) ended with code 1; starting it again in 1 s: no such luck",
        "worker (PID 15) ended with code 1; starting it again in 2.5 s: no such luck",
    ]
    assert said_once(lines) == [lines[1], lines[3]]


def test_children_get_the_settings_wherever_they_were_set(stack: Stack, monkeypatch: pytest.MonkeyPatch):
    embedded = child_environment(Settings.load())
    assert embedded["INTURN_HOME"] == str(stack.home)
    assert not {"INTURN_DATABASE_URL", "INTURN_BROKER_URL"} & set(embedded)
    monkeypatch.setenv("INTURN_BROKER_URL", "redis://from-environment")
    elsewhere = child_environment(Settings.load(database_url="postgresql://u@h/d", broker_url="redis://by-flag"))
    assert elsewhere["INTURN_DATABASE_URL"] == "postgresql+psycopg://u@h/d"
    assert elsewhere["INTURN_BROKER_URL"] == "redis://by-flag"
    assert Settings.load().broker_url == "redis://from-environment", "our own environment stays"


def test_elsewhere_than_on_the_embedded_default_nothing_is_started(stack: Stack):
    for command, settings in {
        "inturn worker": Settings.load(broker_url="redis://127.0.0.1:1"),
        "inturn up": Settings.load(database_url="sqlite:///other.db"),
    }.items():
        with pytest.raises(NoWorkerError, match=f"start `{command}`"):
            StackUse(settings)
    assert not stack.home.exists()


def test_a_home_that_cannot_be_written_is_a_sentence(stack: Stack, use: Use):
    stack.home.write_text("a file")
    with pytest.raises(StorageError, match="set INTURN_HOME"):
        use()


def test_the_lock_decides_who_runs(stack: Stack):
    assert running_stack(stack.home) is None
    stack.home.mkdir()
    StackInfo(ProcessIdentity.mine(), datetime.now(UTC), ready=True).write(stack.home)
    assert running_stack(stack.home) is None, "nobody holds the lock, whatever the file says"
    with FileLock(stack_lock(stack.home)) as lock:
        assert lock.try_exclusive()
        info = running_stack(stack.home)
        assert info is not None
        assert f"PID {os.getpid()}, since 20" in str(info)
        dead = ProcessIdentity.of(psutil.Process().ppid())
        assert dead is not None
        dead = ProcessIdentity(dead.boot_id, dead.pid_namespace, dead.pid, dead.started - 1)
        StackInfo(dead, datetime.now(UTC), ready=True).write(stack.home)
        assert running_stack(stack.home) == StackInfo(), "the file was written by one that has died"
        assert str(running_stack(stack.home)) == "starting at this moment"
        (stack.home / "up.json").write_text("{}")
        assert running_stack(stack.home) == StackInfo()
    assert running_stack(stack.home) is None


def test_a_user_that_has_to_wait_is_told_for_what(stack: Stack, use: Use):
    stack.home.mkdir()
    said: list[str] = []
    with FileLock(users_lock(stack.home)) as going:
        assert going.try_exclusive()
        threading.Timer(1.2, going.close).start()
        use(report=said.append)
    assert said == [
        "waiting for the stack before this one to finish its replies in hand",
        "starting the embedded broker and a worker",
    ]


def test_who_does_not_wait_that_long_is_not_kept_and_comes_back_to_the_same_start(stack: Stack):
    settings = Settings.load(shutdown_grace_seconds=5, attempt_deadline_seconds=0.5)
    with StackUse(settings, command=linked(stack), report=print) as use:
        for _ in range(3):
            began = time.monotonic()
            assert not use.get_ready(began + 0.05)
            assert time.monotonic() - began < 1
        assert use.get_ready()
        log = stack.home / "log" / "up.log"
        wait_until(lambda: "ready" in log.read_text())  # a worker is there before its stack has looked
    assert log.read_text().splitlines().count("ready") == 1


def test_who_waits_for_a_stack_that_is_stopping_is_not_kept_either(stack: Stack):
    stack.home.mkdir()
    with FileLock(users_lock(stack.home)) as going, StackUse(Settings.load()) as use:
        assert going.try_exclusive()
        assert not use.get_ready(time.monotonic() + 0.1)
    assert running_stack(stack.home) is None


def test_a_broker_that_hangs_is_named_and_no_former_stack_is_quoted(stack: Stack):
    (stack.home / "log").mkdir(parents=True)
    (stack.home / "log" / "up.log").write_text("ready\nstopped\n")
    up = stack.up()
    broker = stack.info().children["broker"]
    broker.signal(signal.SIGSTOP)
    settings = Settings.load(shutdown_grace_seconds=5, attempt_deadline_seconds=0.5)
    began = time.monotonic()
    with StackUse(settings) as use, pytest.raises(NoWorkerError) as caught:
        use.get_ready(began + 1)
    assert time.monotonic() - began < 4
    assert str(caught.value).startswith(f"the embedded broker (PID {broker.pid}) runs and does not answer")
    assert f"`kill {up.pid}`" in str(caught.value)
    assert "stopped" not in str(caught.value)


TALKERS, LINES = 4, 400
TALK = f"""
import os, sys, threading
from pathlib import Path
from inturn.workers import home
home.ROTATE_BYTES = 16_000
own = home.OwnLog(Path(os.environ["INTURN_HOME"]))
def talk(number):
    for line in range({LINES}):
        os.write(1 + line % 2, f"{{number}} says {{line:03}}\\n".encode())
threads = [threading.Thread(target=talk, args=(number,)) for number in range({TALKERS})]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    own.keep_short()
own.keep_short()
print("the end", flush=True)
"""


def test_who_writes_while_its_log_is_put_aside_loses_no_line(stack: Stack):
    log = log_file(stack.home, "worker")
    process = launch_program([sys.executable, "-c", TALK], dict(os.environ), log)
    assert process.wait(PATIENCE_SECONDS) == 0, last_lines(log, 5)
    older, newer = (path.read_text().splitlines() for path in (log.with_name("worker.log.1"), log))
    assert sorted(older + newer[:-1]) == sorted(
        f"{number} says {line:03}" for number in range(TALKERS) for line in range(LINES)
    )
    assert newer[-1] == "the end"
    assert len(older) > LINES
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_linked_supervisor_puts_its_log_aside(use: Use, stack: Stack):
    user, log = use(), log_file(stack.home, "up")
    with log.open("ab") as file:
        file.write(b"\n" * (ROTATE_BYTES + 1))
    wait_until(lambda: log.with_name("up.log.1").exists() and log.exists())
    user.close()
    wait_until(lambda: last_lines(log, 1) == ["stopped"])
    assert log.stat().st_size < 1000
