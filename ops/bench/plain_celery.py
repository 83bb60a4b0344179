"""Plain Celery, as people write it today: a task per prompt on the threads pool, SQLModel's ORM, a Redis lock per session,
httpx. Nothing is ordered, fenced or counted, and a task that is delivered twice calls twice.

Run by ``celery --app ops.bench.plain_celery worker``; the environment says where everything is.
"""

import os
from typing import Any

import httpx
import redis
from celery import Celery
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel, col, create_engine, select

from ops.bench.loops.sqlalchemy_sqlite import set_pragmas
from ops.bench.store import POOL_SIZE
from ops.bench.workload import CONTEXT_MESSAGES

DATABASE_URL, BROKER_URL, MODEL_URL = "BENCH_DATABASE_URL", "BENCH_BROKER_URL", "BENCH_MODEL_URL"
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
    engine = create_engine(os.environ[DATABASE_URL], pool_size=POOL_SIZE, max_overflow=0, pool_timeout=600)
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


if BROKER_URL in os.environ:
    app = make_app()
