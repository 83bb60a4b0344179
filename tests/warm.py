"""Processes of inturn that start warm: what they import from other projects is there already.

Most of the time of a test that starts processes goes into importing SQLAlchemy, Celery and the like, again and again. Here a
server of Python's own (``multiprocessing``'s fork server) imports them once, and forks for each process that is asked for.
inturn's own modules are imported anew by each, as some of them look at the environment then.

The processes are those of ``inturn_command``, with PIDs, signals, sessions, exit codes and files of their own. Tests of the
command line itself, and of what starts processes, start them as a shell does.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

OTHERS = [
    "celery.apps.beat", "celery.apps.worker", "celery.bin.celery", "click", "httpx", "kombu.transport.redis", "orjson",
    "psutil", "psycopg", "pydantic_settings", "redis.asyncio", "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite", "sqlmodel",
]  # fmt: skip

warm = multiprocessing.get_context("forkserver")
warm.set_forkserver_preload(OTHERS)


class Process:
    """What tests use of ``subprocess.Popen``.

    Args:
        words: of the command ``inturn``; or, where there is a ``program``, the arguments of that.
        env, cwd: where it runs.
        output, errors, typed: files that it writes to, and that it reads; with no ``errors``, they go to the output.
        program: the text of a Python program.
    """

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        output: Path,
        errors: Path | None = None,
        typed: Path | None = None,
        program: str | None = None,
    ) -> None:
        self.args = ["inturn" if program is None else "-c", *words]
        files = [str(typed or os.devnull), str(output), str(errors or output)]
        output.touch()  # whoever looks for what it said may come first
        # A daemon, or this process would wait for it in the end.
        self._process = warm.Process(target=become, args=(self.args, dict(env), str(cwd), files, program), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    words: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    typed: str = "",
    program: str | None = None,
    timeout: float | None = None,
) -> "subprocess.CompletedProcess[str]":
    """To its end. Raises: subprocess.TimeoutExpired: it was killed."""
    with TemporaryDirectory() as directory:
        said, complained, given = (Path(directory) / name for name in ("said", "complained", "given"))
        given.write_text(typed)
        process = Process(words, env, cwd, said, complained, given, program)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, code, said.read_text(), complained.read_text())


def become(arguments: list[str], env: dict[str, str], cwd: str, files: list[str], program: str | None) -> None:
    """The new process, in a session of its own."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    modes = (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_APPEND] * 2)
    for number, (name, mode) in enumerate(zip(files, modes, strict=True)):
        opened = os.open(name, mode)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = list(arguments)
    try:
        if program is None:
            runpy.run_module("inturn", run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(program, main.__dict__)
    finally:
        atexit._run_exitfuncs()
