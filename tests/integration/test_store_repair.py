"""The sweep's verbs: leases of dead workers, lost hints, orphans, on both databases."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from inturn.models.clock import now
from inturn.models.states import AttemptOutcome, Lane, Role, TurnState
from inturn.models.store import sending, sweeping, working
from inturn.models.store.sweeping import Caps, Rescued
from inturn.models.store.working import Step
from inturn.models.tables import LEASES
from inturn.settings import Settings
from inturn.workers.maintenance import Sweep
from tests.integration.stores import CAPS, WORKER, Store, meet, only_postgresql, settlement


def test_an_expired_lease_is_taken_over_and_its_turn_waits_again(store: Store):
    session, fresh = store.session(), store.session("fresh")
    store.send()
    store.send("fresh")
    dead, alive = store.start(session), store.start(fresh)
    store.expire(session)
    assert store.rescue_expired() == [session]
    turn, lease = store.turn(session), store.lease(session)
    assert (turn.state, turn.rescues, turn.attempts, turn.error_type) == (TurnState.QUEUED, 1, 1, None)
    assert (lease.owner, lease.token, lease.is_ready) == (None, dead.token + 1, True)
    assert store.outcomes(session) == [(1, 1, "lost")]
    assert store.settle(alive), "the other's lease has not run out"
    assert store.rescue_expired() == []


def test_a_dead_owners_leases_are_taken_over_before_they_run_out(store: Store):
    ids = {key: store.session(key) for key in "abc"}
    for key, owner in ("a", "dead-1"), ("b", "dead-2"), ("c", WORKER):
        store.send(key)
        store.start(ids[key], owner=owner)
    rescued = store.write(sweeping.rescue_owned, ["dead-1", "dead-2", "unheard-of"], CAPS)
    assert rescued is not None
    assert [(each.session_id, each.key, each.lane) for each in rescued.ready] == [
        (ids["a"], "a", Lane.CHAT),
        (ids["b"], "b", Lane.CHAT),
    ]
    assert (rescued.leases, rescued.ended) == (2, [])
    assert store.lease(ids["c"]).owner == WORKER


def test_a_lease_without_running_turn_is_let_go(store: Store):
    """Its worker died between the transactions of a bug that is not ours."""
    session = store.session()
    store.change(LEASES, LEASES.c.session_id == session, owner="dead", expires_at=now(-1))
    assert store.rescue_expired() == []
    assert store.lease(session).owner is None


@pytest.mark.parametrize(
    ("caps", "deaths", "rescues"), [(Caps(5, rescues=3), 5, 3), (Caps(2, rescues=3), 2, 2), (Caps(5, rescues=1), 5, 1)]
)
def test_a_turn_whose_workers_die_fails_when_its_attempts_are_used_up(
    store: Store, caps: Caps, deaths: int, rescues: int
):
    """Not before: once it is tried in a process of its own, it is not to blame for a worker's death."""
    session = store.session()
    store.send()
    store.send(prompt="the next one")
    for death in range(1, deaths + 1):
        started = store.start(session)
        assert (started.number, started.attempts, started.rescues) == (1, death, min(death - 1, caps.rescues))
        store.expire(session)
        assert store.rescue_expired(caps) == [session], "the session is ready again, for this turn or the next"
    turn = store.turn(session)
    assert (turn.state, turn.error_type, turn.error_retryable) == (TurnState.FAILED, "worker_lost", True)
    assert (turn.attempts, turn.rescues) == (deaths, rescues)
    assert turn.finished_at is not None
    assert store.outcomes(session) == [(1, number, "lost") for number in range(1, deaths + 1)]
    assert store.start(session).number == 2


def test_a_retry_of_a_turn_that_killed_workers_kills_no_more_of_them(store: Store):
    """It begins where that one ended: in a process of its own."""
    session = store.session()
    store.send()
    used_up(store, session)
    store.send(retry_of=1)
    assert store.start(session).rescues == store.turn(session, 1).rescues == 1
    store.send("s", "something else")
    assert store.turn(session, 3).rescues == 0


