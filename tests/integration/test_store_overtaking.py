"""Prompts that do not wait behind the others: ``interrupt`` and ``coalesce``, on both databases."""

from datetime import timedelta

import pytest

from inturn.models.content import PROMPT_LIMIT
from inturn.models.errors import IdempotencyConflictError, InvalidPromptError
from inturn.models.states import Lane, TurnState
from inturn.models.store import reading, sending, sweeping
from inturn.models.store.waking import Ready
from inturn.models.tables import LEASES
from tests.integration.stores import WORKER, Store, meet

HOUR = timedelta(hours=1)


def states(store: Store, session: int) -> list[tuple[TurnState, int | None]]:
    """State and ``merged_into`` of every turn."""
    return [(turn.state, turn.merged_into) for turn in reading.list_turns(store.database, session)]


CANCELLED, QUEUED, COMPLETED = (TurnState.CANCELLED, None), (TurnState.QUEUED, None), (TurnState.COMPLETED, None)
RUNNING = (TurnState.RUNNING, None)


def test_an_interrupt_cancels_what_waits_and_runs_and_is_next(store: Store):
    session = store.session()
    for _ in range(3):
        store.send()
    started = store.start(session)
    sent = store.send(prompt="stop", when_busy="interrupt")
    assert (sent.number, sent.interrupted, sent.hint) == (4, True, False)
    assert states(store, session) == [RUNNING, CANCELLED, CANCELLED, QUEUED]
    assert store.turn(session, 2).finished_at is not None
    assert store.write(sweeping.cancel_requests, WORKER) == [(session, 1)]
    assert store.settle(started, TurnState.CANCELLED)
    following = store.start(session)
    assert (following.number, following.messages) == (4, [{"role": "user", "content": "stop"}])


def test_an_interrupt_of_a_session_that_does_nothing_is_a_send(store: Store):
    session = store.session()
    sent = store.send(when_busy="interrupt")
    assert (sent.number, sent.hint, sent.interrupted) == (1, True, False)
    store.settle(store.start(session))
    assert store.send(when_busy="interrupt").hint
    assert states(store, session) == [COMPLETED, QUEUED]


def test_an_interrupt_is_not_kept_waiting_by_what_it_cancels(store: Store):
    """Neither by a retry's wait, nor by a time that was asked for, nor by their lane."""
    session = store.session()
    store.send()
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=60)
    sent = store.send(when_busy="interrupt", lane=Lane.BATCH)
    assert (sent.hint, sent.lane) == (True, Lane.BATCH)
    assert store.lease(session).is_ready
    store.send(when_busy="interrupt", not_before=HOUR)
    assert store.lease(session).later
    assert store.claim(session) is None
    sent = store.send(when_busy="interrupt")
    assert (sent.hint, sent.lane) == (True, Lane.CHAT)
    assert store.start(session).number == 4


