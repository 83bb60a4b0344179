"""Child processes of the bench: started in a session of their own, ended by process ID, whatever happens."""

import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias

READY_SECONDS = 30
LEAVE_SECONDS = 10
RAMP_SECONDS = 60

Child: TypeAlias = subprocess.Popen[str]


class ChildFailedError(Exception):
    """A process of the bench ended, or kept silent, when it should have been ready."""


@contextmanager
def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    output: Path | None = None,
    last_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[Child]:
    """A process that lives as long as the block. What it says goes to ``output``, or to us.

    It gets a session of its own, so that Ctrl-C reaches the bench alone, which then ends it with ``last_signal``.
    """
    with output.open("w") if output else nullcontext() as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log or subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        end(child, last_signal)


def end(child: Child, last_signal: signal.Signals) -> None:
    """Send the signal, and kill what does not leave in time."""
    child.send_signal(last_signal)
    try:
        child.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module in this interpreter."""
    return [sys.executable, "-m", name, *arguments]


def first_line(child: Child) -> str:
    """What a child says when it is ready.

    Raises:
        ChildFailedError: it ended, or said nothing in time.
    """
    assert child.stdout is not None
    readable, _, _ = select.select([child.stdout], [], [], READY_SECONDS)
    line = child.stdout.readline() if readable else ""
    if not line:
        raise ChildFailedError(f"{named(child)} was not ready within {READY_SECONDS} s")
    return line.strip()


def tell(child: Child, line: str) -> None:
    """Write a line to a child's standard input."""
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def wait_until(condition: Callable[[], bool], child: Child, seconds: float) -> None:
    """Wait for something that a child brings about.

    Raises:
        ChildFailedError: it ended, or did not come to it in time.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if child.poll() is not None:
            raise ChildFailedError(f"{named(child)} ended with code {child.returncode}")
        if time.monotonic() > limit:
            raise ChildFailedError(f"{named(child)} did not get to work within {seconds:g} s")
        time.sleep(0.2)


def named(child: Child) -> str:
    """A child by the first words of its command."""
    assert isinstance(child.args, list)
    return " ".join(map(str, child.args[1:4]))
