"""Removal, on request and by policy, on both databases."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import insert, select

from inturn.models.clock import now
from inturn.models.errors import SessionNotFoundError, StorageError
from inturn.models.states import Retention, TurnState
from inturn.models.store import opening, reading, receipts, retention
from inturn.models.store.rules import default_rule, due
from inturn.models.store.selecting import SessionFilter
from inturn.models.tables import ATTEMPTS, LEASES, MESSAGES, REMOVALS, SESSIONS, TURNS
from tests.integration.stores import Store, gate_at_commit, meet

DAY = 86400.0
POLICY = 30 * DAY


def age(store: Store, key: str, days: float) -> None:
    store.change(SESSIONS, SESSIONS.c.key == key, last_activity_at=now(-days * DAY))


def listed(store: Store) -> list[str]:
    return [removal.session_id for removal in store.list_expired(POLICY)]


def rows_left(store: Store) -> int:
    return sum(len(rows) for rows in store.everything().values())


def test_the_policy(store: Store):
    sessions: list[tuple[str, float, dict[str, Any]]] = [
        ("young", 29.9, {}),
        ("old", 30.1, {}),
        ("very-old", 900, {}),
        ("short-lived", 2, {"retention": Retention.IDLE, "retention_seconds": DAY}),
        ("short-lived-and-used", 0.5, {"retention": Retention.IDLE, "retention_seconds": DAY}),
        ("long-lived", 60, {"retention": Retention.IDLE, "retention_seconds": 90 * DAY}),
        ("for-ever", 5000, {"retention": Retention.NEVER}),
        ("held", 5000, {}),
        ("held-and-released", 31, {}),
        ("queued", 60, {}),
        ("running", 60, {}),
        ("retrying", 60, {}),
        ("failed", 60, {}),
    ]
    for key, days, how in sessions:
        store.session(key, **how)
        if key in ("queued", "running", "retrying", "failed", "old"):
            store.send(key)
        if key in ("running", "retrying", "failed", "old"):
            started = store.start(reading.get_session(store.database, key).id)
            state = {"retrying": TurnState.QUEUED, "failed": TurnState.FAILED, "old": TurnState.COMPLETED}.get(key)
            if state:
                store.settle(started, state, delay_seconds=60.0)
        age(store, key, days)
    store.hold("held")
    store.hold("held-and-released")
    store.release("held-and-released")
    expected = ["short-lived", "old", "very-old", "held-and-released", "failed"]
    assert listed(store) == expected
    kept = [row.key for row in reading.list_sessions(store.database, SessionFilter()) if row.key not in expected]
    dry = store.list_expired(POLICY)
    removed = store.remove_expired(POLICY)
    assert removed == dry, "cleanup removes exactly what its dry run listed"
    assert {removal.session_id: (removal.rule, removal.turns, removal.messages) for removal in removed} == {
        "old": ("default", 1, 2),
        "very-old": ("default", 0, 0),
        "short-lived": ("own", 0, 0),
        "held-and-released": ("default", 0, 0),
        "failed": ("default", 1, 1),
    }
    assert [row.key for row in reading.list_sessions(store.database, SessionFilter())] == kept
    assert store.remove_expired(POLICY) == []


def test_a_removal_leaves_ids_and_counts_and_no_text(store: Store):
    session = store.session(system_message="CANARY", labels={"l": "CANARY"}, options={"o": "CANARY"})
    store.answer(prompt="CANARY")
    store.send(prompt="CANARY")
    store.settle(store.start(session), TurnState.FAILED, error_message="CANARY")
    last = reading.get_session(store.database, "s").last_activity_at
    assert len(store.remove_expired(-60)) == 1
    assert rows_left(store) == 0
    with store.database.reading() as db:
        (row,) = db.execute(select(REMOVALS))
    assert (row.session_key, row.rule, row.turns, row.messages) == ("s", "default", 2, 4)
    assert row.last_activity_at == last
    assert row.removed_at >= last
    assert "CANARY" not in repr(row)


def test_dry_run_and_removal_go_by_chunks(store: Store):
    keys = [f"s{number}" for number in range(7)]
    for key in keys:
        store.session(key)
        age(store, key, 31)
    assert [removal.session_id for removal in store.list_expired(POLICY, limit=3)] == keys
    chunks = []
    while chunk := store.remove_expired(POLICY, limit=3):
        chunks.append([removal.session_id for removal in chunk])
    assert chunks == [keys[:3], keys[3:6], keys[6:]]


@pytest.mark.parametrize("use", ["send", "resume", "hold"])
def test_what_was_used_since_it_was_listed_stays(store: Store, use: str):
    store.session()
    age(store, "s", 31)
    assert listed(store) == ["s"]
    USES[use](store)
    assert store.remove_expired(POLICY) == []
    assert reading.get_session(store.database, "s")


@pytest.mark.parametrize("use", ["send", "resume", "hold"])
def test_what_is_used_at_this_moment_stays(store: Store, other: Store, use: str):
    store.session()
    age(store, "s", 31)
    if store.is_sqlite:
        assert meet(lambda: USES[use](store), store, lambda: other.remove_expired(POLICY)) == []
    else:
        with store.database.writing() as db:
            db.execute(select(SESSIONS.c.id).with_for_update(key_share=True))
            assert other.remove_expired(POLICY) == [], "nobody waits: the next cleanup comes"
    assert reading.get_session(store.database, "s")


USES: dict[str, Any] = {
    "send": lambda store: store.send(),
    "resume": lambda store: opening.resume_session(store.database, "s"),
    "hold": lambda store: store.hold("s"),
}


def test_cleanups_at_once_remove_each_session_once(store: Store, other: Store):
    for key in "ab":
        store.session(key)
        age(store, key, 31)

    def clean(through: Store) -> list[str]:
        return [removal.session_id for removal in through.remove_due(default_rule(POLICY))]

    if store.is_sqlite:
        assert meet(lambda: clean(store), store, lambda: clean(other)) == []
    else:
        with ThreadPoolExecutor(1) as thread, gate_at_commit(store) as gate:
            first = thread.submit(clean, store)
            gate.wait_until_reached()
            assert clean(other) == [], "it steps around what the first has locked"
            gate.open()
            assert first.result() == ["a", "b"]
    assert store.count("SELECT count(*) FROM removals") == 2


def test_deleting_takes_everything_whatever_it_is_doing(store: Store):
    keep = store.session("keep")
    store.answer("keep")
    before = store.everything()
    session = store.session(system_message="system")
    store.answer()
    store.send()
    store.send()
    store.start(session)
    store.hold("s")
    assert retention.remove(store.database, "s") == session
    assert store.everything() == before
    assert store.count("SELECT count(*) FROM removals") == 0, "who deletes by hand knows it"
    assert reading.get_session(store.database, "keep").id == keep
    with pytest.raises(SessionNotFoundError):
        retention.remove(store.database, "s")


TURN_COUNT = 2500


def long_session(store: Store, key: str = "s") -> int:
    """More turns than are removed in one transaction, all answered but the last one, which is running."""
    session = store.session(key)
    values = {"session_id": session, "model": "echo/echo", "lane": "chat", "options": {}, "attempts": 1,
              "ambiguous": 0, "rescues": 0, "ready_at": now(), "created_at": now()}  # fmt: skip
    numbers = [{"number": number} for number in range(1, TURN_COUNT + 1)]
    said = [{"turn_number": each["number"], "position": position} for each in numbers for position in (1, 2)]

    def fill(db: Any) -> None:
        db.execute(insert(TURNS).values(**values, state="completed", finished_at=now()), numbers)
        told = {"session_id": session, "role": "user", "content": "x", "created_at": now()}
        db.execute(insert(MESSAGES).values(**told), said)
        tried = {"session_id": session, "number": 1, "token": 1, "started_at": now()}
        db.execute(insert(ATTEMPTS).values(**tried), [{"turn_number": each["number"]} for each in numbers])
        db.execute(SESSIONS.update().where(SESSIONS.c.id == session).values(next_turn=TURN_COUNT + 1))

    store.write(fill)
    store.send(key)
    store.start(session)
    return session


def test_who_asked_for_a_removal_is_in_its_receipt(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Also of one that takes several transactions; once, however often it is begun."""
    store.session("short")
    store.answer("short", "CANARY")
    long_session(store)
    with pytest.raises(SessionNotFoundError):
        retention.remove(store.database, "none", asked_by="ann@host")
    retention.remove(store.database, "short", asked_by="ann@host")
    crash(store, monkeypatch, 2)
    with pytest.raises(StorageError):
        retention.remove(store.database, "s", asked_by="ann@host")
    monkeypatch.undo()
    retention.remove(store.database, "s", asked_by="bob@host")
    for key, turns in (("short", 1), ("s", TURN_COUNT + 1)):
        (receipt,) = receipts.list_receipts(store.database, key)
        assert (receipt.rule, receipt.turns, receipt.messages > turns) == ("erasure", turns, True)
        assert receipt.run is not None
        assert (receipt.run.asked_by, receipt.run.sessions, receipt.run.turns) == ("ann@host", 1, turns)
        assert receipt.run.ended_at is not None
        assert receipt.run.ended_at >= receipt.run.began_at
    assert len(receipts.list_runs(store.database)) == 2


