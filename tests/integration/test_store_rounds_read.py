"""Rounds as others see them: who reads the history, who follows the session, and prompts that do not wait."""

from datetime import timedelta

from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store import chronicle, reading, retention
from inturn.models.store.working import Summary
from inturn.models.tables import SESSIONS, SUMMARY
from tests.integration.rounds import answered, begun, find_answer, go_round, places, settle, texts, went_round
from tests.integration.stores import Store, settlement

# Who reads.


def test_pages_of_messages_and_events_go_through_the_rounds(store: Store):
    again = go_round(store, go_round(store, begun(store), "cold", "windy"), "wet")
    settle(store, answered(again))
    session = again.session_id
    whole = places(store, session)
    for size in 1, 2, 3, 7:
        seen: list[tuple[int, int]] = []
        while page := reading.list_messages(store.database, session, seen[-1] if seen else (0, 0), size):
            seen += [(each.turn_number, each.position) for each in page]
        assert seen == [each[:2] for each in whole]
        seen = []
        while events := chronicle.list_events(store.database, session, seen[-1] if seen else (0, 0), size):
            seen += [(each.turn_number, each.place) for each in events]
        assert seen == [each[:2] for each in whole]


def test_a_summary_stands_behind_the_reply_and_the_rounds_before_it(store: Store):
    again = go_round(store, begun(store), "cold")
    store.change(SESSIONS, SESSIONS.c.id == again.session_id, overflow="summarise")
    store.send(prompt="and tomorrow?")
    _, second = settle(store, answered(again), claims=True)
    assert second is not None
    summed = settlement(
        second, TurnState.QUEUED, outcome=AttemptOutcome.COMPLETED, summary=Summary(1, "it was cold"),
    )  # fmt: skip
    _, under_it = settle(store, summed, claims=True)
    assert under_it is not None
    assert (under_it.rounds, under_it.steps, under_it.history) == (1, 0, [])
    assert (under_it.summary, under_it.prompt[-1]["content"]) == ("it was cold", "and tomorrow?")
    last = go_round(store, under_it, "windy")
    assert [each["role"] for each in last.messages] == ["system", "user", "assistant", "tool"]
    settle(store, answered(last, "windy, then"))
    assert [(turn, place) for turn, place, _, _ in places(store, again.session_id)] == [
        (1, 1), (1, 2), (1, 3), (1, 4), (1, SUMMARY), (2, 1), (2, 2), (2, 3), (2, 4),
    ]  # fmt: skip
    assert find_answer(store, last)[1] == "windy, then"


def news(store: Store, known: chronicle.Bookmark) -> list[tuple[int, int]]:
    return [(each.turn_number, each.place) for each in chronicle.news(store.database, known)]


def test_who_follows_hears_of_each_round_when_it_is_stored_and_once(store: Store):
    session = store.session()
    known, _ = chronicle.bookmark(store.database, session, "s", 0)
    store.send()
    again = go_round(store, store.start(session), "cold")
    assert news(store, known) == [(1, 1), (1, 2), (1, 3)]
    assert news(store, known) == []
    store.send()
    last = go_round(store, again, "windy", "wet")
    _, later = settle(store, answered(last), claims=True)
    assert news(store, known) == [(1, 4), (1, 5), (1, 6), (1, 7), (2, 1)]
    assert later is not None
    settle(store, went_round(later, "x"))
    assert news(store, known) == [(2, 2), (2, 3)]
    assert news(store, known) == []


def test_who_begins_to_follow_between_two_rounds_hears_of_the_next(store: Store):
    again = go_round(store, begun(store), "cold")
    known, past = chronicle.bookmark(store.database, again.session_id, "s", 2)
    assert [each.place for each in past] == [2, 3]
    assert news(store, known) == []
    settle(store, answered(go_round(store, again, "windy")))
    assert news(store, known) == [(1, 4), (1, 5), (1, 6)]


def test_who_follows_hears_of_the_rounds_of_a_turn_that_fails(store: Store):
    session = store.session()
    known, _ = chronicle.bookmark(store.database, session, "s", 0)
    store.send()
    store.settle(go_round(store, store.start(session), "cold"), TurnState.FAILED)
    assert news(store, known) == [(1, 1), (1, 2), (1, 3), (1, chronicle.END)]
    events = chronicle.list_events(store.database, session, (0, 0), 9)
    assert [(each.turn_number, each.place) for each in events] == [(1, 1), (1, 2), (1, 3), (1, chronicle.END)]


# Prompts that do not wait.


def test_an_interrupt_during_a_round_is_answered_next(store: Store):
    first = begun(store)
    assert store.send(prompt="stop", when_busy="interrupt").interrupted
    _, later = settle(store, went_round(first, "cold"), claims=True)
    assert store.turn(first.session_id).state is TurnState.CANCELLED
    assert later is not None
    assert texts(later) == ["stop"]


def test_an_interrupt_between_two_rounds_is_answered_next(store: Store):
    first = begun(store)
    settle(store, went_round(first, "cold"))
    assert not store.send(prompt="stop", when_busy="interrupt").interrupted
    assert store.turn(first.session_id).state is TurnState.CANCELLED
    assert texts(store.start(first.session_id)) == ["stop"]


def test_prompts_that_are_joined_during_a_round_wait_for_its_turn(store: Store):
    first = begun(store)
    store.send(prompt="one")
    joined = store.send(prompt="two", when_busy="coalesce")
    again = go_round(store, first, "cold")
    assert again.number == 1
    _, later = settle(store, answered(again), claims=True)
    assert later is not None
    assert (later.number, texts(later)[-1]) == (joined.number, "one\n\ntwo")


def test_a_turn_between_two_rounds_is_not_joined_as_its_tools_have_run(store: Store):
    first = begun(store)
    settle(store, went_round(first, "ordered"))
    store.send(prompt="one")
    joined = store.send(prompt="two", when_busy="coalesce", lane=Lane.BATCH, not_before=timedelta(hours=1))
    turn = store.turn(first.session_id)
    assert (turn.state, turn.merged_into) == (TurnState.QUEUED, None)
    assert store.turn(first.session_id, 2).merged_into == joined.number
    assert store.lease(first.session_id).lane == Lane.CHAT
    again = store.start(first.session_id)
    assert texts(again) == ["hello", "round 0", "ordered"]
    settle(store, answered(again))
    lease = store.lease(first.session_id)
    assert (lease.lane, lease.later) == (Lane.BATCH, True)
    assert store.turn(first.session_id, joined.number).prompt == "one\n\ntwo"


def test_a_retry_of_a_turn_with_rounds_begins_anew(store: Store):
    again = go_round(store, begun(store), "cold")
    store.settle(again, TurnState.FAILED)
    store.send(prompt="hello", retry_of=1)
    anew = store.start(again.session_id)
    assert (anew.number, anew.rounds, anew.steps, texts(anew)) == (2, 0, 0, ["hello"])


def test_rounds_go_with_their_session(store: Store):
    settle(store, answered(go_round(store, begun(store), "cold")))
    retention.remove(store.database, "s")
    assert store.count("SELECT count(*) FROM messages") == 0