def used_up(store: Store, session: int) -> None:
    store.start(session)
    store.expire(session)
    store.rescue_expired(Caps(attempts=1, rescues=1))


def unstorable(store: Store, session: int) -> None:
    store.settle(store.start(session), TurnState.FAILED, error_type="unstorable")


@pytest.mark.parametrize("poison", [used_up, unstorable])
def test_a_session_that_halts_stops_behind_a_quarantined_turn(store: Store, poison: Callable[[Store, int], None]):
    halting, other = store.session(halts=True), store.session("other")
    for key in "s", "other":
        store.send(key)
        store.send(key, "the next one")
    for session in halting, other:
        poison(store, session)
        assert store.turn(session).state is TurnState.FAILED
    assert [store.lease(session).halted_by for session in (halting, other)] == [1, None]
    assert store.start().session_id == other, "goes on with its next turn"
    assert store.claim(halting) is None
    assert not store.send("s", "one more").hint or store.claim(halting) is None
    store.change(LEASES, LEASES.c.session_id == halting, hinted_at=None)
    assert store.write(sweeping.unhinted, Lane.CHAT, 0, 10) == [], "nobody is told of it"
    store.change(LEASES, LEASES.c.session_id == halting, halted_by=None)
    assert store.start(halting).number == 2


def test_a_session_that_halts_goes_on_after_any_other_failure(store: Store):
    session = store.session(halts=True)
    store.send()
    store.send(prompt="the next one")
    store.settle(store.start(session), TurnState.FAILED, error_type="timeout")
    assert store.lease(session).halted_by is None
    assert store.start(session).number == 2


def test_an_attempt_that_is_withdrawn_was_never_made(store: Store):
    """As if it had not been claimed; only later."""
    session, other = store.session(), store.session("other")
    store.send()
    store.send("other")
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=0)
    once, neighbour = store.start(session), store.start(other)
    withdrawn = settlement(once, TurnState.QUEUED, outcome=None, delay_seconds=30)
    with store.database.writing() as db:
        both = [withdrawn, settlement(neighbour)]
        assert working.settle(db, WORKER, 30, both) == ({each.held for each in both}, set(), set())
        assert working.settled_before(db, [withdrawn]) == {withdrawn.held}
    turn, lease = store.turn(session), store.lease(session)
    assert (turn.state, turn.attempts, turn.rescues) == (TurnState.QUEUED, 1, 0)
    assert (lease.owner, lease.later) == (None, True)
    assert store.outcomes(session) == [(1, 1, "safe")]
    assert store.outcomes(other) == [(1, 1, "completed")], "its neighbour's row stays"
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now())
    assert store.start(session).attempts == 2


def test_rescues_and_attempts_are_counted_apart(store: Store):
    """Failed attempts do not use up the rescues."""
    session = store.session()
    store.send()
    for _ in range(3):
        store.settle(store.start(session), TurnState.QUEUED, delay_seconds=0)
    store.start(session)
    store.expire(session)
    store.rescue_expired(Caps(attempts=5, rescues=1))
    turn = store.turn(session)
    assert (turn.state, turn.attempts, turn.rescues) == (TurnState.QUEUED, 4, 1)


def test_a_rescued_turn_that_was_taken_back_is_cancelled(store: Store):
    for caps in CAPS, Caps(attempts=1, rescues=0):
        key = f"s{caps.rescues}"
        session = store.session(key)
        store.send(key)
        store.start(session)
        sending.cancel(store.database, session, 1)
        store.expire(session)
        rescued = store.write(sweeping.rescue_expired, caps)
        assert rescued == Rescued([], 1, [(TurnState.CANCELLED, "echo/echo", Lane.CHAT)])
        turn = store.turn(session)
        assert (turn.state, turn.error_type) == (TurnState.CANCELLED, None)
        assert turn.finished_at is not None


def test_rescues_by_two_sweeps_at_once_count_once(store: Store, other: Store):
    session = store.session()
    store.send()
    store.start(session)
    store.expire(session)
    first = store.rescue_expired
    if store.is_sqlite:
        assert meet(first, store, other.rescue_expired) == []
    else:
        with store.database.writing() as db:
            sweeping.rescue_expired(db, CAPS)
            assert other.rescue_expired() == [], "locked rows are somebody's work already"
    turn = store.turn(session)
    assert (turn.rescues, store.lease(session).token) == (1, 2)


