"""The asyncio pool inside real Celery workers, and its corners in this process."""

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import pytest
from celery import Celery
from celery.app.trace import traceback_clear
from celery.exceptions import (
    ImproperlyConfigured,
    SoftTimeLimitExceeded,
    Terminated,
    WorkerLostError,
    WorkerShutdown,
    WorkerTerminate,
)
from celery.worker import state
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from inturn.workers.pool import TaskPool, run_coroutine
from ops.servers import RedisServer

ROOT = Path(__file__).parents[2]
APP = "tests.integration.pool_app"


class Worker:
    """A Celery worker in a process of its own, with its journal, its log, and the events it sends."""

    numbers = itertools.count(1)

    def __init__(self, directory: Path, broker: str, concurrency: int, transport: dict[str, object] | None = None):
        queue = f"pool-test-{os.getpid()}-{next(self.numbers)}"
        self.name = f"{queue}@here"
        self.app = Celery(broker=broker, set_as_current=False)
        self.app.conf.update(task_default_queue=queue, broker_transport_options=transport or {})
        self.journal_path = directory / f"{queue}.journal"
        self.log_path = directory / f"{queue}.log"
        self.events: list[dict[str, object]] = []
        environment = {
            "POOL_TEST_BROKER": broker,
            "POOL_TEST_QUEUE": queue,
            "POOL_TEST_JOURNAL": str(self.journal_path),
            "POOL_TEST_TRANSPORT": json.dumps(transport or {}),
        }
        options = ["-E", "-c", str(concurrency), "-n", self.name, "--without-gossip", "--without-mingle"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", APP, "worker", "-l", "INFO", *options],
                cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log,
            )  # fmt: skip

    def listen(self) -> None:
        """Collect the worker's events, as Flower does."""
        connection = self.app.connection()
        self.receiver = self.app.events.Receiver(connection, handlers={"*": self.events.append})
        self.listener = threading.Thread(target=self.receiver.capture, kwargs={"wakeup": False})
        self.listener.start()

    def wait_until_ready(self) -> "Worker":
        expect(lambda: " ready." in self.log(), seconds=20)
        return self

    def send(self, task: str, *args: object, **options: object) -> str:
        return str(self.app.send_task(f"{APP}.{task}", args, **options).id)

    def journal(self, what: str) -> list[dict[str, object]]:
        if not self.journal_path.exists():
            return []
        notes = [
            json.loads(line) for line in self.journal_path.read_text().splitlines(keepends=True) if line[-1] == "\n"
        ]
        return [note for note in notes if note["what"] == what]

    def outcomes(self, task_id: str) -> list[object]:
        """The events that end a task."""
        ends = ("task-succeeded", "task-failed", "task-revoked", "task-retried", "task-rejected")
        return [event["type"] for event in self.events if event.get("uuid") == task_id and event["type"] in ends]

    def in_flight(self) -> int:
        replies = self.app.control.inspect([self.name], timeout=2).stats() or {}
        return int(replies[self.name]["pool"]["in-flight"])

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def ends(self, signum: signal.Signals, within: float) -> int:
        self.process.send_signal(signum)
        return self.process.wait(within)

    def stop(self) -> None:
        if hasattr(self, "listener"):
            self.receiver.should_stop = True
            self.listener.join(5)
        self.process.kill()
        self.process.wait()


