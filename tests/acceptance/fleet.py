"""A fleet for fault tests: workers and a beat as processes that may be killed one by one, on a broker of their own."""

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import text

from inturn import Client, Settings
from inturn.models import migrations
from inturn.models.database import Database
from inturn.workers.embedded import broker_url, start_broker
from inturn.workers.queues import connect
from inturn.workers.stack import inturn_command
from tests.acceptance.deployment import clean_environment

START_SECONDS, STOP_SECONDS = 60, 30
LOOK_SECONDS = 0.1

QUICK: dict[str, Any] = {
    "lease_seconds": 4,
    "heartbeat_seconds": 1,
    "sweep_seconds": 1,
    "cancel_poll_seconds": 1,
    "attempt_deadline_seconds": 15,
    "shutdown_grace_seconds": 20,
    "retry_base_seconds": 0.1,
    "retry_cap_seconds": 1,
}
"""Repair within seconds, so that a test sees it."""


class Broker(Protocol):
    """What can happen to a Redis."""

    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def flush(self) -> None: ...


class EmbeddedBroker:
    """The Valkey of an inturn home, started as ``inturn up`` does, with nobody who starts it again."""

    url = ""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.start()

    def start(self) -> None:
        self._process = start_broker(self._home, report=lambda line: None)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    stop = kill

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        with connect(broker_url(self._home)) as client:
            client.flushall()


class Fleet:
    """Workers and a beat.

    Args:
        home: a directory of its own.
        database_url: empty for the embedded one.
        providers: by name, as in ``inturn.toml``.
    """

    def __init__(self, home: Path, database_url: str, broker: Broker, providers: dict[str, Any], **how: Any) -> None:
        self.home, self.broker = home, broker
        urls = {"database_url": database_url, "broker_url": broker.url}
        values = {"home": str(home), "providers": providers, **urls, **QUICK, **how}
        self.settings = Settings.load(**values)
        values["providers"] = json.dumps(providers)
        self._environment = clean_environment(home) | {
            f"INTURN_{key.upper()}": str(value) for key, value in values.items()
        }
        self.database = Database(self.settings.effective_database_url)
        migrations.upgrade(self.database)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._beats: list[subprocess.Popen[bytes]] = []
        self._numbers = itertools.count(1)

    def start(self, workers: int = 2) -> None:
        """Start workers and a beat, and wait until they are at work."""
        self._beats.append(self._run("beat"))
        for _ in range(workers):
            self.add_worker()
        self.await_workers()

    def add_worker(self) -> subprocess.Popen[bytes]:
        worker = self._run("worker")
        self.workers.append(worker)
        return worker

    def await_workers(self) -> None:
        """Wait until every worker that was started has shown itself, and beat too."""
        wanted = {process.pid for process in (*self.workers, *self._beats)}
        wait_until(lambda: wanted <= self._shown(wanted), START_SECONDS)

    def _shown(self, wanted: set[int]) -> set[int]:
        for process in (*self.workers, *self._beats):
            assert process.poll() is None, f"{process.args!r} ended by itself: {self.said(process)[-3000:]}"
        return {row.pid for row in self.query("SELECT pid FROM worker_processes")} & wanted

    def busy_worker(self) -> subprocess.Popen[bytes] | None:
        """A worker that holds leases now."""
        held = self.query(
            "SELECT p.pid, count(*) AS leases FROM leases AS l JOIN worker_processes AS p ON p.id = l.owner "
            "GROUP BY p.pid ORDER BY leases DESC"
        )
        mine = {worker.pid: worker for worker in self.workers}
        return next((mine[row.pid] for row in held if row.pid in mine), None)

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL: nothing is put in order."""
        worker.kill()
        worker.wait(STOP_SECONDS)
        self.workers.remove(worker)

    def retire(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGTERM: the replies in hand are finished. Returns when it has gone."""
        self.workers.remove(worker)
        worker.terminate()
        try:
            code = worker.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            raise
        assert code == 0, self.said(worker)[-3000:]

    def client(self) -> Client:
        return Client(self.settings)

    def query(self, sql: str, **values: Any) -> list[Any]:
        """Look into the database past the SDK."""
        with self.database.reading() as db:
            return list(db.execute(text(sql), values))

    def unfinished(self) -> int:
        (row,) = self.query("SELECT count(*) AS number FROM turns WHERE finished_at IS NULL")
        return int(row.number)

    def await_drained(self, seconds: float) -> None:
        """Wait until every turn is final and no lease is held."""
        wait_until(lambda: not self.unfinished(), seconds)
        wait_until(lambda: not self.query("SELECT 1 FROM leases WHERE owner IS NOT NULL"), seconds)

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What a process of ours has logged."""
        return (self.home / f"said.{process.pid}").read_text(errors="replace")

    def stop(self) -> None:
        """End what is left, at once."""
        left = [*self.workers, *self._beats]
        for process in left:
            process.kill()
        for process in left:
            process.wait(STOP_SECONDS)
        self.database.close()

    def _run(self, *words: str) -> subprocess.Popen[bytes]:
        said = self.home / f"starting.{next(self._numbers)}"
        with said.open("wb") as output:
            process = subprocess.Popen(
                inturn_command(*words), env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        said.rename(self.home / f"said.{process.pid}")
        return process


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Fail unless the condition becomes true in time. It looks rarely, as others need the machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(LOOK_SECONDS)
