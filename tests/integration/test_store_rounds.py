"""Rounds in the store: what tools were asked and said is stored with the turn going on, or not at all."""

import pytest

from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store import halting, lanes, sending, sweeping, working
from inturn.models.store.sweeping import Caps
from inturn.models.store.working import Claim
from inturn.models.tables import LEASES
from inturn.workers.ledger import unstorable
from tests.integration.rounds import (
    answered,
    begun,
    counts,
    dangling,
    find_answer,
    go_round,
    places,
    settle,
    speakers,
    texts,
    went_round,
)
from tests.integration.stores import WORKER, Store, settlement


def test_a_round_is_stored_whole_and_its_turn_goes_on_under_a_new_token(store: Store):
    first = begun(store)
    again = go_round(store, first, "cold", "windy")
    assert (again.number, again.token, again.attempts) == (1, first.token + 1, 2)
    assert (again.rounds, again.steps, again.tries) == (1, 3, 1)
    assert speakers(again) == ["user", "assistant", "tool", "tool"]
    assert texts(again) == ["hello", "round 0", "cold", "windy"]
    calls = again.messages[1]["tool_calls"]
    assert [each["tool_call_id"] for each in again.messages[2:]] == [call["id"] for call in calls]
    assert [each["name"] for each in again.messages[2:]] == ["note", "note"]
    assert places(store, first.session_id)[1:] == [
        (1, 2, "assistant", "round 0"), (1, 3, "tool", "cold"), (1, 4, "tool", "windy"),
    ]  # fmt: skip
    assert counts(store, first.session_id) == (2, 1, 3)
    assert store.outcomes(first.session_id) == [(1, 1, "completed"), (1, 2, None)]
    lease = store.lease(first.session_id)
    assert (lease.owner, lease.token, lease.ready_at) == (WORKER, again.token, None)


def test_a_round_that_nobody_goes_on_with_is_let_go_and_ready_at_once(store: Store):
    first = begun(store)
    assert settle(store, went_round(first, "cold")) == (True, None)
    lease, turn = store.lease(first.session_id), store.turn(first.session_id)
    assert (lease.owner, lease.token, lease.is_ready) == (None, first.token, True)
    assert (turn.state, turn.finished_at, turn.error_message) == (TurnState.QUEUED, None, None)
    again = store.start(first.session_id, owner="worker-2")
    assert texts(again) == ["hello", "round 0", "cold"]
    assert again.token == first.token + 1


def test_later_rounds_and_the_reply_stand_behind_the_first(store: Store):
    second = go_round(store, begun(store), "cold")
    third = go_round(store, second, "windy", "wet")
    assert texts(third) == ["hello", "round 0", "cold", "round 1", "windy", "wet"]
    assert settle(store, answered(third, "stay in")) == (True, None)
    assert [(place, text) for _, place, _, text in places(store, third.session_id)] == list(
        enumerate(["hello", "round 0", "cold", "round 1", "windy", "wet", "stay in"], 1)
    )
    turn, reply = find_answer(store, third)
    assert (turn.state, reply) == (TurnState.COMPLETED, "stay in")
    assert counts(store, third.session_id) == (3, 2, 5)


def test_nothing_that_tools_said_is_taken_for_the_reply(store: Store):
    again = go_round(store, begun(store), "cold")
    assert find_answer(store, again)[1] is None, "it is under way"
    store.settle(again, TurnState.FAILED)
    turn, reply = find_answer(store, again)
    assert (turn.state, reply) == (TurnState.FAILED, None)


def test_later_turns_are_shown_the_rounds_in_order(store: Store):
    again = go_round(store, begun(store), "cold", "windy")
    store.send(prompt="and tomorrow?")
    _, later = settle(store, answered(again), claims=True)
    assert later is not None
    assert later.number == 2
    assert (later.rounds, later.steps) == (0, 0)
    assert texts(later) == ["hello", "round 0", "cold", "windy", "the reply", "and tomorrow?"]
    assert [number for number, _ in later.history] == [1]
    assert dangling(later.messages) == []


