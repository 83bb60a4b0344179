"""What expires besides sessions, on both databases: what is due, what is not, and what becomes of that which leans on it."""

from typing import Any

import pytest
from sqlalchemy import insert, select

from inturn.clearance import Clearance
from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import BatchNotFoundError, StorageError
from inturn.models.pace import Pace
from inturn.models.states import BatchState, TurnState
from inturn.models.store import batches, expiry, reading, receipts, retention, retrying, tending, usage
from inturn.models.store.budgets import spend
from inturn.models.store.expiry import KINDS, Expiry
from inturn.models.store.lines import BadLine
from inturn.models.store.receipts import Run
from inturn.models.tables import BATCH_LINES, BATCHES, REMOVAL_RUNS, SPENDING, TICKS
from inturn.retention_settings import EXPIRING
from inturn.settings import Settings
from tests.integration.stores import Store, meet
from tests.integration.test_store_batches import lines, submit, tend, work

DAY = 86400.0
READ, UNREAD = Expiry("read batches", 90 * DAY), Expiry("unread batches", 365 * DAY)


def expire(store: Store, *kinds: Expiry) -> list[Run]:
    """Receipts of what went, newest first."""
    Clearance(store.database, kinds, "a test").run()
    return [run for run in receipts.list_runs(store.database) if run.rule in KINDS]


def ended(store: Store, key: str, days: float, read_days: float | None = None, **how: Any) -> int:
    """A batch that was over so many days ago, with a line that was no prompt. Returns its surrogate id."""
    submit(store, [*lines(2), BadLine(3, "id-3", "invalid", "no JSON")], key, **how)
    work(store)
    batch = tend(store, key)
    assert batch.state is BatchState.COMPLETED
    read_at = None if read_days is None else now(-read_days * DAY)
    store.change(BATCHES, BATCHES.c.key == key, finished_at=now(-days * DAY), read_at=read_at)
    return batch.id


def left(store: Store) -> set[str]:
    return {batch.key for batch in batches.list_batches(store.database)}


def lines_left(store: Store) -> set[int]:
    with store.database.reading() as db:
        return set(db.execute(select(BATCH_LINES.c.batch_id)).scalars())


def test_batches_go_when_they_were_read_and_later_when_nobody_did(store: Store):
    ids = {
        "read": ended(store, "read", 400, 91),
        "read-lately": ended(store, "read-lately", 400, 89),
        "unread": ended(store, "unread", 366),
        "unread-so-far": ended(store, "unread-so-far", 364),
        "discarding": ended(store, "discarding", 400, 399, discards=True),
    }
    submit(store, lines(1), "at-work")
    store.change(BATCHES, BATCHES.c.key == "at-work", created_at=now(-900 * DAY), stored_at=now(-900 * DAY))
    assert [expiry.count_due(store.database, one) for one in (READ, UNREAD)] == [1, 1]
    assert [(run.rule, run.asked_by, run.rows, run.sessions) for run in expire(store, READ, UNREAD)] == [
        ("unread batches", "a test", 1, 0),
        ("read batches", "a test", 1, 0),
    ]
    assert left(store) == {"read-lately", "unread-so-far", "discarding", "at-work"}
    assert lines_left(store) == {ids[name] for name in ("read-lately", "unread-so-far", "discarding")}
    assert reading.get_session(store.database, "read:1").key == "read:1", "sessions go by rules of their own"
    with pytest.raises(BatchNotFoundError):
        tending.carry_on(store.database, "read", ())
    tending.discard(store.database, ids["discarding"])
    assert len(expire(store, READ, UNREAD)) == 3
    assert left(store) == {"read-lately", "unread-so-far", "at-work"}
    assert len(expire(store, READ, UNREAD)) == 3, "what removes nothing leaves no receipt"


def test_a_session_that_outlives_its_batch_leaves_no_line_of_it(store: Store):
    ended(store, "old", 400, 399)
    kept = ended(store, "kept", 1)
    expire(store, READ)
    for key in ("old:1", "kept:1"):
        retention.remove(store.database, key)
    with store.database.reading() as db:
        found = db.execute(select(BATCH_LINES.c.batch_id, BATCH_LINES.c.line).order_by(BATCH_LINES.c.line)).all()
    assert [tuple(row) for row in found] == [(kept, 1), (kept, 3)]


def test_what_a_removed_batch_cost_stays_in_the_sums(store: Store):
    ended(store, "old", 400, 399)
    ended(store, "kept", 1)
    store.session("of-no-batch")
    store.answer("of-no-batch")
    before = usage.total_of(usage.usage(store.database, "batch"))
    expire(store, READ)
    found = {one.key: one.price for one in usage.usage(store.database, "batch")}
    assert found == {"kept": 1.0, usage.GONE_BATCH: 1.0, usage.NO_BATCH: None}
    assert usage.total_of(usage.usage(store.database, "batch")) == before


