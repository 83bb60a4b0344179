"""A machine that does not play along: a read-only home, a full disk, a stack that is there already. Each is a sentence
with the next step and the right exit code, and nothing is half done.
"""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inturn.cli.exits import Exit
from inturn.workers.stack import inturn_command
from tests.acceptance.command import PATIENCE_SECONDS, Inturn, Up

DISK = ["unshare", "-rm", "--pid", "--fork", "--kill-child", "--mount-proc"]
BOUND_BY_PERMISSIONS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
if os.geteuid() == 0:
    for capability in CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH:
        assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Gives up what lets root write where nobody may: permissions bind root's own files from then on."""


@pytest.fixture
def embedded(tmp_path: Path) -> Inturn:
    return Inturn(tmp_path / "home").prepare()


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
    bound = [sys.executable, "-c", BOUND_BY_PERMISSIONS]
    before = embedded.contents()
    readonly(embedded.home)
    for words in ("send", "s", "hello"), ("send", "s", "hello", "--wait"), ("session", "create", "t"), ("worker",):
        done = embedded.run(*words, through=bound)
        assert done.returncode == Exit.FAILURE, done.stderr
        assert "inturn.db is read-only: give this user the right to write to the file and its directory" in done.stderr
        assert "Traceback" not in done.stderr
    done = embedded.run("up", through=bound)
    assert done.returncode == Exit.FAILURE
    assert (
        f"cannot write {embedded.home} (Permission denied): make it writable for you, or set INTURN_HOME" in done.stderr
    )
    (tmp_path / "empty").mkdir()
    readonly(tmp_path / "empty")
    for home in tmp_path / "empty", tmp_path / "empty" / "new":
        done = Inturn(home).run("session", "create", "s", through=bound)
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
inturn="{" ".join(inturn_command())}"
i() {{ $inturn "$@" < /dev/null 2>&1; echo "code $?"; }}
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


HELD_OPEN = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
assert db.execute("SELECT key FROM sessions").fetchall() == [("s",)]
db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
open(sys.argv[1] + ".open", "w").close()
time.sleep(600)
"""
"""Others are at work with the file: it can be opened also when the disk is full."""


def test_a_worker_that_starts_on_a_full_disk(tmp_path: Path):
    (tmp_path / "hold.py").write_text(HELD_OPEN)
    said = on_a_small_disk(
        tmp_path,
        f"""
i session create s
{sys.executable} {tmp_path / "hold.py"} $disk/home/inturn.db &
until [ -e $disk/home/inturn.db.open ]; do sleep 0.1; done
fill
i worker
kill $!
""",
    )
    assert said[:2] == ["s", "code 0"]
    assert said[-1] == "code 1"
    assert "has no room left: free some space" in said[-2]
    assert not [line for line in said if "Traceback" in line]


def test_a_reply_that_came_while_the_disk_was_full_is_kept(tmp_path: Path):
    said = on_a_small_disk(
        tmp_path,
        """
i session create s --option latency=15
$inturn up --verbose > $disk/../said 2>&1 &
up=$!
until grep -qs ready: $disk/../said; do sleep 0.2; done
i send s hello
i turn list s --json
fill
until grep -qs settle_retried $disk/../said; do sleep 0.2; done
rm $disk/filler
until i turn list s --json | grep -q -e completed -e failed; do sleep 0.3; done
i turn list s --json
kill -TERM $up
wait $up || true
""",
    )
    before, after = (json.loads(line) for line in said if line.startswith("{"))
    assert (before["state"], before["attempts"]) == ("running", 1)
    assert (after["state"], after["attempts"], after["error"]) == ("completed", 1, None)


def test_a_second_up_and_a_stale_socket(embedded: Inturn):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(embedded.home / "broker.sock"))
    stale.close()
    up = Up(embedded)
    try:
        up.await_words("ready:")
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
