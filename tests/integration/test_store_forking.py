"""Sessions that are forked off and renamed: what they share, what they do not, and what stands in the way."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from inturn import InvalidInputError, SessionExistsError, SessionNotFoundError, UnfinishedTurnsError
from inturn.models.states import TurnState
from inturn.models.store import forking, opening, reading, retention
from inturn.models.store.forking import LEFT_BEHIND
from inturn.models.tables import TURNS
from tests.integration.stores import Store


def fork(store: Store, session: int, to_turn: int | None = None, key: str = "fork") -> int:
    return forking.fork(store.database, session, "s", key, to_turn)


def test_a_fork_has_the_history_and_goes_on_by_itself(store: Store):
    session = store.session(system_message="be brief", labels={"owner": "ada"}, context_turns=7)
    for prompt in ("one", "two", "three"):
        store.answer(prompt=prompt)
    made = fork(store, session, 2)
    store.answer("s", "four")
    store.answer("fork", "another")
    assert store.history(made) == [
        *store.history(session)[:5],
        (3, "user", "another"),
        (3, "assistant", "reply to: another"),
    ]
    assert ("another" in str(store.history(session)), "four" in str(store.history(made))) == (False, False)
    original, forked = (reading.get_session(store.database, key) for key in ("s", "fork"))
    for name in ("model", "system_message", "labels", "options", "context_turns", "retention", "halts"):
        assert getattr(forked, name) == getattr(original, name)
    assert forked.created_at > original.created_at


def test_a_model_is_shown_what_the_fork_shares(store: Store):
    session = store.session(system_message="be brief")
    store.answer(prompt="one")
    opening.resume_session(store.database, "s", system_message="be long")
    store.answer(prompt="two")
    for to_turn, system, said in ((1, "be brief", ["one"]), (2, "be long", ["one", "two"]), (0, "be brief", [])):
        made = fork(store, session, to_turn, f"fork-{to_turn}")
        started = store.start(store.send(f"fork-{to_turn}", "next").session_id)
        assert started.session_id == made
        prompts = [message["content"] for message in started.messages if message["role"] == "user"]
        assert (started.messages[0]["content"], prompts) == (system, [*said, "next"])


def test_a_system_message_that_waits_for_the_next_send_is_shared_with_the_whole_history_only(store: Store):
    session = store.session()
    store.answer(prompt="one")
    opening.resume_session(store.database, "s", system_message="from now on")
    whole, half = fork(store, session), fork(store, session, 0, "half")
    assert store.history(whole)[-1] == (2, "system", "from now on")
    assert store.history(half) == []
    started = store.start(store.send("fork", "two").session_id)
    assert started.messages[0]["content"] == "from now on"


def test_calls_keys_and_batches_are_not_copied(store: Store):
    session = store.session()
    sent = store.send(prompt="one", idempotency_key="k")
    store.settle(store.start(session), reply="yes", input_tokens=20)
    made = fork(store, session)
    assert len(store.outcomes(session)) == 1
    assert store.outcomes(made) == []
    again = store.send("fork", "another", idempotency_key="k")
    assert (sent.number, again.number, again.session_id) == (1, 2, made)
    with store.database.reading() as db:
        theirs, ours = (
            db.execute(select(TURNS).where(TURNS.c.number == 1).order_by(TURNS.c.session_id)).mappings().all()
        )
    assert {name: theirs[name] for name in theirs if name not in LEFT_BEHIND} == {
        name: ours[name] for name in ours if name not in LEFT_BEHIND
    }


def test_a_prompt_that_was_joined_into_a_later_turn_is_forked_without_that(store: Store):
    session = store.session()
    store.send(prompt="one", when_busy="coalesce")
    store.send(prompt="two", when_busy="coalesce")
    store.settle(store.start(session), reply="both")
    assert store.turn(session, 1).merged_into == 2
    both, first = fork(store, session), fork(store, session, 1, "first")
    assert (store.turn(both, 1).merged_into, store.turn(first, 1).merged_into) == (2, None)
    assert store.turn(first, 1).state == TurnState.CANCELLED


def test_unfinished_turns_are_not_shared(store: Store):
    session = store.session()
    store.answer(prompt="one")
    store.send(prompt="two")
    store.send(prompt="three")
    made = fork(store, session)
    assert [turn for turn, *_ in store.history(made)] == [1, 1]
    with pytest.raises(
        UnfinishedTurnsError, match=r"turn 2 of session 's' is not finished: .* fork up to turn 1"
    ) as refusal:
        fork(store, session, 3, "third")
    assert (refusal.value.session_id, refusal.value.number) == ("s", 2)
    with pytest.raises(InvalidInputError, match="to_turn is 4: the last turn of session 's' is 3"):
        fork(store, session, 4, "fourth")
    assert store.count("SELECT count(*) FROM sessions") == 2


@pytest.mark.parametrize("act", ["fork", "rename"])
def test_an_id_that_is_taken_stays_where_it_is(store: Store, act: str):
    session, other = store.session(), store.session("fork")
    before = store.everything()
    with pytest.raises(SessionExistsError, match="'fork'"):
        fork(store, session) if act == "fork" else forking.rename(store.database, session, "s", "fork")
    assert store.everything() == before
    with store.database.writing() as db:  # whoever was deleting it died
        retention.fence_off(db, other)
    if act == "fork":
        session = fork(store, session)
    else:
        forking.rename(store.database, session, "s", "fork")
    assert reading.get_session(store.database, "fork").id == session


def test_a_session_that_was_deleted_is_neither_forked_nor_renamed(store: Store):
    session = store.session()
    retention.remove(store.database, "s")
    store.session()  # another one of that ID
    with pytest.raises(SessionNotFoundError, match="'s'"):
        fork(store, session)
    with pytest.raises(SessionNotFoundError, match="'s'"):
        forking.rename(store.database, session, "s", "t")


def test_a_renamed_session_is_the_same_under_another_id(store: Store):
    session = store.session()
    store.answer(prompt="one")
    history = store.history(session)
    forking.rename(store.database, session, "s", "t")
    with pytest.raises(SessionNotFoundError):
        store.send("s", "lost")
    store.answer("t", "two")
    assert store.history(session)[:2] == history
    assert reading.get_session(store.database, "t").id == session
    store.session("s")


def test_a_session_with_unfinished_turns_keeps_its_id(store: Store):
    session = store.session()
    store.send(prompt="one")
    with pytest.raises(UnfinishedTurnsError, match=r"turn 1 of session 's' is not finished: .*can be renamed"):
        forking.rename(store.database, session, "s", "t")
    assert reading.get_session(store.database, "s").id == session


def test_of_two_who_want_one_id_one_gets_it(store: Store, other: Store):
    mine, its = store.session("a"), store.session("b")

    def want(store: Store, session: int) -> bool:
        try:
            forking.rename(store.database, session, "?", "c")
        except SessionExistsError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        got = list(threads.map(want, (store, other), (mine, its)))
    assert sorted(got) == [False, True]
