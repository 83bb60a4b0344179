"""Stacks for tests: a real supervisor and a real broker, with tiny programs for worker and beat.

The programs say what they do in ``<home>/events``, one line each. Whatever is left at the end of a test is ended here.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from inturn.workers.stack import StackInfo

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 15

UP = """
import json, os, sys
from pathlib import Path
import psutil
from inturn.models.errors import InturnError, StorageError
from inturn.settings import Settings
from inturn.workers.supervisor import Supervisor

options = json.loads(sys.argv[1])
home = Path(os.environ["INTURN_HOME"])
program = [sys.executable, "-c", options.pop("program")]

def prepare():
    if options_fail:
        raise StorageError("the database is in a bad mood")

def is_ready():
    path = home / "worker.pid"
    return path.exists() and psutil.pid_exists(int(path.read_text()))

options_fail = options.pop("fail", False)
commands = {"worker": [*program, "worker", options.pop("worker", "steady")], "beat": [*program, "beat", "steady"]}
try:
    Supervisor(
        Settings.load(
            shutdown_grace_seconds=options.pop("grace", 5), attempt_deadline_seconds=0.5,
            broker_url=options.pop("broker_url", None), tool_modules=options.pop("tool_modules", None),
        ),
        prepare=prepare, is_ready=is_ready, report=lambda line: print(line, flush=True), commands=commands, **options,
    ).run()
except InturnError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

name, mode = sys.argv[1:]
home = Path(os.environ["INTURN_HOME"])

def say(what):
    with open(home / "events", "a") as file:
        file.write(f"{name} {what}\\n")

def stop(*_):
    if mode == "slow":
        time.sleep(0.8)
    if mode != "stubborn":
        say("stopped")
        sys.exit(0)

if mode == "failing":
    sys.exit("no such luck")
if mode == "refusing" or mode == "fickle" and (home / "worker.pid").exists():
    print("[2026-11-29 03:42:34,275: CRITICAL/MainProcess] its sleeves are too long", flush=True)
    sys.exit(2)
signal.signal(signal.SIGTERM, stop)
(home / f"{name}.new").write_text(str(os.getpid()))
(home / f"{name}.new").rename(home / f"{name}.pid")
say("started")
while True:
    time.sleep(60)
"""


class Stack:
    """Supervisors of one home, as a shell would start them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[subprocess.Popen[bytes]] = []

    def command(self, **options: Any) -> list[str]:
        """The command line of a supervisor with these options."""
        return [sys.executable, "-c", UP, json.dumps({"program": PROGRAM} | options)]

    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("INTURN_", "CELERY_"))}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return ours | {"INTURN_HOME": str(self.home), "PYTHONPATH": path}

    def run(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a Python program."""
        with self._output(len(self.started)).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", program, *words], env=self.environment(), stdout=output, stderr=output
            )
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What a program of ours has written so far."""
        return self._output(self.started.index(process)).read_text()

    def up(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start a supervisor and wait until it says that it is ready."""
        process = self.run(*self.command(**options)[2:])
        wait_until(lambda: process.poll() is not None or self.info(process.pid).ready)
        assert process.poll() is None, self.said(process)
        return process

    def refused(self, **options: Any) -> str:
        """What a supervisor says that does not want to run."""
        process = self.run(*self.command(**options)[2:])
        assert process.wait(PATIENCE_SECONDS) == 1, self.said(process)
        return self.said(process)

    def info(self, supervisor: int | None = None) -> StackInfo:
        """What up.json says, if this supervisor wrote it."""
        info = StackInfo.read(self.home) or StackInfo()
        return info if supervisor is None or (info.supervisor and info.supervisor.pid == supervisor) else StackInfo()

    def pid(self, child: str) -> int:
        """The PID of a child; 0 while there is none."""
        identity = self.info().children.get(child)
        return identity.pid if identity else 0

    def events(self) -> list[str]:
        path = self.home / "events"
        return path.read_text().splitlines() if path.exists() else []

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this home, whoever started it."""
        return [process for process in psutil.process_iter() if self._belongs(process)]

    def end(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> str:
        """Send a signal that ends a supervisor; returns all that it said."""
        process.send_signal(number)
        process.wait(PATIENCE_SECONDS)
        return self.said(process)

    def assert_nothing_left(self) -> None:
        assert self.processes() == []
        assert not (self.home / "up.json").exists()
        assert not [path for path in self.home.iterdir() if path.is_socket()]

    def clean_up(self) -> None:
        while left := self.processes():
            for process in left:
                process.kill()
            time.sleep(0.05)
        for started in self.started:
            started.wait(PATIENCE_SECONDS)

    def _output(self, number: int) -> Path:
        return self.home.with_name(f"{self.home.name}.said.{number}")

    def _belongs(self, process: psutil.Process) -> bool:
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                return False
            return str(self.home) in " ".join(process.cmdline()) or process.environ().get("INTURN_HOME") == str(
                self.home
            )
        except psutil.Error:
            return False


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Fail unless the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
