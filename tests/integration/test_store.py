"""The working verbs: claim and settle, under the fence, on both databases."""

import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import orjson
import psycopg
import pytest
from sqlalchemy import event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from inturn.models import database
from inturn.models.clock import now
from inturn.models.content import REPLACEMENT
from inturn.models.database import Database
from inturn.models.errors import StorageError
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store import retention, sending, working
from inturn.models.store.dialects import postgresql
from inturn.models.store.working import Claim, Started
from inturn.models.tables import LEASES, TURNS
from tests.integration.stores import WORKER, Store, meet, only_sqlite, settlement

OTHER = "worker-2"


def test_a_connection_in_use_when_its_database_is_closed_is_closed_as_it_comes_back(migrated_url: str):
    with closing(Database(migrated_url)) as database:
        with database.reading() as db:
            driver: Any = db.connection.driver_connection
            database.close()
            assert db.execute(text("SELECT 1")).scalar() == 1
        with pytest.raises((psycopg.OperationalError, sqlite3.ProgrammingError)):
            driver.execute("SELECT 1")
        with database.reading() as db:
            assert db.execute(text("SELECT 1")).scalar() == 1


def test_a_connection_that_is_made_while_its_database_is_closed_is_closed_as_it_comes_back(migrated_url: str):
    def close(*_: object) -> None:
        mine.close()

    with closing(Database(migrated_url)) as mine:
        event.listen(mine.engine, "do_connect", close)
        with mine.reading() as db:
            driver: Any = db.connection.driver_connection
        with pytest.raises((psycopg.OperationalError, sqlite3.ProgrammingError)):
            driver.execute("SELECT 1")


@only_sqlite
def test_the_wal_is_emptied_unless_somebody_reads_what_is_in_there(migrated_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "CHECKPOINT_TRIES", 2)
    mine, other = Database(migrated_url), Database(migrated_url)
    wal = Path(f"{mine.url.database}-wal")
    with closing(mine), closing(other):
        with other.reading() as db:
            assert db.execute(text("SELECT count(*) FROM sessions")).scalar() == 0
            with mine.writing() as writer:
                writer.execute(
                    text("INSERT INTO ticks (name, slot, fired_at) VALUES ('tock', 1, '2026-11-29 00:00:00')")
                )
            assert not mine.empty_wal()
            with mine.writing() as writer:
                writer.execute(text("UPDATE ticks SET slot = 2"))
        assert b"tock" in wal.read_bytes()
        assert mine.empty_wal()
        assert wal.stat().st_size == 0
        with other.reading() as db:
            assert db.execute(text("SELECT slot FROM ticks")).scalar() == 2


@only_sqlite
def test_who_only_reads_opens_the_file_while_another_writes(migrated_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.1)
    writer, reader = Database(migrated_url), Database(migrated_url)
    with closing(writer), closing(reader), writer.writing(), reader.reading() as db:
        assert db.execute(text("PRAGMA auto_vacuum")).scalar() == 2, "incremental, since the file was made"


def test_a_database_that_went_away_is_found_again_when_it_is_back(migrated_url: str):
    with closing(Database(migrated_url)) as database:
        with database.reading() as db:
            db.invalidate()

        def refuse(*_: object) -> NoReturn:
            raise database.engine.dialect.loaded_dbapi.OperationalError("nobody is there")

        event.listen(database.engine, "do_connect", refuse)
        with pytest.raises(StorageError, match="nobody is there"), database.reading():
            pass
        event.remove(database.engine, "do_connect", refuse)
        with database.reading() as db:
            assert db.execute(text("SELECT 1")).scalar() == 1


def test_a_turn_from_sent_to_answered(store: Store):
    session = store.session()
    sent = store.send(prompt="Hello")
    assert (sent.session_id, sent.number, sent.lane, sent.hint) == (session, 1, Lane.CHAT, True)
    started = store.start(session)
    assert (started.session_id, started.key, started.number, started.attempts) == (session, "s", 1, 1)
    assert (started.model, started.turn_id) == ("echo/echo", f"{session}.1")
    assert started.messages == [{"role": "user", "content": "Hello"}]
    assert store.settle(started, reply="Hi", request_id="req", input_tokens=3, output_tokens=1)
    turn = store.turn(session)
    assert (turn.state, turn.attempts, turn.input_tokens, turn.output_tokens) == (TurnState.COMPLETED, 1, 3, 1)
    assert turn.created_at <= turn.started_at <= turn.finished_at  # type: ignore[operator]
    assert store.history(session) == [(1, "user", "Hello"), (1, "assistant", "Hi")]
    lease = store.lease(session)
    assert (lease.owner, lease.expires_at, lease.ready_at, lease.token) == (None, None, None, 1)
    assert store.claim(session) is None


