"""Plain Celery as a subject: a filled database, a queue full of tasks, one worker, a meter."""

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from celery import Celery

from ops.bench.bare_subject import FINISHED, prepared
from ops.bench.databases import Databases, copy_of, with_driver
from ops.bench.meter import Reading, memory_bytes, read, watch
from ops.bench.model_server import ModelServer
from ops.bench.plain_celery import BROKER_URL, DATABASE_URL, MODEL_URL, QUEUE, TASK
from ops.bench.processes import RAMP_SECONDS, Child, module, running, wait_until
from ops.bench.workload import RAMP_TURNS, TURNS_PER_SESSION, Load
from ops.servers import RedisServer

TREE = Path(__file__).parents[2]
MOST_THREADS = 200
"""A turn beyond them waits for a thread, as it does where people run it."""
MOST_PER_SECOND = 400
"""More than it has ever done: so many tasks are queued for each second."""


class PlainCelery:
    """One Celery worker with the threads pool, one thread a turn.

    Args:
        databases: where to work.
        broker: carries the tasks and the locks; wiped before each run.
        model: answers the calls.
        directory: for what the worker says.
    """

    name = "plain Celery"

    def __init__(self, databases: Databases, broker: RedisServer, model: ModelServer, directory: Path) -> None:
        self.database = databases.kind
        self._databases, self._broker, self._model = databases, broker, model
        self._log = directory / "celery.log"
        self._template = ""

    def prepare(self, load: Load) -> None:
        self._template = prepared(self._databases, load)

    def run(self, load: Load) -> Reading:
        with copy_of(self._databases, self._template) as url:
            return self._measure(url, load)

    def _measure(self, url: str, load: Load) -> Reading:
        threads = min(load.in_flight, MOST_THREADS)
        self._broker.flush()
        with self._worker(url, threads) as worker:
            wait_until(lambda: "ready." in self._log.read_text(errors="replace"), worker, RAMP_SECONDS)
            idle = memory_bytes(worker.pid)
            parts = {"worker": worker.pid, "broker": self._broker.pid}
            if self._databases.server:
                parts["database"] = self._databases.server
            full = self._model.served() + threads
            self._publish(load)
            wait_until(lambda: self._model.served() >= full, worker, RAMP_SECONDS)
            samples = watch(parts, load.seconds)
        return read(samples, self._databases.times(url, FINISHED[self.database]), threads, idle)

    def _publish(self, load: Load) -> None:
        with Celery("producer", broker=self._broker.url) as app, app.producer_pool.acquire() as producer:
            most = round(MOST_PER_SECOND * (load.seconds + RAMP_TURNS))
            for session, turn in itertools.islice(tasks(load), most):
                app.send_task(TASK, args=(session, turn), queue=QUEUE, producer=producer)

    def _worker(self, url: str, threads: int) -> AbstractContextManager[Child]:
        words = ("--app=ops.bench.plain_celery", "worker", "--pool=threads", f"--concurrency={threads}")
        quietly = ("--loglevel=INFO", "--without-gossip", "--without-mingle", f"--queues={QUEUE}")
        places = {DATABASE_URL: with_driver(url), BROKER_URL: self._broker.url, MODEL_URL: self._model.base_url}
        return running(
            module("celery", *words, *quietly),
            environment={**os.environ, **places, "PYTHONPATH": str(TREE)},
            output=self._log,
            last_signal=signal.SIGKILL,
        )


def tasks(load: Load) -> Iterator[tuple[int, int]]:
    """Sessions and turns: those of as many sessions as fit, turn by turn, and then those of the next ones."""
    for first in range(1, load.sessions + 1, load.in_flight):
        for turn in range(1, TURNS_PER_SESSION + 1):
            yield from ((session, turn) for session in range(first, min(first + load.in_flight, load.sessions + 1)))
