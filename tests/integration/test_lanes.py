"""Lanes that are paused and go on, and turns in quarantine, on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, text

from inturn.models.clock import now
from inturn.models.states import Lane, ProcessKind, TurnState
from inturn.models.store import lanes, presence, reading, sweeping
from inturn.models.store.presence import Process
from inturn.models.tables import LANE_PAUSES, LEASES, TURNS
from tests.integration.stores import Store

FINISHED = 5_000


def infos(store: Store) -> dict[Lane, lanes.LaneInfo]:
    return {info.lane: info for info in lanes.list_lanes(store.database, 15)}


def test_a_paused_lane_takes_prompts_and_begins_nothing(store: Store):
    for key in "ab":
        store.session(key)
        store.send(key, lane=Lane.BATCH)
    begun = store.start(lane=Lane.BATCH)
    assert lanes.pause(store.database, Lane.BATCH)
    store.send("a", lane=Lane.BATCH)
    store.session("chat")
    store.send("chat")
    for named in (None, begun.session_id, begun.session_id + 1):
        assert store.claim(named, lane=Lane.BATCH) is None
    assert store.claim() is not None, "chat goes on"
    assert store.settle(begun), "what runs ends as ever"
    assert store.claim(lane=Lane.BATCH) is None
    assert store.write(sweeping.unhinted, Lane.BATCH, 0.0, 10) == []

    was_paused, ready = lanes.resume(store.database, Lane.BATCH)
    assert was_paused
    assert sorted(one.key for one in ready) == ["a", "b"]
    assert store.claim(lane=Lane.BATCH) is not None


def test_a_lane_is_paused_once_and_resumed_once(store: Store, other: Store):
    assert lanes.pause(store.database, Lane.CHAT)
    since = infos(store)[Lane.CHAT].paused_at
    assert not lanes.pause(other.database, Lane.CHAT)
    assert infos(other)[Lane.CHAT].paused_at == since
    assert lanes.resume(store.database, Lane.CHAT) == (True, [])
    assert lanes.resume(other.database, Lane.CHAT) == (False, [])
    assert store.count(f"SELECT count(*) FROM {LANE_PAUSES.name}") == 0


def test_only_so_many_hints_are_sent_at_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "HINTS_AT_ONCE", 2)
    lanes.pause(store.database, Lane.CHAT)
    ids = [store.session(key) for key in "abc"]
    for key in "abc":
        store.send(key)
    _, ready = lanes.resume(store.database, Lane.CHAT)
    assert [one.session_id for one in ready] == ids[:2], "who was ready first"


def test_who_waits_for_later_or_is_halted_gets_no_hint(store: Store):
    lanes.pause(store.database, Lane.CHAT)
    later, halted = store.session("later"), store.session("halted")
    for key in ("later", "halted"):
        store.send(key)
    store.change(LEASES, LEASES.c.session_id == later, ready_at=now(60))
    store.change(LEASES, LEASES.c.session_id == halted, halted_by=1)
    assert lanes.resume(store.database, Lane.CHAT) == (True, [])
    assert infos(store)[Lane.CHAT].waiting == 0


def test_the_depth_of_lanes(store: Store):
    for key in "abc":
        store.session(key)
        store.send(key)
    store.session("d")
    store.send("d", lane=Lane.BATCH)
    store.start()
    for name, served in (("w1", "chat,batch"), ("w2", "chat"), ("w3", "chat")):
        store.write(presence.appear, Process(name, ProcessKind.WORKER, "h", 1, served, 8, "0"))
    store.write(presence.appear, Process("beat", ProcessKind.BEAT, "h", 2, "", 0, "0"))
    store.write(lambda db: db.execute(text("UPDATE worker_processes SET heartbeat_at = started_at WHERE id = 'w1'")))
    known = infos(store)
    assert list(known) == list(Lane)
    assert [(one.waiting, one.running, one.workers) for one in known.values()] == [(2, 1, 3), (1, 0, 1), (0, 0, 0)]
    assert all(one.paused_at is None for one in known.values())


@pytest.fixture
def quarantine(store: Store) -> list[str]:
    """Failed turns of two sessions, in quarantine and not, the newest first; two ended in one moment."""
    for key in "ab":
        store.session(key)
    kinds = ["worker_lost", "http_500", "unstorable", "reply_too_large", "invalid_request", "worker_lost"]
    for place, kind in enumerate(kinds):
        key = "ab"[place % 2]
        sent = store.send(key, f"prompt {place}")
        store.settle(store.start(sent.session_id), TurnState.FAILED, error_type=kind, error_message="bad")
    number = {(t.key, t.number): t for key in (1, 2) for t in reading.list_turns(store.database, key)}
    same = number["a", 2].finished_at
    store.change(TURNS, (TURNS.c.session_id == 2) & (TURNS.c.number == 2), finished_at=same)
    return ["2.3", "2.2", "1.2", "1.1"]


def test_quarantined_turns_newest_first(store: Store, quarantine: list[str]):
    def listed(*how: Any) -> list[str]:
        return [f"{row.session_id}.{row.number}" for row in reading.list_quarantined(store.database, *how)]

    assert listed() == quarantine
    assert listed(1) == ["1.2", "1.1"]
    assert listed(None, None, 2) == quarantine[:2]
    [*_, second] = reading.list_quarantined(store.database, limit=2)
    assert listed(None, second) == quarantine[2:], "the page behind one that ended in the same moment"
    assert listed(2, second) == []


@pytest.fixture
def plans(store: Store) -> Iterator[list[str]]:
    """How the database goes about each statement."""
    seen: list[str] = []

    def explain(_db: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if store.is_sqlite else ''}{statement}", parameters)
            seen.append("\n".join(str(row[-1]) for row in cursor.fetchall()))

    event.listen(store.database.engine, "before_cursor_execute", explain)
    yield seen
    event.remove(store.database.engine, "before_cursor_execute", explain)


@pytest.mark.parametrize("analysed", [False, True])
def test_quarantined_turns_are_found_by_their_index(
    store: Store, quarantine: list[str], plans: list[str], analysed: bool
):
    then = "'2026-01-01 00:00:00.000000'" if store.is_sqlite else "TIMESTAMPTZ '2026-01-01Z'"
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < {FINISHED})"
    lived = (
        "INSERT INTO turns (session_id, number, state, lane, model, options, ready_at, attempts, ambiguous, rescues, "
        f"error_type, created_at, finished_at) {numbers} SELECT 1, i, 'failed', 'chat', 'echo/echo', '{{}}', {then}, "
        f"1, 0, 0, 'http_500', {then}, {then} FROM n"
    )
    store.write(lambda db: db.execute(text(lived)))
    if analysed:
        store.write(lambda db: db.execute(text("ANALYZE")))
    plans.clear()
    last = reading.list_quarantined(store.database)[1]
    reading.list_quarantined(store.database, None, last)
    assert len(plans) == 2
    assert all("ix_turns_quarantined" in plan for plan in plans), plans