def test_the_attempt_is_on_record_before_the_call(store: Store, other: Store):
    session = store.session()
    store.send()
    with pytest.raises(ZeroDivisionError):
        store.write(lambda db: working.claim(db, WORKER, 30, 20, [Claim(Lane.CHAT)]) and 1 / 0)
    assert (other.turn(session).attempts, other.outcomes(session)) == (0, [])
    started = store.start()
    assert (other.turn(session).attempts, other.turn(session).state) == (1, TurnState.RUNNING)
    assert other.outcomes(session) == [(1, 1, None)]
    assert started.token == 1


def test_who_was_superseded_changes_nothing(store: Store):
    session = store.session()
    store.send()
    late = store.start(session)
    store.expire(session)
    assert store.rescue_expired() == [session]
    before = store.everything()
    for state in TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED, TurnState.QUEUED:
        assert not store.settle(late, state)
    assert store.everything() == before
    started = store.start(session, owner=OTHER)
    before = store.everything()
    assert not store.settle(late)
    assert not store.settle(started), "the token is right, the owner is not"
    assert store.everything() == before
    assert store.settle(started, owner=OTHER, reply="the one")
    assert store.history(session) == [(1, "user", "hello"), (1, "assistant", "the one")]
    assert not store.settle(started, owner=OTHER), "once"
    assert store.outcomes(session) == [(1, 1, "lost"), (1, 2, "completed")]