def test_a_settlement_that_waited_for_the_rescue_comes_too_late(store: Store, other: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    store.expire(session)
    assert not meet(store.rescue_expired, store, lambda: other.settle(started))
    assert store.turn(session).state is TurnState.QUEUED
    assert store.history(session) == [(1, "user", "hello")]


def test_more_leases_than_a_chunk_are_all_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweeping, "CHUNK", 2)
    ids = [store.session(key) for key in "abcde"]
    for key in "abcde":
        store.send(key)
        store.start()
    store.change(LEASES, LEASES.c.owner == WORKER, expires_at=now(-1))
    rescued: list[int] = []
    while chunk := store.rescue_expired():
        assert len(chunk) <= 2
        rescued += chunk
    assert sorted(rescued) == ids


def test_orphans_are_leases_of_which_no_slot_knows(store: Store):
    lost, newer, held = (store.session(key) for key in "abc")
    for key in "abc":
        store.send(key)
    tokens = {each.session_id: each.token for each in (store.start(), store.start(), store.start())}
    # Meanwhile the second was settled and claimed again.
    store.change(LEASES, LEASES.c.session_id == newer, token=7)
    asked = {session: token for session, token in tokens.items() if session != held}
    rescued = store.write(sweeping.rescue_orphans, WORKER, asked, CAPS)
    assert rescued is not None
    assert [each.session_id for each in rescued.ready] == [lost]
    assert store.lease(newer).owner == store.lease(held).owner == WORKER
    assert store.write(sweeping.rescue_orphans, "worker-2", tokens, CAPS) is None
    assert store.write(sweeping.rescue_orphans, WORKER, {}, CAPS) is None
    unknown = dict.fromkeys(range(1000, 4000), 1)
    assert store.write(sweeping.rescue_orphans, WORKER, unknown, CAPS) is None, "as many as a process has slots"
    assert store.lease(held).owner == WORKER


def test_the_sweep_finds_sessions_that_nobody_was_told_about(store: Store):
    ids = {key: store.session(key) for key in ("lost", "told", "owned", "later", "empty", "batch")}
    for key in "lost", "told", "owned", "later":
        store.send(key)
    store.send("batch", lane=Lane.BATCH)
    store.start(ids["owned"])
    changes: dict[str, dict[str, Any]] = {
        "lost": {"hinted_at": now(-60)},
        "later": {"ready_at": now(60), "hinted_at": None},
        "batch": {"hinted_at": None},
    }
    for key, values in changes.items():
        store.change(LEASES, LEASES.c.session_id == ids[key], **values)

    def found(lane: Lane, stale: float, limit: int = 10) -> list[str]:
        return [each.key for each in store.write(sweeping.unhinted, lane, stale, limit)]

    assert found(Lane.CHAT, 10) == ["lost"]
    assert found(Lane.CHAT, 10) == [], "it counts as told now"
    assert found(Lane.BATCH, 10) == ["batch"]
    assert found(Lane.MAINTENANCE, 0) == []
    assert sorted(found(Lane.CHAT, 0)) == ["lost", "told"], "the queue is empty, so all hints were lost"
    assert len(found(Lane.CHAT, 0, limit=1)) == 1


def test_a_retry_is_hinted_again_when_it_is_due(store: Store):
    session = store.session()
    store.send()
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=60)
    store.change(LEASES, LEASES.c.session_id == session, hinted_at=now())
    assert store.write(sweeping.unhinted, Lane.CHAT, 60, 10) == []
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now(-0.5), hinted_at=now(-1))
    assert [each.session_id for each in store.write(sweeping.unhinted, Lane.CHAT, 60, 10)] == [session]