def expect(condition: Callable[[], object], seconds: float = 5.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def worker(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all the tests that leave it alive."""
    worker = Worker(tmp_path_factory.mktemp("worker"), redis.url, concurrency=250)
    try:
        worker.listen()
        yield worker.wait_until_ready()
    finally:
        worker.stop()


@pytest.fixture
def small_worker(redis: RedisServer, tmp_path: Path) -> Iterator[Worker]:
    """A worker with 5 slots, to be stopped."""
    worker = Worker(tmp_path, redis.url, concurrency=5)
    try:
        yield worker.wait_until_ready()
    finally:
        worker.stop()


def test_two_hundred_tasks_await_at_once(worker, tmp_path):
    sign = tmp_path / "go on"
    tasks = [worker.send("wait_for", str(sign)) for _ in range(200)]
    expect(lambda: len(worker.journal("began")) == 200, seconds=10)
    assert worker.in_flight() == 200
    assert not worker.journal("ended")
    sign.touch()
    expect(lambda: all(worker.outcomes(task) == ["task-succeeded"] for task in tasks))
    assert len(worker.journal("ended")) == 200
    assert worker.in_flight() == 0


def test_requests_of_concurrent_tasks_do_not_mix(worker):
    tasks = {worker.send("look_at_yourself", f"task {i}"): f"task {i}" for i in range(50)}
    expect(lambda: len(worker.journal("looked")) == 50)
    seen = {note["name"]: note["seen"] for note in worker.journal("looked")}
    assert seen == {name: [[task, name, task]] * 4 for task, name in tasks.items()}


def test_an_error_of_a_coroutine_fails_its_task(worker):
    task = worker.send("fail")
    expect(lambda: worker.outcomes(task))
    assert worker.outcomes(task) == ["task-failed"]
    event = next(event for event in worker.events if event.get("uuid") == task and event["type"] == "task-failed")
    assert event["exception"] == "LookupError('no such thing')"
    assert "in fail_later" in str(event["traceback"])


def test_an_exit_of_a_body_fails_its_task_alone(worker):
    task = worker.send("leave")
    expect(lambda: worker.outcomes(task))
    assert worker.outcomes(task) == ["task-failed"]
    assert worker.process.poll() is None


def test_terminating_a_task_cancels_what_it_awaits(worker):
    task = worker.send("nap", 61, 0.1)
    expect(lambda: 61 in [note.get("seconds") for note in worker.journal("began")])
    worker.app.control.revoke(task, terminate=True)
    expect(lambda: worker.outcomes(task), seconds=2)
    expect(lambda: worker.in_flight() == 0, seconds=2)
    assert [note["seconds"] for note in worker.journal("cleaned up")] == [61]
    assert worker.outcomes(task) == ["task-revoked"]
    assert task not in worker.log().split("Terminating", 1)[1].split("\n", 1)[1], "nothing is said after it"


def test_a_hard_time_limit_cancels_and_fails(worker):
    task = worker.send("nap", 62, time_limit=0.3)
    expect(lambda: worker.outcomes(task), seconds=2)
    expect(lambda: worker.in_flight() == 0, seconds=2)
    assert worker.outcomes(task) == ["task-failed"]
    assert 62 in [note["seconds"] for note in worker.journal("cleaned up")]
    assert f"Hard time limit (0.3s) exceeded for {APP}.nap[{task}]" in worker.log()


def test_a_soft_time_limit_is_raised_where_the_body_awaits(worker):
    task = worker.send("outlast_the_soft_limit", soft_time_limit=0.2, time_limit=5)
    expect(lambda: worker.outcomes(task), seconds=2)
    assert worker.outcomes(task) == ["task-succeeded"]
    assert worker.journal("soft limit") == [{"what": "soft limit", "error": "SoftTimeLimitExceeded(0.2,)"}]
    assert "Soft time limit (0.2s) exceeded" in worker.log()


def test_a_task_that_holds_up_the_loop_is_named(worker):
    task = worker.send("hold_up_the_loop", 2)
    expect(lambda: "has not come round" in worker.log())
    assert re.search(rf"{APP}.hold_up_the_loop\[{task}\] holds it up, at \S+/pool_app.py:\d+", worker.log())
    assert worker.log().count("has not come round") == 1


def test_slots_can_be_added_and_taken_away(worker):
    control, to_it = worker.app.control, {"destination": [worker.name], "reply": True}
    control.pool_grow(10, **to_it)
    assert worker.app.control.inspect([worker.name]).stats()[worker.name]["pool"]["max-concurrency"] == 260
    control.pool_shrink(10, **to_it)
    assert worker.app.control.inspect([worker.name]).stats()[worker.name]["pool"]["max-concurrency"] == 250


def test_warm_shutdown_finishes_what_is_in_hand_and_starts_nothing(small_worker):
    for _ in range(7):
        small_worker.send("nap", 1)
    expect(lambda: len(small_worker.journal("began")) == 5)
    assert small_worker.ends(signal.SIGTERM, within=5) == 0
    assert [len(small_worker.journal(what)) for what in ("began", "ended", "cleaned up")] == [5, 5, 0]
    with small_worker.app.connection() as connection:
        queue = small_worker.app.amqp.queues[small_worker.app.conf.task_default_queue]
        assert queue(connection.default_channel).queue_declare(passive=True).message_count == 2


def test_cold_shutdown_cancels_and_leaves_at_once(small_worker):
    for _ in range(5):
        small_worker.send("nap", 60, 0.1)
    expect(lambda: len(small_worker.journal("began")) == 5)
    small_worker.ends(signal.SIGQUIT, within=3)
    assert [len(small_worker.journal(what)) for what in ("ended", "cleaned up")] == [0, 5]
    assert "Traceback" not in small_worker.log()


def test_a_warm_shutdown_can_be_made_cold(small_worker):
    small_worker.send("nap", 60)
    expect(lambda: small_worker.journal("began"))
    with pytest.raises(subprocess.TimeoutExpired):
        small_worker.ends(signal.SIGTERM, within=0.5)
    small_worker.ends(signal.SIGQUIT, within=3)
    assert small_worker.journal("cleaned up")


def test_a_lost_broker_interrupts_no_task_and_is_found_again(tmp_path):
    redis = RedisServer()
    worker = Worker(tmp_path, redis.url, concurrency=5)
    try:
        worker.wait_until_ready()
        with redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        worker.send("nap", 1)
        expect(lambda: worker.journal("began"), seconds=10)
        redis.kill()
        expect(lambda: worker.journal("ended"))
        redis.start()
        task = worker.send("nap", 0)
        # Celery waits 2 s longer before each further try.
        expect(lambda: f"{APP}.nap[{task}] succeeded" in worker.log(), seconds=30)
        assert worker.in_flight() == 0
    finally:
        worker.stop()
        redis.stop()


def test_a_body_can_stop_the_worker(small_worker):
    small_worker.send("stop_the_worker")
    assert small_worker.process.wait(5) == 3


def test_a_transport_without_event_loop_works_too(tmp_path):
    (tmp_path / "messages").mkdir()
    folders = {f"data_folder_{way}": str(tmp_path / "messages") for way in ("in", "out")}
    worker = Worker(tmp_path, "filesystem://", 3, {**folders, "control_folder": str(tmp_path / "control")})
    try:
        worker.wait_until_ready()
        for _ in range(6):
            worker.send("nap", 0.3)
        expect(lambda: len(worker.journal("ended")) == 6)
        worker.send("nap", 0.5)
        expect(lambda: len(worker.journal("began")) == 7)
        worker.process.send_signal(signal.SIGTERM)
        expect(lambda: len(worker.journal("ended")) == 7)
    finally:
        worker.stop()


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    """A pool in this process; the test's thread plays Celery's hub."""
    pool = TaskPool(2, semaphore=LaxBoundedSemaphore(2))
    pool.start()
    yield pool
    pool.terminate()
    state.should_stop = state.should_terminate = None


class Told:
    """What a pool tells Celery of one task."""

    def __init__(self, pool: TaskPool, body: Callable[[], object], **options: float):
        self.outcomes: list[object] = []
        self.pid = 0
        self.job = pool.apply_async(
            lambda *name: (0, body(), 0.0), ("name", "ID"),
            accept_callback=self.accept, callback=self.outcomes.append,
            error_callback=lambda info: self.outcomes.append(info.exception.exc),
            timeout_callback=lambda soft, limit: self.outcomes.append((soft, limit)), **options,
        )  # fmt: skip

    def accept(self, pid: int, when: float) -> None:
        self.pid = pid


def nap(seconds: float) -> str:
    run_coroutine(asyncio.sleep(seconds))
    return "rested"


def leave(error: BaseException) -> None:
    raise error


def test_run_coroutine_outside_the_pool_says_what_to_do():
    with pytest.raises(RuntimeError, match="inturn worker"):
        run_coroutine(asyncio.sleep(0))


@pytest.mark.parametrize("error", [LookupError("no"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_every_end_of_a_body_is_told_once(pool, error):
    told = Told(pool, lambda: leave(error))
    assert pool.drain()
    [outcome] = told.outcomes
    assert outcome is error if isinstance(error, Exception) else isinstance(outcome, WorkerLostError)


def test_a_body_may_order_the_worker_to_stop(pool):
    Told(pool, lambda: leave(WorkerShutdown(4)))
    pool.drain()
    assert (state.should_stop, state.should_terminate) == (4, None)
    Told(pool, lambda: leave(WorkerTerminate(5)))
    pool.drain()
    assert state.should_terminate == 5


def test_a_task_terminated_before_it_begins_never_runs(pool):
    began: list[object] = []

    class TerminatedAtOnce(Told):
        def accept(self, pid, when):
            pool.terminate_job(pid, signal.SIGTERM)

    told = TerminatedAtOnce(pool, lambda: began.append(1))
    assert pool.drain()
    assert [type(outcome) for outcome in told.outcomes] == [Terminated]
    assert not began


def test_a_task_terminated_after_its_end_has_one_outcome(pool):
    told = Told(pool, lambda: "done")
    expect(lambda: not pool.info["in-flight"])
    told.job.terminate(signal.SIGTERM)
    pool.drain()
    assert [type(outcome) for outcome in told.outcomes] == [Terminated]


def test_terminating_twice_does_not_cut_off_the_cleanup(pool):
    cleaned = []

    def body():
        try:
            nap(60)
        finally:
            cleaned.append(nap(0.1))

    told = Told(pool, body)
    pool.submit(asyncio.sleep(0.05)).result()
    pool.terminate_job(told.pid, signal.SIGTERM)
    pool.submit(asyncio.sleep(0.05)).result()
    told.job.terminate(signal.SIGTERM)
    pool.drain()
    assert cleaned == ["rested"]
    assert [type(outcome) for outcome in told.outcomes] == [Terminated]


def test_a_soft_time_limit_reaches_the_body_past_a_coroutine_that_swallows_it(pool):
    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "nothing happened"

    told = Told(pool, lambda: run_coroutine(stubborn()), soft_timeout=0.05, timeout=5)
    pool.drain()
    assert told.outcomes[0] == (True, 0.05)
    assert isinstance(told.outcomes[1], SoftTimeLimitExceeded)


def test_a_soft_time_limit_leaves_later_awaits_alone(pool):
    def body():
        with pytest.raises(SoftTimeLimitExceeded):
            nap(60)
        task = asyncio.current_task()
        return nap(0.01), task and task.cancelling()

    told = Told(pool, body, soft_timeout=0.05)
    pool.drain()
    assert told.outcomes == [(True, 0.05), (0, ("rested", 0), 0.0)]


def test_terminating_outweighs_a_soft_time_limit(pool):
    seen: list[type[BaseException]] = []

    def body():
        try:
            nap(60)
        except BaseException as error:
            seen.append(type(error))
            raise

    told = Told(pool, body, soft_timeout=60)

    async def terminate_as_the_limit_is_hit():
        told.job._hit_limit(True)
        told.job.terminated = signal.SIGTERM
        told.job.cancel()

    pool.submit(asyncio.sleep(0.05)).result()
    pool.submit(terminate_as_the_limit_is_hit()).result()
    pool.drain()
    assert seen == [asyncio.CancelledError]
    assert [type(outcome) for outcome in told.outcomes] == [Terminated]


def test_cold_shutdown_waits_but_not_for_long(pool, monkeypatch):
    monkeypatch.setattr("inturn.workers.pool.COLD_STOP_SECONDS", 0.2)

    given_up = threading.Event()

    def body():
        while not given_up.is_set():
            try:
                nap(60)
            except asyncio.CancelledError:
                continue

    told = Told(pool, body)
    pool.submit(asyncio.sleep(0.05)).result()
    began = time.monotonic()
    pool.terminate()
    assert time.monotonic() - began < 2
    given_up.set()
    assert told.outcomes == []


def test_a_callback_that_fails_is_logged_and_stops_nothing(pool, caplog):
    first = Told(pool, lambda: 1)
    first.job.callbacks["callback"] = lambda result: leave(OSError("broker away"))
    second = Told(pool, lambda: 2)
    pool.drain()
    assert second.outcomes == [(0, 2, 0.0)]
    assert "Celery failed to take note of name[ID] (callback)" in caplog.text


def test_tasks_that_share_an_error_do_not_end_each_other(pool):
    future: asyncio.Future[None] = pool.submit(new_future()).result()

    def first():
        try:
            run_coroutine(wait_for(future))
        except LookupError as error:
            nap(0.1)
            traceback_clear(error)  # as Celery's tracer does with what a body raises

    def second():
        with pytest.raises(LookupError):
            run_coroutine(wait_for(future))
        return nap(0.2)

    told = [Told(pool, first), Told(pool, second)]
    pool.loop.call_soon_threadsafe(future.set_exception, LookupError("shared"))
    assert pool.drain(timeout=2)
    assert [one.outcomes for one in told] == [[(0, None, 0.0)], [(0, "rested", 0.0)]]


async def new_future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


async def wait_for(future: "asyncio.Future[None]") -> None:
    await future


def test_a_body_and_its_coroutines_share_context_variables(pool):
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")

    async def read() -> str:
        return variable.get()

    def body():
        before = run_coroutine(read())
        variable.set("mine")
        return before, run_coroutine(read())

    told = [Told(pool, body), Told(pool, body)]
    pool.drain()
    assert [one.outcomes for one in told] == [[(0, ("nobody's", "mine"), 0.0)]] * 2


def test_draining_is_seen_by_tasks_and_refuses_new_ones(pool):
    told = Told(pool, lambda: run_coroutine(pool.closing.wait()))
    assert not pool.draining
    pool.close()
    assert pool.drain(timeout=2)
    assert told.outcomes == [(0, True, 0.0)]
    assert pool.draining
    assert Told(pool, lambda: 1).job is None


def test_the_death_of_the_loop_stops_the_worker(pool, monkeypatch, caplog):
    monkeypatch.setattr("inturn.workers.pool.COLD_STOP_SECONDS", 0.2)

    async def leave_the_loop():
        raise SystemExit("out of a coroutine that nobody awaits")

    Told(pool, lambda: nap(60))
    pool.submit(leave_the_loop())
    expect(lambda: "event loop died" in caplog.text)
    pool.drain(timeout=0)
    assert state.should_terminate == 1


def test_what_the_pool_cannot_do_it_says():
    for option in ("maxtasksperchild", "max_memory_per_child"):
        with pytest.raises(ImproperlyConfigured, match="no child processes"):
            TaskPool(2, **{option: 100})
    with pytest.raises(RuntimeError, match="restart the worker"):
        TaskPool(2).restart()
    with pytest.raises(ValueError, match="one must stay"):
        TaskPool(2).shrink(2)
