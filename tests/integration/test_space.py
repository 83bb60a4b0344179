"""A SQLite file gets shorter when much of it was deleted, step by step, while others write."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import text

from inturn.models import database as databases
from inturn.models import space
from inturn.models.database import Database
from inturn.models.errors import StorageError
from inturn.models.pace import Pace
from inturn.models.store import receipts, retention
from inturn.settings import Settings
from inturn.workers.maintenance import scheduled_cleanup
from inturn.workers.meter import Meter
from inturn.workers.queues import MAILBOXES
from ops.servers import RedisServer
from tests.integration.stores import Store, only_sqlite
from tests.integration.test_store_expiry import ended

T = TypeVar("T")

FILL = text("""
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
INSERT INTO batch_lines SELECT 99, i, 'x', 'x', hex(randomblob(1000)) FROM n""")
MUCH = text("DELETE FROM batch_lines WHERE line % 10 > 0")


def emptied(store: Store) -> Path:
    """A file of which most is free. Returns its path."""
    store.write(lambda db: db.execute(FILL))
    store.write(lambda db: db.execute(MUCH))
    return Path(store.database.url.database or "")


@only_sqlite
def test_it_is_given_back_in_steps_between_which_others_write(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
):
    path, pace = emptied(store), Pace(50, 0.02)
    before = space.look(store.database)
    assert before is not None
    assert before.free > before.size / 2
    written, whole = list[int](), pace.step

    def step(work: Callable[[int], T]) -> T:
        done = whole(work)
        written.append(other.session(f"s-{len(written)}"))
        return done

    monkeypatch.setattr(pace, "step", step)
    given = space.give_back(store.database, pace)
    after = space.look(store.database)
    assert after is not None
    assert given == before.size - after.size > before.size / 2
    assert after.free <= after.size * space.SPARE
    assert path.stat().st_size <= after.size, "the file itself is shorter, and not only what SQLite says of it"
    assert len(written) > 1
    assert store.count("SELECT count(*) FROM batch_lines") == 400
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert space.give_back(store.database, pace) == 0


@only_sqlite
def test_a_wal_that_has_grown_is_cut(store: Store):
    """It grows for as long as somebody reads: what that one sees must stay."""
    wal = emptied(store).with_name("inturn.db-wal")
    with store.database.reading() as db:
        db.execute(text("SELECT count(*) FROM batch_lines"))
        for _ in range(3):
            store.write(lambda db: db.execute(text("DELETE FROM batch_lines")))
            store.write(lambda db: db.execute(FILL))
    assert wal.stat().st_size > databases.WAL_BYTES
    store.session("one")  # its commit finds that the WAL can begin anew, and the next one begins it
    store.session("two")
    assert wal.stat().st_size <= databases.WAL_BYTES


@only_sqlite
def test_a_step_is_of_as_many_pages_as_it_is_told(store: Store):
    """SQLite gives back a page whenever the next row is asked for, and drivers ask for one."""
    emptied(store)
    before = space.look(store.database)
    assert before is not None
    space._step(store.database, before.spare, 30)
    after = space.look(store.database)
    assert after is not None
    assert 30 <= (before.size - after.size) // before.page <= 31, "and maybe one of SQLite's maps of pages"
    space._step(store.database, 5, 30)
    last = space.look(store.database)
    assert last is not None
    assert 5 <= (after.size - last.size) // before.page <= 6


def test_a_file_that_was_made_without_it_gives_nothing_back(tmp_path: Path):
    path = tmp_path / "made-by-others.db"
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE x (y)")
        plain.execute("INSERT INTO x SELECT randomblob(99999)")
        plain.execute("DELETE FROM x")
        plain.commit()
    with closing(Database(f"sqlite:///{path}")) as database:
        assert space.give_back(database, Pace(50)) == 0


def test_the_scheduled_cleanup_does_it_once_a_period(store: Store, redis: RedisServer, monkeypatch: pytest.MonkeyPatch):
    """Also where the sessions' part of it fails."""
    redis.flush()
    ended(store, "read", 400, 399)
    if store.is_sqlite:
        emptied(store)
        store.write(lambda db: db.execute(text("UPDATE batch_lines SET batch_id = (SELECT id FROM batches)")))
    before = space.look(store.database)
    settings = Settings.load(
        database_url=store.database.url.render_as_string(hide_password=False), broker_url=redis.url
    )

    def broken(*_: object) -> None:
        raise StorageError("no sessions today")

    with redis.client() as broker:
        broker.sadd(MAILBOXES, "celery@killed")
        monkeypatch.setattr(retention, "count_due", broken)
        with pytest.raises(StorageError, match="no sessions today"):
            scheduled_cleanup(store.database, settings, Meter())
        assert not broker.exists(MAILBOXES)
    assert [(run.rule, run.asked_by, run.rows) for run in receipts.list_runs(store.database)] == [
        ("read batches", "beat", 1)
    ]
    after = space.look(store.database)
    assert before is None or (after is not None and after.size < before.size / 2)
    scheduled_cleanup(store.database, settings, Meter())
    assert len(receipts.list_runs(store.database)) == 1, "the period's tick was claimed"