def test_turns_that_ended_without_a_reply_show_nothing_of_their_rounds(store: Store):
    again = go_round(store, begun(store), "cold")
    store.settle(again, TurnState.FAILED)
    store.send(prompt="and tomorrow?")
    assert texts(store.start(again.session_id)) == ["and tomorrow?"]
    assert (1, 3, "tool", "cold") in places(store, again.session_id), "its users can read it all the same"


@pytest.mark.parametrize("claims", [True, False])
def test_who_lost_the_lease_stores_nothing_of_a_round(store: Store, claims: bool):
    first = begun(store)
    store.expire(first.session_id)
    store.rescue_expired()
    before = store.everything()
    held, _ = settle(store, went_round(first, "cold"))
    assert not held
    assert store.everything() == before
    if claims:
        again = store.start(first.session_id)
        assert settle(store, went_round(first, "cold"), claims=True) == (False, None)
        assert (texts(again), again.rounds, counts(store, first.session_id)) == (["hello"], 0, (2, 0, 0))


def test_a_stranger_with_the_right_token_stores_nothing_of_a_round(store: Store):
    first = begun(store)
    was = store.everything()
    assert settle(store, went_round(first, "cold"), owner="worker-2") == (False, None)
    assert store.everything() == was


def test_a_commit_of_unknown_outcome_is_recognised_and_not_done_twice(store: Store):
    first = begun(store)
    settled = went_round(first, "cold")
    with store.database.reading() as db:
        assert working.settled_before(db, [settled]) == set()
    again = go_round(store, first, "cold")
    before = store.everything()
    assert settle(store, settled, claims=True) == (False, None)
    assert store.everything() == before
    with store.database.reading() as db:
        assert working.settled_before(db, [settled]) == {settled.held}
        assert working.settled_before(db, [went_round(again, "x")]) == set(), "the next round is another attempt"


def test_a_cancel_during_a_round_ends_the_turn_and_leaves_it_readable(store: Store):
    first = begun(store)
    store.send(prompt="next")
    assert sending.cancel(store.database, first.session_id, 1)[0] is TurnState.RUNNING
    held, later = settle(store, went_round(first, "cold"), claims=True)
    assert held
    turn = store.turn(first.session_id)
    assert (turn.state, turn.finished_at is None) == (TurnState.CANCELLED, False)
    assert store.outcomes(first.session_id)[0] == (1, 1, "completed"), "its answer was paid for"
    assert later is not None
    assert (later.number, texts(later)) == (2, ["next"])


def test_a_cancel_between_two_rounds_ends_the_turn_at_once(store: Store):
    first = begun(store)
    settle(store, went_round(first, "cold"))
    assert sending.cancel(store.database, first.session_id, 1)[0] is TurnState.QUEUED
    assert store.turn(first.session_id).state is TurnState.CANCELLED
    assert store.claim(first.session_id) is None


def test_a_paused_lane_stops_a_turn_between_two_rounds(store: Store):
    first = begun(store)
    lanes.pause(store.database, Lane.CHAT)
    assert settle(store, went_round(first, "cold"), claims=True) == (True, None)
    assert store.lease(first.session_id).owner is None
    lanes.resume(store.database, Lane.CHAT)
    assert texts(store.start(first.session_id)) == ["hello", "round 0", "cold"]


def test_a_session_halted_meanwhile_stops_a_turn_between_two_rounds(store: Store):
    first = begun(store)
    store.change(LEASES, LEASES.c.session_id == first.session_id, halted_by=1)
    assert settle(store, went_round(first, "cold"), claims=True) == (True, None)
    assert store.claim(first.session_id) is None
    halting.resume_halted(store.database, "s")
    assert texts(store.start(first.session_id)) == ["hello", "round 0", "cold"]


def test_a_round_goes_on_for_who_claims_in_its_own_lane_and_for_no_one_else(store: Store):
    """A late hint of another lane is in the same transaction."""
    first = begun(store)
    held, other = settle(store, went_round(first, "cold"), claims=True, lane=Lane.BATCH)
    assert (held, other) == (True, None)
    lease = store.lease(first.session_id)
    assert (lease.owner, lease.lane, lease.is_ready) == (None, Lane.CHAT, True)


