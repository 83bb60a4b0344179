"""A child of the supervisor: started, watched, started again when it dies, stopped."""

import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from inturn.models.errors import InturnError, SettingsError
from inturn.workers.home import last_lines, open_log
from inturn.workers.processes import ProcessIdentity

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
STEADY_SECONDS = 10.0
POLL_SECONDS = 0.05
KILL_SECONDS = 5.0
SETTINGS_REFUSED = 2
"""What a worker or beat ends with whose settings are refused (the command line calls it a wrong usage)."""

_CELERYS = re.compile(r"^\[[^\]]*\] ")
"""What Celery writes before each line of a log: when, how grave, and in which process."""

Launch = Callable[[], subprocess.Popen[bytes]]


@contextmanager
def refusals() -> Iterator[None]:
    """What keeps a worker or beat from starting is a sentence, and its end. Raises: SystemExit."""
    try:
        yield
    except InturnError as error:
        logger.critical("%s", error)
        raise SystemExit(SETTINGS_REFUSED if isinstance(error, SettingsError) else 1) from error


class Child:
    """One process that has to be there, whichever process that is.

    Args:
        name: What it is called in reports, for example "worker".
        launch: Starts it, in a session of its own.
        log: Where it writes; its last line is shown when it dies. None when it writes to the terminal.
        report: Is told when it dies.
    """

    def __init__(self, name: str, launch: Launch, log: Path | None, report: Callable[[str], None]) -> None:
        self.name = name
        self.identity: ProcessIdentity | None = None
        self._launch = launch
        self._log = log
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._wait_seconds = 0.0
        self._started_at = 0.0
        self._due_at = 0.0
        self._said_before = 0

    def start(self) -> None:
        """Start it now.

        Raises:
            InturnError: It cannot be started.
            OSError: Its program cannot be run.
        """
        self._started_at = time.monotonic()
        self._said_before = self._log.stat().st_size if self._log and self._log.exists() else 0
        self._process = self._launch()
        self.identity = ProcessIdentity.of(self._process.pid)

    def tend(self) -> bool:
        """Notice its death, and start it again when it is time. Returns whether anything changed."""
        if self.is_running():
            return False
        has_died = self._process is not None
        if self._process is not None:
            self._mourn(ending(self._process.returncode))
        if time.monotonic() < self._due_at:
            return has_died
        try:
            self.start()
        except (InturnError, OSError) as error:
            self._mourn(f"could not be started: {error}")
        return True

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def refusal(self) -> str | None:
        """The sentence with which it has just refused its settings; None where that is not how it ended."""
        if self._process is None or self._process.poll() != SETTINGS_REFUSED:
            return None
        words = last_lines(self._log, 1, after=self._said_before) if self._log else []
        said = sentence(words[0]) if words else "it said above what is wrong with them"
        return f"{self.name} cannot work with these settings: {said.removeprefix('inturn: ')}"

    def signal(self, number: int) -> None:
        """Send a signal to the process; SIGKILL goes to its whole session."""
        if self._process is None or not self.is_running():
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)  # not reaped yet, so the number is still its own
            else:
                self._process.send_signal(number)

    def _mourn(self, how: str) -> None:
        """Say how it ended and set the next start: at once if it had been steady, else later each time."""
        if time.monotonic() - self._started_at > STEADY_SECONDS:
            self._wait_seconds = 0.0
        process, self._process, self.identity = self._process, None, None
        named = f"{self.name} (PID {process.pid})" if process else self.name
        words = map(sentence, last_lines(self._log, 1)) if self._log and process else []
        when = f" in {self._wait_seconds:g} s" if self._wait_seconds else ""
        self._report(f"{named} {how}; starting it again{when}" + "".join(f": {line}" for line in words))
        self._due_at = time.monotonic() + self._wait_seconds
        self._wait_seconds = max(FIRST_WAIT_SECONDS, min(self._wait_seconds * 2, LONGEST_WAIT_SECONDS))


def sentence(line: str) -> str:
    """What a line of a log says, of whichever format."""
    if line.startswith("{"):
        with suppress(ValueError, LookupError, TypeError):
            return str(json.loads(line)["message"])
    return _CELERYS.sub("", line)


def launch_program(command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own: the terminal's Ctrl-C is for the supervisor alone.

    Args:
        command: The program and its arguments.
        environment: All of its environment.
        log: Where its output goes; None is where ours goes.

    Raises:
        OSError: The program cannot be run.
        StorageError: The log cannot be written.
    """
    output = open_log(log) if log else None
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            umask=0o077,
            start_new_session=True,
        )
    finally:
        if output is not None:
            os.close(output)


def stop_children(
    children: Iterable[Child], seconds: float, *, hurry: Callable[[], bool], report: Callable[[str], None]
) -> None:
    """Stop them all at once, warmly: what has not ended when the time is over, or when there is hurry, is killed."""
    children = [child for child in children if child.is_running()]
    deadline = time.monotonic() + seconds
    for child in children:
        child.signal(signal.SIGTERM)
    while left := [child for child in children if child.is_running()]:
        if hurry() or time.monotonic() > deadline:
            for child in left:
                child.signal(signal.SIGKILL)
            report(f"killed {', '.join(child.name for child in left)}, which had not stopped yet")
            deadline, hurry = time.monotonic() + seconds, lambda: False
        time.sleep(POLL_SECONDS)


def stop_orphans(orphans: Mapping[str, ProcessIdentity], seconds: float) -> list[str]:
    """Stop processes that are not our children, each known by its identity; returns the names of those killed.

    Whoever survives even that (stuck in the kernel) is left: leases and fences keep a second worker from doing harm.
    """
    left = dict(orphans)
    killed: list[str] = []
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, KILL_SECONDS)):
        killed = list(left)
        for orphan in left.values():
            with suppress(PermissionError):
                orphan.signal(number)
        deadline = time.monotonic() + patience
        while left and time.monotonic() < deadline:
            left = {name: orphan for name, orphan in left.items() if orphan.is_alive()}
            time.sleep(POLL_SECONDS if left else 0)
    return killed


def ending(code: int) -> str:
    """How a process ended, from its return code, as a part of a sentence."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
