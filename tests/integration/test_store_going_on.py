"""A settled session whose next prompt waits already stays in hand, if the same transaction claims it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store import lanes, sending, working
from inturn.models.store.working import Claim, Started
from inturn.models.tables import SESSIONS
from tests.integration.stores import WORKER, Store, settlement

COMPLETED = TurnState.COMPLETED


def settle_and_claim(
    store: Store, started: Started, state: TurnState = COMPLETED, lane: Lane = Lane.CHAT, **how: Any
) -> tuple[bool, bool, Started | None]:
    """Whether it was held, whether it goes on, and what was started."""
    claims = [Claim(lane, started.session_id)]
    with store.database.writing() as db:
        held, going_on, _ = working.settle(db, WORKER, 30, [settlement(started, state, **how)], claims)
        (found,) = working.claim(db, WORKER, 30, 20, claims, going_on)
    return (started.session_id, started.token) in held, going_on == set(claims), found


def test_the_next_turn_starts_under_a_new_token_of_the_same_owner(store: Store):
    session = store.session()
    for prompt in "one", "two", "three":
        store.send(prompt=prompt)
    first = store.start(session)
    held, goes_on, second = settle_and_claim(store, first, reply="1")
    assert held
    assert goes_on
    assert second is not None
    assert (second.number, second.token, second.attempts) == (2, first.token + 1, 1)
    assert [message["content"] for message in second.messages] == ["one", "1", "two"]
    lease = store.lease(session)
    assert (lease.owner, lease.token, lease.ready_at) == (WORKER, second.token, None)
    assert store.outcomes(session) == [(1, 1, "completed"), (2, 1, None)]
    assert not store.settle(first), "the old token is worth nothing"
    assert store.settle(second)
    assert store.lease(session).is_ready


def test_a_transaction_that_is_tried_again_finds_the_session_gone_on(store: Store):
    session = store.session()
    store.send()
    store.send()
    first = store.start(session)
    assert settle_and_claim(store, first)[2] is not None
    assert settle_and_claim(store, first) == (False, False, None)
    with store.database.writing() as db:
        assert working.settled_before(db, [settlement(first)]) == {settlement(first).held}
    assert [turn for turn, *_ in store.outcomes(session)] == [1, 2]


def test_neighbours_go_on_and_others_are_let_go_in_one_transaction(store: Store):
    waiting, alone, elsewhere = (store.session(key) for key in ("waiting", "alone", "elsewhere"))
    for key in "waiting", "waiting", "alone", "elsewhere":
        store.send(key)
    started = [store.start(session) for session in (waiting, alone)]
    claims = [Claim(Lane.CHAT, waiting), Claim(Lane.CHAT, alone)]
    with store.database.writing() as db:
        held, going_on, _ = working.settle(db, WORKER, 30, [settlement(each) for each in started], claims)
        found = working.claim(db, WORKER, 30, 20, claims, going_on)
    assert (held, going_on) == ({settlement(each).held for each in started}, set(claims[:1]))
    assert [(each.session_id, each.number) for each in found if each] == [(waiting, 2), (elsewhere, 1)]
    assert store.lease(alone).owner is None


@pytest.mark.parametrize("lanes_asked", [(Lane.CHAT, Lane.BATCH), (Lane.BATCH, Lane.CHAT)])
def test_a_late_hint_for_another_lane_starts_nothing_more(store: Store, lanes_asked: tuple[Lane, ...]):
    session = store.session()
    for _ in range(3):
        store.send()
    started = store.start(session)
    claims = [Claim(lane, session) for lane in lanes_asked]
    with store.database.writing() as db:
        _, going_on, _ = working.settle(db, WORKER, 30, [settlement(started)], claims)
        found = working.claim(db, WORKER, 30, 20, claims, going_on)
    assert [each and each.number for each in found] == [2 if lane == Lane.CHAT else None for lane in lanes_asked]


def send_nothing(store: Store) -> None:
    """Its first prompt is all there is."""


def send_to_another_lane(store: Store) -> None:
    store.send(lane=Lane.BATCH)


def send_for_later(store: Store) -> None:
    store.send(not_before=timedelta(minutes=1))


def pause_its_lane(store: Store) -> None:
    store.send()
    lanes.pause(store.database, Lane.CHAT)


def cancel_the_next(store: Store) -> None:
    store.send()
    sending.cancel(store.database, store.turn(1).session_id, 2)


@pytest.mark.parametrize(
    "arrange", [send_nothing, send_to_another_lane, send_for_later, pause_its_lane, cancel_the_next]
)
def test_what_is_not_ready_at_once_is_let_go(store: Store, arrange: Callable[[Store], None]):
    session = store.session()
    store.send()
    started = store.start(session)
    arrange(store)
    assert settle_and_claim(store, started) == (True, False, None)
    lease = store.lease(session)
    assert (lease.owner, lease.token, lease.expires_at) == (None, started.token, None)


def test_a_turn_that_goes_back_waits_its_time(store: Store):
    session = store.session()
    store.send()
    store.send()
    assert settle_and_claim(store, store.start(session), TurnState.QUEUED, delay_seconds=60) == (True, False, None)
    assert store.lease(session).later


def test_a_session_that_halts_goes_nowhere(store: Store):
    session = store.session()
    store.change(SESSIONS, SESSIONS.c.id == session, halts=True)
    store.send()
    store.send()
    started = store.start(session)
    assert settle_and_claim(
        store, started, TurnState.FAILED, error_type="worker_lost", outcome=AttemptOutcome.LOST
    ) == (True, False, None)
    assert store.lease(session).halted_by == 1
