"""What the store reads for a model to be shown, summaries, and the chain of models that a turn goes along."""

import re
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import event, select, text

from inturn.models.states import AttemptOutcome, Lane, Overflow, TurnState
from inturn.models.store import opening, reading, sending, working
from inturn.models.store.dialects import TURNS_BY_TOKENS, postgresql
from inturn.models.store.reading import Attempt
from inturn.models.store.working import Claim, Started, Summary
from inturn.models.tables import SESSIONS, SUMMARY, TURNS
from tests.integration.stores import WORKER, Store, only_postgresql

QUEUED = TurnState.QUEUED
DONE = AttemptOutcome.COMPLETED


def live(store: Store, session: int, turns: int, size: int = 10) -> None:
    """A long life: so many completed turns at once."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :turns)"
    then = "'2026-01-01 00:00:00.000000'" + ("" if store.is_sqlite else "::timestamptz")
    lived = (
        "INSERT INTO turns (session_id, number, state, lane, model, options, ready_at, attempts, ambiguous, rescues, "
        f"created_at, finished_at) {numbers} "
        f"SELECT :session, i, 'completed', 'chat', 'echo/echo', '{{}}', {then}, 1, 0, 0, {then}, {then} FROM n"
    )
    said, replied = (
        f"INSERT INTO messages (session_id, turn_number, position, role, content, created_at) {numbers} "
        f"SELECT :session, i, {place}, '{role}', '{role} ' || i || :more, {then} FROM n"
        for place, role in ((1, "user"), (2, "assistant"))
    )
    statements = [lived, said, replied, "UPDATE sessions SET next_turn = :turns + 1 WHERE id = :session"]
    with store.database.writing() as db:
        for statement in statements:
            names = set(re.findall(r":(session|turns|more)\b", statement))
            values = {"session": session, "turns": turns, "more": " " + "x" * size}
            db.execute(text(statement), {name: values[name] for name in names})


def summarising(store: Store, window: int | None = 3, turns: int = 0, **how: Any) -> int:
    session = store.session(overflow=Overflow.SUMMARISE, context_turns=window, **how)
    if turns:
        live(store, session, turns)
    return session


def sum_up(store: Store, started: Started, upto: int, said: str = "in short", **how: Any) -> Started:
    """A round, in which a summary is stored, and the next one."""
    assert store.settle(started, QUEUED, outcome=DONE, summary=Summary(upto, said), **how)
    return store.start(started.session_id)


def shown(started: Started) -> list[int]:
    return [number for number, _ in started.history]


def test_history_is_read_up_to_twice_the_window_where_it_is_summarised(store: Store):
    for overflow, read in ((Overflow.SUMMARISE, 6), (Overflow.TRUNCATE, 3), (Overflow.FAIL, 3)):
        session = store.session(overflow, overflow=overflow, context_turns=3)
        live(store, session, 10)
        store.send(overflow)
        started = store.start(session)
        assert shown(started) == list(range(11 - read, 11))
        assert (started.window, started.overflow, started.summary) == (3, overflow, None)


def test_history_begins_behind_the_latest_summary(store: Store):
    session = summarising(store, turns=6, system_message="be brief")
    store.send(prompt="now")
    started = sum_up(store, store.start(session), 4, "one to four")
    assert (shown(started), started.summary) == ([5, 6], "one to four")
    assert [message["content"].split(" x")[0] for message in started.messages] == [
        "be brief", f"{working.SUMMED_UP}\n\none to four", "user 5", "assistant 5", "user 6", "assistant 6", "now",
    ]  # fmt: skip
    started = sum_up(store, started, 5, "one to five")
    assert (shown(started), started.summary) == ([6], "one to five")
    assert store.settle(started, reply="done")
    store.send(prompt="next")
    started = store.start(session)
    assert (shown(started), started.summary, started.number) == ([6, 7], "one to five", 8)


def test_who_summarises_no_more_is_shown_what_was_said_and_no_summary(store: Store):
    session = summarising(store, turns=4)
    store.send(prompt="now")
    assert store.settle(sum_up(store, store.start(session), 3, "one to three"))
    store.change(SESSIONS, SESSIONS.c.id == session, overflow=Overflow.TRUNCATE)
    store.send(prompt="next")
    started = store.start(session)
    assert (shown(started), started.summary) == ([3, 4, 5], None)
    assert "one to three" not in str(started.messages)


def test_a_summary_stands_behind_the_last_turn_that_it_covers(store: Store):
    session = summarising(store, turns=4)
    store.send(prompt="now")
    started = sum_up(store, store.start(session), 3, "in short\x00")
    assert store.settle(started, reply="done")
    told = reading.list_messages(store.database, session)
    assert [(one.turn_number, one.position, str(one.role)) for one in told] == [
        *((number, place, role) for number in (1, 2, 3) for place, role in ((1, "user"), (2, "assistant"))),
        (3, SUMMARY, "system"), (4, 1, "user"), (4, 2, "assistant"), (5, 1, "user"), (5, 2, "assistant"),
    ]  # fmt: skip
    assert told[6].content == "in short\ufffd"
    page = reading.list_messages(store.database, session, after=(3, 2), limit=2)
    assert [(one.turn_number, one.position) for one in page] == [(3, SUMMARY), (4, 1)]
    assert store.turn(session, 5).state is TurnState.COMPLETED


def test_a_round_for_a_summary_costs_no_attempt_that_could_be_too_many(store: Store):
    session = summarising(store, turns=4)
    store.send()
    started = sum_up(store, store.start(session), 3, input_tokens=70, output_tokens=7, price=0.5)
    assert (started.attempts, started.rounds, started.steps, started.tries) == (2, 1, 0, 1)
    assert store.settle(started, input_tokens=20, output_tokens=2)
    first, second = reading.list_attempts(store.database, session, 5)
    assert (first.outcome, first.input_tokens, first.output_tokens, first.price) == (DONE, 70, 7, 0.5)
    assert (second.outcome, second.input_tokens, second.price) == (DONE, 20, None)
    turn = store.turn(session, 5)
    assert (turn.input_tokens, turn.output_tokens, turn.price) == (90, 9, 0.5), "the turn has used all of it"


def test_a_summary_is_stored_once_and_by_nobody_who_lost_the_session(store: Store):
    session = summarising(store, turns=4)
    store.send()
    first = store.start(session)
    second = sum_up(store, first, 3, "the first")
    assert not store.settle(first, QUEUED, outcome=DONE, summary=Summary(3, "again")), "the same commit, made again"
    third = sum_up(store, second, 3, "another of the same turns")
    assert third.summary == "the first"
    assert store.count(f"SELECT count(*) FROM messages WHERE position = {SUMMARY}") == 1
    store.expire(session)
    assert store.rescue_expired() == [session]
    assert not store.settle(third, QUEUED, outcome=DONE, summary=Summary(4, "too late"))
    assert store.count(f"SELECT count(*) FROM messages WHERE position = {SUMMARY}") == 1
    assert store.start(session).summary == "the first"


def test_a_summary_is_dropped_with_its_turn_if_that_is_taken_back(store: Store):
    """Not half done: the summary was paid for and is right, and is kept; the turn is cancelled."""
    session = summarising(store, turns=4)
    sent = store.send()
    started = store.start(session)
    sending.cancel(store.database, session, sent.turn.number)
    assert store.settle(started, QUEUED, outcome=DONE, summary=Summary(3, "in short"))
    assert store.turn(session, 5).state is TurnState.CANCELLED
    store.send()
    assert store.start(session).summary == "in short"


@pytest.mark.parametrize(
    ("context_turns", "context_tokens", "window"),
    [(None, None, 20), (None, 500, TURNS_BY_TOKENS), (7, 500, 7), (0, 500, 0)],
)
def test_how_many_turns_are_read(store: Store, context_turns: int | None, context_tokens: int | None, window: int):
    session = store.session(context_turns=context_turns, context_tokens=context_tokens)
    live(store, session, TURNS_BY_TOKENS + 20)
    store.send()
    started = store.start(session)
    assert (started.window, len(started.history), started.context_tokens) == (window, window, context_tokens)
    assert shown(started) == list(range(TURNS_BY_TOKENS + 21 - window, TURNS_BY_TOKENS + 21))


def test_many_sessions_at_once_each_get_their_own(store: Store):
    """Of different windows, with summaries and without, in one claim."""
    asked = {
        "a": (Overflow.SUMMARISE, 2, 4),
        "b": (Overflow.SUMMARISE, 2, 0),
        "c": (Overflow.TRUNCATE, 2, 0),
        "d": (Overflow.SUMMARISE, 5, 8),
    }
    for key, (overflow, window, upto) in asked.items():
        session = store.session(key, overflow=overflow, context_turns=window)
        live(store, session, 9)
        store.send(key)
        if upto:
            assert store.settle(store.start(session), QUEUED, outcome=DONE, summary=Summary(upto, f"of {key}"))
    started = {each.key: each for each in store.claims([Claim(Lane.CHAT)] * 4) if each}
    assert {key: (each.summary, shown(each)) for key, each in started.items()} == {
        "a": ("of a", [6, 7, 8, 9]), "b": (None, [6, 7, 8, 9]), "c": (None, [8, 9]), "d": ("of d", [9]),
    }  # fmt: skip


def test_turns_without_a_reply_are_no_history_and_take_none_of_its_room(store: Store):
    session = summarising(store, window=2)
    for state in (TurnState.COMPLETED, TurnState.FAILED, TurnState.COMPLETED, TurnState.CANCELLED, TurnState.COMPLETED):
        store.answer(state=state)
    store.send()
    started = store.start(session)
    assert shown(started) == [1, 3, 5]
    assert shown(sum_up(store, started, 3)) == [5]


def test_what_may_be_shown_shrinks_for_good_and_only_for_this_turn(store: Store):
    session = store.session(context_turns=5)
    store.send()
    store.send()
    started = store.start(session)
    assert started.room is None
    assert store.settle(
        started, QUEUED, outcome=AttemptOutcome.PERMANENT, room=500, error_type="context_length_exceeded"
    )
    started = store.start(session)
    assert (started.room, started.attempts, started.ambiguous, started.cuts) == (500, 2, 0, False)
    assert store.settle(started, QUEUED, delay_seconds=0.0, cuts=True)
    assert store.start(session).room == 500, "the next failure says nothing about it"
    store.expire(session)
    store.rescue_expired()
    started = store.start(session)
    assert (started.room, started.attempts, started.rescues, started.cuts) == (500, 4, 1, True)
    assert store.settle(started)
    started = store.start(session)
    assert (started.room, started.cuts) == (None, False)


def attempts(store: Store, session: int, number: int = 1) -> list[tuple[str | None, AttemptOutcome | None]]:
    found: list[Attempt] = reading.list_attempts(store.database, session, number)
    return [(each.model, each.outcome) for each in found]


def chain(started: Started) -> tuple[str, list[str] | None]:
    return started.model, started.fallbacks


def test_a_turn_goes_along_its_chain_and_each_attempt_says_who_was_asked(store: Store):
    session = store.session(fallbacks=["b/y", "c/z"])
    for _ in range(2):
        store.send()
    started = store.start(session)
    assert chain(started) == ("echo/echo", ["b/y", "c/z"])
    assert store.settle(
        started, QUEUED, outcome=AttemptOutcome.PERMANENT, model="b/y", fallbacks=["c/z"], error_type="http_401"
    )
    turn = store.turn(session)
    assert (turn.model, turn.fallbacks, turn.state, turn.error_type) == ("b/y", ["c/z"], QUEUED, None)
    started = store.start(session)
    assert chain(started) == ("b/y", ["c/z"])
    assert store.settle(started, QUEUED, delay_seconds=0.0)
    started = store.start(session)
    assert chain(started) == ("b/y", ["c/z"]), "tried again, and nobody else was named"
    assert store.settle(started, QUEUED, model="c/z", fallbacks=[])
    started = store.start(session)
    assert chain(started) == ("c/z", [])
    assert store.settle(started)
    safe = AttemptOutcome.SAFE
    assert attempts(store, session) == [
        ("echo/echo", AttemptOutcome.PERMANENT), ("b/y", safe), ("b/y", safe), ("c/z", DONE),
    ]  # fmt: skip
    assert (store.turn(session).model, store.turn(session).fallbacks) == ("c/z", [])
    assert chain(store.start(session)) == ("echo/echo", ["b/y", "c/z"]), "the next turn begins at the top"


def test_who_is_passed_over_leaves_no_attempt(store: Store):
    session = store.session(fallbacks=["b/y"])
    store.send()
    assert store.settle(store.start(session), QUEUED, outcome=None, model="b/y", fallbacks=[])
    started = store.start(session)
    assert (chain(started), started.attempts) == (("b/y", []), 1)
    assert attempts(store, session) == [("b/y", None)]


def test_a_rescue_keeps_the_place_in_the_chain(store: Store):
    session = store.session(fallbacks=["b/y", "c/z"])
    store.send()
    assert store.settle(store.start(session), QUEUED, model="b/y", fallbacks=["c/z"])
    store.start(session)
    store.expire(session)
    assert store.rescue_expired() == [session]
    started = store.start(session)
    assert chain(started) == ("b/y", ["c/z"])
    assert attempts(store, session) == [
        ("echo/echo", AttemptOutcome.SAFE), ("b/y", AttemptOutcome.LOST), ("b/y", None),
    ]  # fmt: skip


def test_no_chain_and_an_empty_one_are_not_the_same(store: Store):
    for key, named in (("none", None), ("empty", [])):
        session = store.session(key, fallbacks=named)
        store.send(key)
        started = store.start(session)
        assert started.fallbacks == named
        assert store.settle(started, QUEUED, delay_seconds=0.0)
        assert store.start(session).fallbacks == named
        assert reading.get_session(store.database, key).fallbacks == named


def test_a_session_that_is_resumed_with_another_chain_keeps_it(store: Store):
    session = store.session(fallbacks=["b/y"])
    store.send()
    opening.resume_session(store.database, "s", ("c/z", None))
    store.send()
    opening.resume_session(store.database, "s", ("c/z", ["b/y"]))
    store.send()
    opening.resume_session(store.database, "s", None, "be brief")
    store.send()
    with store.database.reading() as db:
        rows = db.execute(
            select(TURNS.c.model, TURNS.c.fallbacks).where(TURNS.c.session_id == session).order_by(TURNS.c.number)
        )
        assert [tuple(row) for row in rows] == [
            ("echo/echo", ["b/y"]), ("c/z", None), ("c/z", ["b/y"]), ("c/z", ["b/y"]),
        ]  # fmt: skip


def test_what_a_session_is_made_with_comes_to_the_worker(store: Store):
    session = store.session(context_tokens=500, overflow=Overflow.FAIL, tools=["add", "ask"], labels={"team": "legal"})
    store.send()
    started = store.start(session)
    assert (started.context_tokens, started.overflow, started.tools) == (500, Overflow.FAIL, ("add", "ask"))
    assert started.labels == {"team": "legal"}
    row = reading.get_session(store.database, "s")
    assert (row.context_tokens, row.overflow, row.tools) == (500, Overflow.FAIL, ["add", "ask"])


TABLES = "leases", "turns", "messages", "sessions", "attempts"


@only_postgresql
@pytest.mark.parametrize("analysed", [False, True])
@pytest.mark.parametrize("overflow", [Overflow.SUMMARISE, Overflow.TRUNCATE])
def test_a_claim_looks_up_what_it_shows_and_searches_no_table(store: Store, analysed: bool, overflow: Overflow):
    session = store.session(overflow=overflow, context_turns=5)
    live(store, session, 3000)
    for number in range(30):
        beside = store.session(f"s{number}", overflow=overflow)
        live(store, beside, 100)
        store.send(f"s{number}")
    store.send()
    if overflow is Overflow.SUMMARISE:
        sum_up(store, store.start(session), 2990, "in short")
        store.send()
        store.expire(session)
        store.rescue_expired()
    if analysed:
        store.write(lambda db: db.execute(text("ANALYZE")))
    asked = {"owner": WORKER, "lease_seconds": 30, "context_turns": 20, "lane": "chat"}
    asked |= {"going_on": [], "named": [session], "slots": 1}
    with closing(store.database.dedicated(postgresql.SESSION_SETTINGS)) as dedicated, dedicated.writing() as db:
        explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) {postgresql.CLAIM.text}")
        plan: dict[str, Any] = db.execute(explained, asked).scalar_one()[0]["Plan"]
    nodes = list(below(plan))
    assert [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] in TABLES] == []
    assert any(node.get("Relation Name") == "messages" and node["Actual Rows"] for node in nodes), "nothing was shown"
    assert sum(map(touched, nodes)) < 400, "of 6,000 turns and 12,000 messages"


def below(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in below(part))]


def touched(node: dict[str, Any]) -> int:
    return int((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("overflow", [Overflow.SUMMARISE, Overflow.TRUNCATE])
def test_a_claim_takes_as_many_steps_behind_a_long_history_as_behind_a_short_one(store: Store, overflow: Overflow):
    steps: list[int] = []
    for key, turns in (("short", 50), ("long", 5000)):
        session = store.session(key, overflow=overflow, context_turns=5)
        live(store, session, turns)
        store.send(key)
        if overflow is Overflow.SUMMARISE:
            assert store.settle(store.start(session), QUEUED, outcome=DONE, summary=Summary(turns - 8, "in short"))
        steps.append(steps_of(store, session))
    assert steps[1] < steps[0] * 1.2


def steps_of(store: Store, session: int) -> int:
    """How many steps SQLite's machine takes to start the session's turn."""
    seen = [0]

    def step() -> int:
        seen[0] += 1
        return 0

    def watch(_db: Any, cursor: Any, *_: Any) -> None:
        cursor.connection.set_progress_handler(step, 1)

    event.listen(store.database.engine, "before_cursor_execute", watch)
    try:
        assert store.start(session).history
    finally:
        event.remove(store.database.engine, "before_cursor_execute", watch)
    return seen[0]
