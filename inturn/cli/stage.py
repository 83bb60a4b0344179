"""The stage of ``inturn demo``: its home, the stack that runs there, and the commands that are typed there.

Nothing is acted: a command that is shown is the one that runs, in a process of its own.
"""

import os
import shlex
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inturn.cli import render
from inturn.workers.children import launch_program
from inturn.workers.home import last_lines, log_file
from inturn.workers.processes import ProcessIdentity
from inturn.workers.stack import StackInfo, inturn_command, running_stack

WIDTH = 79
START_SECONDS = 60.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05


class CheckFailedError(Exception):
    """Something is not as the demo says; the message is a sentence without its full stop."""


def check(holds: bool, subject: str, sentence: str, otherwise: str) -> None:
    """Show what was looked at, and how it is.

    Raises:
        CheckFailedError: It does not hold.
    """
    render.verdict("ok" if holds else "fail", subject, sentence if holds else otherwise)
    if not holds:
        raise CheckFailedError(otherwise)


def say(text: str) -> None:
    """A sentence or two between the commands, as wide as a terminal is at least."""
    render.data("\n".join(render.wrapped(text, WIDTH)))


class Stage:
    """Use it in ``with``: whatever happens, nothing runs on afterwards."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.workers: dict[str, ProcessIdentity] = {}
        self._log = log_file(home, "up")
        self._up: subprocess.Popen[bytes] | None = None

    def run(self, command: str, *, table: bool = False) -> str:
        """Show a command and run it. Returns what it printed, but for a table, which goes to the terminal directly.

        Raises:
            CheckFailedError: It ended with another code than 0.
        """
        render.command(f"$ {command}")
        words, output = shlex.split(command), None if table else subprocess.PIPE
        program = inturn_command(*words[1:]) if words[0] == "inturn" else words
        done = subprocess.run(program, stdin=subprocess.DEVNULL, stdout=output, text=True, check=False)
        if done.stdout:
            render.data(done.stdout.rstrip("\n"))
        if done.returncode:
            raise CheckFailedError(f"`{command}` ended with code {done.returncode}, for the reason above")
        return done.stdout or ""

    def start(self) -> None:
        """Run ``inturn up`` in the background, until it is ready.

        Raises:
            CheckFailedError: It ends, or does not get ready in time.
        """
        render.command("$ inturn up --workers 2 &")
        began = time.monotonic()
        self._up = launch_program(inturn_command("up", "--workers", "2"), os.environ, self._log)
        while not ((stack := running_stack(self.home)) and stack.ready):
            if self._up.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise CheckFailedError(
                    f"`inturn up` did not get ready. It said: {' / '.join(last_lines(self._log, 8))}"
                )
            time.sleep(POLL_SECONDS)
        self.workers = {name: process for name, process in stack.children.items() if name.startswith("worker")}
        render.verdict("ok", "ready", f"{', '.join(stack.children)}, in {time.monotonic() - began:.1f} s")

    def stop(self) -> None:
        """Stop it as a person would, and look whether all of it is gone.

        Raises:
            CheckFailedError: Something of it runs on.
        """
        assert self._up is not None, "start comes first"
        running, said = (StackInfo.read(self.home) or StackInfo()).children, self._log.read_text()
        render.command(f"$ kill {self._up.pid}")
        self._up.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._up.wait(STOP_SECONDS)
        render.data(self._log.read_text().removeprefix(said).rstrip("\n"))
        left = [name for name, process in running.items() if process.is_alive()]
        check(not left, "stopped", f"{', '.join(running)}: none of them runs any more", f"{', '.join(left)} run on")
        self._up = None

    def up_said(self, words: str) -> str:
        """What ``inturn up`` reported last with these words in it, without what it quotes of a log."""
        lines = [line for line in last_lines(self._log, 20) if words in line]
        return lines[-1].partition(": [")[0] if lines else ""

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database itself, past inturn."""
        with closing(sqlite3.connect(f"{(self.home / 'inturn.db').as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(sql, values).fetchall()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._up is None:
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # no impatience must keep us from cleaning up
        for seconds in (1.0, STOP_SECONDS):  # asked twice, it waits for no reply in hand
            self._up.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._up.wait(seconds)
