"""inturn as a subject: a database full of waiting turns, hints in Redis, and one `inturn worker`."""

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg

from inturn.models.database import Database
from inturn.models.migrations import upgrade
from inturn.models.states import Lane
from inturn.models.store.waking import Ready
from inturn.settings import Settings
from inturn.workers.app import make_app
from inturn.workers.queues import Hints
from ops.bench.databases import Databases, copy_of
from ops.bench.filling import PROVIDER, fill
from ops.bench.meter import Reading, memory_bytes, read, watch
from ops.bench.model_server import ModelServer
from ops.bench.processes import RAMP_SECONDS, Child, ChildFailedError, module, running, wait_until
from ops.bench.workload import TURNS_PER_SESSION, Load
from ops.servers import RedisServer

TREE = Path(__file__).parents[2]
IDLE_SECONDS = 1.0

FINISHED = {
    "postgresql": "SELECT extract(epoch FROM finished_at) FROM turns WHERE state = 'completed'",
    "sqlite": "SELECT (julianday(finished_at) - 2440587.5) * 86400 FROM turns WHERE state = 'completed'",
}
HELD = "SELECT count(*) FROM leases WHERE owner IS NOT NULL"


SHOWN = "SELECT count(*) FROM worker_processes"


class Inturn:
    """One `inturn worker`, with every promise on.

    Args:
        databases: where to work.
        broker: carries the hints; wiped before each run.
        model: answers the calls.
        directory: for a home and a working directory without anybody's settings.
    """

    name = "inturn"

    def __init__(self, databases: Databases, broker: RedisServer, model: ModelServer, directory: Path) -> None:
        self.database = databases.kind
        self.broker_url = broker.url
        self._databases = databases
        self._broker = broker
        self._model = model
        self._home = directory / "home"
        self._home.mkdir(exist_ok=True)
        self._log = directory / "worker.log"
        self._template = ""
        self._idle: int | None = None

    def prepare(self, load: Load) -> None:
        self._template = self._databases.create()
        fill(self._template, load.sessions)
        if self._idle is None:
            self._idle = self._idle_memory()

    def run(self, load: Load, workers: int = 1) -> Reading:
        """Work under this load, which so many workers share. What it cost is read from one of them."""
        with copy_of(self._databases, self._template) as url:
            return self._measure(url, load, self._idle or 0, workers)

    def _measure(self, url: str, load: Load, idle: int, workers: int) -> Reading:
        environment = self.environment(url, load.in_flight // workers)
        self.hint(load.in_flight)
        full = self._model.served() + load.in_flight

        def is_at_work() -> bool:
            # Every slot holds a lease, but for those that pass from one session to the next.
            return self._model.served() >= full and self._databases.times(url, HELD)[0] >= load.in_flight * 0.95

        with ExitStack() as stack:
            worker, *_ = [stack.enter_context(self.worker(environment)) for _ in range(workers)]
            self.wait(worker, is_at_work)
            samples = watch({"worker": worker.pid, "broker": self._broker.pid, **self._databases.parts}, load.seconds)
        return read(samples, self._databases.times(url, FINISHED[self.database]), load.in_flight, idle)

    def _idle_memory(self) -> int:
        """Bytes of a worker that has answered one session's turns and waits for more."""
        url = self._databases.create()
        fill(url, sessions=1)
        environment = self.environment(url, concurrency=1)
        self.hint(sessions=1)
        answered = self._model.served() + TURNS_PER_SESSION
        with self.worker(environment) as worker:
            self.wait(worker, lambda: self._model.served() >= answered)
            time.sleep(IDLE_SECONDS)
            return memory_bytes(worker.pid)

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """A database with the schema and nothing in it, and an empty broker."""
        url = self._databases.create()
        database = Database(url)
        upgrade(database)
        database.close()
        self._broker.flush()
        try:
            yield url
        finally:
            self._databases.drop(url)

    def hint(self, sessions: int, lane: Lane = Lane.CHAT) -> None:
        """Publish what sends would have published. One hint a slot does: a task takes up other ready sessions, too."""
        self._broker.flush()
        app = make_app(Settings.load(home=self._home, broker_url=self._broker.url), producer=True)
        hints = Hints(app)
        for session in range(1, sessions + 1):
            hints.publish(Ready(session, f"bench-{session}", lane), f"bench-{session}")
        app.close()

    def environment(self, url: str, concurrency: int, **models: ModelServer) -> dict[str, str]:
        """Ours, less what configures inturn or Celery, plus what this run needs; ``models`` are providers by name."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("INTURN_", "CELERY_"))}
        models = {PROVIDER: self._model, **models}
        providers = {name: {"type": "openai", "base_url": model.base_url} for name, model in models.items()}
        return kept | {
            "XDG_CONFIG_HOME": str(self._home),
            "PYTHONPATH": os.pathsep.join([str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "INTURN_HOME": str(self._home),
            "INTURN_DATABASE_URL": url,
            "INTURN_BROKER_URL": self._broker.url,
            "INTURN_PROVIDERS": json.dumps(providers),
            "INTURN_CONCURRENCY": str(concurrency),
        }

    def worker(self, environment: dict[str, str]) -> AbstractContextManager[Child]:
        # Killed in the end: a warm shutdown would take as long as its last reply, and nobody measures it.
        return running(
            module("inturn", "worker"),
            environment=environment,
            directory=self._home,
            output=self._log,
            last_signal=signal.SIGKILL,
        )

    def wait_ready(self, worker: Child, url: str) -> None:
        """Wait until the worker has shown itself."""

        def is_shown() -> bool:
            try:
                return bool(self._databases.times(url, SHOWN)[0])
            except (psycopg.Error, sqlite3.Error):
                return False

        self.wait(worker, is_shown)

    def wait(self, worker: Child, condition: Callable[[], bool]) -> None:
        """Wait until the worker has come to this.

        Raises:
            ChildFailedError: it did not; quotes the worker.
        """
        try:
            wait_until(condition, worker, RAMP_SECONDS)
        except ChildFailedError as error:
            words = "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-10:])
            raise ChildFailedError(f"{error}. Its last words:\n{words}") from None
