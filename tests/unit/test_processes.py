"""A process is known for ever, whoever gets its PID later."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from inturn.workers import processes
from inturn.workers.processes import ProcessIdentity


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-Sc", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_mine_is_the_process_that_asks():
    mine = ProcessIdentity.mine()
    assert mine.pid == os.getpid()
    assert mine.is_alive() is True
    assert mine == ProcessIdentity.of(os.getpid())


def test_a_fork_is_another_process():
    read, write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", "from inturn.workers.processes import ProcessIdentity as P; print(P.mine())"],
        stdout=write, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    os.close(write)
    with os.fdopen(read) as said:
        theirs = ProcessIdentity.parse(said.read().strip())
    assert child.wait() == 0
    mine = ProcessIdentity.mine()
    assert theirs.pid == child.pid
    assert (theirs.boot_id, theirs.pid_namespace) == (mine.boot_id, mine.pid_namespace)
    assert theirs.is_alive() is False


def test_it_reads_what_it_wrote():
    mine = ProcessIdentity.mine()
    assert ProcessIdentity.parse(str(mine)) == mine
    assert str(mine).count("/") == 3
    assert " " not in str(mine)


@pytest.mark.parametrize("text", ["", "a/b/1", "a/b/x/1", "a/b/1/x", "a//1/2", "a/b/1/2/3"])
def test_what_is_no_identity_is_refused(text: str):
    with pytest.raises(ValueError, match=r"identity|invalid literal"):
        ProcessIdentity.parse(text)


def test_the_dead_are_dead_also_as_zombies(sleeper: subprocess.Popen[bytes]):
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    assert identity.is_alive() is True
    assert identity.signal(signal.SIGKILL) is True
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its exit code is still there
    assert identity.is_alive() is False
    assert ProcessIdentity.of(sleeper.pid) is None
    assert identity.signal(signal.SIGKILL) is False
    sleeper.wait()
    assert identity.is_alive() is False
    assert identity.signal(signal.SIGKILL) is False


def test_who_got_the_pid_of_another_is_not_hit(sleeper: subprocess.Popen[bytes]):
    now = ProcessIdentity.of(sleeper.pid)
    assert now is not None
    former = ProcessIdentity(now.boot_id, now.pid_namespace, now.pid, now.started - 1)
    assert former.is_alive() is False
    assert former.signal(signal.SIGKILL) is False
    assert sleeper.poll() is None


@pytest.mark.parametrize("field", ["boot_id", "pid_namespace"])
def test_what_ran_elsewhere_cannot_be_known(field: str):
    mine = ProcessIdentity.mine()
    words = {"boot_id": mine.boot_id, "pid_namespace": mine.pid_namespace} | {field: "elsewhere"}
    other = ProcessIdentity(words["boot_id"], words["pid_namespace"], mine.pid, mine.started)
    assert not other.is_near()
    assert other.is_alive() is None
    assert other.signal(0) is False


def test_it_works_without_proc(monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]):
    monkeypatch.setattr(processes, "HAS_PROC", False)
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    assert identity.is_alive() is True
    assert identity.signal(signal.SIGKILL) is True
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert identity.is_alive() is False
    sleeper.wait()
    assert identity.is_alive() is False
    assert ProcessIdentity.of(sleeper.pid) is None


def test_it_works_without_process_handles(monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    assert identity.signal(signal.SIGTERM) is True
    assert sleeper.wait() == -signal.SIGTERM
    assert identity.signal(signal.SIGTERM) is False


def test_a_process_that_is_hidden_from_us_is_not_called_dead(monkeypatch: pytest.MonkeyPatch):
    def refuse(pid: int) -> int:
        raise PermissionError

    identity = ProcessIdentity.mine()
    monkeypatch.setattr(processes, "_started", refuse)
    assert identity.is_alive() is None