def test_a_batch_that_is_sent_again_meanwhile_stays(store: Store, other: Store):
    submit(store, lines(1), "again")
    work(store, TurnState.FAILED)
    tend(store, "again")
    store.change(BATCHES, BATCHES.c.key == "again", finished_at=now(-400 * DAY))
    removed = meet(
        lambda: retrying.retry(store.database, "again"),
        store,
        lambda: expiry.remove(other.database, UNREAD, 0, Pace(50)),
    )
    assert removed == 0
    assert batches.get_batch(store.database, "again").state is BatchState.IN_PROGRESS


def test_lines_that_a_remover_left_when_it_died_go_with_the_next_one(store: Store):
    kept, gone = ended(store, "kept", 1), ended(store, "gone", 1)
    many = [
        {"batch_id": gone, "line": n, "custom_id": "x", "error_type": "x", "error_message": "x"} for n in range(9, 29)
    ]
    store.write(lambda db: db.execute(insert(BATCH_LINES), many))
    store.write(lambda db: db.execute(BATCHES.delete().where(BATCHES.c.id == gone)))
    assert expiry.remove(store.database, READ, 0, Pace(10)) == 0
    assert lines_left(store) == {kept}


def test_spending_of_past_days_goes_and_what_is_for_good_stays(store: Store):
    store.write(spend, [(("all", True), 1.0, 10), (("label:team=legal", False), 2.0, 20)])
    days = [{"scope": "all", "slot": day, "usd": 1.0, "tokens": 1} for day in ("2025-12-31", "2026-01-01")]
    store.write(lambda db: db.execute(insert(SPENDING), days))
    assert expire(store, Expiry("past spending", 0.001))[0].rows == 2
    with store.database.reading() as db:
        found = {(row.scope, bool(row.slot)) for row in db.execute(select(SPENDING))}
    assert found == {("all", True), ("label:team=legal", False)}, "today's may be asked for, however short the time is"


def test_old_ticks_go_but_for_each_last_one(store: Store):
    fired = [("cleanup", 1, -99), ("cleanup", 2, -98), ("yearly", 7, -300), ("hourly", 8, -99), ("hourly", 9, -1)]
    for name, slot, days in fired:
        values = {"name": name, "slot": slot, "fired_at": now(days * DAY)}
        store.write(lambda db, values=values: db.execute(insert(TICKS).values(values)))
    expire(store, Expiry("old ticks", 30 * DAY))
    with store.database.reading() as db:
        found = {(row.name, row.slot) for row in db.execute(select(TICKS))}
    assert found == {("cleanup", 2), ("yearly", 7), ("hourly", 9)}


def test_runs_whose_process_died_go_as_well(store: Store):
    receipts.begin_run(store.database, "drafts", "beat")
    receipts.begin_run(store.database, "younger", "beat")
    store.change(REMOVAL_RUNS, REMOVAL_RUNS.c.rule == "drafts", began_at=now(-4000 * DAY))
    expire(store, Expiry("old receipts", 3650 * DAY))
    assert [run.rule for run in receipts.list_runs(store.database) if run.rule != "old receipts"] == ["younger"]


def test_what_fails_holds_up_nothing_else_and_stands_in_the_history(store: Store, monkeypatch: pytest.MonkeyPatch):
    ended(store, "read", 400, 399)
    ended(store, "unread", 400)
    whole = expiry.remove

    def broken(database: Database, each: Expiry, run: int, pace: Pace) -> int:
        if each.name == "read batches":
            raise StorageError("the disk is on fire")
        return whole(database, each, run, pace)

    monkeypatch.setattr(expiry, "remove", broken)
    with pytest.raises(StorageError, match="on fire"):
        expire(store, READ, UNREAD)
    assert left(store) == {"read"}
    found = [(run.rule, run.rows, run.error) for run in receipts.list_runs(store.database)]
    assert found == [("unread batches", 1, None), ("read batches", 0, "the disk is on fire")]


def test_every_kind_has_its_setting_and_its_name_to_itself():
    settings = Settings.load(batch_days=2)
    assert {one.name for one in settings.expiries()} == set(KINDS) == {*EXPIRING, "old ticks"}
    assert {one.name: one.seconds for one in settings.expiries()}["read batches"] == 2 * DAY
    assert all(" " in name for name in KINDS), "and so they are no names of rules"
