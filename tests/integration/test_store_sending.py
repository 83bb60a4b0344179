"""The asking side's verbs: sessions made and resumed, prompts accepted, turns cancelled, on both databases."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest

from inturn.models.clock import now
from inturn.models.errors import (
    IdempotencyConflictError,
    InturnError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    TurnNotFoundError,
)
from inturn.models.states import Lane, TurnState
from inturn.models.store import opening, presence, reading, retention, sending, sweeping, waking
from inturn.models.store.selecting import SessionFilter
from inturn.models.tables import LEASES, SESSIONS, TURNS
from tests.integration.stores import WORKER, Store, meet, only_postgresql
from tests.stacks import ROOT


def start_python(program: str, *words: str) -> subprocess.Popen[str]:
    """Start a process that waits for a line on its stdin."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def all_at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each of the calls returned or raised."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except InturnError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(outcome, calls))


def test_senders_at_once_number_their_turns_without_gaps(store: Store, other: Store):
    session = store.session()

    def send_some(name: int) -> list[int]:
        through = (store, other)[name % 2]
        return [through.send(prompt=f"{name}.{count}").number for count in range(8)]

    with ThreadPoolExecutor(10) as threads:
        numbers = list(threads.map(send_some, range(10)))
    assert sorted(chain.from_iterable(numbers)) == list(range(1, 81))
    assert all(mine == sorted(mine) for mine in numbers), "each sender's turns keep their order"
    prompts = {number: content for number, _, content in store.history(session)} | {
        turn.number: turn.prompt for turn in reading.list_turns(store.database, session)
    }
    for name, mine in enumerate(numbers):
        assert [prompts[number] for number in mine] == [f"{name}.{count}" for count in range(8)]


def test_one_key_is_one_turn_however_many_send_it_at_once(store: Store, other: Store):
    session = store.session()
    sent = all_at_once(*[lambda s=s: s.send(prompt="once", idempotency_key="k") for s in [store, other] * 4])
    assert {(each.session_id, each.number) for each in sent} == {(session, 1)}
    assert [each.hint for each in sent].count(True) == 1
    assert store.history(session) == [(1, "user", "once")]
    assert store.send(prompt="once", idempotency_key="other key").number == 2, "no number was wasted"
    store.settle(store.start(session))
    assert store.send(prompt="once", idempotency_key="k").number == 1, "also when it is answered"


def test_one_key_for_two_prompts_is_a_conflict(store: Store, other: Store):
    session = store.session()
    got = all_at_once(*[lambda n=n: (store, other)[n % 2].send(prompt=f"{n}", idempotency_key="k") for n in range(6)])
    conflicts = [each for each in got if isinstance(each, IdempotencyConflictError)]
    assert len(conflicts) == 5
    assert "'k'" in str(conflicts[0])
    assert "'s'" in str(conflicts[0])
    assert len(store.history(session)) == 1
    store.session("another")
    assert store.send("another", "else", idempotency_key="k").number == 1, "keys are the session's own"


def test_a_key_with_text_that_was_replaced_is_no_conflict(store: Store):
    store.session()
    prompt = "NUL \x00 and \ud800"
    assert store.send(prompt=prompt, idempotency_key="k").number == 1
    assert store.send(prompt=prompt, idempotency_key="k").number == 1


def test_one_id_is_one_session_however_many_create_it_at_once(store: Store, other: Store):
    made = all_at_once(*[lambda s=s: s.session() for s in [store, other] * 4])
    ids = [each for each in made if isinstance(each, int)]
    assert len(ids) == 1
    assert {type(each) for each in made if each not in ids} == {SessionExistsError}
    assert len(store.everything()["sessions"]) == len(store.everything()["leases"]) == 1


def test_what_exists_is_not_changed_by_creating_it_again(store: Store):
    store.session(system_message="first", labels={"a": "b"}, context_turns=3)
    before = store.everything()
    with pytest.raises(SessionExistsError, match="'s'"):
        store.session(system_message="second")
    assert store.everything() == before


