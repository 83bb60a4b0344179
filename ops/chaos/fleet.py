"""A fleet: workers and a beat as processes that may be killed one by one, and are started again as by a supervisor."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from sqlalchemy import text

from inturn import Client, Settings
from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.errors import InturnError
from inturn.workers.embedded import broker_url, start_broker
from inturn.workers.queues import connect
from inturn.workers.stack import inturn_command

START_SECONDS, STOP_SECONDS = 60, 30
LOOK_SECONDS = 0.1
SUPERVISE_SECONDS = 0.05
LAST_WORDS = 3000
IMPATIENT = ("SET lock_timeout = '2s'",)
"""Who looks on from outside does not wait for a lock that a fault holds."""

ROOT = Path(__file__).parents[2]
FOREIGN = ("INTURN_", "CELERY_", "OPENAI_", "ANTHROPIC_")
OURS = "INTURN_TEST_"

QUICK: dict[str, Any] = {
    "lease_seconds": 4,
    "heartbeat_seconds": 1,
    "sweep_seconds": 1,
    "cancel_poll_seconds": 1,
    "attempt_deadline_seconds": 8,
    "shutdown_grace_seconds": 10,
    "retry_base_seconds": 0.1,
    "retry_cap_seconds": 1,
}
"""Repair within seconds, so that a short run sees it."""

Process = subprocess.Popen[bytes]


class FleetError(Exception):
    """The fleet does not do what it should; says what its processes said last."""


def clean_environment(config: Path) -> dict[str, str]:
    """Ours, without what somebody has set for an inturn of their own; no user's settings file is read with it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) or name.startswith(OURS)}
    return kept | {"XDG_CONFIG_HOME": str(config), "PYTHONPATH": str(ROOT)}


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
        ways: settings in which processes differ, such as URLs of proxies: of the first worker, the second, ..., and
            last those of beat. Whoever looks at the database through the fleet goes straight to it.
        logs: where processes write what they say; default: the home.
        pace: settings for all; default: ``QUICK``.
        are_apart: each process takes itself to be on a host of its own, and nobody can see whether another is alive.
        how: more settings, ahead of those.
    """

    def __init__(
        self,
        home: Path,
        database_url: str,
        broker: Broker,
        providers: dict[str, Any],
        *,
        ways: Sequence[Mapping[str, Any]] = (),
        logs: Path | None = None,
        pace: Mapping[str, Any] = QUICK,
        are_apart: bool = False,
        **how: Any,
    ) -> None:
        self._are_apart = are_apart
        self.home, self.broker, self.logs = home, broker, logs or home
        urls = {"database_url": database_url, "broker_url": broker.url}
        # As text: the nemesis looks in there for who was late.
        self.values = {"home": str(home), "providers": providers, "log_format": "text", **urls, **pace, **how}
        self.settings = Settings.load(**self.values)
        self._ways = list(ways) or [{}]
        is_sqlite = self.settings.effective_database_url.startswith("sqlite")
        self.database = Database(self.settings.effective_database_url, session_settings=() if is_sqlite else IMPATIENT)
        migrations.upgrade(self.database)
        self.workers: list[Process] = []
        self.beats: list[Process] = []
        self.crashes: list[str] = []
        self._seats: dict[int, int] = {}
        self._changing = threading.RLock()
        self._numbers = itertools.count(1)

    def start(self, workers: int = 2) -> None:
        """Start workers and a beat, and wait until they are at work."""
        self.add_beat()
        for _ in range(workers):
            self.add_worker()
        self.await_workers()

    def add_worker(self, seat: int | None = None) -> Process:
        """Start a worker.

        Args:
            seat: whose successor it is: it goes the same way. Default: a free one.
        """
        with self._changing:
            taken = {self._seats[worker.pid] for worker in self.workers}
            seat = next(number for number in itertools.count() if number not in taken) if seat is None else seat
            ways = self._ways[:-1] or self._ways
            worker = self._run("worker", ways[seat % len(ways)])
            self._seats[worker.pid] = seat
            self.workers.append(worker)
            return worker

    def add_beat(self) -> Process:
        with self._changing:
            beat = self._run("beat", self._ways[-1])
            self.beats.append(beat)
            return beat

    def seat(self, worker: Process) -> int:
        return self._seats[worker.pid]

    def await_workers(self) -> None:
        """Wait until every worker that was started has shown itself, and beat too."""
        wanted = {process.pid for process in (*self.workers, *self.beats)}
        wait_until(lambda: wanted <= self._shown(wanted), START_SECONDS)

    def settle(self) -> None:
        """Wait until everybody is at work, for a while; who ends meanwhile has a successor."""
        with suppress(FleetError, InturnError):
            wait_until(lambda: {one.pid for one in (*self.workers, *self.beats)} <= self._pids(), START_SECONDS)

    def _pids(self) -> set[int]:
        return {row.pid for row in self.query("SELECT pid FROM worker_processes")}

    def _shown(self, wanted: set[int]) -> set[int]:
        for process in (*self.workers, *self.beats):
            if process.poll() is not None:
                raise FleetError(self.obituary(process))
        return self._pids() & wanted

    def busy_worker(self) -> Process | None:
        """A worker that holds leases now."""
        held = self.query(
            "SELECT p.pid, count(*) AS leases FROM leases AS l JOIN worker_processes AS p ON p.id = l.owner "
            "GROUP BY p.pid ORDER BY leases DESC"
        )
        mine = {worker.pid: worker for worker in self.workers}
        return next((mine[row.pid] for row in held if row.pid in mine), None)

    def sessions_of(self, *workers: Process) -> list[int]:
        """The surrogate IDs of the sessions that these workers hold."""
        pids = {worker.pid for worker in workers}
        held = self.query("SELECT p.pid, l.session_id FROM leases AS l JOIN worker_processes AS p ON p.id = l.owner")
        return sorted(row.session_id for row in held if row.pid in pids)

    def kill(self, process: Process, *, group: bool = False) -> None:
        """SIGKILL: nothing is put in order.

        Args:
            group: kill with it all that it has started.
        """
        with self._changing:
            for crew in (self.workers, self.beats):
                if process in crew:
                    crew.remove(process)
            end_group(process) if group else process.kill()
            process.wait(STOP_SECONDS)

    def retire(self, worker: Process) -> None:
        """SIGTERM: the replies in hand are finished. Returns when it has gone."""
        with self._changing:
            self.workers.remove(worker)
        worker.terminate()
        try:
            code = worker.wait(STOP_SECONDS + self.settings.shutdown_grace_seconds)
        except subprocess.TimeoutExpired:
            end_group(worker)
            raise FleetError(f"a worker did not leave in time: {self.said(worker)[-LAST_WORDS:]}") from None
        if code != 0:
            raise FleetError(self.obituary(worker))

    def dismiss(self, worker: Process, seconds: float) -> None:
        """SIGTERM, and SIGKILL for it and all that it has started if it has not left by then."""
        with self._changing:
            self.workers.remove(worker)
        worker.terminate()
        with suppress(subprocess.TimeoutExpired):
            worker.wait(seconds)
        end_group(worker)
        worker.wait(STOP_SECONDS)

    def rest(self) -> None:
        """Everybody leaves, in order where that can be had."""
        for beat in list(self.beats):
            self.kill(beat)
        for worker in list(self.workers):
            self.dismiss(worker, STOP_SECONDS)

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Who ends without our doing is noted in ``crashes``, and replaced at once."""
        leaving = threading.Event()

        def supervise() -> None:
            while not leaving.wait(SUPERVISE_SECONDS):
                self._replace_fallen()

        thread = threading.Thread(target=supervise, name="supervisor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            leaving.set()
            thread.join()

    def _replace_fallen(self) -> None:
        with self._changing:
            for crew in (self.workers, self.beats):
                for process in [one for one in crew if one.poll() is not None]:
                    self.crashes.append(self.obituary(process))
                    crew.remove(process)
                    if crew is self.workers:
                        self.add_worker(self.seat(process))
                    else:
                        self.add_beat()

    def heal(self) -> None:
        """Nobody is stopped, and there is one beat."""
        for process in (*self.workers, *self.beats):
            process.send_signal(signal.SIGCONT)
        for surplus in self.beats[1:]:
            self.kill(surplus)
        if not self.beats:
            self.add_beat()

    @property
    def broker_url(self) -> str:
        return self.broker.url or broker_url(self.home)

    def client(self) -> Client:
        """One that takes the broker for somebody's: of the embedded one, it would start a stack when it waits."""
        return Client(Settings.load(**self.values | {"broker_url": self.broker_url}))

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

    def said(self, process: Process) -> str:
        """What a process of ours has logged."""
        return self._log(process).read_text(errors="replace")

    def obituary(self, process: Process) -> str:
        """How a process ended, and what it said last."""
        words = self.said(process)[-LAST_WORDS:].strip()
        return f"{process.args!r} (PID {process.pid}) ended by itself with code {process.poll()}: {words}"

    def stop(self) -> None:
        """End what is left, at once."""
        with self._changing:
            for process in (*self.workers, *self.beats):
                end_group(process)
                process.wait(STOP_SECONDS)
            self.workers.clear()
            self.beats.clear()
        self.database.close()

    def _log(self, process: Process) -> Path:
        return self.logs / f"said.{process.pid}"

    def environment(self, way: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
        """For a process of this deployment: with its settings, and those of the way that it goes."""
        ours = {f"INTURN_{key.upper()}": as_text(value) for key, value in {**self.values, **way}.items()}
        return clean_environment(self.home) | ours

    def command(self, *words: str, **variables: str) -> Process:
        """Start a command of ``inturn`` that goes straight to the database, and says what it has to say to the logs."""
        return self._begin(inturn_command(*words), self.environment() | variables)

    def _run(self, word: str, way: Mapping[str, Any]) -> Process:
        command = inturn_command(word)
        return self._begin(on_another_host(self.home, command) if self._are_apart else command, self.environment(way))

    def _begin(self, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        said = self.logs / f"starting.{next(self._numbers)}"
        with said.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, cwd=self.home, start_new_session=True
            )
        said.rename(self._log(process))
        return process


def on_another_host(directory: Path, command: Sequence[str]) -> list[str]:
    """The command, for a process that sees the boot of another machine, which is what hosts are told apart by. (On Linux.)

    Args:
        directory: for the file that says which boot.
    """
    boot_id = str(uuid.uuid4())
    file = directory / f"boot.{boot_id}"
    file.write_text(f"{boot_id}\n")
    own_mounts = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    cover = f"mount --bind {shlex.quote(str(file))} /proc/sys/kernel/random/boot_id && exec {shlex.join(command)}"
    return [*own_mounts, "sh", "-c", cover]


def as_text(value: Any) -> str:
    """A setting as an environment variable writes it."""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def end_group(process: Process) -> None:
    """SIGKILL for a process of ours and all that it has started, unless its number may be somebody else's by now."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def freeze(child: int) -> None:
    """SIGSTOP for this PID, and wait until all its threads stand: on a busy machine, one that has not heard of it yet goes
    on for a while, and may begin to write.
    """
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for something; looks rarely, as others need the machine.

    Raises:
        FleetError: it did not come in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FleetError(f"waited for {seconds:g} s in vain")
        time.sleep(LOOK_SECONDS)
