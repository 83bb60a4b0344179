"""What is said of a turn that waits: each cause brought about in the store, on both databases."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from inturn.models.clock import now
from inturn.models.errors import SessionNotFoundError, TurnNotFoundError
from inturn.models.states import Lane, ProcessKind, TurnState
from inturn.models.store import diagnosis, halting, lanes, presence, sending
from inturn.models.store.budgets import Budget, Exceeded
from inturn.models.store.causes import CAUSES
from inturn.models.store.presence import Process
from inturn.models.store.situation import Code, Reason, Terms
from inturn.models.tables import LEASES, TURNS, WORKER_PROCESSES
from tests.integration.stores import WORKER, Store

MINUTE = 60
SILENT_SECONDS = 15
SWEEP_SECONDS = 5
MANY_SESSIONS = 100_000


def terms(queued: int | None = 3, **how: Any) -> Terms:
    asked: dict[str, Any] = {
        "max_attempts": 5,
        "max_rescues": 3,
        "sweep_seconds": SWEEP_SECONDS,
        "silent_seconds": SILENT_SECONDS,
        "batch_share": 0.8,
        "has_embedded_broker": False,
        "deadline_seconds": lambda model: 120.0,
        "queued_hints": lambda lane: queued,
    }
    return Terms(**(asked | how))


def why(store: Store, key: str = "s", **how: Any) -> Reason:
    return diagnosis.why(store.database, key, terms(**how))


def why_turn(store: Store, session: int, number: int) -> Reason:
    return diagnosis.why_turn(store.database, session, number, terms())


def appear(store: Store, name: str = WORKER, lanes: str = "chat,batch", slots: int = 8, **how: Any) -> None:
    kind = how.get("kind", ProcessKind.WORKER)
    store.write(presence.appear, Process(name, kind, "host-1", 4711, lanes, slots, "0"))


def silence(store: Store, name: str = WORKER, seconds: float = 40) -> None:
    store.change(WORKER_PROCESSES, WORKER_PROCESSES.c.id == name, heartbeat_at=now(-seconds))


def test_nothing_waits(store: Store):
    store.session()
    assert (why(store).code, why(store).sentence) == (
        Code.NOTHING_WAITS,
        "session s waits for nothing: nothing was sent",
    )
    store.answer()
    assert why(store).sentence == "session s waits for nothing: its turn is over"
    store.answer()
    reason = why(store)
    assert reason.sentence == "session s waits for nothing: all of its 2 turns are over"
    assert (reason.command, reason.rows["turn"], reason.rows["session"]["session_id"]) == (None, None, "s")


def test_who_is_not_there_is_not_explained(store: Store):
    session = store.session()
    with pytest.raises(SessionNotFoundError):
        why(store, "ghost")
    with pytest.raises(TurnNotFoundError):
        why_turn(store, session, 1)


def test_a_running_turn(store: Store):
    session = store.session()
    appear(store)
    for _ in range(3):
        store.send()
    store.start(session)
    reason = why(store)
    assert reason.code is Code.RUNNING
    assert reason.sentence.startswith(f"turn {session}.1 runs: attempt 1 of 5 began at ")
    assert "by worker host-1/4711; its deadline is " in reason.sentence
    assert re.search(r"\(in 1(20|1\d) s\); 2 turns wait behind it$", reason.sentence)
    rows = reason.rows
    assert (rows["turn"]["number"], rows["attempt"]["number"], rows["waiting_behind"]) == (1, 1, 2)
    assert (rows["lease"]["owner"], rows["worker"]["id"], rows["worker"]["alive"]) == (WORKER, WORKER, True)


def test_a_running_turn_that_workers_died_over(store: Store):
    session = store.session()
    appear(store)
    store.send()
    told = []
    for _ in range(4):
        store.start(session)
        told.append(why(store).sentence)
        store.expire(session)
        store.rescue_expired()
    assert "died" not in told[0]
    assert "by worker host-1/4711, after 1 worker died over it; its deadline is " in told[1]
    assert "by worker host-1/4711, after 2 workers died over it; its deadline is " in told[2]
    assert (
        "by worker host-1/4711; its call is made in a process of its own, as 3 workers died over it; its deadline is "
        in told[3]
    )
    assert why(store).rows["turn"]["rescues"] == 3


def test_a_deadline_is_the_providers_own(store: Store):
    session = store.session()
    appear(store)
    store.send()
    store.start(session)
    assert "(in 10 min)" in why(store, deadline_seconds={"echo/echo": 10 * MINUTE}.__getitem__).sentence


def test_a_running_turn_that_is_being_cancelled(store: Store):
    session = store.session()
    appear(store)
    store.send()
    store.start(session)
    sending.cancel(store.database, session, 1)
    reason = why(store)
    assert reason.code is Code.CANCELLING
    assert f"turn {session}.1 is being cancelled" in reason.sentence


def test_a_lost_worker(store: Store):
    session = store.session()
    appear(store)
    appear(store, "worker-2")
    store.send()
    store.start(session)
    silence(store)
    reason = why(store)
    assert reason.code is Code.WORKER_LOST
    assert "worker host-1/4711 was last heard of at" in reason.sentence
    assert "its lease runs out at" in reason.sentence
    assert "the sweep takes it over by about" in reason.sentence

    store.expire(session)
    assert "its lease ran out at" in why(store).sentence
    appear(store)
    assert "did not renew it" in why(store).sentence, "it lives, and lost the lease"

    silence(store, "worker-2")
    store.write(presence.disappear, [WORKER])
    reason = why(store)
    assert "its worker is gone" in reason.sentence
    assert (reason.code, reason.command) == (Code.WORKER_LOST, "inturn worker --lanes chat")
    appear(store, "beat", kind=ProcessKind.BEAT)
    assert "the sweep takes it over" in why(store).sentence, "beat sweeps, too"


def test_a_retry(store: Store):
    session = store.session()
    appear(store)
    store.send()
    how: dict[str, Any] = {
        "delay_seconds": 41 * MINUTE,
        "error_type": "http_503",
        "error_message": "try\nlater " + "x" * 900,
    }
    store.settle(store.start(session), TurnState.QUEUED, **how)
    reason = why(store)
    assert reason.code is Code.RETRY
    assert (
        "(in 41 min): 1 of 5 attempts is used up, the last one failed with http_503: try later xxx" in reason.sentence
    )
    assert len(reason.sentence) < 700
    assert "\n" not in reason.sentence
    assert reason.besides == ()


def test_a_turn_that_its_provider_has_no_room_for(store: Store):
    session = store.session()
    appear(store)
    store.send()
    waits: dict[str, Any] = {
        "delay_seconds": 41 * MINUTE,
        "outcome": None,
        "waits_for": "provider p, which all workers call with 6 calls at once",
    }
    store.settle(store.start(session), TurnState.QUEUED, **waits)
    reason = why(store)
    assert reason.code is Code.PROVIDER_LIMIT
    assert "waits for provider p, which all workers call with 6 calls at once: it asks again at" in reason.sentence
    assert "(in 41 min)" in reason.sentence
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now())
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=30, error_type="http_503")
    assert why(store).code is Code.RETRY, "what it waited for before is over"


def test_a_turn_whose_budget_is_used_up(store: Store):
    session = store.session()
    appear(store)
    store.send()
    tokens = Budget("night", "session", daily=True, usd=None, tokens=1000, waits=True)
    used_up = Exceeded(tokens, f"session:{session}", 0.0, 1017, 3600.0)
    store.settle(
        store.start(session), TurnState.QUEUED, delay_seconds=41 * MINUTE, outcome=None, waits_for=used_up.sentence
    )
    reason = why(store)
    assert reason.code is Code.BUDGET
    assert re.fullmatch(
        rf"turn {session}\.1 waits, as budget 'night' of 1,000 tokens a day for this session is used up \(1,017 spent\): "
        r"it asks again at \S+ \(in 41 min\)",
        reason.sentence,
    )


def test_what_stands_in_the_way_besides_is_said_while_the_turn_waits_for_its_time(store: Store):
    session = store.session()
    store.send()
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=30, error_type="http_503")
    lanes.pause(store.database, Lane.CHAT)
    reason = why(store)
    assert reason.code is Code.RETRY
    assert [(one.code, one.command) for one in reason.besides] == [
        (Code.LANE_PAUSED, "inturn lane resume chat"),
        (Code.NO_WORKER, "inturn worker --lanes chat"),
    ]


def test_a_turn_that_was_sent_for_later(store: Store):
    session = store.session()
    appear(store)
    store.send(not_before=timedelta(hours=3))
    reason = why(store)
    assert reason.code is Code.SCHEDULED
    assert reason.sentence.startswith(f"turn {session}.1 is not due before ")
    assert reason.sentence.endswith("(in 3 h)")


def test_a_paused_lane(store: Store):
    store.session()
    store.send(lane=Lane.BATCH)
    lanes.pause(store.database, Lane.BATCH)
    appear(store)
    reason = why(store)
    assert (reason.code, reason.command, reason.besides) == (Code.LANE_PAUSED, "inturn lane resume batch", ())
    assert "batch is paused since " in reason.sentence
    assert reason.rows["lane_pause"]["lane"] == "batch"


def test_no_worker_for_the_lane(store: Store):
    store.session()
    store.send(lane=Lane.BATCH)
    reason = why(store)
    assert (reason.code, reason.command) == (Code.NO_WORKER, "inturn worker --lanes batch")
    assert "no worker is alive to serve the lane batch" in reason.sentence
    assert why(store, has_embedded_broker=True).command == "inturn up"
    appear(store, lanes="chat")
    appear(store, "worker-2", lanes="chat")
    silence(store, "worker-2")
    reason = why(store, has_embedded_broker=True)
    assert (reason.code, reason.command) == (Code.NO_WORKER, "inturn worker --lanes batch")
    assert "none of the 1 worker alive serves the lane batch" in reason.sentence
    appear(store, "beat", lanes="batch", kind=ProcessKind.BEAT)
    assert why(store).code is Code.NO_WORKER


def test_all_slots_are_taken(store: Store):
    for key in "abcs":
        store.session(key)
        store.send(key)
    appear(store, slots=2)
    store.start()
    assert why(store).code is Code.HINT_SENT
    store.start()
    reason = why(store)
    assert reason.code is Code.SLOTS_BUSY
    assert "all 2 that 1 worker has for the lane chat are taken, and 1 session of the lane has been" in reason.sentence
    appear(store, "worker-2", slots=2)
    assert why(store).code is Code.HINT_SENT


def test_batch_leaves_slots_to_chat(store: Store):
    for key in "abs":
        store.session(key)
        store.send(key, lane=Lane.BATCH)
    appear(store, slots=2)
    store.start(lane=Lane.BATCH)
    assert why(store).code is Code.SLOTS_BUSY, "one of its two slots is for chat"
    assert why(store, batch_share=1.0).code is Code.SLOTS_BUSY
    appear(store, "worker-2", lanes="batch", slots=1)
    assert why(store).code is Code.HINT_SENT


def test_a_hint_that_was_not_sent(store: Store):
    session = store.session()
    appear(store)
    store.send()
    store.change(LEASES, LEASES.c.session_id == session, hinted_at=now(-60))
    reason = why(store)
    assert reason.code is Code.HINT_NOT_SENT
    assert reason.sentence.endswith("no worker was told yet: the sweep does so within 5 s")
    store.change(LEASES, LEASES.c.session_id == session, hinted_at=None)
    assert why(store).code is Code.HINT_NOT_SENT


def test_a_hint_that_was_sent(store: Store):
    for key in "as":
        store.session(key)
        store.send(key)
    appear(store)
    reason = why(store)
    assert reason.code is Code.HINT_SENT
    assert "1 session of the lane chat has been ready for longer, and 3 hints are in its queue" in reason.sentence
    silent = why(store, queued=None)
    assert (silent.code, silent.command) == (Code.HINT_SENT, "inturn doctor")
    assert "the broker does not answer" in silent.sentence


def test_a_halted_session_from_its_halt_to_its_going_on(store: Store):
    session = store.session(halts=True)
    appear(store)
    for _ in range(3):
        store.send()
    how: dict[str, Any] = {"error_type": "unstorable", "error_message": "no database takes it"}
    store.settle(store.start(session), TurnState.FAILED, **how)
    assert store.claim(session) is None
    reason = why(store)
    assert (reason.code, reason.command) == (Code.HALTED, "inturn session continue s")
    assert f"is halted behind turn {session}.1, which failed at" in reason.sentence
    assert "unstorable: no database takes it; 2 turns wait until `inturn session continue s`" in reason.sentence
    assert reason.rows["halting_turn"]["error_type"] == "unstorable"
    assert reason.rows["lease"]["halted_by"] == f"{session}.1"

    halted_by, ready = halting.resume_halted(store.database, "s")
    assert halted_by == f"{session}.1"
    assert ready is not None
    assert (ready.session_id, ready.key, ready.lane) == (session, "s", Lane.CHAT)
    assert why(store).code is Code.HINT_SENT
    assert halting.resume_halted(store.database, "s") == (None, None), "harmless"
    assert store.start(session).number == 2
    with pytest.raises(SessionNotFoundError):
        halting.resume_halted(store.database, "ghost")


def test_a_halted_session_is_said_to_be_so_when_nothing_waits_yet(store: Store):
    session = store.session(halts=True)
    store.send()
    store.settle(store.start(session), TurnState.FAILED, error_type="worker_lost", error_message="gone")
    reason = why(store)
    assert reason.code is Code.HALTED
    assert "what is sent to it waits until" in reason.sentence
    assert halting.resume_halted(store.database, "s") == (f"{session}.1", None)
    assert why(store).code is Code.NOTHING_WAITS


def test_of_a_turn_the_earlier_one_is_spoken_of_first(store: Store):
    session = store.session()
    appear(store)
    for _ in range(3):
        store.send()
    assert why_turn(store, session, 1).code is Code.HINT_SENT
    reason = why_turn(store, session, 3)
    assert reason.code is Code.EARLIER_TURN
    assert reason.sentence.startswith(
        f"turn {session}.3 waits for turn {session}.1, which is queued: turn {session}.1 is ready"
    )
    store.start(session)
    reason = why_turn(store, session, 2)
    assert reason.sentence.startswith(
        f"turn {session}.2 waits for turn {session}.1, which is running: turn {session}.1 runs"
    )
    assert (reason.rows["turn"]["number"], reason.rows["asked_turn"]["number"]) == (1, 2)


def test_a_turn_that_is_over_waits_for_nothing(store: Store):
    session = store.session()
    store.answer()
    store.answer(state=TurnState.FAILED)
    store.send()
    sending.cancel(store.database, session, 3)
    store.send()
    told = [why_turn(store, session, number) for number in (1, 2, 3)]
    assert {reason.code for reason in told} == {Code.NOTHING_WAITS}
    assert f"turn {session}.1 is completed since " in told[0].sentence
    assert "(http_500: broken)" in told[1].sentence
    assert told[1].command == f"inturn turn retry {session}.2"
    assert "is cancelled since" in told[2].sentence
    store.change(TURNS, (TURNS.c.session_id == session) & (TURNS.c.number == 3), merged_into=4)
    assert f"its prompt was joined into turn {session}.4" in why_turn(store, session, 3).sentence


def test_the_reason_of_a_failure_is_told_to_its_end(store: Store):
    session = store.session(halts=True)
    reason = f"{'x' * 440} and this is what to do about it"
    store.send()
    store.settle(store.start(session), TurnState.FAILED, error_type="unstorable", error_message=reason)
    assert reason in why(store).sentence
    assert reason in why_turn(store, session, 1).sentence


def test_rows_name_sessions_and_turns_as_commands_take_them(store: Store):
    session = store.session()
    store.answer(state=TurnState.FAILED)
    store.send(retry_of=1)
    store.send()
    store.start(session)
    store.change(TURNS, (TURNS.c.session_id == session) & (TURNS.c.number == 3), merged_into=4)
    rows = why_turn(store, session, 3).rows
    assert {rows[name]["session_id"] for name in ("session", "lease", "turn", "attempt", "asked_turn")} == {"s"}
    assert (rows["turn"]["id"], rows["turn"]["retry_of"]) == (f"{session}.2", f"{session}.1")
    assert (rows["asked_turn"]["id"], rows["asked_turn"]["merged_into"]) == (f"{session}.3", f"{session}.4")
    assert {"id", "key"}.isdisjoint(rows["session"])


def test_no_text_of_the_conversation_is_in_a_reason(store: Store):
    canary = "canary-7f3a"
    store.session(system_message=canary, labels={"team": canary}, options={"user": canary})
    store.send(prompt=canary, options={"user": canary}, idempotency_key=canary)
    assert canary not in repr(why(store).rows)
    store.start()
    assert canary not in repr(why(store).rows)


def test_every_cause_is_one_function_in_the_list():
    assert len({cause.__name__ for cause in CAUSES}) == len(CAUSES)
    assert CAUSES[-1].__name__ == "hint_sent", "what is left when nothing else is the case"


@contextmanager
def costs(store: Store) -> Iterator[list[tuple[int, str]]]:
    """Each statement with what it costs: thousands of steps of SQLite's machine, or rows that PostgreSQL touches."""
    seen: list[tuple[int, str]] = []

    def count_steps(_db: Any, cursor: Any, statement: str, *_: Any) -> None:
        place = len(seen)
        seen.append((0, statement))

        def step() -> int:
            seen[place] = (seen[place][0] + 1, statement)
            return 0

        cursor.connection.set_progress_handler(step, 1)

    def explain(_db: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SET"):
            return
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        seen.append((touched(cursor.fetchone()[0][0]["Plan"]), statement))

    watch = count_steps if store.is_sqlite else explain
    event.listen(store.database.engine, "before_cursor_execute", watch)
    try:
        yield seen
    finally:
        event.remove(store.database.engine, "before_cursor_execute", watch)


def touched(plan: dict[str, Any]) -> int:
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return int(own) + sum(map(touched, plan.get("Plans", [])))


def crowd(store: Store) -> None:
    """100,000 ready sessions of the lane batch, of which nobody has made statistics, and a long life of one."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many)"
    then = "'2026-01-01 00:00:00.000000'" + ("" if store.is_sqlite else "::timestamptz")
    sessions = (
        "INSERT INTO sessions (key, model, options, labels, held, halts, retention, state, next_turn, created_at, "
        f"last_activity_at) {numbers} "
        f"SELECT 'crowd-' || i, 'echo/echo', '{{}}', '{{}}', false, false, 'policy', 'active', 2, "
        f"{then}, {then} FROM n"
    )
    turns = (
        "INSERT INTO turns (session_id, number, state, lane, model, options, ready_at, attempts, ambiguous, rescues, "
        "created_at, finished_at) "
    )
    one = (
        f"SELECT id, 1, 'queued', 'batch', 'echo/echo', '{{}}', {then}, 0, 0, 0, {then}, NULL FROM sessions "
        "WHERE key <> 's'"
    )
    lived = (
        f"{numbers} SELECT (SELECT id FROM sessions WHERE key = 's'), i, 'completed', 'batch', 'echo/echo', '{{}}', {then}, "
        f"1, 0, 0, {then}, {then} FROM n"
    )
    leases = (
        f"INSERT INTO leases (session_id, token, ready_at, hinted_at, lane) "
        f"SELECT id, 0, {then}, {then}, 'batch' FROM sessions WHERE key <> 's'"
    )
    with store.database.writing() as db:
        for statement in (sessions, leases, turns + one, turns + lived):
            db.execute(text(statement), {"many": MANY_SESSIONS} if ":many" in statement else {})
        db.execute(text("UPDATE sessions SET next_turn = :next WHERE key = 's'"), {"next": MANY_SESSIONS + 1})


@pytest.mark.parametrize("analysed", [False, True])
def test_it_is_quick_with_a_hundred_thousand_ready_sessions(store: Store, analysed: bool):
    store.session()
    crowd(store)
    if analysed:
        store.write(lambda db: db.execute(text("ANALYZE")))
    store.send(lane=Lane.BATCH)
    appear(store)
    began = time.monotonic()
    reason = why(store)
    seconds = time.monotonic() - began
    assert reason.code is Code.HINT_SENT
    assert "more than 10,000 sessions of the lane batch have been ready for longer" in reason.sentence
    assert seconds < 1
    with costs(store) as seen:
        why(store)
    per_row = 40 if store.is_sqlite else 4
    expensive = [(cost, statement) for cost, statement in seen if cost > per_row * 10_000]
    assert expensive == []
    assert sum(cost for cost, _ in seen) < per_row * 10_000 + 5_000
    assert len([None for cost, _ in seen if cost > 2_000]) <= 1, "but for the count of those that are ready"
