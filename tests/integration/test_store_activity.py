"""What a deployment does, as its database tells it: true, and by indexes only, on both databases."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text

from inturn.models.clock import now
from inturn.models.states import Lane, ProcessKind, TurnState
from inturn.models.store import activity, lanes, presence, retention
from inturn.models.store.activity import Activity
from inturn.models.store.presence import Process, Recent
from inturn.models.tables import LEASES, TURNS, WORKER_PROCESSES
from tests.integration.stores import WORKER, Store

MANY = 60_000


def look(store: Store) -> Activity:
    with store.database.reading() as db:
        return activity.look(db, "cleanup", 15, None)


def appear(store: Store, name: str, recent: Recent | None = None, lanes: str = "chat,batch,maintenance") -> None:
    kind = ProcessKind.BEAT if name == "beat" else ProcessKind.WORKER
    store.write(presence.appear, Process(name, kind, "host", 1, lanes, 10, "0"), recent)


def test_where_nothing_is_nothing_is_seen(store: Store):
    seen = look(store)
    assert [lane.lane for lane in seen.lanes] == list(Lane)
    assert (seen.workers, seen.failures, seen.waiting, seen.running, seen.usd_per_second) == ([], {}, [], [], 0)
    with store.database.reading() as db:
        assert activity.spent_today(db) == []


def test_what_workers_did_lately_adds_up_by_lane_and_the_silent_do_not_count(store: Store):
    turns = {"chat": {"completed": 30, "failed": 10}, "batch": {"completed": 20}}
    appear(store, WORKER, Recent(10.0, turns, 0.5, 1000))
    appear(store, "w2", Recent(5.0, {"chat": {"completed": 5}}), "chat")
    appear(store, "silent", Recent(10.0, turns, 0.5, 1000))
    appear(store, "beat", None, "")
    store.change(WORKER_PROCESSES, WORKER_PROCESSES.c.id == "silent", heartbeat_at=now(-40))
    session = store.session()
    store.send()
    store.start(session)
    lanes.pause(store.database, Lane.BATCH)
    seen = look(store)
    chat, batch, _ = seen.lanes
    assert (chat.turns_per_second, chat.failed_per_second, chat.workers, chat.in_flight) == (5.0, 1.0, 2, 1)
    assert (batch.turns_per_second, batch.workers, batch.paused_at is None) == (2.0, 1, False)
    assert seen.usd_per_second == pytest.approx(0.05)
    known = {one.process.id: one for one in seen.workers}
    assert (known[WORKER].in_flight, known[WORKER].lanes_in_flight, known["w2"].in_flight) == (1, {"chat": 1}, 0)
    assert (known[WORKER].turns_per_second, known["silent"].turns_per_second) == (6.0, 0.0)
    assert known["silent"].silent.total_seconds() == pytest.approx(40, abs=5)
    assert not known["silent"].process.alive
    assert [one.session_id for one in seen.running] == ["s"]
    assert seen.running[0].model == "echo/echo"


def test_who_waits_longest_comes_first_and_failures_are_of_the_last_minutes(store: Store):
    ids = {key: store.session(key) for key in ("old", "older", "failed", "failed-before", "new")}
    for key in ids:
        store.send(key)
    store.change(LEASES, LEASES.c.session_id == ids["old"], ready_at=now(-60), lane=Lane.BATCH)
    store.change(LEASES, LEASES.c.session_id == ids["older"], ready_at=now(-90))
    for key in "failed", "failed-before":
        started = store.start(ids[key])
        store.settle(started, TurnState.FAILED)
    store.change(TURNS, TURNS.c.session_id == ids["failed-before"], finished_at=now(-600))
    seen = look(store)
    assert [one.session_id for one in seen.waiting] == ["older", "old", "new"]
    assert [one.lane for one in seen.waiting[:2]] == [Lane.CHAT, Lane.BATCH]
    assert seen.waiting[0].since.total_seconds() == pytest.approx(90, abs=5)
    assert list(seen.failures.values()) == [1]


def test_what_is_spent_today_is_told_by_model_also_of_removed_sessions(store: Store):
    for key in "here", "gone":
        session = store.session(key)
        store.send(key)
        store.settle(store.start(session), TurnState.COMPLETED, input_tokens=100, output_tokens=10, price=0.25)
    with store.database.reading() as db:
        [before] = activity.spent_today(db)
    assert (before.model, before.attempts, before.tokens, before.usd) == ("echo/echo", 2, 220, 0.5)
    retention.remove(store.database, "gone", asked_by="somebody")
    with store.database.reading() as db:
        assert activity.spent_today(db) == [before]
    yesterday = {"sqlite": "datetime(started_at, '-2 days')", "postgresql": "started_at - interval '2 days'"}
    store.write(lambda db: db.execute(text(f"UPDATE attempts SET started_at = {yesterday[store.database.dialect]}")))
    with store.database.reading() as db:
        [after] = activity.spent_today(db)
    assert (after.attempts, after.usd) == (1, 0.25)


def fill(store: Store) -> None:
    """A long past: sessions whose turns are all answered, over two months, physically in the order of time."""
    series = {
        "sqlite": f"WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {MANY}) ",
        "postgresql": f"WITH s AS (SELECT i FROM generate_series(1, {MANY}) AS i) ",
    }[store.database.dialect]
    then = {
        "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || (61 - i / 1000) || ' days')",
        "postgresql": "clock_timestamp() - (61 - i / 1000) * interval '1 day'",
    }[store.database.dialect]
    false = "0" if store.database.dialect == "sqlite" else "false"
    columns = "key, model, options, labels, held, retention, state, next_turn, created_at, last_activity_at"
    statements = [
        f"""INSERT INTO sessions ({columns}) {series}
        SELECT 'past-' || i, 'echo/echo', '{{}}', '{{}}', {false}, 'policy', 'active', 2, {then}, {then} FROM s""",
        "INSERT INTO leases (session_id, token, lane) SELECT id, 1, 'chat' FROM sessions",
        """INSERT INTO turns (session_id, number, state, lane, model, options, ready_at, attempts, ambiguous, rescues,
            created_at, started_at, finished_at)
        SELECT id, 1, 'completed', 'chat', 'echo/echo', '{}', created_at, 1, 0, 0, created_at, created_at, created_at
        FROM sessions ORDER BY id""",
        """INSERT INTO attempts (session_id, turn_number, number, token, model, started_at, ended_at, outcome)
        SELECT session_id, 1, 1, 1, model, started_at, finished_at, 'completed' FROM turns ORDER BY session_id""",
    ]
    for statement in statements:
        sql = statement
        if store.database.dialect == "sqlite" and series in sql:  # SQLite wants it ahead of INSERT
            sql = series + sql.replace(series, "")
        store.write(lambda db, sql=sql: db.execute(text(sql)))


def test_no_look_reads_a_table_from_end_to_end(store: Store):
    fill(store)
    for key, lane in ("ready", "chat"), ("other", "batch"):
        store.session(key)
        store.send(key, lane=lane)
    running = store.session("running")
    store.send("running")
    store.start(running)
    if not store.is_sqlite:  # as autovacuum does
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.execute(text("VACUUM ANALYZE"))
    else:
        store.write(lambda db: db.execute(text("ANALYZE")))
    seen = planned(store, lambda db: activity.look(db, "cleanup", 15, None))
    spent = planned(store, activity.spent_today)
    assert len(seen) > 5
    assert spent
    for sql, plan in [*seen, *spent]:
        assert not reads_all(plan), (sql, plan)


def test_the_reading_of_plans_can_fail(store: Store):
    fill(store)
    [(_, plan)] = planned(store, lambda db: db.execute(text("SELECT count(*) FROM turns WHERE model = 'x'")))
    assert reads_all(plan)


LARGE = "sessions|turns|attempts|leases|messages"
OF_FEW_ROWS = "ix_leases_ready|ix_leases_owner|ix_turns_failed|uq_turns_running"
"""Indexes of what is under way, or failed: all of one is little."""


def reads_all(plan: str) -> list[str]:
    scans = rf"SCAN (?:{LARGE})\b(?! USING (?:COVERING )?INDEX (?:{OF_FEW_ROWS})\b)"
    return re.findall(rf"Seq Scan on (?:{LARGE})\b|{scans}", plan)


def planned(store: Store, look: Callable[[Any], object]) -> list[tuple[str, str]]:
    """Each statement of it, with how the database goes about it."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        statements.append((statement, parameters))

    event.listen(store.database.engine, "before_cursor_execute", note)
    try:
        with store.database.reading() as db:
            look(db)
    finally:
        event.remove(store.database.engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if store.is_sqlite else "EXPLAIN "
    found = []
    with store.database.reading() as db:
        for sql, parameters in statements:
            if sql.lstrip().upper().startswith(("SELECT", "WITH")):
                rows = db.exec_driver_sql(explain + sql, parameters)
                found.append((sql, "\n".join(str(row[-1]) for row in rows)))
    return found