def test_an_unknown_session_is_refused_and_not_made(store: Store):
    gone = store.session("gone")
    retention.remove(store.database, "gone")
    for refused in (
        lambda: store.send("ghost"),
        lambda: store.send("ghost", idempotency_key="k"),
        lambda: store.send("gone", session_id=gone),
        lambda: opening.resume_session(store.database, "ghost", ("echo/echo", None), "system"),
        lambda: store.hold("ghost"),
        lambda: retention.remove(store.database, "ghost"),
        lambda: reading.get_session(store.database, "ghost"),
    ):
        with pytest.raises(SessionNotFoundError, match=r"ghost|gone"):
            refused()
    with pytest.raises(TurnNotFoundError, match=f"{gone}.1"):
        sending.cancel(store.database, gone, 1)
    assert {len(rows) for rows in store.everything().values()} == {0}


def test_a_handle_does_not_send_to_another_session_of_the_same_id(store: Store):
    first = store.session()
    retention.remove(store.database, "s")
    second = store.session()
    for key in None, "k":
        with pytest.raises(SessionNotFoundError):
            store.send(session_id=first, idempotency_key=key)
    assert store.send(session_id=second).session_id == second


def test_reject_stores_nothing_while_a_turn_is_unfinished(store: Store):
    session = store.session()
    assert store.send(when_busy="reject").number == 1
    for _ in range(2):
        before = store.everything()
        with pytest.raises(SessionBusyError, match="'s'"):
            store.send(when_busy="reject")
        assert store.everything() == before
        started = store.claim(session)
    assert started is None
    store.change(LEASES, LEASES.c.session_id == session, expires_at=now(-1))
    store.rescue_expired()
    store.settle(store.start(session))
    assert store.send(when_busy="reject").number == 2


def test_one_of_many_that_reject_is_accepted(store: Store, other: Store):
    store.session()
    got = all_at_once(*[lambda s=s: s.send(when_busy="reject") for s in [store, other] * 3])
    assert [type(each) for each in got].count(SessionBusyError) == 5


def test_hints_are_asked_for_when_nobody_has_been_told(store: Store):
    session = store.session()
    assert store.send().hint
    assert not store.send().hint, "somebody was told a moment ago"
    store.change(LEASES, LEASES.c.session_id == session, hinted_at=now(-60))
    assert store.send().hint, "that hint may be lost"
    started = store.start(session)
    assert not store.send().hint, "its owner looks again"
    store.settle(started)
    assert not store.send().hint, "whoever settled goes on with it, or hints"


def test_a_system_message_changed_on_resume_applies_to_later_turns_only(store: Store):
    session = store.session(system_message="be brief")
    store.answer(prompt="one")
    store.send(prompt="two, sent before the change")
    opening.resume_session(store.database, "s", system_message="be long")
    opening.resume_session(store.database, "s", system_message="be verbose", model=("echo/other", None))
    store.send(prompt="three")
    before = store.history(session)
    two = store.start(session)
    assert (two.messages[0], two.model) == ({"role": "system", "content": "be brief"}, "echo/echo")
    store.settle(two)
    three = store.start(session)
    assert (three.messages[0], three.model) == ({"role": "system", "content": "be verbose"}, "echo/other")
    assert [message["role"] for message in three.messages].count("system") == 1
    store.settle(three)
    assert [line for line in store.history(session) if line[1] != "assistant"] == [
        line for line in before if line[1] != "assistant"
    ]
    assert [line for line in store.history(session) if line[1] == "system"] == [
        (1, "system", "be brief"),
        (3, "system", "be verbose"),
    ]


def test_a_system_message_can_be_taken_away(store: Store):
    session = store.session(system_message="be brief")
    store.answer()
    opening.resume_session(store.database, "s", system_message="never said to anybody")
    opening.resume_session(store.database, "s", system_message="")
    assert reading.get_session(store.database, "s").system_message is None
    store.send()
    assert store.start(session).messages[0]["role"] == "user"
    assert [line for line in store.history(session) if line[1] == "system"] == [(1, "system", "be brief")]


