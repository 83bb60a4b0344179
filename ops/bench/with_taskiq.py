"""taskiq, the fastest other task queue that was measured: a bare loop's turn as a task of it. Nothing is ordered, fenced or
counted. In the table where taskiq and taskiq-redis are installed.

Run as a process of its own (``python -m ops.bench.with_taskiq SLOTS``); the environment says where everything is.
"""

import asyncio
import os
import sys
from collections.abc import Iterable
from typing import Any

import uvloop
from taskiq.api import run_receiver_task
from taskiq.kicker import AsyncKicker
from taskiq_redis import ListQueueBroker

from ops.bench.bare import load_store
from ops.bench.calls import ask, open_client
from ops.bench.processes import module
from ops.bench.queue_subject import BROKER_URL, DATABASE_URL, MODEL_URL, TaskQueue

TASK, QUEUE = "bench.answer", "taskiq"
READY = "taskiq is ready"


def open_broker(url: str) -> ListQueueBroker:
    return ListQueueBroker(url, queue_name=QUEUE)


async def work(slots: int) -> None:
    """Answer for as long as the process lives."""
    url, model_url = os.environ[DATABASE_URL], os.environ[MODEL_URL]
    store = load_store("raw_sqlite:RawSQLite" if url.startswith("sqlite") else "raw_asyncpg:RawAsyncpg")
    await store.open(url)
    client = open_client()

    async def answer(session: int, turn: int) -> None:
        prompt = await store.history(session, turn)
        await store.keep(session, turn, await ask(client, model_url, prompt))

    broker = open_broker(os.environ[BROKER_URL])
    broker.register_task(answer, task_name=TASK)
    print(READY, flush=True)
    await run_receiver_task(broker, max_async_tasks=slots, run_startup=True)


def command(slots: int) -> list[str]:
    return module("ops.bench.with_taskiq", str(slots))


def publish(broker_url: str, tasks: Iterable[tuple[int, int]]) -> None:
    async def kick() -> None:
        broker = open_broker(broker_url)
        await broker.startup()
        kicker: Any = AsyncKicker(TASK, broker, {})
        for session, turn in tasks:
            await kicker.kiq(session, turn)
        await broker.shutdown()

    asyncio.run(kick())


TASKIQ = TaskQueue("taskiq", command, READY, publish, most_slots=100_000, most_per_second=1500)

if __name__ == "__main__":
    uvloop.run(work(int(sys.argv[1])))
