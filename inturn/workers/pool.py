"""The asyncio pool for Celery: the tasks of a worker run on one event loop, thousands at a time.

Celery's tracer is synchronous code, so each task has a greenlet in which the tracer runs, unpatched. A body awaits
through ``run_coroutine``, which leaves the greenlet; the asyncio task that drives it awaits the coroutine and comes
back with what came of it: a value, an error, or a cancellation.

Two threads. Celery's **hub thread** owns requests, channels and events, none of which is thread-safe, so Celery is
told everything there. The **loop thread** runs the tasks. Work goes in by ``call_soon_threadsafe``; news come out by
a deque, and a pipe that the hub watches. (Not by ``hub.call_soon``: its lock may be held by the very hub thread that
a signal handler has interrupted to wait for us.) Where the broker's transport has no hub, the loop thread tells Celery
itself, under a lock: tasks then wait for acknowledgements, but such transports are for trying things out.

What this pool cannot do: go on while a body neither awaits nor returns (it names that task after about a second), kill
what refuses to be cancelled, restart, or renew itself after a number of tasks: there is no child process to replace.
"""

import asyncio
import itertools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any, TypeVar, cast

import uvloop
from billiard.einfo import ExceptionInfo
from celery import exceptions
from celery.concurrency.base import BasePool
from celery.platforms import EX_FAILURE
from celery.worker import state
from greenlet import getcurrent, greenlet
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

logger = logging.getLogger(__name__)

BLOCKED_SECONDS = 1.0
WATCH_SECONDS = 0.25
COLD_STOP_SECONDS = 3.0
SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter from others. At Python's 5 ms the hub got through 70 messages a second."""

Value = TypeVar("Value")


class Body(greenlet):  # type: ignore[misc]
    """The greenlet of one task: Celery's tracer and, inside it, the task's body."""