def test_resuming_with_nothing_changes_only_the_activity(store: Store):
    session = store.session(system_message="be brief", labels={"a": "b"})
    before = reading.get_session(store.database, "s")
    assert opening.resume_session(store.database, "s") == session
    after = reading.get_session(store.database, "s")
    assert after.last_activity_at > before.last_activity_at
    assert (after.system_message, after.labels, after.model) == (before.system_message, before.labels, before.model)


def test_cancelling_a_waiting_turn_ends_it_without_a_call(store: Store):
    session = store.session()
    store.send()
    assert sending.cancel(store.database, session, 1) == (TurnState.QUEUED, None)
    assert sending.cancel(store.database, session, 1) == (TurnState.CANCELLED, None)
    assert store.claim(session) is None
    turn = store.turn(session)
    assert (turn.state, turn.attempts) == (TurnState.CANCELLED, 0)
    assert store.outcomes(session) == []
    assert store.lease(session).ready_at is None
    assert store.send().hint, "the session is usable"


def test_cancelling_a_retry_lets_the_next_turn_run_at_once(store: Store):
    session = store.session()
    store.send()
    store.send(lane=Lane.BATCH)
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=60)
    assert store.lease(session).later
    found, ready = sending.cancel(store.database, session, 1)
    assert (found, ready) == (TurnState.QUEUED, waking.Ready(session, "s", Lane.BATCH))
    assert store.lease(session).is_ready
    assert store.start(lane=Lane.BATCH).number == 2


def test_cancelling_behind_a_retry_does_not_cut_its_wait_short(store: Store):
    session = store.session()
    store.send()
    store.send()
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=60)
    sending.cancel(store.database, session, 2)
    assert store.lease(session).later