def test_two_interrupts_ask_the_worker_once(store: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    assert [store.send(when_busy="interrupt").interrupted for _ in range(2)] == [True, False]
    assert states(store, session) == [RUNNING, CANCELLED, QUEUED]
    assert store.settle(started), "a reply that is there is kept"
    assert store.start(session).number == 3


def test_an_interrupt_that_meets_the_reply_comes_after_it(store: Store, other: Store):
    session = store.session()
    store.send()
    store.send()
    started = store.start(session)
    sent = meet(lambda: store.settle(started), store, lambda: other.send(when_busy="interrupt"))
    assert (sent.interrupted, sent.hint) == (False, True)
    assert states(store, session) == [COMPLETED, CANCELLED, QUEUED]
    assert store.start(session).number == 3


@pytest.mark.parametrize("becomes", [TurnState.COMPLETED, TurnState.QUEUED])
def test_a_settlement_that_meets_an_interrupt_goes_on_with_the_new_turn(store: Store, other: Store, becomes: TurnState):
    session = store.session()
    store.send()
    store.send(lane=Lane.BATCH)
    started = store.start(session)
    assert meet(
        lambda: store.send(when_busy="interrupt"), store, lambda: other.settle(started, becomes, delay_seconds=60)
    )
    stands = COMPLETED if becomes is TurnState.COMPLETED else CANCELLED
    assert states(store, session) == [stands, CANCELLED, QUEUED]
    assert (store.lease(session).is_ready, store.lease(session).lane) == (True, Lane.CHAT)
    assert store.start(session).number == 3


def test_a_settlement_that_meets_an_interrupt_with_a_time_keeps_to_it(store: Store, other: Store):
    session = store.session()
    store.send()
    store.send()
    started = store.start(session)
    assert meet(lambda: store.send(when_busy="interrupt", not_before=HOUR), store, lambda: other.settle(started))
    assert store.lease(session).later
    assert store.claim(session) is None


def test_an_interrupted_turn_whose_worker_is_dead_is_cancelled_by_the_sweep(store: Store):
    session = store.session()
    store.send()
    store.start(session)
    store.send(when_busy="interrupt")
    store.expire(session)
    assert store.rescue_expired() == [session]
    assert states(store, session) == [CANCELLED, QUEUED]
    assert store.start(session).number == 2


def test_an_interrupt_leaves_a_claim_the_old_turn_or_the_new_one(store: Store, other: Store):
    session = store.session()
    store.send()
    sent = meet(lambda: store.start(session), store, lambda: other.send(when_busy="interrupt"))
    assert sent.interrupted
    assert states(store, session) == [RUNNING, QUEUED]
    session = store.session("second")
    store.send("second")
    started = meet(lambda: store.send("second", when_busy="interrupt"), store, lambda: other.claim(session))
    assert (started or store.start(session)).number == 2
    assert states(store, session) == [CANCELLED, RUNNING]


def test_coalescing_joins_what_waits_into_one_turn(store: Store):
    session = store.session()
    for prompt in "running", "one", "two":
        store.send(prompt=prompt)
    started = store.start(session)
    sent = store.send(prompt="three", when_busy="coalesce", options={"temperature": 0.5}, lane=Lane.BATCH)
    assert (sent.number, sent.hint, sent.interrupted) == (4, False, False)
    assert states(store, session) == [RUNNING, (TurnState.CANCELLED, 4), (TurnState.CANCELLED, 4), QUEUED]
    assert store.turn(session, 4).prompt == "one\n\ntwo\n\nthree"
    assert store.turn(session, 2).prompt == "one", "what was sent stays readable"
    assert store.turn(session, 2).cancel_requested_at is None
    assert store.settle(started, reply="ran")
    following = store.start(session, lane=Lane.BATCH)
    assert (following.number, following.options) == (4, {"temperature": 0.5})
    assert [message["content"] for message in following.messages] == ["running", "ran", "one\n\ntwo\n\nthree"]
    assert sending.cancel(store.database, session, 2) == (TurnState.CANCELLED, None), "harmless"


def test_coalescing_when_nothing_waits_is_a_send(store: Store):
    session = store.session()
    assert store.send(prompt="alone", when_busy="coalesce").hint
    store.start(session)
    assert not store.send(prompt="behind", when_busy="coalesce").hint
    assert states(store, session) == [RUNNING, QUEUED]
    assert [turn.prompt for turn in reading.list_turns(store.database, session)] == ["alone", "behind"]


def test_coalescing_again_and_again_says_everything_once(store: Store):
    session = store.session()
    for prompt in "abcd":
        assert store.send(prompt=prompt, when_busy="coalesce").number
    assert [into for _, into in states(store, session)] == [2, 3, 4, None]
    assert store.turn(session, 4).prompt == "a\n\nb\n\nc\n\nd"
    with store.database.reading() as db:
        assert {reading.outcome(db, session, number) for number in range(1, 5)} == {
            reading.Outcome(4, TurnState.QUEUED)
        }
        assert reading.outcome(db, session, 5) is None
    assert store.start(session).number == 4


def test_a_turn_that_waits_for_a_retry_is_joined_too_and_its_wait_is_over(store: Store):
    session = store.session()
    store.send(prompt="tried")
    store.settle(store.start(session), TurnState.QUEUED, delay_seconds=60)
    sent = store.send(prompt="new", when_busy="coalesce")
    assert sent.hint
    assert store.start(session).messages == [{"role": "user", "content": "tried\n\nnew"}]
    assert store.outcomes(session) == [(1, 1, "safe"), (2, 1, None)]


def test_what_was_put_off_puts_off_what_it_is_joined_into(store: Store):
    session = store.session()
    store.send(prompt="later", not_before=HOUR)
    store.send(prompt="behind it")
    sent = store.send(prompt="now", when_busy="coalesce")
    assert not sent.hint
    assert store.turn(session, 3).ready_at == store.turn(session, 1).ready_at == store.lease(session).ready_at
    store.send(prompt="later still", when_busy="coalesce", not_before=2 * HOUR)
    assert store.turn(session, 4).ready_at > store.turn(session, 3).ready_at
    assert store.claim(session) is None
    assert store.send(when_busy="interrupt").hint, "an interrupt is not put off"


def test_prompts_that_are_too_large_together_are_not_joined(store: Store):
    session = store.session()
    store.send(prompt="é" * (PROMPT_LIMIT // 4))
    fits = "x" * (PROMPT_LIMIT // 2 - len("\n\n"))
    before = store.everything()
    with pytest.raises(
        InvalidPromptError, match="131,071 bytes, joined with the 1 that wait it has 262,145, and 262,144"
    ):
        store.send(prompt=fits + "x", when_busy="coalesce")
    assert store.everything() == before
    store.send(prompt=fits, when_busy="coalesce")
    assert len((store.turn(session, 2).prompt or "").encode()) == PROMPT_LIMIT


def test_a_key_of_a_joined_prompt_stands_for_the_turns_it_made(store: Store):
    session = store.session()
    store.send(prompt="one", idempotency_key="k1")
    store.send(prompt="two", idempotency_key="k2", when_busy="coalesce")
    store.send(prompt="three", idempotency_key="k3", when_busy="coalesce")
    for _ in range(2):
        for number, prompt in enumerate(("one", "two", "three"), 1):
            again = store.send(prompt=prompt, idempotency_key=f"k{number}", when_busy="coalesce")
            assert (again.number, again.hint) == (number, False)
        for prompt in "thre", "two\n\nthree", "one\n\ntwo\n\nthree", "e", "four":
            if prompt != store.turn(session, 3).prompt:
                with pytest.raises(IdempotencyConflictError):
                    store.send(prompt=prompt, idempotency_key="k3", when_busy="coalesce")
        store.claim(session)
    assert states(store, session) == [(TurnState.CANCELLED, 2), (TurnState.CANCELLED, 3), RUNNING]


def test_a_turn_that_is_being_claimed_is_not_joined(store: Store, other: Store):
    session = store.session()
    store.send(prompt="one")
    store.send(prompt="two")
    sent = meet(lambda: store.start(session), store, lambda: other.send(prompt="three", when_busy="coalesce"))
    assert (sent.number, sent.hint) == (3, False)
    assert states(store, session) == [RUNNING, (TurnState.CANCELLED, 3), QUEUED]
    assert store.turn(session, 3).prompt == "two\n\nthree"


def test_a_turn_that_is_being_joined_is_not_claimed(store: Store, other: Store):
    session = store.session()
    store.send(prompt="one")
    started = meet(lambda: store.send(prompt="two", when_busy="coalesce"), store, lambda: other.claim(session))
    assert (started or store.start(session)).number == 2
    assert states(store, session) == [(TurnState.CANCELLED, 2), RUNNING]
    assert store.outcomes(session) == [(2, 1, None)]


def test_a_lane_that_is_left_is_not_claimed_from(store: Store, other: Store):
    session = store.session()
    store.send()
    sent = meet(lambda: store.send(when_busy="coalesce", lane=Lane.BATCH), store, lambda: other.claim(session))
    assert sent is None
    assert store.write(sweeping.unhinted, Lane.CHAT, 0.0, 10) == []
    assert store.write(sweeping.unhinted, Lane.BATCH, 0.0, 10) == [Ready(session, "s", Lane.BATCH)]
    assert store.start(lane=Lane.BATCH).number == 2


def test_nobody_is_told_of_a_session_that_is_owned_or_halted(store: Store):
    session = store.session()
    store.send()
    store.change(LEASES, LEASES.c.session_id == session, halted_by=1, hinted_at=None)
    for when_busy in "enqueue", "coalesce", "interrupt":
        assert not store.send(when_busy=when_busy).hint