def run_coroutine(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Await ``coroutine`` from the synchronous body of a task of this pool. Other tasks run meanwhile.

    Raises:
        asyncio.CancelledError: the task was terminated. Let it pass, after cleaning up (which may await again).
        SoftTimeLimitExceeded: the task's soft time limit is over.
        RuntimeError: the caller is no task of this pool.
    """
    body = getcurrent()
    if not isinstance(body, Body):
        coroutine.close()
        raise RuntimeError(
            "run_coroutine was called outside a task of inturn's pool: start the worker with `inturn worker` (or "
            "worker_pool='inturn.workers.pool:TaskPool'); in a coroutine use await, elsewhere asyncio.run"
        )
    return cast(Value, body.parent.switch(coroutine))


@dataclass(slots=True, weakref_slot=True, eq=False)
class Job:
    """One task in hand. Celery keeps a weak reference to it, to terminate it by.

    The hub thread writes ``terminated`` and ``is_settled``, the loop thread all the rest.
    """

    pool: "TaskPool"
    pid: int
    target: Callable[..., Any]
    args: tuple[Any, ...]
    limits: tuple[float | None, float | None]  # hard and soft, in seconds
    callbacks: dict[str, Any]
    terminated: int | None = None  # by this signal, had there been a process
    is_settled: bool = False  # Celery knows how it ended, or is never to know
    asyncio_task: asyncio.Task[None] | None = None
    alarms: tuple[asyncio.TimerHandle, ...] = ()
    is_soft_limit_hit: bool = False
    result: Any = None
    failure: BaseException | None = None

    def __str__(self) -> str:
        # Celery's arguments to its tracer begin with the task's name and ID.
        return "{}[{}]".format(*self.args)

    def notify(self, name: str, *args: Any) -> None:
        """Call one of Celery's callbacks. Hub thread. Its failure is not the pool's, nor the next task's."""
        try:
            if callback := self.callbacks.get(name):
                callback(*args)
        except Exception:
            logger.exception("Celery failed to take note of %s (%s)", self, name)

    def terminate(self, signum: int | None = None) -> None:
        """Cancel what the task awaits. Hub thread. Celery calls it twice for one revoke, and once is enough."""
        if self.terminated is None:
            self.terminated = signum or signal.SIGTERM
            self.pool.call_soon(self.cancel)

    def abandon(self) -> None:
        """Cancel the task and tell Celery nothing, as if its process had been killed. Hub thread."""
        self.is_settled = True
        self.pool.call_soon(self.cancel)

    def settle(self) -> None:
        """Tell Celery how the task ended, in the words of its own pools. Hub thread."""
        if self.is_settled:
            return
        self.is_settled = True
        failure = self.failure if self.terminated is None else exceptions.Terminated(self.terminated)
        if failure is None:
            self.notify("callback", self.result)
        elif isinstance(failure, exceptions.WorkerShutdown | exceptions.WorkerTerminate):
            stop_worker(failure)
        else:
            try:
                raise failure if isinstance(failure, Exception) else exceptions.WorkerLostError(repr(failure))
            except Exception:  # noqa: BLE001 - raised only because ExceptionInfo takes the error under way
                self.notify("error_callback", ExceptionInfo())

    def begin(self) -> None:
        if self.terminated is None and not self.is_settled:
            self.asyncio_task = self.pool.loop.create_task(self._drive())
            self.asyncio_task.add_done_callback(self._on_done)
        else:
            self.pool.job_ended(self)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # before its first step
            self.failure = asyncio.CancelledError()
        for alarm in self.alarms:
            alarm.cancel()
        self.pool.job_ended(self)

    async def _drive(self) -> None:
        """Run the body, await what it passes out and pass back what came of it, until the body returns."""
        call_later = self.pool.loop.call_later
        self.alarms = tuple(call_later(limit, self._hit_limit, bool(i)) for i, limit in enumerate(self.limits) if limit)
        body = Body(self.target)
        body.gr_context = getcurrent().gr_context
        try:
            passed = body.switch(*self.args)
            while body:
                value = error = None
                try:
                    value = await passed
                except BaseException as caught:  # noqa: BLE001 - the body decides
                    # Without our frame: Celery clears the frames of a failed body's traceback, and before Python 3.13
                    # that closes suspended coroutines: this one, when waiters of one future share its error.
                    error = caught.with_traceback(caught.__traceback__ and caught.__traceback__.tb_next)
                if self.is_soft_limit_hit:
                    error = self._soft_limit_error() or error
                passed = body.switch(value) if error is None else body.throw(type(error), error, error.__traceback__)
            self.result = passed
        except BaseException as caught:  # noqa: BLE001 - the hub thread tells Celery of all of them
            self.failure = caught

    def cancel(self) -> bool:
        return self.asyncio_task is not None and self.asyncio_task.cancel()

    def _hit_limit(self, soft: bool) -> None:
        if self.terminated is None and self.cancel():
            self.is_soft_limit_hit = soft
            self.pool.tell(self._report_limit, soft)

    def _report_limit(self, soft: bool) -> None:
        if self.terminated is None and not self.is_settled:
            self.is_settled = not soft
            self.notify("timeout_callback", soft, self.limits[soft])

    def _soft_limit_error(self) -> Exception | None:
        """The soft limit's cancellation as the error it stands for; None when the task was cancelled otherwise too."""
        self.is_soft_limit_hit = False
        assert self.asyncio_task is not None
        return None if self.asyncio_task.uncancel() else exceptions.SoftTimeLimitExceeded(self.limits[1])


class TaskPool(BasePool):  # type: ignore[misc]
    """The pool that the setting ``worker_pool`` names.

    Attributes:
        loop: the event loop of all tasks, once the pool has started.
        draining: the worker is stopping, so whatever can stop early should begin nothing new.
        closing: the same, to be awaited on the loop.
    """

    # Celery keeps requests back while all slots are taken, looks again whether they were revoked, and drops them with
    # a lost connection, since they come again: better than a queue in here.
    uses_semaphore = True
    signal_safe = False  # stopping waits for another thread, which a signal handler should not
    is_green = False  # nothing is monkey-patched: the hub thread is a plain one
    task_join_will_block = True  # result.get() in a body would hold up all of them, so Celery is to refuse it

    def __init__(self, limit: int, *args: Any, **options: Any) -> None:
        super().__init__(limit, *args, **options)
        for option in ("maxtasksperchild", "max_memory_per_child"):
            if options.get(option):
                raise exceptions.ImproperlyConfigured(
                    f"{option}={options[option]} cannot be honoured: inturn's pool has no child processes to replace. "
                    "Remove worker_max_tasks_per_child and worker_max_memory_per_child, or restart the worker instead"
                )
        self.draining = False
        self.closing = asyncio.Event()
        self._pids = itertools.count(1)
        self._halted = asyncio.Event()
        self._has_hub = not options.get("threads")
        self._slots = options.get("semaphore") or LaxBoundedSemaphore(limit)
        self._jobs: dict[int, Job] = {}
        self._news: deque[Callable[[], object]] = deque()
        self._is_bell_rung = False
        self._telling = threading.RLock()  # where there is no hub
        self._asked_at: float | None = None

    def on_start(self) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        self._bell_out, self._bell_in = os.pipe()
        os.set_blocking(self._bell_out, False)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.loop: asyncio.AbstractEventLoop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run_loop, name="inturn-loop", daemon=True)
        self._thread.start()

    def register_with_event_loop(self, hub: Any) -> None:
        """Called at the start and after each loss of the broker, which empties the hub."""
        hub.add_reader(self._bell_out, self._deliver)
        hub.call_repeatedly(WATCH_SECONDS, self._watch)

    def submit(self, coroutine: Coroutine[Any, Any, Value]) -> "Future[Value]":
        """Run ``coroutine`` on the pool's loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def on_apply(self, target: Callable[..., Any], args: Any = (), kwargs: Any = None, **options: Any) -> Job | None:
        """Take a task in hand; None while stopping: its message, not acknowledged, goes back to its queue."""
        if self.draining:
            return None
        hard, soft = (options.get(name) or self.options.get(name) for name in ("timeout", "soft_timeout"))
        job = Job(self, next(self._pids), partial(target, **(kwargs or {})), args, (hard, soft), options)
        if self._has_hub:
            self._admit(job)
        else:
            with self._telling:
                self._slots.acquire(self._admit, job)
        return job

    def _admit(self, job: Job) -> None:
        self._jobs[job.pid] = job
        # Before it begins: a task that was revoked while it waited is terminated in here.
        job.notify("accept_callback", job.pid, time.monotonic())
        self.call_soon(job.begin)

    def terminate_job(self, pid: int, signum: int | None = None) -> None:
        """Cancel the task that Celery knows by ``pid``: a handle, as there is one process for all."""
        if job := self._jobs.get(pid):
            job.terminate(signum)

    def on_close(self) -> None:
        self.draining = True
        self.call_soon(self.closing.set)

    def on_stop(self) -> None:
        """Wait for the tasks in hand."""
        self.draining = True
        self.drain()
        # A cold shutdown's signal handler comes here before the worker's other steps have stopped. They may still need
        # the loop: ``on_terminate`` halts it.
        if not is_stopping_cold():
            self._halt()

    def on_terminate(self) -> None:
        """Cancel the tasks in hand and give them a moment to clean up."""
        self.draining = True
        for job in list(self._jobs.values()):
            job.abandon()
        self.drain(COLD_STOP_SECONDS)
        self._halt()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait for the tasks in hand, telling Celery of each that ends; False when some go on after the timeout.

        For the thread that stops the worker. Without timeout (in seconds), only a cold shutdown ends the wait early.
        """
        limit = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._deliver()
            self._watch()
            if not self._jobs and not self._news:  # in this order: ``job_ended`` goes the other way round
                return True
            now = time.monotonic()
            if is_stopping_cold():
                limit = min(limit, now + COLD_STOP_SECONDS)
            if now >= limit:
                logger.warning("left behind, as they do not end: %s", ", ".join(map(str, self._jobs.values())))
                return False
            wait([self._bell_out], WATCH_SECONDS)

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self._slots.grow(n)

    def shrink(self, n: int = 1) -> None:
        if n >= self.limit:
            raise ValueError(f"the pool has {self.limit} slots and cannot lose {n}: one must stay")
        self.limit -= n
        self._slots.shrink(n)

    def restart(self) -> None:
        raise RuntimeError("inturn's pool lives in the worker's process: restart the worker (SIGTERM loses no task)")

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "in-flight": len(self._jobs), "draining": self.draining}

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have the loop thread make a call; nothing when the loop is closed. Hub thread."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback, *args)

    def tell(self, callback: Callable[..., object], *args: Any) -> None:
        """Have the hub thread make a call. Loop thread."""
        if not self._has_hub:
            with self._telling:
                callback(*args)
            return
        self._news.append(partial(callback, *args))
        if not self._is_bell_rung:
            self._is_bell_rung = True
            os.write(self._bell_in, b"\0")

    def job_ended(self, job: Job) -> None:
        self.tell(job.settle)
        self.tell(self._slots.release)
        self._jobs.pop(job.pid, None)

    def _deliver(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._bell_out, 512)
        self._is_bell_rung = False
        for _ in range(len(self._news)):
            try:
                call = self._news.popleft()
            except IndexError:  # a signal handler came between and delivered the rest
                return
            call()

    def _run_loop(self) -> None:
        try:
            with self._runner:
                self._runner.run(self._halted.wait())
        except BaseException as error:
            # Say SystemExit, out of a coroutine that nobody awaits. Without loop no task would ever end.
            logger.critical("the pool's event loop died of %r: the worker stops", error, exc_info=True)
            self.tell(stop_worker, exceptions.WorkerTerminate(EX_FAILURE))

    def _halt(self) -> None:
        self.call_soon(self._halted.set)
        self._thread.join(COLD_STOP_SECONDS)

    def _watch(self) -> None:
        """Ask the loop for a sign of life, and name the task that keeps it from giving one."""
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self.call_soon(setattr, self, "_asked_at", None)
        elif now - self._asked_at >= BLOCKED_SECONDS:
            self._asked_at = math.inf  # one complaint is enough
            current = asyncio.current_task(self.loop)
            jobs = {job.asyncio_task: job for job in list(self._jobs.values()) if job.asyncio_task}
            culprit = jobs.get(current, current) if current else "a callback"
            frame = sys._current_frames().get(self._thread.ident or 0)
            place = frame and f"{frame.f_code.co_filename}:{frame.f_lineno}"
            logger.warning(
                "the tasks' loop has not come round for over a second: %s holds it up, at %s", culprit, place
            )


def stop_worker(order: SystemExit) -> None:
    """Have the worker stop as soon as its consumer looks, as Celery's signal handlers do."""
    if isinstance(order, exceptions.WorkerTerminate):
        state.should_terminate = order.code or EX_FAILURE
    else:
        state.should_stop = order.code or 0


def is_stopping_cold() -> bool:
    return state.should_terminate is not None and state.should_terminate is not False