def test_cancelling_a_running_turn_leaves_a_flag_that_its_worker_finds(store: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    assert store.write(sweeping.cancel_requests, WORKER) == []
    assert sending.cancel(store.database, session, 1) == (TurnState.RUNNING, None)
    asked_at = store.turn(session).cancel_requested_at
    assert sending.cancel(store.database, session, 1) == (TurnState.RUNNING, None)
    assert store.turn(session).cancel_requested_at == asked_at, "twice is harmless"
    assert store.write(sweeping.cancel_requests, WORKER) == [(session, 1)]
    assert store.write(sweeping.cancel_requests, "worker-2") == []
    assert store.settle(started, reply="too late to cancel")
    assert store.turn(session).state is TurnState.COMPLETED, "a reply that is there is kept"
    assert store.write(sweeping.cancel_requests, WORKER) == []


def test_a_cancel_that_meets_the_settlement_finds_the_turn_final(store: Store, other: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    found, _ = meet(lambda: store.settle(started), store, lambda: sending.cancel(other.database, session, 1))
    assert found is TurnState.COMPLETED
    assert store.turn(session).state is TurnState.COMPLETED


def test_a_cancel_that_meets_the_claim_leaves_a_flag(store: Store, other: Store):
    session = store.session()
    store.send()
    found, _ = meet(lambda: store.start(session), store, lambda: sending.cancel(other.database, session, 1))
    assert found is TurnState.RUNNING
    assert store.write(sweeping.cancel_requests, WORKER) == [(session, 1)]


def test_a_turn_that_goes_back_just_when_it_is_cancelled_is_cancelled(store: Store, other: Store):
    session = store.session()
    store.send()
    store.send()
    started = store.start(session)
    back = lambda: other.settle(started, TurnState.QUEUED, delay_seconds=60)  # noqa: E731
    assert meet(lambda: sending.cancel(store.database, session, 1), store, back)
    assert store.turn(session, 1).state is TurnState.CANCELLED
    assert store.start(session).number == 2, "its wait is over with it"


def test_a_deleted_session_takes_nothing_from_a_send_that_waited(store: Store, other: Store):
    store.session()
    with pytest.raises(SessionNotFoundError):
        meet(lambda: retention.remove(store.database, "s"), store, lambda: other.send())
    assert {len(rows) for rows in store.everything().values()} == {0}


def test_a_delete_that_waited_for_a_send_takes_its_turn_as_well(store: Store, other: Store):
    store.session()
    meet(lambda: store.send(), store, lambda: retention.remove(other.database, "s"))
    assert {len(rows) for rows in store.everything().values()} == {0}


def test_sessions_are_found_by_what_is_asked_for(store: Store):
    for key, model in ("user-1-a", "echo/a"), ("user-1-b", "echo/b"), ("user-10", "echo/a"), ("User-1", "echo/a"):
        opening.create_session(
            store.database, opening.NewSession(key, model, labels={"team": "ä\U0001f600" if "1-" in key else "x'\"%"})
        )
    store.send("user-1-b")

    def keys(**wanted: Any) -> list[str]:
        return [row.key for row in reading.list_sessions(store.database, SessionFilter(**wanted))]

    assert keys() == ["user-1-a", "user-1-b", "user-10", "User-1"]
    assert keys(prefix="user-1-") == ["user-1-a", "user-1-b"]
    assert keys(prefix="user-1") == ["user-1-a", "user-1-b", "user-10"]
    assert keys(prefix="user-1%") == keys(prefix="user_1") == []
    assert keys(model="echo/b") == keys(busy=True) == ["user-1-b"]
    assert keys(busy=False, model="echo/a") == ["user-1-a", "user-10", "User-1"]
    assert keys(labels={"team": "ä\U0001f600"}) == ["user-1-a", "user-1-b"]
    assert keys(labels={"team": "x'\"%"}) == ["user-10", "User-1"]
    assert keys(labels={"te'am": "x"}) == keys(labels={"other": "x"}) == []
    last = reading.get_session(store.database, "user-1-b")
    assert keys(active_after=last.last_activity_at) == ["user-1-b"]
    assert "user-1-b" not in keys(active_before=last.last_activity_at)
    assert reading.last_session_key(store.database) == "user-1-b"


def test_a_tick_of_the_timetable_fires_once(store: Store, other: Store):
    fired = all_at_once(*[lambda s=s: s.write(presence.tick, "cleanup", 7) for s in [store, other] * 3])
    assert fired.count(True) == 1
    assert store.write(presence.tick, "cleanup", 8)
    assert store.write(presence.tick, "other", 7)


@only_postgresql
def test_transactions_that_lock_each_other_out_are_done_again(store: Store, other: Store):
    ids = [store.session(key) for key in "ab"]

    def bump(through: Store, first: int, second: int) -> None:
        def work(db: Any) -> None:
            for session in first, second:
                db.execute(SESSIONS.update().where(SESSIONS.c.id == session).values(next_turn=SESSIONS.c.next_turn + 1))
                db.exec_driver_sql("SELECT pg_sleep(0.2)")

        through.database.transact(work)

    all_at_once(lambda: bump(store, *ids), lambda: bump(other, *reversed(ids)))
    assert store.count("SELECT count(*) FROM sessions WHERE next_turn = 3") == 2


def test_a_turn_names_the_moment_that_it_waits_for(store: Store):
    session = store.session()
    store.send()
    assert store.turn(session).not_before is None, "it waits for no moment"
    started = store.start(session)
    store.settle(started, TurnState.QUEUED, delay_seconds=60)
    waits = store.turn(session)
    assert waits.not_before == waits.ready_at > waits.created_at + timedelta(seconds=50)
    store.change(TURNS, TURNS.c.session_id == session, ready_at=now(-1))
    assert store.turn(session).not_before is None, "the moment has come"
    store.change(TURNS, TURNS.c.session_id == session, ready_at=now(60))
    sending.cancel(store.database, session, 1)
    assert store.turn(session).not_before is None, "it waits no more"
