"""The stack of a home: broker, workers and beat under one supervisor, as others see it from outside.

There are two kinds. A *permanent* stack is what somebody started with ``inturn up``; it ends when they stop it. A
*linked* one was started by a command or a client that needed a worker and found none; it ends when its last user has
gone. A user holds ``users.lock`` together with the others, so that the kernel counts them, also when they are killed.
The linked supervisor takes that lock alone before it goes: whoever comes in that moment waits until it has gone.
"""

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from inturn.models.errors import NoWorkerError
from inturn.origins import ENVIRONMENT_PREFIX, FLAG
from inturn.settings import Settings
from inturn.workers.children import launch_program
from inturn.workers.embedded import broker_answers, broker_is_silent
from inturn.workers.home import FileLock, last_lines, lock_is_held, log_file, private_directory, write_whole
from inturn.workers.processes import ProcessIdentity

START_SECONDS = 30.0
STOPPING_SECONDS = 15.0  # what a supervisor needs after its workers' grace: to stop the broker and to clean up
POLL_SECONDS = 0.05
APPEAR_SECONDS = 0.5
BROKER = "broker"
NUMBERED = re.compile(r"( in)? [0-9.]+ s\b|[0-9]+")


@dataclass(frozen=True, slots=True)
class StackInfo:
    """What ``up.json`` says. The supervisor writes it, and removes it when it has stopped everything.

    Attributes:
        supervisor: The process that holds ``up.lock``; None while a stack is just about to say who it is.
        since: When it started.
        linked: Whether it ends with its last user.
        ready: Whether the broker answers and a worker is at work.
        stopping: Whether it is on its way out.
        children: Its processes by name.
    """

    supervisor: ProcessIdentity | None = None
    since: datetime | None = None
    linked: bool = False
    ready: bool = False
    stopping: bool = False
    children: dict[str, ProcessIdentity] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.supervisor is None or self.since is None:
            return "starting at this moment"
        return f"PID {self.supervisor.pid}, since {self.since.astimezone():%Y-%m-%d %H:%M:%S}"

    def write(self, home: Path) -> None:
        """Make it known.

        Raises:
            OSError: It cannot be written.
        """
        known = {
            "supervisor": str(self.supervisor),
            "since": self.since and self.since.isoformat(),
            "linked": self.linked,
            "ready": self.ready,
            "stopping": self.stopping,
            "children": {name: str(identity) for name, identity in self.children.items()},
        }
        write_whole(state_file(home), json.dumps(known, indent=2) + "\n")

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """What the last supervisor made known, alive or not; None when there is nothing to be read."""
        try:
            known = json.loads(state_file(home).read_text())
            return cls(
                supervisor=ProcessIdentity.parse(known["supervisor"]),
                since=datetime.fromisoformat(known["since"]),
                linked=bool(known["linked"]),
                ready=bool(known["ready"]),
                stopping=bool(known["stopping"]),
                children={name: ProcessIdentity.parse(text) for name, text in known["children"].items()},
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None


def state_file(home: Path) -> Path:
    return home / "up.json"


def stack_lock(home: Path) -> Path:
    return home / "up.lock"


def users_lock(home: Path) -> Path:
    return home / "users.lock"


def running_stack(home: Path) -> StackInfo | None:
    """The stack that runs in this home, linked or not; None when none does.

    The lock decides: what ``up.json`` says counts only while the process that wrote it is the one that holds the lock.
    """
    deadline = time.monotonic() + APPEAR_SECONDS
    while lock_is_held(stack_lock(home)):
        info = StackInfo.read(home)
        if info and info.supervisor and info.supervisor.is_alive() is not False:
            return info
        if time.monotonic() > deadline:
            return StackInfo()
        time.sleep(0.01)
    return None


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of the stack's processes: ours, with home and URLs as set, wherever they were set, and with what a
    flag or a program set, which they could not know otherwise.
    """
    urls = {"INTURN_DATABASE_URL": settings.database_url, "INTURN_BROKER_URL": settings.broker_url}
    environment = {name: value for name, value in os.environ.items() if name not in urls}
    here = {name for name, origin in settings.origins().items() if origin == FLAG}
    given = settings.model_dump(mode="json", include=here - {"database_url", "broker_url", "home"})
    told = {
        f"{ENVIRONMENT_PREFIX}{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
    }
    return environment | told | {"INTURN_HOME": str(settings.home)} | {name: url for name, url in urls.items() if url}


def inturn_command(*words: str) -> list[str]:
    """How a process of ours starts another one. ``-P``: files of the current directory must not shadow our imports."""
    return [sys.executable, "-P", "-m", "inturn", *words]


def about_silent_broker(home: Path) -> str:
    """What to say of an embedded broker that runs and does not answer, and what to do about it."""
    known, stack = StackInfo.read(home) or StackInfo(), running_stack(home)
    broker = known.children.get(BROKER)
    told = f"the embedded broker{f' (PID {broker.pid})' if broker else ''} runs and does not answer"
    if stack is None or stack.supervisor is None:
        return f"{told}: `inturn up` stops it and starts another one"
    return (
        f"{told}. Its stack (PID {stack.supervisor.pid}) starts it again when that lasts; if nothing changes within half "
        f"a minute, stop that stack (`kill {stack.supervisor.pid}`) and start `inturn up`"
    )


def said_once(lines: Sequence[str]) -> list[str]:
    """Lines without those that a later one says again, of another process or another wait."""
    latest = {NUMBERED.sub("", line): line for line in lines}
    return [line for line in lines if latest[NUMBERED.sub("", line)] is line]


class StackUse:
    """A user's hold on the stack of a home: while it is open, a linked stack stays. Close it, or use it in ``with``.

    Args:
        settings: Whose database and broker must both be the embedded ones.
        command: What starts the linked supervisor; default ``inturn up --linked``.
        start_seconds: How long a stack may take to get ready.
        report: Is told what there is to wait for.

    Raises:
        NoWorkerError: It is not for us to start workers here.
        StorageError: The home cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        command: Sequence[str] | None = None,
        start_seconds: float = START_SECONDS,
        report: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        if not settings.is_embedded:
            start = "inturn up" if settings.has_embedded_broker else "inturn worker"
            raise NoWorkerError(
                f"no worker is alive, and database and broker are not both the embedded ones: start `{start}`"
            )
        self._lock = FileLock(users_lock(private_directory(settings.home)))
        self._home = settings.home
        self._new_start = partial(_Start, settings, command or inturn_command("up", "--linked"), start_seconds, report)
        self._start = self._new_start()
        self._joining_seconds = settings.shutdown_grace_seconds + STOPPING_SECONDS
        self._report = report
        self._joined = self._ready = False

    def get_ready(self, deadline: float = math.inf) -> bool:
        """Hold on to the stack, start a linked one when none runs, and wait until it is ready.

        Args:
            deadline: When to stop waiting (``time.monotonic``). What was started goes on starting, for the next call.

        Returns:
            Whether it got ready before the deadline.

        Raises:
            NoWorkerError: It ended at its start, or took too long, or its broker does not answer.
            StorageError: The home cannot be written.
        """
        if self._ready and not self.stands():
            self._ready, self._start = False, self._new_start()
        self._joined = self._joined or self._join_users(deadline)
        self._ready = self._ready or (self._joined and self._start.run(deadline))
        return self._ready

    def stands(self) -> bool:
        """Whether the stack is there that got ready, or another one: somebody may have stopped it."""
        return self._ready and (stack := running_stack(self._home)) is not None and stack.ready and not stack.stopping

    def close(self) -> None:
        """Let the stack go. Twice is harmless."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _join_users(self, deadline: float) -> bool:
        """Become one of the users, after a linked stack that is stopping has gone. Returns False at the deadline.

        Raises:
            NoWorkerError: It takes longer than its workers' grace allows.
        """
        began, told = time.monotonic(), False
        while not self._lock.try_shared():
            waited = time.monotonic() - began
            if waited > self._joining_seconds:
                raise NoWorkerError(
                    f"the stack before this one has not stopped within {self._joining_seconds:g} s. "
                    f"Look at {self._lock.path.parent}"
                )
            if time.monotonic() > deadline:
                return False
            if waited > 1 and not told:
                self._report("waiting for the stack before this one to finish its replies in hand")
                told = True
            time.sleep(POLL_SECONDS)
        return True


class _Start:
    """A user's wait for a ready stack, in which one of all those who wait starts it."""

    def __init__(
        self, settings: Settings, command: Sequence[str], seconds: float, report: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._home = settings.home
        self._command = command
        self._seconds = seconds
        self._report = report
        self._log = log_file(settings.home, "up")
        self._said = self._log.stat().st_size if self._log.exists() else 0  # what is said later is about this start
        self._process: subprocess.Popen[bytes] | None = None
        self._silent = False

    def run(self, deadline: float) -> bool:
        """Wait until a stack is ready, whoever started it. Returns False at the deadline.

        Raises:
            NoWorkerError: None gets ready in time, or the broker does not answer at the deadline.
        """
        with FileLock(self._home / "starting.lock") as turn:
            latest = time.monotonic() + self._seconds
            while not self._is_ready(stack := running_stack(self._home)):
                if stack and stack.stopping:
                    # It ends within its own grace, and ours begins after that.
                    latest = time.monotonic() + self._seconds
                if time.monotonic() > min(latest, deadline):
                    return self._give_up(too_late=time.monotonic() > latest)
                if stack is None and turn.try_exclusive():
                    self._launch()
                time.sleep(POLL_SECONDS)
        return True

    def _is_ready(self, stack: StackInfo | None) -> bool:
        if stack is None or not stack.ready or stack.stopping:
            self._silent = False
            return False
        self._silent = broker_is_silent(self._home)
        return not self._silent and broker_answers(self._home)

    def _give_up(self, *, too_late: bool) -> bool:
        """Raises: NoWorkerError: unless it may still get ready."""
        if self._silent:
            raise NoWorkerError(about_silent_broker(self._home))
        if too_late:
            raise NoWorkerError(
                f"the embedded stack did not get ready within {self._seconds:g} s. {self._last_words()}"
            )
        return False

    def _launch(self) -> None:
        """Start a supervisor that outlives us, unless ours is on its way.

        Raises:
            NoWorkerError: Ours has failed.
        """
        if self._process is None or self._process.returncode == 0:  # 0: an `inturn up` took its place, and has gone too
            self._report("starting the embedded broker and a worker")
            self._said = self._log.stat().st_size if self._log.exists() else 0
            self._process = launch_program(self._command, child_environment(self._settings), self._log)
            # It may end before we do: somebody has to read its exit code then, or a zombie stays.
            threading.Thread(target=self._process.wait, name="inturn-stack", daemon=True).start()
        elif self._process.returncode is not None and running_stack(self._home) is None:
            raise NoWorkerError(
                f"the embedded stack ended at its start with code {self._process.returncode}. {self._last_words()}"
            )

    def _last_words(self) -> str:
        words = " / ".join(said_once(last_lines(self._log, 8, after=self._said)))
        said = f"It said: {words}. " if words else ""
        return f"{said}`inturn up` shows more, and so do the logs in {self._log.parent}"
