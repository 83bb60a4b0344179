"""Plain Celery, as people write it today: a task per prompt on the threads pool, SQLModel's ORM, a Redis lock per session,
httpx. Nothing is ordered, fenced or counted, and a task that is delivered twice calls twice.

Run by ``celery --app ops.bench.plain_celery worker``; the environment says where everything is.
"""

import os
from collections.abc import Iterable
from typing import Any

import httpx
import redis
from celery import Celery
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel, col, create_engine, select

from ops.bench.databases import with_driver
from ops.bench.loops.sqlalchemy_sqlite import set_pragmas
from ops.bench.processes import module
from ops.bench.queue_subject import BROKER_URL, DATABASE_URL, MODEL_URL, TaskQueue
from ops.bench.store import POOL_SIZE
from ops.bench.workload import CONTEXT_MESSAGES

TASK = "bench.answer"
QUEUE = "plain"
LOCK_SECONDS = 120


class Message(SQLModel, table=True):
    """``created_at`` is the database's to fill and the meter's to read."""

    __tablename__ = "messages"

    id: int | None = Field(default=None, primary_key=True)
    session_id: int
    turn_number: int
    position: int
    role: str
    content: str


def last_messages(session: int, turn: int) -> Any:
    """The context of a turn, newest first."""
    return (
        select(Message)
        .where(Message.session_id == session, Message.turn_number <= turn)
        .order_by(col(Message.turn_number).desc(), col(Message.position).desc())
        .limit(CONTEXT_MESSAGES)
    )


def make_app() -> Celery:
    app = Celery("plain", broker=os.environ[BROKER_URL])
    app.conf.update(
        task_default_queue=QUEUE, task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=1
    )
    engine = create_engine(with_driver(os.environ[DATABASE_URL]), pool_size=POOL_SIZE, max_overflow=0, pool_timeout=600)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_pragmas)
    model = httpx.Client(base_url=os.environ[MODEL_URL], timeout=60, limits=httpx.Limits(max_connections=None))
    locks = redis.Redis.from_url(os.environ[BROKER_URL])

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def answer(session: int, turn: int) -> None:
        with locks.lock(f"session:{session}", timeout=LOCK_SECONDS):
            with Session(engine) as db:
                newest_first = db.exec(last_messages(session, turn)).all()
                prompt = [{"role": each.role, "content": each.content} for each in reversed(newest_first)]
            response = model.post("/chat/completions", json={"model": "bench", "messages": prompt})
            response.raise_for_status()
            content = response.json()["choices"][0]["message"]["content"]
            with Session(engine) as db:
                db.add(Message(session_id=session, turn_number=turn, position=1, role="assistant", content=content))
                db.commit()

    return app


def command(slots: int) -> list[str]:
    words = ("--app=ops.bench.plain_celery", "worker", "--pool=threads", f"--concurrency={slots}")
    return module("celery", *words, "--loglevel=INFO", "--without-gossip", "--without-mingle", f"--queues={QUEUE}")


def publish(broker_url: str, tasks: Iterable[tuple[int, int]]) -> None:
    with Celery("producer", broker=broker_url) as producing, producing.producer_pool.acquire() as producer:
        for place in tasks:
            producing.send_task(TASK, args=place, queue=QUEUE, producer=producer)


PLAIN_CELERY = TaskQueue("plain Celery", command, "ready.", publish, most_slots=200, most_per_second=400)

if BROKER_URL in os.environ:
    app = make_app()