@pytest.mark.parametrize("crash_after", [1, 2, 3])
def test_a_long_removal_that_was_broken_off_is_finished_by_the_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch, crash_after: int
):
    keep = store.session("keep")
    store.answer("keep")
    before = store.everything()
    session = long_session(store)
    started = store.lease(session)
    crash(store, monkeypatch, crash_after)
    with pytest.raises(StorageError):
        retention.remove(store.database, "s")
    monkeypatch.undo()
    assert 0 < store.count("SELECT count(*) FROM turns") <= TURN_COUNT + 2
    assert [row.key for row in reading.list_sessions(store.database, SessionFilter())] == ["keep"]
    assert reading.last_session_key(store.database) == "keep"
    with pytest.raises(SessionNotFoundError):
        store.send()
    with pytest.raises(SessionNotFoundError):
        opening.resume_session(store.database, "s")
    lease = store.lease(session)
    assert (lease.owner, lease.ready_at) == (None, None)
    assert lease.token > started.token
    assert store.claim(session) is None
    assert retention.finish_removal(store.database)
    assert store.everything() == before
    assert not retention.finish_removal(store.database)
    assert reading.get_session(store.database, "keep").id == keep


def crash(store: Store, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the process die after so many transactions."""
    writing, left = store.database.writing, [after]

    def until_then() -> Any:
        if not left[0]:
            raise StorageError("the process dies here")
        left[0] -= 1
        return writing()

    monkeypatch.setattr(store.database, "writing", until_then)


def test_an_id_whose_removal_was_broken_off_can_be_used_at_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    session = long_session(store)
    crash(store, monkeypatch, 2)
    with pytest.raises(StorageError):
        retention.remove(store.database, "s")
    monkeypatch.undo()
    again = store.session(system_message="new")
    assert again > session
    assert store.history(again) == [(1, "system", "new")]
    assert {len(store.everything()[name]) for name in ("sessions", "leases")} == {1}
    assert store.everything()["turns"] == []


def test_a_removal_that_was_broken_off_can_be_asked_for_again(store: Store, monkeypatch: pytest.MonkeyPatch):
    long_session(store)
    crash(store, monkeypatch, 2)
    with pytest.raises(StorageError):
        retention.remove(store.database, "s")
    monkeypatch.undo()
    retention.remove(store.database, "s")
    assert rows_left(store) == 0


def test_expired_sessions_of_any_length_are_removed(store: Store):
    session = long_session(store)
    store.settle(rescued(store, session))
    age(store, "s", 31)
    (removal,) = store.remove_expired(POLICY)
    assert (removal.turns, removal.messages) == (TURN_COUNT + 1, 2 * TURN_COUNT + 2)
    assert rows_left(store) == 0


def rescued(store: Store, session: int) -> Any:
    """The running turn, as its worker knows it."""
    store.change(LEASES, LEASES.c.session_id == session, expires_at=now(-1))
    store.rescue_expired()
    return store.start(session)


def test_a_look_reads_what_is_due_and_no_more(store: Store):
    """Whatever the statistics say of the whole table, the planner is told by when the range of the index ends."""
    rule = default_rule(30 * 86400.0)
    with store.database.writing() as db:
        for number in range(2000):
            opening.create(db, opening.NewSession(f"s{number}", "echo/echo"))
    if not store.is_sqlite:
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.exec_driver_sql("VACUUM ANALYZE sessions")
    with store.database.reading() as db:
        which = due(db, [rule], rule)
        assert which is not None
        found = select(SESSIONS.c.key).where(which)
        plain = found.compile(dialect=store.database.engine.dialect, compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN QUERY PLAN " if store.is_sqlite else "EXPLAIN "
        plan = " ".join(str(row) for row in db.exec_driver_sql(explain + str(plain).replace("%", "%%")))
        is_compiled = not store.is_sqlite and db.exec_driver_sql("SHOW jit").scalar() == "on"
    assert not is_compiled, "which takes longer than the look"
    assert "ix_sessions_last_activity_at" in plan, plan
    assert "last_activity_at<" in plan or "Index Cond: (last_activity_at <" in plan, plan
    assert all(int(rows) < 100 for rows in re.findall(r"sessions .*?rows=(\d+)", plan)), (
        f"none, as far as it knows: {plan}"
    )
