"""Content-only removal: what was said goes, what was used stays, on both databases."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from inturn import ContentRemovedError, InvalidInputError, Session, TurnFailedError
from inturn.archives.reading import opened
from inturn.cleaning import FEW, Cleanup
from inturn.client import Client
from inturn.models.clock import now
from inturn.models.errors import RemovalShareError
from inturn.models.rows import Row
from inturn.models.states import AttemptOutcome, Kept, Overflow, Retention, TurnState
from inturn.models.store import (
    batches,
    forking,
    opening,
    reading,
    receipts,
    retention,
    retrying,
    sending,
    stripping,
    transcripts,
    usage,
)
from inturn.models.store.lines import CONTENT_REMOVED, Line
from inturn.models.store.outlook import outlook
from inturn.models.store.rules import OWN, Rule, default_rule, due, order_of
from inturn.models.store.stripping import UNTOLD
from inturn.models.store.usage import UsageBy
from inturn.models.store.working import Summary
from inturn.models.tables import ATTEMPTS, MESSAGES, SESSIONS, TURNS
from tests.integration.rounds import answered, go_round, settle
from tests.integration.stores import Store, meet, only_sqlite, settlement
from tests.integration.test_store_batches import results, submit, tend, work

CANARY = "kanarienvogel"
DAY = 86400.0
CONTENT = Rule("content", idle_seconds=DAY, keep=Kept.METADATA)


def cleanup(store: Store, *rules: Rule, **how: Any) -> Cleanup:
    return Cleanup(store.database, [OWN, *(rules or (CONTENT,)), default_rule(30 * DAY)], "a test", **how)


def age(store: Store, days: float = 2, key: str = "s") -> None:
    store.change(SESSIONS, SESSIONS.c.key == key, last_activity_at=now(-days * DAY), created_at=now(-days * DAY))


def strip(store: Store, key: str = "s") -> None:
    """As the rule does, once the session is old enough."""
    age(store, key=key)
    assert key in [removal.session_id for removal in cleanup(store).run()]


def talk(store: Store) -> int:
    """A session that has the canary wherever anything that was said can be."""
    options = {"temperature": 0.5, "stream": True, "stop": [CANARY], "user": CANARY, "schema": {"x": CANARY}}
    session = store.session(system_message=f"be a {CANARY}", options=options, overflow=Overflow.SUMMARISE)
    parts = {"parts": [{"type": "text", "text": CANARY}, {"type": "image_url", "image_url": {"url": CANARY}}]}
    sent = store.send(prompt=f"{CANARY} [image]", data=parts, options=options, idempotency_key="key-1")
    again = go_round(store, store.start(sent.session_id), CANARY, CANARY)
    calls = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "sing", "arguments": CANARY}}]}
    used: dict[str, Any] = {"input_tokens": 11, "output_tokens": 7, "price": 0.25, "price_table": "2026-11"}
    assert settle(store, replace(answered(again, CANARY), reply_data=calls, **used)) == (True, None)
    for number in range(2, 5):
        store.answer(prompt=f"{CANARY} {number}")
    store.send(prompt=CANARY, streams=True)
    started, done = store.start(session), AttemptOutcome.COMPLETED
    assert store.settle(started, TurnState.QUEUED, outcome=done, summary=Summary(3, f"of a {CANARY}"))
    failed = settlement(store.start(session), TurnState.FAILED)
    assert settle(store, replace(failed, partial=CANARY, error_message=f"400: no {CANARY}s", **used)) == (True, None)
    store.send(prompt=CANARY)
    sending.cancel(store.database, session, 6)
    store.change(TURNS, TURNS.c.number == 6, waits_for=CANARY)
    opening.resume_session(store.database, "s", system_message=f"be another {CANARY}")
    return session


def found(store: Store) -> list[str]:
    """The columns that hold the canary, of all tables there are."""
    with store.database.reading() as db:
        return [
            f"{table.name}.{name}"
            for table in Row.metadata.sorted_tables
            for row in db.execute(select(table)).mappings()
            for name, value in row.items()
            if CANARY in repr(value)
        ]


def figures(store: Store) -> Any:
    """All that is known of what was used and when, by whichever way it is asked for."""
    ways: tuple[UsageBy, ...] = ("session", "model", "provider", "day", "lane", "batch")
    texts = {"partial", "waits_for", "error_message", "options"}
    turns = [column for column in TURNS.c if column.name not in texts]
    session = reading.get_session(store.database, "s")
    with store.database.reading() as db:
        rows = [
            [tuple(row) for row in db.execute(select(*columns).order_by(*columns[:3]))]
            for columns in (turns, list(ATTEMPTS.c))
        ]
    used = {by: usage.usage(store.database, by) for by in ways}
    known = (session.turns, session.model, session.labels, session.created_at, session.last_activity_at, session.busy)
    return used, usage.usage(store.database, "session", session_id="s"), rows, known


def test_nothing_is_left_of_what_was_said_and_all_of_what_was_used(store: Store, migrated_url: str):
    session = talk(store)
    age(store)
    places = set(found(store))
    assert places == {
        "sessions.options", "messages.content", "messages.data", "turns.options", "turns.partial", "turns.waits_for",
        "turns.error_message",
    }, "the canary is everywhere, or nothing is tested"  # fmt: skip
    before = figures(store)
    with store.database.reading() as db:
        said = db.execute(select(func.count(), func.sum(func.length(MESSAGES.c.content)))).one()
    (removal,) = cleanup(store).run()
    assert (removal.rule, removal.turns, (removal.messages, removal.bytes), removal.kept) == (
        "content", 6, tuple(said), "metadata",
    )  # fmt: skip
    assert found(store) == []
    assert figures(store) == before
    record, turn = reading.get_session(store.database, "s"), store.turn(session, 5)
    assert (record.content_removed_to, record.messages, record.system_message) == (6, 0, None)
    assert record.content_removed_at is not None
    assert record.options == {"temperature": 0.5, "stream": True}, "what is no text may stay"
    assert (turn.prompt, turn.partial, turn.error_message, turn.error_type) == (None, None, UNTOLD, "http_500")
    assert turn.content_removed_at == record.content_removed_at
    if store.is_sqlite:
        with store.database.engine.connect() as db:
            db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        assert CANARY.encode() not in Path(migrated_url.removeprefix("sqlite:///")).read_bytes()


def test_it_is_due_once_until_more_is_said(store: Store):
    session = talk(store)
    strip(store)
    for again in (cleanup(store), cleanup(store, replace(CONTENT, idle_seconds=None, age_seconds=DAY))):
        assert list(again.due()) == []
        assert list(again.run()) == []
        assert retention.count_due(store.database, again.rules)["content"] == 0
        found_now = outlook(store.database, again.rules, "s")
        assert (found_now.rule, found_now.due) == (again.rules[1], False), "no other rule has it"
    opening.resume_session(store.database, "s")
    age(store, 40)
    assert list(cleanup(store).due()) == [], "taken up, and nothing said; and the default rule does not come behind it"
    store.answer(prompt=f"{CANARY} again")
    assert list(cleanup(store).due()) == [], "it was active"
    age(store)
    (removal,) = cleanup(store).run()
    assert (removal.turns, removal.messages) == (1, 2), "what was not removed before"
    assert found(store) == []
    assert reading.get_session(store.database, "s").content_removed_to == 7
    opening.resume_session(store.database, "s", system_message=f"be a {CANARY}")
    age(store)
    assert [(it.turns, it.messages) for it in cleanup(store).run()] == [(0, 1)], "a system message by itself"
    assert [(it.turns, it.kept) for it in receipts.list_receipts(store.database, "s")] == [
        (0, "metadata"), (1, "metadata"), (6, "metadata"),
    ]  # fmt: skip
    assert {(run.rule, run.kept, run.sessions) for run in receipts.list_runs(store.database)} == {
        ("content", "metadata", 1)
    }
    assert store.turn(session, 7).content_removed_at is not None


def test_a_model_is_shown_what_came_after_and_nothing_else(store: Store):
    session = talk(store)
    strip(store)
    for number in range(7, 9):
        store.answer(prompt=f"new {number}")
    store.send(prompt="now")
    started = store.start(session)
    assert (started.system, started.summary) == (None, None)
    assert [said["content"] for said in started.messages] == [
        "new 7", "reply to: new 7", "new 8", "reply to: new 8", "now",
    ]  # fmt: skip
    assert started.options == {"temperature": 0.5, "stream": True}
    assert store.settle(started, TurnState.QUEUED, outcome=AttemptOutcome.COMPLETED, summary=Summary(7, "of 7"))
    again = store.start(session)
    assert (again.summary, [number for number, _ in again.history]) == ("of 7", [8])


def test_a_prompt_that_is_sent_again_under_its_key_is_the_turn_that_it_was(store: Store):
    talk(store)
    strip(store)
    again = store.send(prompt="whatever", idempotency_key="key-1")
    assert (again.number, again.turn.state, again.turn.prompt) == (1, TurnState.COMPLETED, None)


def test_what_is_held_at_work_or_ahead_of_it_stays(store: Store):
    for key in ("held", "queued", "running", "own", "never", "idle"):
        how: dict[str, Any] = {"never": {"retention": Retention.NEVER}}.get(key, {})
        how |= {"own": {"retention": Retention.IDLE, "retention_seconds": DAY}}.get(key, {})
        session = store.session(key, **how)
        store.answer(key)
        if key in ("queued", "running"):
            store.send(key)
        if key == "running":
            store.start(session)
        age(store, key=key)
    store.hold("held")
    work = cleanup(store)
    listed = list(work.due())
    assert [(it.session_id, it.rule, it.kept) for it in listed] == [
        ("own", "own", "nothing"), ("idle", "content", "metadata"),
    ]  # fmt: skip
    assert list(work.run()) == listed, "cleanup removes exactly what its dry run lists"
    assert {key: reading.get_session(store.database, key).messages for key in ("held", "queued", "running", "never")} == {
        "held": 2, "queued": 3, "running": 3, "never": 2,
    }  # fmt: skip


def test_a_send_in_the_middle_is_not_lost(store: Store, other: Store):
    """It waits for the session's lock, and its prompt comes behind what was removed; or the session is not idle any more."""
    talk(store)
    age(store)
    which = retention.due_now(store.database, [CONTENT], CONTENT)
    assert which is not None
    first = partial(stripping.strip_due, store.database, CONTENT, which, 1)
    sent = meet(first, store, lambda: other.send(prompt="in time"))
    assert (sent.number, store.turn(sent.session_id, 7).prompt) == (7, "in time")
    assert [(number, content) for number, _, content in store.history(sent.session_id)] == [(7, "in time")]
    started = store.start(sent.session_id)
    assert [said["content"] for said in started.messages] == ["in time"]