def test_neighbours_of_a_round_are_settled_in_the_same_transaction(store: Store):
    sessions = [store.session(key) for key in ("a", "b", "c")]
    for key in "abc":
        store.send(key)
    a, b, c = (store.start(session) for session in sessions)
    settled = [went_round(a, "cold"), answered(b), settlement(c, TurnState.QUEUED, delay_seconds=60)]
    claims = [Claim(Lane.CHAT, session) for session in sessions]
    with store.database.writing() as db:
        held, going_on, _ = working.settle(db, WORKER, 30, settled, claims)
        found = working.claim(db, WORKER, 30, 20, claims, going_on)
    assert (held, going_on) == ({each.held for each in settled}, {claims[0]})
    assert [each and texts(each) for each in found] == [["hello", "round 0", "cold"], None, None]
    assert [counts(store, session) for session in sessions] == [(2, 1, 2), (1, 0, 0), (1, 0, 0)]


def test_what_no_database_takes_is_replaced_in_calls_and_results(store: Store):
    first = begun(store)
    settled = went_round(first, "a\x00b", "c\ud800d")
    settled.steps[0].data["tool_calls"][0]["function"]["arguments"] = '{"x": "\x00\udfff"}'
    held, again = settle(store, settled, claims=True)
    assert held
    assert again is not None
    assert texts(again)[2:] == ["a\ufffdb", "c\ufffdd"]
    assert again.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"x": "\ufffd\ufffd"}'


# What dies in the middle.


def test_a_worker_that_dies_in_a_round_leaves_nothing_of_it(store: Store):
    second = go_round(store, begun(store), "cold")
    store.expire(second.session_id)
    assert store.rescue_expired() == [second.session_id]
    again = store.start(second.session_id)
    assert texts(again) == ["hello", "round 0", "cold"]
    assert dangling(again.messages) == []
    assert (again.attempts, again.rounds, again.steps, again.rescues) == (3, 1, 2, 1)
    assert not settle(store, went_round(second, "late"))[0]
    assert texts(go_round(store, again, "windy"))[3:] == ["round 1", "windy"]


def test_a_lease_lost_between_two_rounds_goes_on_where_it_was(store: Store):
    """The round is stored, and its answer never came to the slot: to the heartbeat it is an orphan."""
    second = go_round(store, begun(store), "cold")
    rescued = store.write(sweeping.rescue_orphans, WORKER, {second.session_id: second.token}, Caps(5, 3))
    assert rescued is not None
    assert [each.session_id for each in rescued.ready] == [second.session_id]
    again = store.start(second.session_id)
    assert (texts(again), again.rounds) == (["hello", "round 0", "cold"], 1)


def test_answered_attempts_are_none_that_could_be_too_many(store: Store):
    started = begun(store)
    for _ in range(6):
        started = go_round(store, started, "more")
    assert (started.attempts, started.tries) == (7, 1)
    store.expire(started.session_id)
    caps = Caps(attempts=2, rescues=9)
    assert store.rescue_expired(caps) == [started.session_id]
    again = store.start(started.session_id)
    assert (again.attempts, again.tries) == (8, 2)
    store.expire(started.session_id)
    store.rescue_expired(caps)
    turn = store.turn(started.session_id)
    assert (turn.state, turn.error_type) == (TurnState.FAILED, "worker_lost")
    assert find_answer(store, again)[1] is None


def test_attempts_that_failed_between_rounds_count_all_the_same(store: Store):
    started = go_round(store, begun(store), "cold")
    store.settle(started, TurnState.QUEUED, outcome=AttemptOutcome.AMBIGUOUS)
    started = store.start(started.session_id)
    assert (started.tries, started.ambiguous) == (2, 1)
    started = go_round(store, started, "windy")
    assert (started.attempts, started.rounds, started.tries, started.ambiguous) == (4, 2, 2, 1)
    store.settle(started, TurnState.QUEUED, outcome=None)
    assert counts(store, started.session_id) == (3, 2, 4), "an attempt that was withdrawn is no round"


def test_a_round_that_the_database_refuses_counts_no_steps(store: Store):
    first = begun(store)
    refused = unstorable(went_round(first, "cold"), ValueError())
    assert settle(store, refused) == (True, None)
    turn = store.turn(first.session_id)
    assert (turn.state, turn.error_type) == (TurnState.FAILED, "unstorable")
    assert counts(store, first.session_id) == (1, 0, 0)
    assert len(places(store, first.session_id)) == 1