def test_a_clock_that_is_set_back_hides_no_lost_hint(store: Store):
    session = store.session()
    store.send()
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now(-10), hinted_at=now(3600))
    assert [each.session_id for each in store.write(sweeping.unhinted, Lane.CHAT, 60, 10)] == [session]
    assert store.write(sweeping.unhinted, Lane.CHAT, 60, 10) == []


@only_postgresql
def test_sweeps_at_once_hint_a_session_once(store: Store, other: Store):
    session = store.session()
    store.send()
    store.change(LEASES, LEASES.c.session_id == session, hinted_at=None)
    with store.database.writing() as db:
        assert len(sweeping.unhinted(db, Lane.CHAT, 0, 10)) == 1
        assert other.write(sweeping.unhinted, Lane.CHAT, 0, 10) == []


def test_the_heartbeat_renews_what_runs_out_and_names_all_that_is_held(store: Store):
    ids = [store.session(key) for key in "abcd"]
    for key in "abcd":
        store.send(key)
    for session in ids[:2]:
        store.start(session, lease=10)
    store.start(ids[2], lease=60)
    store.start(ids[3], owner="worker-2", lease=10)
    before = [store.lease(session).expires_at for session in ids]
    held = store.write(sweeping.extend, WORKER, 100, 30)
    assert held == dict.fromkeys(ids[:3], 1)
    moved = [store.lease(session).expires_at > was for session, was in zip(ids, before, strict=True)]
    assert moved == [True, True, False, False]
    assert store.rescue_expired() == []


@only_postgresql
def test_the_heartbeat_waits_for_nobody(store: Store, other: Store):
    session = store.session()
    store.send()
    store.start(session, lease=10)
    with other.database.writing() as db:
        db.execute(select(LEASES).where(LEASES.c.session_id == session).with_for_update())
        assert store.write(sweeping.extend, WORKER, 100, 30) == {session: 1}, "held, though not renewed"


def test_the_heartbeat_does_not_name_what_somebody_else_holds(store: Store):
    session = store.session()
    store.send()
    store.start(session)
    store.expire(session)
    store.rescue_expired()
    store.start(session, owner="worker-2")
    assert store.write(sweeping.extend, WORKER, 100, 30) == {}
    assert store.turn(session).state is TurnState.RUNNING


def test_the_databases_clock_goes_on_within_a_transaction(store: Store):
    with store.database.writing() as db:
        before = sweeping.database_time(db)
        assert abs(before - time.time()) < 5
        time.sleep(0.05)
        assert 0.04 < sweeping.database_time(db) - before < 5


def test_a_pass_goes_on_behind_a_chunk_whose_turns_all_ended(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweeping, "CHUNK", 2)
    sessions = [store.session(f"s{number}") for number in range(5)]
    for number, session in enumerate(sessions):
        store.send(f"s{number}")
        store.start(session)
        store.expire(session)
    settings = Settings(max_attempts=1, max_ambiguous_attempts=1)
    Sweep(store.database, settings, lambda ready: None, lambda lane: None, lambda turns: ()).run()
    assert {store.turn(session).state for session in sessions} == {TurnState.FAILED}


def test_a_slot_that_lost_its_session_stores_nothing_beside_the_one_that_has_it_now(store: Store):
    """Both in one process, and at the ledger at the same moment: after a pause for longer than the lease."""
    session = store.session()
    store.send()
    stale = store.start(session)
    store.expire(session)
    store.rescue_expired()
    current = store.start(session)
    late = settlement(stale, reply="too late")
    kept_back = replace(
        settlement(stale, TurnState.QUEUED, outcome=AttemptOutcome.COMPLETED), steps=(Step(Role.TOOL, "too late", {}),)
    )
    for lost in (late, kept_back):
        with store.database.writing() as db:
            assert working.settle(db, WORKER, 30, [lost]) == (set(), set(), set())
    now = settlement(current)
    with store.database.writing() as db:
        assert working.settle(db, WORKER, 30, [late, now, kept_back]) == ({now.held}, set(), set())
    assert store.history(session) == [(1, "user", "hello"), (1, "assistant", "reply to turn 1")]
    assert (store.turn(session).attempts, store.turn(session).state) == (2, TurnState.COMPLETED)