def test_a_worker_that_was_left_behind_writes_nothing(store: Store):
    session = talk(store)
    store.send(prompt="taken back")
    stale = store.start(session)
    store.change(
        TURNS, TURNS.c.number == 7, state=TurnState.CANCELLED, finished_at=now()
    )  # no verb leaves it like this
    strip(store)
    lease = store.lease(session)
    assert (lease.owner, lease.token) == (None, stale.token + 1)
    assert not store.settle(stale, reply=CANARY)
    assert found(store) == []


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns at first, and then as many as the time allows."""
    monkeypatch.setattr(stripping, "MANY_TURNS", 2)
    monkeypatch.setattr(stripping, "TURNS_A_STEP", 2)


def test_a_long_session_goes_in_pieces_under_one_receipt(store: Store, monkeypatch: pytest.MonkeyPatch):
    in_pieces(monkeypatch)
    session = talk(store)
    age(store)
    seen: list[tuple[int, int]] = []

    def look(_: str) -> None:
        record = reading.get_session(store.database, "s")
        seen.append((record.content_removed_to, record.messages))

    monkeypatch.setattr(stripping, "reached", look)
    (removal,) = cleanup(store).run()
    assert (seen[0][0], seen[-1]) == (2, (6, 0))
    assert len(seen) >= 3
    assert seen == sorted(seen, key=lambda it: (it[0], -it[1]))
    (receipt,), (run,) = receipts.list_receipts(store.database, "s"), receipts.list_runs(store.database)
    assert (receipt.turns, receipt.messages, receipt.bytes) == (removal.turns, removal.messages, removal.bytes)
    assert (run.sessions, run.turns, run.messages) == (1, 6, removal.messages)
    assert found(store) == []
    assert store.turn(session, 1).content_removed_at is not None


def test_a_second_remover_of_the_run_leaves_a_begun_session_to_the_first(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
):
    in_pieces(monkeypatch)
    talk(store)
    age(store)
    which = retention.due_now(store.database, [CONTENT], CONTENT)
    assert which is not None
    run = receipts.begin_run(store.database, "content", "a test", kept=Kept.METADATA)
    found_by_other: list[Any] = []

    def strip_too(_: str) -> None:
        with monkeypatch.context() as quiet:
            quiet.setattr(stripping, "reached", lambda _: None)
            found_by_other.append(stripping.strip_due(other.database, CONTENT, which, run))

    monkeypatch.setattr(stripping, "reached", strip_too)
    (removal,) = stripping.strip_due(store.database, CONTENT, which, run)
    assert found_by_other
    assert not any(found_by_other)
    assert [(it.turns, it.messages) for it in receipts.list_receipts(store.database, "s")] == [(6, removal.messages)]


def test_pieces_that_broke_off_are_readable_and_gone_on_with(store: Store, monkeypatch: pytest.MonkeyPatch):
    in_pieces(monkeypatch)
    session = talk(store)
    age(store)

    def die(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stripping, "reached", die)
    with pytest.raises(KeyboardInterrupt):
        list(cleanup(store).run())
    monkeypatch.undo()
    assert reading.get_session(store.database, "s").content_removed_to == 2
    assert next(number for number, *_ in store.history(session)) == 3
    copy = transcripts.transcript(store.database, session, "s")
    assert [len(turn["messages"]) > 0 for turn in copy.turns()] == [False, False, True, True, True, True]
    store.send(prompt="in between")
    assert [len(turn) for _, turn in store.start(session).history] == [2], "turn 4, behind the summary of those before"
    sending.cancel(store.database, session, 7)
    store.expire(session)
    store.rescue_expired()
    store.change(TURNS, TURNS.c.number == 7, state=TurnState.CANCELLED, finished_at=now())
    strip(store)
    assert found(store) == []


def test_archives_have_it_whole_before_it_goes_and_holes_where_it_went(store: Store, tmp_path: Path):
    rule = replace(CONTENT, archive=str(tmp_path))
    talk(store)
    age(store)
    list(cleanup(store, rule).run())
    store.answer(prompt="later")
    age(store)
    list(cleanup(store, rule).run())
    first, second = sorted(receipts.list_runs(store.database), key=lambda run: run.id)
    imported = {}
    for name, run in (("first", first), ("second", second)):
        assert run.archive is not None
        with opened(Path(run.archive)) as archive:
            (made,) = (transcripts.store_transcript(store.database, name, it.transcript) for it in archive.sessions())
        imported[name] = [number for number, *_ in store.history(made)]
    assert set(imported["first"]) == {1, 2, 3, 4, 5, 6, 7}, "the last one is a system message that waits"
    assert imported["second"] == [7, 7]
    record = reading.get_session(store.database, "second")
    assert (record.content_removed_to, record.turns) == (6, 7)
    assert record.content_removed_at is not None


def test_forks_begin_with_the_same_hole(store: Store):
    session = talk(store)
    strip(store)
    store.answer(prompt="later")
    whole = forking.fork(store.database, session, "s", "whole", None)
    forking.fork(store.database, session, "s", "short", 3)
    forking.fork(store.database, session, "s", "empty", 0)
    removed = reading.get_session(store.database, "s").content_removed_at
    records = {key: reading.get_session(store.database, key) for key in ("whole", "short", "empty")}
    assert {key: (it.content_removed_to, it.content_removed_at) for key, it in records.items()} == {
        "whole": (6, removed), "short": (3, removed), "empty": (0, None),
    }  # fmt: skip
    assert store.history(whole) == [(7, "user", "later"), (7, "assistant", "reply to: later")]
    store.send("whole", "on")
    assert [said["content"] for said in store.start(whole).messages] == ["later", "reply to: later", "on"]


def test_of_more_than_so_many_those_without_content_are_none(store: Store):
    rule = replace(CONTENT, idle_seconds=None, more_than=2)
    for number in range(5):
        store.session(f"s{number}")
        store.answer(f"s{number}")
        age(store, 10 - number, f"s{number}")
    assert [it.session_id for it in cleanup(store, rule).run()] == ["s0", "s1", "s2"]
    assert list(cleanup(store, rule).due()) == []
    opening.resume_session(store.database, "s0")
    assert list(cleanup(store, rule).due()) == [], "it was active last, and has no content that could be one of the two"
    store.answer("s0")
    assert [it.session_id for it in cleanup(store, rule).due()] == ["s3"]


def test_rules_for_whole_sessions_and_erasure_take_what_is_left(store: Store):
    talk(store)
    store.session("other")
    store.answer("other")
    for key in ("s", "other"):
        strip(store, key)
    run = receipts.begin_run(store.database, retention.ERASURE, "a test")
    erased = retention.erase(store.database, reading.get_session(store.database, "other").id, run, held_too=False)
    assert erased is not None
    assert (erased.turns, erased.messages, erased.kept) == (1, 0, "nothing")
    before = usage.usage(store.database, "model")
    (removal,) = Cleanup(store.database, [replace(CONTENT, name="older-than", keep=Kept.NOTHING)], "a test").run()
    assert (removal.turns, removal.messages, removal.kept) == (6, 0, "nothing")
    assert usage.usage(store.database, "model") == before
    assert [it.kept for it in receipts.list_receipts(store.database, "s")] == ["nothing", "metadata"]


@only_sqlite
def test_too_large_a_share_is_one_of_those_with_content(store: Store):
    """Or a mistake would never be too large a share, once most have lost theirs."""
    with store.database.writing() as db:
        for number in range(4 * FEW):
            opening.create(db, opening.NewSession(f"s{number}", "echo/echo"))
    store.change(SESSIONS, SESSIONS.c.id > FEW + 50, content_removed_at=now())
    store.change(SESSIONS, SESSIONS.c.id > 0, last_activity_at=now(-2 * DAY))
    store.change(SESSIONS, SESSIONS.c.id > FEW + 1, last_activity_at=now())
    with pytest.raises(RemovalShareError, match=r"101 of 150 sessions with content .* 'content'"):
        list(cleanup(store, share=0.5).run())
    store.hold("s0")
    assert len(list(cleanup(store, share=0.5).run())) == FEW


def test_what_is_done_with_is_not_looked_through_again(store: Store):
    """The indexes of what has content are those that are used, whatever the limit."""
    with store.database.writing() as db:
        for number in range(2000):
            opening.create(db, opening.NewSession(f"s{number}", "echo/echo"))
    store.change(SESSIONS, SESSIONS.c.id > 20, content_removed_at=now())
    store.change(SESSIONS, SESSIONS.c.id > 0, last_activity_at=now(-3 * DAY), created_at=now(-3 * DAY))
    if not store.is_sqlite:
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.exec_driver_sql("VACUUM ANALYZE sessions")
    explain = "EXPLAIN QUERY PLAN " if store.is_sqlite else "EXPLAIN "
    for rule, index in (
        (CONTENT, "ix_sessions_content_active"),
        (replace(CONTENT, idle_seconds=None, age_seconds=DAY), "ix_sessions_content_created"),
    ):
        with store.database.reading() as db:
            which = due(db, [rule], rule)
            assert which is not None
            page = select(SESSIONS.c.id).where(which).order_by(*order_of(rule)).limit(100)
            dialect = store.database.engine.dialect
            plain = page.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
            plan = " ".join(str(row) for row in db.exec_driver_sql(explain + str(plain).replace("%", "%%")))
            assert len(db.execute(page).all()) == 20
        assert index in plan, plan


def test_lines_whose_replies_went_say_so_in_the_results(store: Store):
    its = [Line(1, "a", "one"), Line(2, "b", "two", session="b"), Line(3, "c", "three", session="c")]
    submit(store, its)
    work(store, most=1)
    work(store, TurnState.FAILED)
    batch = tend(store)
    for key in ("batch-1:1", "b"):
        age(store, key=key)
    assert {it.session_id for it in cleanup(store).run()} == {"batch-1:1", "b"}
    found = results(store, batch)
    assert (found[1].state, found[1].error_type, found[1].reply) == (TurnState.FAILED, CONTENT_REMOVED, None)
    assert (found[1].input_tokens, found[1].price, found[1].session_id) == (3, 0.5, "batch-1:1")
    assert (found[2].error_type, found[2].error_message) == ("http_400", UNTOLD)
    assert found[3].error_message == "no"
    assert batches.progress(store.database, "batch-1").completed == 1
    assert retrying.retry(store.database, "batch-1") == 1, "the prompt of the other is gone"
    tend(store)
    assert work(store) == ["three"]
    assert tend(store).completed == 2


@pytest.fixture
def client(store: Store, migrated_url: str, tmp_path: Path) -> Iterator[Client]:
    with Client(home=tmp_path, database_url=migrated_url, broker_url="redis://127.0.0.1:1/0") as client:
        yield client


def test_the_sdk_says_what_is_gone_and_since_when(store: Store, client: Client):
    session = talk(store)
    handle: Session = client.get_session("s")
    assert [message.turn for message in handle.get_messages(limit=2)] == [1, 1], "without a mark"
    strip(store)
    removed = handle.metadata().content_removed_at
    assert removed is not None
    said = f"what was said up to turn 6 was removed by retention on {removed:%Y-%m-%d %H:%M} UTC"
    (mark,) = handle.get_messages()
    assert (mark.type, mark.data.content, mark.timestamp, mark.turn) == ("session.content_removed", said, removed, 6)
    events = list(handle.get_events())
    assert [event.type for event in events] == [
        "session.start", "session.content_removed", "session.error", "abort",
    ]  # fmt: skip
    assert (events[1].data.content, events[2].data.message) == (said, UNTOLD)
    assert [event.type for event in handle.get_events(after=events[1].id)] == ["session.error", "abort"]
    assert [event.type for event in handle.tail()] == ["session.content_removed"]
    turns = list(handle.get_turns())
    assert {(turn.prompt, turn.content_removed_at) for turn in turns} == {(None, removed)}
    with pytest.raises(ContentRemovedError, match=rf"turn {session}\.1 is gone: retention removed it on"):
        turns[0].wait(5)
    assert turns[0].get_reply() is None
    with pytest.raises(TurnFailedError, match=UNTOLD):
        turns[4].wait(5)
    for turn in turns[4:6]:
        with pytest.raises(ContentRemovedError, match="Send the prompt anew"):
            turn.retry()
    assert len(list(handle.get_turns())) == 6, "nothing was sent"
    store.answer(prompt="later")
    assert [message.data.content for message in handle.get_messages()] == [said, "later", "reply to: later"]
    assert [message.data.content for message in handle.get_messages(after=mark.id)] == ["later", "reply to: later"]
    assert [message.data.content for message in handle.get_messages(limit=2)] == [said, "later"]
    assert [event.data.content for event in handle.tail(2)] == ["later", "reply to: later"]
    assert (
        f"*What was said up to turn 6 was removed by retention on {removed:%Y-%m-%d %H:%M} UTC.*"
        in b"".join(handle.export("md")).decode()
    )


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_an_export_has_the_hole_and_is_imported_with_it(store: Store, client: Client, form: Any):
    talk(store)
    strip(store)
    store.answer(prompt="later")
    exported = b"".join(client.get_session("s").export(form))
    assert CANARY.encode() not in exported
    made = client.import_session(BytesIO(exported), "copy")
    assert [message.type for message in made.get_messages()] == [
        "session.content_removed", "user.message", "assistant.message",
    ]  # fmt: skip
    assert made.metadata().content_removed_at == client.get_session("s").metadata().content_removed_at
    for fault, damaged in {
        "content_removed_to is 8, of 7 turns": exported.replace(b'"content_removed_to":6', b'"content_removed_to":8'),
        "it has messages, and what was said up to turn 7 was removed": exported.replace(
            b'"content_removed_to":6', b'"content_removed_to":7'
        ),
        "it has no prompt": exported.replace(b'"content_removed_to":6', b'"content_removed_to":5'),
    }.items():
        with pytest.raises(InvalidInputError, match=fault):
            client.import_session(BytesIO(damaged), "damaged")
    plain = b"".join(client.get_session(store_plain(store)).export(form))
    assert b"content_removed" not in plain, "older versions can read it"


def store_plain(store: Store) -> str:
    store.session("plain")
    store.answer("plain")
    return "plain"


def test_an_export_that_retention_overtakes_says_so(store: Store):
    session = talk(store)
    begun = transcripts.transcript(store.database, session, "s")
    strip(store)
    with pytest.raises(ContentRemovedError, match=rf"turn {session}\.1 is gone"):
        list(begun.turns())
