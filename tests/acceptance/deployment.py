"""Real deployments of inturn: a database, a broker, and workers and beat as processes of their own.

There are two kinds, and every line of the conformance list runs on both: *embedded* (``inturn up`` in a home of its own:
SQLite and the embedded broker) and *postgresql* (``inturn db upgrade``, ``inturn worker``, ``inturn beat``, with
PostgreSQL and Redis).
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import inspect, text

from inturn import Client, Settings
from inturn.models.database import Database
from inturn.models.states import ProcessKind
from inturn.models.store.presence import WorkerInfo
from inturn.workers.processes import ProcessIdentity
from inturn.workers.stack import StackInfo, inturn_command
from ops.chaos import fleet
from tests import warm
from tests.acceptance import toolshed
from tests.stacks import wait_until

WORKERS = 2
SLOTS = 8
"""Of each worker: few, so that a turn that keeps one while it waits is noticed."""
MAX_ATTEMPTS = 4
KEY_VARIABLE, KEY = "ACCEPTANCE_KEY", "key-0f1e2d3c4b5a69788796a5b4c3d2e1f0"

PACE: dict[str, Any] = {
    "default_model": "echo/echo",
    "lease_seconds": 8,
    "heartbeat_seconds": 2,
    "sweep_seconds": 1,
    "attempt_deadline_seconds": 20,
    "shutdown_grace_seconds": 21,
    "retry_base_seconds": 0.1,
    "retry_cap_seconds": 0.3,
    "max_attempts": MAX_ATTEMPTS,
    "concurrency": SLOTS,
}
"""Settings that make tests quick, and leave room for a machine that is slow."""

START_SECONDS, STOP_SECONDS = 60, 10


def clean_environment(config: Path) -> dict[str, str]:
    """Ours, without what somebody has set for an inturn of their own, and with the key of the model server."""
    return fleet.clean_environment(config) | {KEY_VARIABLE: KEY}


def as_variables(settings: dict[str, Any]) -> dict[str, str]:
    return {f"INTURN_{name.upper()}": json.dumps(value) for name, value in settings.items()}


class Deployment:
    """One database, one broker, and the processes that a test has started on them.

    Args:
        home: a directory of its own; the embedded database and broker live there.
        providers: by name, as in ``inturn.toml``.
        database_url, broker_url: empty for the embedded ones. A database that has its tables.
        more: settings that it has besides ``PACE``, or in place of them.
    """

    def __init__(
        self, home: Path, providers: dict[str, Any], database_url: str = "", broker_url: str = "", **more: Any
    ) -> None:
        self.home, self.more = home, more
        self._urls = {"database_url": database_url, "broker_url": broker_url}
        self.is_embedded = not (database_url or broker_url)
        self._processes: dict[warm.Process, Path] = {}
        self._started = 0
        self.furnish()
        self.configure(providers)

    def furnish(self) -> None:
        """Make the home, with the module in it whose tools the workers have."""
        self.home.mkdir(mode=0o700, parents=True)
        shutil.copy(toolshed.__file__, self.home)

    def configure(self, providers: dict[str, Any], **more: Any) -> None:
        """From now on with these providers and settings: for clients, and for processes that are started."""
        self.providers, self.more = providers, self.more | more
        clean = clean_environment(self.home)
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(clean):
                patch.delenv(name)
            patch.setenv("XDG_CONFIG_HOME", clean["XDG_CONFIG_HOME"])
            patch.chdir(self.home)
            self.settings = Settings.load(home=self.home, providers=providers, **self._urls, **PACE | self.more)

    def client(self) -> Client:
        return Client(self.settings)

    def start(self, workers: int = WORKERS, *, beat: bool = True) -> None:
        """Start workers and beat (and the broker), and wait until they are at work. ``up`` never goes without a beat."""
        if self.is_embedded:
            self._run("up", "--workers", str(workers))
        else:
            for _ in range(workers):
                self._run("worker")
            if beat:
                self._run("beat")
        self.await_workers(workers, beat=beat)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return warm.run(words, **self._place())

    @contextmanager
    def process(self, *words: str, output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        """A command in the background, which is ended with the block."""
        with subprocess.Popen(inturn_command(*words), stdout=output, stderr=output, **self._place()) as process:
            try:
                yield process
            finally:
                process.kill()

    def await_workers(self, workers: int = WORKERS, *, beat: bool = True) -> None:
        """Wait until so many workers are alive, and a beat."""
        with self.client() as client:
            wait_until(lambda: self._has(client.list_workers(), workers, beat), START_SECONDS)

    def _has(self, known: list[WorkerInfo], workers: int, beat: bool) -> bool:
        for process in self._processes:
            assert process.poll() is None, f"{process.args!r} ended by itself: {self._last_words(process)}"
        alive = [process.kind for process in known if process.alive]
        return alive.count(ProcessKind.WORKER) >= workers and alive.count(ProcessKind.BEAT) >= beat

    def kill(
        self, worker: int, by: signal.Signals = signal.SIGKILL, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """A signal for the worker of this PID that ends it; another one is started, by the supervisor or here."""
        os.kill(worker, by)
        meanwhile()
        for process in [mine for mine in self._processes if mine.pid == worker]:
            process.wait(STOP_SECONDS)
            del self._processes[process]
            self._run("worker")

    def wreck(self) -> None:
        """SIGKILL for all processes; the deployment can be started again."""
        self._database.close()
        for process in self._processes:
            self._kill_with_children(process)
        self._processes.clear()

    def stop(self) -> None:
        """End all processes, warmly if they can; the deployment can be started again."""
        self._database.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill_with_children(process)
        self._processes.clear()

    def _kill_with_children(self, process: warm.Process) -> None:
        children: list[ProcessIdentity] = list((StackInfo.read(self.home) or StackInfo()).children.values())
        process.kill()
        process.wait(STOP_SECONDS)
        for child in children:
            child.signal(signal.SIGKILL)

    def python(self, program: str, *arguments: str) -> Any:
        """Run a program that uses the SDK in a process of its own; returns what it passes to ``answer``."""
        prelude = "import json, sys\nfrom inturn import *\nanswer = lambda value: print(json.dumps(value))\n"
        done = warm.run(arguments, program=prelude + program, timeout=START_SECONDS, **self._place())
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _place(self) -> dict[str, Any]:
        """Where our processes run: with our settings, and in a directory without anybody's ``inturn.toml``."""
        values = {"home": self.home, "providers": json.dumps(self.providers), **self._urls, **PACE}
        ours = {f"INTURN_{name.upper()}": str(value) for name, value in values.items()}
        more = as_variables({"tool_modules": ["toolshed"], **self.more})
        return {"env": clean_environment(self.home) | ours | more, "cwd": self.home}

    def _run(self, *words: str) -> None:
        self._started += 1
        said = self.home / f"said.{self._started}"
        self._processes[warm.Process(words, output=said, **self._place())] = said

    def _last_words(self, process: warm.Process) -> str:
        return self._processes[process].read_text()[-2000:]

    def query(self, sql: str, **values: Any) -> list[Any]:
        """Look into the database past the SDK."""
        return self._execute(sql, values, writes=False)

    def change(self, sql: str, **values: Any) -> None:
        """Change the database past the SDK: time goes by, a long life is lived."""
        self._execute(sql, values, writes=True)

    def _execute(self, sql: str, values: dict[str, Any], *, writes: bool) -> list[Any]:
        with self._database.writing() if writes else self._database.reading() as db:
            result = db.execute(text(sql), values)
            return list(result) if result.returns_rows else []

    @cached_property
    def _database(self) -> Database:
        return Database(self.settings.effective_database_url)

    def dump(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row of every table."""
        with self._database.reading() as db:
            for table in inspect(db).get_table_names():
                for row in db.execute(text(f"SELECT * FROM {table}")).mappings():
                    yield table, dict(row)

    def rows_of(self, session: int) -> list[str]:
        """The tables that hold anything of the session with this surrogate ID."""
        return [
            table
            for table, row in self.dump()
            if row.get("session_id") == session or (table == "sessions" and row["id"] == session)
        ]

    def worker_of(self, session: int) -> int:
        """The PID of the worker that holds the session's lease; 0 while nobody does."""
        found = self.query(
            "SELECT p.pid FROM leases AS l JOIN worker_processes AS p ON p.id = l.owner WHERE l.session_id = :session",
            session=session,
        )
        return int(found[0].pid) if found else 0
