"""A server that a test run owns: a child process in a temporary directory that is gone when the run is."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import redis

START_SECONDS = 60
STOP_SECONDS = 20
REMOVE_SECONDS = 120
"""For the files of some hundred databases, on a disk that others use."""

# Runs beside each server of ours and waits for the end of its standard input, which comes with our death as well.
JANITOR = """
import os, shutil, signal, sys, time
directory, number = sys.argv[1:]
sys.stdin.read()
try:
    with open(os.path.join(directory, "server.pid")) as file:
        pid = int(file.read())
    os.kill(pid, int(number))
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.1)
except (OSError, ValueError):
    pass  # the server has left already
shutil.rmtree(directory, ignore_errors=True)
"""


class ServerUnavailableError(Exception):
    """A test asks for a server, or for power over it, that this machine does not give. It says why."""


class ServerProcess:
    """A server of ours: a child process and its directory.

    Args:
        name: what it is called in messages.
        last_signal: what ends it at once, leaving what it has stored as a crash would.
        uid: the user to run as; None is ourselves.
        within: the command that puts it where it is to run, as that user.
    """

    def __init__(
        self, name: str, last_signal: signal.Signals, uid: int | None = None, within: Sequence[str] = ()
    ) -> None:
        self.name = name
        self._within = within
        self._last_signal = last_signal
        self._uid = uid
        self._child: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix=f"inturn-{name}-", dir=_reachable_directory(uid)))
        self.give_away()
        self._pid_file = self.directory / "server.pid"
        self._janitor = subprocess.Popen(
            [sys.executable, "-Ic", JANITOR, str(self.directory), str(int(last_signal))],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    def give_away(self) -> None:
        """Make all that lies in the directory the property of the server's user."""
        if self._uid is not None:
            for path in (self.directory, *self.directory.rglob("*")):
                os.chown(path, self._uid, self._uid, follow_symlinks=False)

    def privileges(self) -> dict[str, Any]:
        """Arguments of ``subprocess`` that make a child run as the server's user, in its directory."""
        user = {} if self._uid is None else {"user": self._uid, "group": self._uid, "extra_groups": []}
        return {"cwd": self.directory, "stdin": subprocess.DEVNULL, **user}

    def run(self, *command: str | Path) -> None:
        """Run one of the server's programs to its end.

        Raises:
            PermissionError: the server's user cannot run it.
            ServerUnavailableError: it failed; the message quotes it.
        """
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self.privileges())
        if done.returncode:
            words = done.stderr.strip() or done.stdout.strip()
            raise ServerUnavailableError(f"{Path(command[0]).name} failed: {words}")

    def start(self, *command: str | Path, is_ready: Callable[[], object]) -> None:
        """Start the server and wait until ``is_ready`` raises nothing any more.

        Raises:
            ServerUnavailableError: it ended or stayed silent; the message quotes its log.
        """
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, which then stop their servers in order.
            how = {"cwd": self.directory, "stdin": subprocess.DEVNULL} if self._within else self.privileges()
            self._child = subprocess.Popen(
                [*self._within, *command], stdout=log, stderr=log, start_new_session=True, **how
            )
        self._pid_file.write_text(str(self._child.pid))
        limit = time.monotonic() + START_SECONDS
        while True:
            try:
                is_ready()
            except (psycopg.OperationalError, redis.RedisError) as error:
                if self._child.poll() is not None or time.monotonic() > limit:
                    raise ServerUnavailableError(f"{self.name} did not start: {self._last_words()}") from error
                time.sleep(0.02)
            else:
                return

    def send(self, number: signal.Signals) -> None:
        assert self._child is not None
        self._child.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        """Send a signal that ends the server, and wait until it has."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
            self._child.wait(STOP_SECONDS)
        self._pid_file.unlink(missing_ok=True)  # another process may have this ID from now on

    def remove(self) -> None:
        """End the server and remove all that it left. Twice is harmless."""
        with suppress(subprocess.TimeoutExpired):
            self.end(self._last_signal)
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait(REMOVE_SECONDS)

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _last_words(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-5:]) or "it said nothing"


def _reachable_directory(uid: int | None) -> str:
    """A temporary directory that the user can enter: TMPDIR may lie in root's home."""
    ours = tempfile.gettempdir()
    if uid is None:
        return ours
    for place in (ours, "/tmp", "/var/tmp", "/dev/shm"):
        path = Path(place).resolve()
        if path.is_dir() and all(step.stat().st_mode & 0o001 for step in (path, *path.parents)):
            return str(path)
    raise ServerUnavailableError(f"no temporary directory that user {uid} can enter")
