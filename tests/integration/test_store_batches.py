"""Batches in the store: lines taken in, tried, closed, counted and sent again, on both databases."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text

from inturn.models import database as databases
from inturn.models.clock import now
from inturn.models.errors import BatchNotFoundError, DatabaseLockedError, InvalidInputError
from inturn.models.states import BatchState, Lane, Role, TurnState
from inturn.models.store import (
    batches,
    batching,
    concluding,
    reading,
    retention,
    retrying,
    tending,
    usage,
    webhooks,
)
from inturn.models.store.batches import BatchRecord
from inturn.models.store.batching import Begun, NewBatch
from inturn.models.store.lines import EXPIRED, SESSION_DELETED, BadLine, Line, LineResult, Utterance
from inturn.models.store.selecting import SessionFilter
from inturn.models.store.webhooks import Hook
from inturn.models.tables import BATCHES, LEASES, MESSAGES, REMOVALS, SESSIONS, TURNS
from tests.integration.stores import Store, only_postgresql, only_sqlite

HOW: dict[str, Any] = {"model": "echo/echo", "context_turns": 20}


def lines(many: int, **how: Any) -> list[Line]:
    return [Line(number, f"id-{number}", f"prompt {number}", **how) for number in range(1, many + 1)]


def begin(store: Store, total: int, key: str = "batch-1", **how: Any) -> Begun:
    more = {name: how.pop(name) for name in ("discards", "name", "fingerprint") if name in how}
    return batching.begin(store.database, NewBatch(key, more.pop("fingerprint", key), total, how=HOW | how, **more))


def submit(store: Store, its: Sequence[Line | BadLine], key: str = "batch-1", **how: Any) -> BatchRecord:
    begun = begin(store, len(its), key, **how)
    batching.store(store.database, begun, 0, its, hints=0)
    return batches.get_batch(store.database, key)


def work(store: Store, becomes: TurnState = TurnState.COMPLETED, most: int = 1000) -> list[str]:
    """Answer what is ready. Returns the prompts, in order."""
    asked: list[str] = []
    while len(asked) < most and (started := store.claim(lane=Lane.BATCH)) is not None:
        said = str(started.prompt[0]["content"])
        asked.append(said)
        failed: dict[str, Any] = {"error_type": "http_400", "error_message": "no", "status_code": 400}
        assert store.settle(
            started, becomes, reply=f"reply to {said}", finish_reason="stop", input_tokens=3, output_tokens=2, price=0.5,
            **(failed if becomes is TurnState.FAILED else {}),
        )  # fmt: skip
    return asked


def tend(store: Store, key: str = "batch-1") -> BatchRecord:
    return tending.carry_on(store.database, key, ())


def results(store: Store, batch: BatchRecord) -> dict[int, LineResult]:
    found = batches.results(store.database, batch.id) + batches.results_without_turns(store.database, batch.id)
    assert len({each.line for each in found}) == len(found), "a line has two results"
    return {each.line: each for each in found}


def test_lines_without_a_session_get_one_each(store: Store):
    batch = submit(store, lines(3))
    assert (batch.state, batch.total, batch.stored) == (BatchState.IN_PROGRESS, 3, 3)
    assert [each.key for each in reading.list_sessions(store.database, SessionFilter())] == [
        "batch-1:1", "batch-1:2", "batch-1:3",
    ]  # fmt: skip
    assert sorted(work(store)) == ["prompt 1", "prompt 2", "prompt 3"]
    batch = tend(store)
    assert (batch.state, batch.completed, batch.failed) == (BatchState.COMPLETED, 3, 0)
    assert (batch.input_tokens, batch.output_tokens, batch.price) == (9, 6, 1.5)
    found = results(store, batch)
    assert {line: (it.custom_id, it.session_id, it.reply, it.finish_reason) for line, it in found.items()} == {
        n: (f"id-{n}", f"batch-1:{n}", f"reply to prompt {n}", "stop") for n in (1, 2, 3)
    }


def test_lines_of_a_session_are_its_turns_in_order_across_chunks_and_beside_sends(store: Store):
    before = store.session("there")
    store.send("there", "first")
    store.start(before)
    its = [Line(n, f"id-{n}", f"prompt {n}", session="there" if n % 2 else "new") for n in range(1, 9)]
    begun = begin(store, 8)
    for after in range(0, 8, 2):
        batching.store(store.database, begun, after, its[after : after + 2], hints=0)
        store.send("there", f"between {after}")
    turns = reading.list_turns(store.database, before)
    assert [turn.prompt for turn in turns] == [
        "first", "prompt 1", "between 0", "prompt 3", "between 2", "prompt 5", "between 4", "prompt 7", "between 6",
    ]  # fmt: skip
    new = reading.get_session(store.database, "new")
    assert [turn.prompt for turn in reading.list_turns(store.database, new.id)] == [f"prompt {n}" for n in (2, 4, 6, 8)]
    assert store.lease(before).ready_at is None, "its owner sees to it"
    assert store.lease(new.id).is_ready
    assert [turn.number for turn in turns] == list(range(1, 10))


def test_an_idle_session_becomes_ready_in_the_lane_of_batches(store: Store):
    session = store.session("there")
    submit(store, [Line(1, "a", "hello", session="there")])
    lease = store.lease(session)
    assert (lease.is_ready, lease.lane, lease.hinted_at) == (True, "batch", None)


def test_the_first_that_become_ready_count_as_told(store: Store):
    store.session("there")
    its = [*lines(3), Line(4, "d", "hello", session="there")]
    stored = batching.store(store.database, begin(store, 4), 0, its, hints=2)
    assert len(stored.ready) == 2
    with store.database.reading() as db:
        told = {
            row.session_id for row in db.execute(select(LEASES.c.session_id).where(LEASES.c.hinted_at.is_not(None)))
        }
    assert told == {each.session_id for each in stored.ready}


def test_a_line_brings_its_history_and_what_followed(store: Store):
    said = (
        Utterance(Role.USER, "hi"), Utterance(Role.ASSISTANT, "hello"), Utterance(Role.USER, "what?"),
        Utterance(Role.SYSTEM, "be kind"),
    )  # fmt: skip
    called = {"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    follows = (Utterance(Role.ASSISTANT, "", called), Utterance(Role.TOOL, "42", {"tool_call_id": "c1"}))
    submit(store, [Line(1, "a", "and now?", system="be brief", history=said, follows=follows)])
    started = store.start(lane=Lane.BATCH)
    assert started.messages == [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"}, {"role": "user", "content": "what?"},
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "", **called}, {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert store.settle(started, reply="done", place=2 + started.steps)
    assert results(store, tend(store))[1].reply == "done"


def test_a_long_history_is_shown_whole(store: Store):
    said = tuple(Utterance(Role.USER if n % 2 == 0 else Role.ASSISTANT, f"word {n}") for n in range(80))
    submit(store, [Line(1, "a", "and now?", history=said)])
    assert len(store.start(lane=Lane.BATCH).messages) == 81


def test_model_system_and_options_of_a_line(store: Store):
    there = store.session("there", system_message="old")
    its = [
        Line(1, "a", "one", session="there", system="old"),
        Line(2, "b", "two", session="there", system="new", model="echo/other", options={"top_p": 1}),
        Line(3, "c", "three", session="there", system=""),
        Line(4, "d", "four", labels={"kind": "review"}),
    ]
    submit(store, its, system="of the batch")
    asked = []
    for _ in its[:3]:
        started = store.start(there, lane=Lane.BATCH)
        asked.append((started.system, started.model, started.options))
        store.settle(started, reply="yes")
    assert asked == [("old", "echo/echo", {}), ("new", "echo/other", {"top_p": 1}), (None, "echo/echo", {})]
    with store.database.reading() as db:
        said = db.execute(select(func.count()).where(MESSAGES.c.session_id == there, MESSAGES.c.position == 0))
        assert said.scalar_one() == 2, "what is in force already is not said again"
    four = reading.get_session(store.database, "batch-1:4")
    assert (four.system_message, four.labels) == ("of the batch", {"kind": "review"})


def test_a_submission_that_was_cut_off_goes_on_where_it_stopped(store: Store, other: Store):
    its = lines(5)
    first = begin(store, 5)
    batching.store(store.database, first, 0, its[:2], hints=0)
    again = begin(other, 5)
    assert (again.is_new, again.id, again.stored, again.state) == (False, first.id, 2, BatchState.VALIDATING)
    work(store)
    assert tend(store).state is BatchState.VALIDATING, "it is not all there yet"
    assert batching.store(other.database, again, 2, its[2:4], hints=0).stored == 4
    late = batching.store(store.database, first, 2, its[2:4], hints=0)
    assert (late.stored, late.ready) == (4, ()), "somebody else has stored them"
    batching.store(store.database, first, 4, its[4:], hints=0)
    work(store)
    assert len(results(store, tend(store))) == 5
    assert begin(store, 5).state is BatchState.COMPLETED


@only_postgresql
def test_two_who_submit_the_same_at_once_store_it_once(store: Store, other: Store):
    its = lines(40)

    def submitting(mine: Store, key: str) -> None:
        begun = begin(mine, 40, key, fingerprint="the same")
        stored = begun.stored
        while stored < 40:
            stored = batching.store(mine.database, begun, stored, its[stored : stored + 3], hints=0).stored

    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(submitting, mine, key) for mine, key in ((store, "batch-1"), (other, "batch-2"))]:
            each.result()
    assert sorted(work(store)) == sorted(f"prompt {n}" for n in range(1, 41))


@only_sqlite
def test_a_submission_waits_longer_than_others_for_a_file_that_stays_locked(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
):
    """As by a worker that is stopped while it writes."""
    monkeypatch.setattr(databases, "BUSY_TIMEOUT_SECONDS", 0.2)
    begun = begin(store, 3)
    with ThreadPoolExecutor(1) as pool:
        with other.database.writing():
            with pytest.raises(DatabaseLockedError, match="stayed locked by another process"):
                store.database.transact(lambda db: db.execute(select(1)))
            storing = pool.submit(batching.store, store.database, begun, 0, lines(3), hints=0)
            with pytest.raises(FuturesTimeout):
                storing.result(timeout=1)
        assert storing.result(timeout=30).stored == 3
    with other.database.writing():
        monkeypatch.setattr(databases, "PATIENCE_SECONDS", 0.5)
        with pytest.raises(DatabaseLockedError):
            begin(store, 3, "batch-2")


def test_a_session_of_the_name_that_a_line_would_take_is_used(store: Store):
    store.session("batch-1:2")
    submit(store, lines(3))
    assert len(work(store)) == 3
    assert reading.get_session(store.database, "batch-1:2").turns == 1


def test_a_session_whose_removal_was_cut_off_is_made_anew(store: Store):
    former = store.session("there")
    store.write(retention.fence_off, former)
    submit(store, [Line(1, "a", "hello", session="there")])
    assert work(store) == ["hello"]
    assert reading.get_session(store.database, "there").id != former


def test_bad_lines_are_kept_for_the_results(store: Store):
    batch = submit(
        store, [*lines(1), BadLine(2, "2", "missing_field", "there is no prompt"), BadLine(3, "x", "c", "m")]
    )
    work(store)
    batch = tend(store)
    assert (batch.state, batch.total, batch.completed, batch.failed) == (BatchState.COMPLETED, 3, 1, 2)
    bad = results(store, batch)[2]
    assert (bad.custom_id, bad.state, bad.error_type, bad.error_message) == (
        "2", None, "missing_field", "there is no prompt",
    )  # fmt: skip


def test_results_come_in_the_order_in_which_they_ended_page_by_page(store: Store):
    batch = submit(store, lines(7))
    asked = [int(prompt.split()[1]) for prompt in work(store)]
    seen, after = [], batches.START
    while page := batches.results(store.database, batch.id, after, limit=2):
        seen += [each.line for each in page]
        after = (page[-1].finished_at, page[-1].line)
    assert seen == asked


def test_progress_counts_what_there_is(store: Store):
    submit(store, lines(6))
    work(store, most=2)
    work(store, TurnState.FAILED, most=1)
    store.settle(store.start(lane=Lane.BATCH), TurnState.QUEUED, delay_seconds=60)
    store.start(lane=Lane.BATCH)
    found = batches.progress(store.database, "batch-1")
    assert (found.completed, found.failed, found.queued, found.retrying, found.running) == (2, 1, 2, 1, 1)
    assert (found.done, found.input_tokens, found.price, found.is_final) == (3, 9, 1.5, False)


@pytest.mark.parametrize("aborts", [False, True])
def test_a_cancelled_batch_keeps_what_is_done(store: Store, aborts: bool):
    batch = submit(store, lines(5))
    work(store, most=1)
    running = store.start(lane=Lane.BATCH)
    assert concluding.cancel(store.database, "batch-1", aborts=aborts)
    assert tend(store).state is BatchState.CANCELLING
    wanted_back = store.turn(running.session_id).cancel_requested_at
    assert (wanted_back is not None) == aborts
    assert store.claim(lane=Lane.BATCH) is None, "nothing of it is called any more"
    assert store.settle(running, TurnState.CANCELLED if aborts else TurnState.COMPLETED, reply="yes")
    batch = tend(store)
    assert (batch.state, batch.completed, batch.cancelled) == (
        BatchState.CANCELLED,
        1 if aborts else 2,
        4 if aborts else 3,
    )
    assert not concluding.cancel(store.database, "batch-1"), "it is final"
    assert {each.state for each in results(store, batch).values()} == {TurnState.COMPLETED, TurnState.CANCELLED}


def test_a_cancel_that_comes_after_the_last_line_cancels_nothing(store: Store):
    submit(store, lines(2))
    work(store)
    assert concluding.cancel(store.database, "batch-1")
    assert tend(store).state is BatchState.COMPLETED


def test_cancelling_lines_lets_the_prompts_behind_them_go_on(store: Store):
    session = store.session("there")
    submit(store, [Line(n, str(n), f"prompt {n}", session="there") for n in (1, 2)])
    store.send("there", "mine")
    concluding.cancel(store.database, "batch-1")
    tend(store)
    lease = store.lease(session)
    assert (lease.is_ready, lease.lane) == (True, "chat")
    assert store.start(session).prompt[0]["content"] == "mine"


def test_a_submission_is_cancelled_in_the_middle(store: Store):
    begun = begin(store, 4)
    batching.store(store.database, begun, 0, lines(2), hints=0)
    concluding.cancel(store.database, "batch-1")
    assert batching.store(store.database, begun, 2, lines(4)[2:], hints=0).state is BatchState.CANCELLING
    batch = tend(store)
    assert (batch.state, batch.stored, batch.cancelled) == (BatchState.CANCELLED, 2, 2)


def test_what_is_not_tried_in_the_window_expires(store: Store):
    submit(store, lines(4), window_seconds=3600)
    work(store, most=1)
    store.change(BATCHES, BATCHES.c.key == "batch-1", expires_at=now(-1))
    store.change(TURNS, TURNS.c.batch_id.is_not(None), not_after=now(-1))
    late = store.start(lane=Lane.BATCH)
    assert late.is_late, "a worker that claims it before the sweep comes calls nobody"
    store.settle(late, TurnState.FAILED, outcome=None, error_type=EXPIRED, error_message="over")
    batch = tend(store)
    assert (batch.state, batch.completed, batch.expired, batch.failed) == (BatchState.EXPIRED, 1, 3, 0)
    assert sorted(each.error_type or "" for each in results(store, batch).values()) == ["", EXPIRED, EXPIRED, EXPIRED]
    with store.database.reading() as db:
        assert db.execute(text("SELECT count(*) FROM attempts")).scalar_one() == 1, "no call is on record for those"


def test_what_is_in_time_is_not_late(store: Store):
    submit(store, lines(1), window_seconds=3600)
    assert not store.start(lane=Lane.BATCH).is_late


def test_a_submission_that_nobody_goes_on_with_is_given_up(store: Store):
    batching.store(store.database, begin(store, 5), 0, lines(2), hints=0)
    work(store, most=1)
    tending.tend(store.database, ())
    assert batches.get_batch(store.database, "batch-1").state is BatchState.VALIDATING
    store.change(BATCHES, BATCHES.c.key == "batch-1", stored_at=now(-concluding.GIVEN_UP_SECONDS - 1))
    tending.tend(store.database, ())
    batch = batches.get_batch(store.database, "batch-1")
    assert (batch.state, batch.completed, batch.cancelled) == (BatchState.FAILED, 1, 1)


def test_failed_lines_are_sent_again_and_only_those(store: Store):
    session = store.session("there")
    its = (*lines(3), *(Line(n, f"id-{n}", f"prompt {n}", session="there") for n in (4, 5)))
    submit(store, [*its, BadLine(6, "6", "c", "m")])
    first = work(store, TurnState.FAILED, most=2)
    work(store, most=1)
    concluding.cancel(store.database, "batch-1")
    before = tend(store)
    assert (before.completed, before.failed, before.cancelled) == (1, 3, 2)
    assert retrying.retry(store.database, "batch-1", timedelta(hours=1)) == 4
    again = tend(store)
    assert (again.state, again.retry_at, again.finished_at) == (BatchState.IN_PROGRESS, None, None)
    asked = work(store)
    assert len(asked) == 4
    assert set(first) <= set(asked)
    assert [each for each in asked if each in ("prompt 4", "prompt 5")] == ["prompt 4", "prompt 5"]
    batch = tend(store)
    assert (batch.state, batch.completed, batch.failed, batch.total) == (BatchState.COMPLETED, 5, 1, 6)
    assert len(results(store, batch)) == 6
    assert [turn.retry_of for turn in reading.list_turns(store.database, session)] == [None, None, 1, 2]
    assert batch.price == 2.5 + 1.0, "what the failed calls cost counts as well"
    by_batch = {record.key: record.price for record in usage.usage(store.database, "batch")}
    assert by_batch == {"batch-1": 3.5}
    assert retrying.retry(store.database, "batch-1") == 0
    assert batches.get_batch(store.database, "batch-1").state is BatchState.COMPLETED, "nothing was changed"


def test_a_retry_that_was_cut_off_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrying, "CHUNK", 2)
    submit(store, lines(5))
    work(store, TurnState.FAILED)
    tend(store)
    retrying.retry(store.database, "batch-1")
    batch = batches.get_batch(store.database, "batch-1")
    assert retrying.send_again(store.database, batch.id)
    work(store)
    assert concluding.conclude(store.database, "batch-1", ()).state is BatchState.IN_PROGRESS
    tend(store)
    assert len(work(store)) == 3
    assert tend(store).completed == 5


def test_a_retry_takes_along_what_followed_the_prompt(store: Store):
    follows = (Utterance(Role.ASSISTANT, "let me see"), Utterance(Role.USER, "well?"))
    submit(store, [Line(1, "a", "look", follows=follows, options={"n": 1})])
    work(store, TurnState.FAILED)
    tend(store)
    retrying.retry(store.database, "batch-1")
    tend(store)
    started = store.start(lane=Lane.BATCH)
    assert [said["content"] for said in started.messages] == ["look", "let me see", "well?"]
    assert started.options == {"n": 1}


def test_a_batch_that_runs_is_not_retried(store: Store):
    submit(store, lines(1))
    with pytest.raises(InvalidInputError, match="batch-1 is in_progress"):
        retrying.retry(store.database, "batch-1")
    for verb in (retrying.retry, concluding.cancel, batches.get_batch, batches.progress):
        with pytest.raises(BatchNotFoundError, match="batch-x"):
            verb(store.database, "batch-x")


def test_the_line_of_a_removed_session_has_a_result(store: Store):
    submit(store, lines(2))
    work(store, most=1)
    retention.remove(store.database, "batch-1:1")
    work(store)
    batch = tend(store)
    assert (batch.completed + batch.failed, batch.failed) == (2, 1)
    assert results(store, batch)[1].error_type == SESSION_DELETED


def test_the_lines_of_a_large_session_that_is_removed_in_chunks_have_results(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    for most in "MANY_TURNS", "TURNS_A_STEP":
        monkeypatch.setattr(retention, most, 2)
    submit(store, [Line(n, str(n), f"prompt {n}", session="large") for n in range(1, 6)])
    retention.remove(store.database, "large")
    assert [each.error_type for each in results(store, tend(store)).values()] == [SESSION_DELETED] * 5


def test_what_is_read_is_discarded_but_for_what_somebody_uses(store: Store):
    store.session("there")
    its = [*lines(4), Line(5, "e", "five", session="there"), Line(6, "f", "six", session="made")]
    submit(store, its, discards=True)
    tending.note_read(store.database, "batch-1")
    assert batches.get_batch(store.database, "batch-1").read_at is None, "it is not final"
    work(store)
    tend(store)
    store.hold("batch-1:2")
    store.send("batch-1:3", "and more")
    batch = tending.note_read(store.database, "batch-1")
    left = [each.key for each in reading.list_sessions(store.database, SessionFilter())]
    assert left == ["there", "batch-1:2", "batch-1:3"]
    assert (batch.completed, batch.total) == (6, 6)
    with store.database.reading() as db:
        assert set(db.execute(select(REMOVALS.c.rule)).scalars()) == {tending.DISCARDED}
        assert db.execute(select(func.count()).select_from(SESSIONS)).scalar_one() == 3
    assert batches.results_without_turns(store.database, batch.id) == []


def test_who_makes_it_final_tells_it_once(store: Store, other: Store):
    submit(store, lines(3))
    work(store)
    hooks = [Hook("told", frozenset({"batch.completed"}))]
    with ThreadPoolExecutor(3) as pool:
        concluded = [
            pool.submit(concluding.conclude, mine.database, "batch-1", hooks) for mine in (store, other, store)
        ]
        assert BatchState.COMPLETED in {each.result().state for each in concluded}
    assert tend(store).state is BatchState.COMPLETED
    told = webhooks.list_deliveries(store.database, limit=9)
    assert [(each.event, each.subject) for each in told] == [("batch.completed", "batch-1")]


def test_a_count_that_was_cut_off_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch):
    submit(store, lines(2))
    work(store)

    def fails(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(concluding, "count", fails)
    with pytest.raises(RuntimeError):
        concluding.conclude(store.database, "batch-1", ())
    monkeypatch.undo()
    assert batches.get_batch(store.database, "batch-1").state is BatchState.FINALIZING
    assert tend(store).state is BatchState.COMPLETED


def test_batches_are_listed_newest_first(store: Store):
    for number in range(5):
        submit(store, lines(1), key=f"batch-{number}")
    page = batches.list_batches(store.database, limit=2)
    rest = batches.list_batches(store.database, before=page[-1].id)
    assert [each.key for each in page + rest] == [f"batch-{number}" for number in (4, 3, 2, 1, 0)]
    work(store)
    tend(store, "batch-2")
    assert [each.key for each in batches.list_batches(store.database, state=BatchState.COMPLETED)] == ["batch-2"]


def test_a_line_that_waits_is_joined_into_no_other_prompt(store: Store):
    session = store.session("there")
    submit(store, [Line(1, "a", "of the batch", session="there")])
    store.send("there", "one")
    joined = store.send("there", "two", when_busy="coalesce")
    assert joined.turn.prompt == "one\n\ntwo"
    assert store.start(session, lane=Lane.BATCH).prompt[0]["content"] == "of the batch"


def test_current_turns_are_those_that_are_lines_still(store: Store):
    batch = submit(store, lines(2))
    work(store, TurnState.FAILED)
    tend(store)
    before = {line: each.turn_id or "" for line, each in results(store, batch).items()}
    retrying.retry(store.database, "batch-1")
    tend(store)
    places = [(int(session), int(number)) for session, number in (turn.split(".") for turn in before.values())]
    assert batches.current_turns(store.database, batch.id, places) == {}
    after = {line: f"{turn.split('.')[0]}.2" for line, turn in before.items()}
    places = [(session, 2) for session, _ in places]
    assert batches.current_turns(store.database, batch.id, places) == {turn: line for line, turn in after.items()}