def test_a_late_reply_that_nobody_superseded_is_kept(store: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    store.expire(session)
    assert store.settle(started, reply="late, and paid for")
    assert store.turn(session).state is TurnState.COMPLETED
    assert store.rescue_expired() == []


def test_one_stale_settlement_does_not_hold_up_the_others(store: Store):
    for key in "a", "b", "c":
        store.session(key)
        store.send(key)
    started = store.claims([Claim(Lane.CHAT)] * 3)
    store.expire(started[1].session_id)
    store.rescue_expired()
    with store.database.writing() as db:
        kept, _, _ = working.settle(db, WORKER, 30, [settlement(each) for each in started])
    assert kept == {settlement(each).held for each in (started[0], started[2])}
    assert [store.turn(each.session_id).state for each in started] == ["completed", "queued", "completed"]


def test_after_a_delete_nothing_can_be_stored_also_when_the_id_is_used_again(store: Store):
    first = store.session()
    store.send()
    started = store.start(first)
    retention.remove(store.database, "s")
    assert not store.settle(started)
    second = store.session()
    store.send(prompt="new")
    assert second != first
    assert not store.settle(started)
    assert store.history(second) == [(1, "user", "new")]
    assert {len(rows) for rows in store.everything().values()} == {0, 1}


def test_sessions_are_claimed_in_the_order_in_which_they_became_ready(store: Store):
    ids = {key: store.session(key) for key in "abc"}
    for key in "bca":
        store.send(key)
    assert [store.start().session_id for _ in range(3)] == [ids["b"], ids["c"], ids["a"]]
    assert store.claim() is None


def test_a_named_session_comes_first_and_another_one_instead_if_it_is_not_ready(store: Store):
    ids = {key: store.session(key) for key in "abcd"}
    for key in "bca":
        store.send(key)
    asked = [Claim(Lane.CHAT), Claim(Lane.CHAT, ids["a"]), Claim(Lane.CHAT, ids["d"]), Claim(Lane.CHAT, ids["a"])]
    got = [each and each.key for each in store.claims(asked)]
    assert got[1] == "a"
    assert sorted(filter(None, got)) == ["a", "b", "c"]
    assert len(got) == 4


def test_lanes_do_not_mix(store: Store):
    chat, batch = store.session("chat"), store.session("batch")
    store.send("chat")
    store.send("batch", lane=Lane.BATCH)
    assert store.claim(batch, lane=Lane.MAINTENANCE) is None
    asked = store.claims([Claim(Lane.BATCH), Claim(Lane.CHAT), Claim(Lane.BATCH), Claim(Lane.CHAT)])
    assert [each and (each.session_id, each.lane) for each in asked] == [(batch, "batch"), (chat, "chat"), None, None]


def test_a_session_goes_to_the_lane_of_its_lowest_turn(store: Store):
    session = store.session()
    store.send()
    store.send(lane=Lane.BATCH)
    assert store.lease(session).lane == Lane.CHAT
    assert store.claim(lane=Lane.BATCH) is None
    store.settle(store.start(session))
    assert store.lease(session).lane == Lane.BATCH
    assert store.claim() is None
    assert store.settle(store.start(lane=Lane.BATCH))


def test_one_turn_of_a_session_at_a_time_in_order(store: Store):
    session = store.session()
    for prompt in "first", "second", "third":
        store.send(prompt=prompt)
    for number in 1, 2, 3:
        started = store.start(session)
        assert started.number == number
        assert len(started.messages) == 2 * number - 1
        assert store.claim(session) is None, "it is taken"
        assert store.settle(started)
    assert [(number, role) for number, role, _ in store.history(session)] == [
        (number, role) for number in (1, 2, 3) for role in ("user", "assistant")
    ]


def test_claimers_at_once_never_get_one_session(migrated_url: str, store: Store):
    sessions = [store.session(f"s{number}") for number in range(30)]
    for number in range(30):
        store.send(f"s{number}")
        store.send(f"s{number}")
    held: Counter[int] = Counter()
    most: list[int] = []
    lock = threading.Lock()

    def work(owner: str) -> list[str]:
        mine = Store(migrated_url)
        done = []
        while asked := [each for each in mine.claims([Claim(Lane.CHAT)] * 3, owner=owner) if each]:
            with lock:
                held.update(each.session_id for each in asked)
                most.append(max(held.values()))
            threading.Event().wait(0.005)
            with lock:
                held.subtract(each.session_id for each in asked)
            done += [each.turn_id for each in asked if mine.settle(each, owner=owner)]
        mine.close()
        return done

    with ThreadPoolExecutor(4) as threads:
        done = list(chain.from_iterable(threads.map(work, [f"worker-{number}" for number in range(4)])))
    done += work("the last")  # a claimer who finds the rest in others' hands goes home
    assert sorted(done) == sorted(f"{session}.{number}" for session in sessions for number in (1, 2))
    assert set(most) == {1}


def test_the_database_forbids_two_running_turns_and_leaving_a_final_state(store: Store):
    session = store.session()
    for _ in range(3):
        store.send()
    store.settle(store.start(session))
    store.start(session)
    mine = TURNS.c.session_id == session
    with pytest.raises(IntegrityError):
        store.change(TURNS, mine & (TURNS.c.number == 3), state="running")
    for state in "queued", "running", "failed", "cancelled":
        changes = {"finished_at": None} if state in ("queued", "running") else {}
        reason = {"error_type": "x"} if state == "failed" else {}
        with pytest.raises(DBAPIError, match="a final turn is never left"):
            store.change(TURNS, mine & (TURNS.c.number == 1), state=state, **changes, **reason)
    for bad in ({"state": "completed"}, {"state": "failed"}, {"state": "done"}, {"error_type": "x"}):
        with pytest.raises(IntegrityError):
            store.change(TURNS, mine & (TURNS.c.number == 3), **bad)
    with pytest.raises(IntegrityError):
        store.change(LEASES, LEASES.c.session_id == session, expires_at=None)


@pytest.mark.parametrize("state", [TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED])
def test_a_send_that_commits_while_the_release_waits_wakes_the_session(store: Store, other: Store, state: TurnState):
    """The lost wake-up: the release has looked for waiting turns before, and must look again."""
    session = store.session()
    store.send()
    started = store.start(session)
    meet(lambda: store.send(prompt="just now"), store, lambda: other.settle(started, state))
    assert store.lease(session).is_ready
    assert store.start(session).messages[-1] == {"role": "user", "content": "just now"}


def test_a_send_that_waits_for_the_release_wakes_the_session(store: Store, other: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    sent = meet(lambda: store.settle(started), store, lambda: other.send(prompt="just now"))
    assert sent.hint, "nobody else tells a worker of it"
    assert store.start(session).number == 2


def test_a_send_that_commits_while_the_claim_waits_is_not_forgotten(store: Store, other: Store):
    """Its turn may be too young for the claim to see, and its lease is ready all the same."""
    session = store.session()
    store.send()
    store.send()
    store.settle(store.start(session))
    sending.cancel(store.database, session, 2)
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now(-60))
    started = meet(lambda: store.send(prompt="just now"), store, lambda: other.claim(session))
    assert (started or store.start(session)).number == 3


def test_a_session_that_is_ready_for_nothing_is_let_go(store: Store):
    session, busy = store.session(), store.session("busy")
    store.send()
    started = store.start(session)
    store.send()
    sending.cancel(store.database, session, 2)
    store.settle(started)
    store.send("busy")
    asked = store.claims([Claim(Lane.CHAT, session), Claim(Lane.CHAT)])
    assert [each.session_id for each in asked if each] == [busy]
    lease = store.lease(session)
    assert (lease.owner, lease.expires_at, lease.ready_at) == (None, None, None)
    store.send()
    assert store.start(session).number == 3


def test_a_retry_waits_its_time_whatever_is_sent_later(store: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    store.send(prompt="while it runs")
    assert store.settle(started, TurnState.QUEUED, delay_seconds=30, error_type="rate_limited", error_message="slow")
    store.send(prompt="while it waits")
    lease = store.lease(session)
    assert lease.later
    assert not lease.is_ready
    assert store.claim(session) is None
    turn = store.turn(session)
    assert (turn.state, turn.attempts, turn.error_type, turn.error_message) == (TurnState.QUEUED, 1, None, "slow")
    assert store.outcomes(session) == [(1, 1, "safe")]


def test_a_retry_that_is_due_is_claimed_again_and_counts(store: Store):
    session = store.session()
    store.send()
    first = store.start(session)
    assert store.settle(first, TurnState.QUEUED, outcome=AttemptOutcome.AMBIGUOUS, delay_seconds=0.0)
    again = store.start(session)
    assert (again.number, again.attempts, again.ambiguous, again.token) == (1, 2, 1, 2)
    assert store.turn(session).started_at == store.turn(session).started_at
    assert store.settle(again)
    turn = store.turn(session)
    assert (turn.state, turn.error_message, turn.error_status) == (TurnState.COMPLETED, None, None)
    assert store.outcomes(session) == [(1, 1, "ambiguous"), (1, 2, "completed")]


def test_after_a_commit_of_unknown_outcome_the_reply_is_recognised(store: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    mine = [settlement(started)]
    assert store.write(working.settled_before, mine) == set()
    assert store.settle(started)
    assert not store.settle(started)
    assert store.write(working.settled_before, mine) == {mine[0].held}


@pytest.mark.parametrize(("own", "default", "shown"), [(None, 3, 3), (2, 3, 2), (0, 3, 0), (50, 3, 4)])
def test_the_model_is_shown_the_last_completed_turns(store: Store, own: int | None, default: int, shown: int):
    session = store.session(context_turns=own)
    for number, state in enumerate(["completed", "completed", "failed", "completed", "cancelled", "completed"], 1):
        store.answer(prompt=f"prompt {number}", state=TurnState(state))
    store.send(prompt="the last")
    store.send(prompt="later than that")
    started = store.start(session, context=default)
    visible = (1, 2, 4, 6)[4 - shown :]
    expected = []
    for number in visible:
        expected += [("user", f"prompt {number}"), ("assistant", f"reply to: prompt {number}")]
    assert pairs(started) == [*expected, ("user", "the last")]


def test_many_sessions_with_windows_of_their_own_in_one_claim(store: Store):
    for number, window in enumerate([None, 1, 2, None, 1]):
        store.session(f"s{number}", context_turns=window)
        for _ in range(3):
            store.answer(f"s{number}", prompt=f"of s{number}")
    for number in range(5):
        store.send(f"s{number}")
    started = {each.key: each for each in store.claims([Claim(Lane.CHAT)] * 5, context=3)}
    assert [len(started[f"s{number}"].messages) for number in range(5)] == [7, 3, 5, 7, 3]
    assert all(f"of s{number}" in started[f"s{number}"].messages[0]["content"] for number in range(5))


def pairs(started: Started) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in started.messages]


def test_options_of_session_and_turn_are_joined(store: Store):
    store.session(options={"temperature": 0.5, "seed": 1})
    store.send(options={"seed": 2, "nested": {"list": [1, None, "ä\U0001f600"]}})
    assert store.start().options == {"temperature": 0.5, "seed": 2, "nested": {"list": [1, None, "ä\U0001f600"]}}


@pytest.mark.parametrize(
    "text",
    [
        "ä ß 中文 \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u202eright to left\u2066",
        "quotes ' \" \\ \\u0041 %s :name {}",
        "\r\n\t\x01\x1b[31m",
        "x" * 200_000,
    ],
    ids=["unicode", "directions", "quotes", "controls", "long"],
)
def test_text_of_every_kind_comes_back(store: Store, text: str):
    session = store.session(system_message=text, labels={"label": text[:100]}, options={"option": text})
    store.send(prompt=text)
    started = store.start(session)
    assert pairs(started) == [("system", text), ("user", text)]
    assert started.options == {"option": text}
    assert store.settle(started, reply=text)
    store.send(prompt="again")
    assert pairs(store.start(session))[:3] == [("system", text), ("user", text), ("assistant", text)]
    assert store.history(session)[:3] == [(1, "system", text), (1, "user", text), (1, "assistant", text)]


@pytest.mark.parametrize("text", ["NUL \x00 in it", "lone \ud800 high", "lone \udc00 low", "\udc00\ud800 swapped"])
def test_what_no_database_takes_is_replaced(store: Store, text: str):
    session = store.session(system_message=text)
    store.send(prompt=text)
    started = store.start(session)
    assert store.settle(started, reply=text, request_id=text)
    contents = {content for _, _, content in store.history(session)}
    assert len(contents) == 1
    assert REPLACEMENT in contents.pop()
    store.send()
    failed = store.start(session)
    assert store.settle(failed, TurnState.FAILED, error_message=text)
    assert REPLACEMENT in (store.turn(session, 2).error_message or "")


def test_ids_are_never_used_again(store: Store):
    last = store.session("a")
    for _ in range(3):
        retention.remove(store.database, "a")
        assert {len(rows) for rows in store.everything().values()} == {0}
        again = store.session("a")
        assert again > last
        last = again


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_connection_that_went_away_while_nobody_used_it_is_replaced(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "REST_SECONDS", 0.0)
    with store.database.reading() as db:
        gone = db.execute(select(func.pg_backend_pid())).scalar_one()
    with psycopg.connect(make_url(store.database.url).set(drivername="postgresql").render_as_string(False)) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [gone])
    with store.database.reading() as db:
        assert db.execute(select(func.pg_backend_pid())).scalar_one() != gone


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_leases_that_are_settled_are_looked_up_and_not_searched_for_among_all(store: Store):
    """By its statistics the planner would read all leases of the owner, once for each settlement."""
    sessions = [store.session(f"s{number}") for number in range(60)]
    for number in range(60):
        store.send(f"s{number}")
    started = [store.start(session) for session in sessions]
    store.write(lambda db: db.execute(text("ANALYZE")))
    items = orjson.dumps([working._item(settlement(each)) for each in started]).decode()
    with closing(store.database.dedicated(postgresql.SESSION_SETTINGS)) as dedicated, dedicated.writing() as db:
        explained = text(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {postgresql.SETTLE.text}")
        plan = "\n".join(db.execute(explained, {"items": items, "owner": WORKER, "lease_seconds": 30}).scalars())
    assert "Update on leases" in plan
    assert "Join Filter" not in plan, plan


def test_a_turn_that_was_taken_back_is_told_from_one_that_waits_again(store: Store):
    ids = [store.session(key) for key in "ab"]
    for key in "ab":
        store.send(key)
    started = [store.start(session) for session in ids]
    sending.cancel(store.database, ids[0], 1)
    with store.database.writing() as db:
        settled = [settlement(each, TurnState.QUEUED, delay_seconds=60) for each in started]
        kept, going_on, taken_back = working.settle(db, WORKER, 30, settled)
    assert kept == {each.held for each in settled}
    assert going_on == set()
    assert taken_back == {settled[0].held}
    assert [store.turn(session).state for session in ids] == [TurnState.CANCELLED, TurnState.QUEUED]


def test_who_claims_a_turn_is_told_how_long_it_has_waited_and_when_it_was_sent(store: Store):
    session = store.session()
    store.send()
    mine = TURNS.c.session_id == session
    store.change(TURNS, mine, created_at=now(-3600), ready_at=now(-60))
    started, present = store.start(session), time.monotonic()
    assert started.waited_seconds == pytest.approx(60, abs=5)
    assert present - started.sent_at == pytest.approx(3600, abs=5)
