"""What accepting a prompt costs whoever sends it: one by one, and from several threads at once."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median

from celery import Celery
from sqlalchemy import create_engine, event
from sqlmodel import Session

from inturn import Client
from inturn.models import migrations
from inturn.models.database import Database
from inturn.settings import Settings
from ops.bench.bare_subject import prepared
from ops.bench.databases import Databases, with_driver
from ops.bench.loops.sqlalchemy_sqlite import set_pragmas
from ops.bench.plain_celery import QUEUE, TASK, Message
from ops.bench.rows import Row, compared, in_ms
from ops.bench.store import POOL_SIZE
from ops.bench.workload import PROMPT, Load
from ops.servers import RedisServer

PROMPTS = 400
THREADS = 16
PLAIN = "plain Celery"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a prompt: seconds one after the other, seconds from many threads, CPU seconds of the sending process."""

    alone: float
    together: float
    cpu: float


def send_rows(databases: Databases, broker: RedisServer, repeat: int) -> Iterator[Row]:
    """Medians of interleaved runs; each prompt goes to a session of its own, and nobody answers it."""
    ours, plain = [], []
    for _ in range(repeat):
        plain.append(cost_of_plain(databases, broker))
        ours.append(cost_of_ours(databases, broker))
    kind = databases.kind

    def both(figure: Callable[[Cost], float]) -> tuple[float, float]:
        return median(map(figure, ours)), median(map(figure, plain))

    value, baseline = both(lambda cost: 1 / cost.alone)
    yield compared("sends per second, one by one", kind, None, value, "1/s", baseline, PLAIN)
    value, baseline = both(lambda cost: 1 / cost.together)
    yield compared(f"sends per second, {THREADS} threads", kind, None, value, "1/s", baseline, PLAIN)
    value, baseline = both(lambda cost: cost.cpu)
    yield in_ms("producer CPU per send", kind, value, baseline=baseline, against=PLAIN)


def cost_of_ours(databases: Databases, broker: RedisServer) -> Cost:
    url = databases.create()
    broker.flush()
    database = Database(url)
    migrations.upgrade(database)
    database.close()
    try:
        with Client(Settings.load(database_url=url, broker_url=broker.url)) as client:
            handles = [client.create_session(f"send-{number}", model="echo/echo") for number in range(1 + 2 * PROMPTS)]
            return measured([partial(handle.send, PROMPT) for handle in handles])
    finally:
        databases.drop(url)


def cost_of_plain(databases: Databases, broker: RedisServer) -> Cost:
    """An insert with SQLModel, and a task."""
    url = prepared(databases, Load(1, 0))
    broker.flush()
    engine = create_engine(with_driver(url), pool_size=POOL_SIZE)
    if databases.kind == "sqlite":
        event.listen(engine, "connect", set_pragmas)
    try:
        with Celery("producer", broker=broker.url) as app:

            def send(session: int) -> None:
                with Session(engine) as db:
                    db.add(Message(session_id=session, turn_number=1, position=0, role="user", content=PROMPT))
                    db.commit()
                app.send_task(TASK, args=(session, 1), queue=QUEUE)

            return measured([partial(send, number) for number in range(1000, 1001 + 2 * PROMPTS)])
    finally:
        engine.dispose()
        databases.drop(url)


def measured(sends: Sequence[Callable[[], object]]) -> Cost:
    """The first one is for warming up."""
    sends[0]()
    began, cpu = time.perf_counter(), time.process_time()
    for send in sends[1 : 1 + PROMPTS]:
        send()
    alone, cpu = time.perf_counter() - began, time.process_time() - cpu
    with ThreadPoolExecutor(THREADS) as threads:
        began = time.perf_counter()
        for done in [threads.submit(send) for send in sends[1 + PROMPTS :]]:
            done.result()
        together = time.perf_counter() - began
    return Cost(alone / PROMPTS, together / PROMPTS, cpu / PROMPTS)
