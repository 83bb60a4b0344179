"""A task queue as a subject: a filled database, a queue full of tasks, one worker, a meter."""

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.bench.bare_subject import FINISHED, prepared
from ops.bench.databases import Databases, copy_of
from ops.bench.meter import Reading, memory_bytes, read, watch
from ops.bench.model_server import ModelServer
from ops.bench.processes import RAMP_SECONDS, running, wait_until
from ops.bench.workload import RAMP_TURNS, TURNS_PER_SESSION, Load
from ops.servers import RedisServer

TREE = Path(__file__).parents[2]
DATABASE_URL, BROKER_URL, MODEL_URL = "BENCH_DATABASE_URL", "BENCH_BROKER_URL", "BENCH_MODEL_URL"
"""Where a worker finds everything: variables of its environment."""


@dataclass(frozen=True, slots=True)
class TaskQueue:
    """A library that people answer prompts with today.

    Attributes:
        name: what the table calls it.
        command: what starts a worker with so many slots.
        ready: what the worker says when it is.
        publish: queues one task for each session and turn, at the broker of this URL.
        most_slots: a turn beyond them waits, as it does where people run it.
        most_per_second: more than it has ever done: so many tasks are queued for each second.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    ready: str
    publish: Callable[[str, Iterable[tuple[int, int]]], None]
    most_slots: int
    most_per_second: int


class QueueWorker:
    """One worker of a task queue.

    Args:
        queue: which one.
        databases: where to work.
        broker: carries the tasks and the locks; wiped before each run.
        model: answers the calls.
        directory: for what the worker says.
    """

    def __init__(
        self, queue: TaskQueue, databases: Databases, broker: RedisServer, model: ModelServer, directory: Path
    ) -> None:
        self.name, self.database = queue.name, databases.kind
        self._queue, self._databases, self._broker, self._model = queue, databases, broker, model
        self._log = directory / "queue-worker.log"
        self._template = ""

    def prepare(self, load: Load) -> None:
        self._template = prepared(self._databases, load)

    def run(self, load: Load) -> Reading:
        with copy_of(self._databases, self._template) as url:
            return self._measure(url, load)

    def _measure(self, url: str, load: Load) -> Reading:
        slots = min(load.in_flight, self._queue.most_slots)
        self._broker.flush()
        places = {DATABASE_URL: url, BROKER_URL: self._broker.url, MODEL_URL: self._model.base_url}
        with running(
            self._queue.command(slots),
            environment={**os.environ, **places, "PYTHONPATH": str(TREE)},
            output=self._log,
            last_signal=signal.SIGKILL,
        ) as worker:
            wait_until(lambda: self._queue.ready in self._log.read_text(errors="replace"), worker, RAMP_SECONDS)
            idle = memory_bytes(worker.pid)
            parts = {"worker": worker.pid, "broker": self._broker.pid, **self._databases.parts}
            full = self._model.served() + slots
            most = round(self._queue.most_per_second * (load.seconds + RAMP_TURNS))
            self._queue.publish(self._broker.url, itertools.islice(tasks(load), most))
            wait_until(lambda: self._model.served() >= full, worker, RAMP_SECONDS)
            samples = watch(parts, load.seconds)
        return read(samples, self._databases.times(url, FINISHED[self.database]), slots, idle)


def tasks(load: Load) -> Iterator[tuple[int, int]]:
    """Sessions and turns: those of as many sessions as fit, turn by turn, and then those of the next ones."""
    for first in range(1, load.sessions + 1, load.in_flight):
        for turn in range(1, TURNS_PER_SESSION + 1):
            yield from ((session, turn) for session in range(first, min(first + load.in_flight, load.sessions + 1)))
