"""The Celery application of the workers that ``test_pool`` starts. Each task does one thing and keeps a journal of it."""

import asyncio
import json
import os
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, WorkerShutdown

from inturn.workers.pool import run_coroutine

app = Celery("pool_app", broker=os.environ["POOL_TEST_BROKER"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ["POOL_TEST_TRANSPORT"]),
    control_queue_ttl=60,
    task_default_queue=os.environ["POOL_TEST_QUEUE"],
    task_ignore_result=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_disable_prefetch=True,
    worker_pool="inturn.workers.pool:TaskPool",
)
JOURNAL = Path(os.environ["POOL_TEST_JOURNAL"])


def note(what, **more):
    with JOURNAL.open("a") as journal:
        journal.write(json.dumps({"what": what, **more}) + "\n")


@app.task
def nap(seconds, cleanup_seconds=0):
    note("began", seconds=seconds)
    try:
        run_coroutine(asyncio.sleep(seconds))
        note("ended", seconds=seconds)
    except asyncio.CancelledError:
        run_coroutine(asyncio.sleep(cleanup_seconds))
        note("cleaned up", seconds=seconds)
        raise


@app.task
def wait_for(sign):
    """Wait for a file to be there."""
    note("began", sign=sign)
    while not Path(sign).exists():
        run_coroutine(asyncio.sleep(0.1))
    note("ended", sign=sign)


@app.task(bind=True)
def look_at_yourself(self, name):
    """The request as seen before, between and after awaits, while others come and go."""
    seen = []
    for pause in (0, 0.05, 0.01, 0.1):
        run_coroutine(asyncio.sleep(pause))
        seen.append([self.request.id, self.request.args[0], app.current_task.request.id])
    note("looked", name=name, seen=seen)


@app.task
def fail():
    async def fail_later():
        await asyncio.sleep(0)
        raise LookupError("no such thing")

    run_coroutine(fail_later())


@app.task
def outlast_the_soft_limit():
    try:
        run_coroutine(asyncio.sleep(60))
    except SoftTimeLimitExceeded as error:
        run_coroutine(asyncio.sleep(0.01))
        note("soft limit", error=str(error))
        return "what there is"


@app.task
def hold_up_the_loop(seconds):
    time.sleep(seconds)


@app.task
def stop_the_worker():
    raise WorkerShutdown(3)


@app.task
def leave():
    raise SystemExit("a body has no business to exit")
