"""Replies on their way: how they are told through a real Redis, what is left when that fails, what stays on the turn."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from inturn.models.clock import now
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store.working import Started
from inturn.models.tables import TURNS
from inturn.settings import Settings
from inturn.workers import live, teller
from inturn.workers.live import ENDED_SECONDS, FORGOTTEN_SECONDS, Entry, Stylus, Transcript
from inturn.workers.maintenance import Sweep
from inturn.workers.queues import live as live_name
from inturn.workers.teller import ENTRY_LIMIT, SILENCE_SECONDS, Teller
from ops.servers import RedisServer, free_port
from tests.integration.stores import Store, settlement
from tests.stacks import wait_until

LONGEST_CALL = 7
HEARD = "as far as it \U0001f600"


def started(session: int = 1, number: int = 1, attempt: int = 1) -> Started:
    said = [{"role": "user", "content": "hello"}]
    return Started(session, "s", 1, number, attempt, 0, 0, Lane.CHAT, "echo/echo", {}, said, streams=True)


@pytest.fixture
def broker(redis: RedisServer) -> Iterator[redis_client.Redis]:
    redis.flush()
    with redis.client() as client:
        yield client


@pytest.fixture
def telling(redis: RedisServer) -> Iterator[Teller]:
    made = Teller(redis.url, LONGEST_CALL)
    made.start()
    yield made
    made.stop()


def entries(broker: redis_client.Redis, session: int = 1) -> list[Entry]:
    return live.read(broker, session)[1]


def text(broker: redis_client.Redis, session: int = 1) -> str:
    return "".join(entry.text for entry in entries(broker, session))


def test_who_comes_late_finds_the_running_attempt_from_its_beginning(broker: redis_client.Redis, telling: Teller):
    first = telling.begin(started())
    first("void, ")
    wait_until(lambda: text(broker) == "void, ")
    last_seen, _ = live.read(broker, 1)
    telling.settled(settlement(started(), TurnState.QUEUED))
    second = telling.begin(started(attempt=2))
    for piece in ("good ", "", "\U0001f600 ", "night"):
        second(piece)
    wait_until(lambda: text(broker).endswith("night"))
    found = entries(broker)
    assert found[0] == Entry(1, 2)
    assert {entry.attempt for entry in found} == {2}
    assert text(broker) == second.text == "good \U0001f600 night"
    assert [entry.at for entry in found[1:]] == [len(text(broker)[: entry.at]) for entry in found[1:]]
    assert live.read(broker, 1, last_seen)[1][-1] == found[-1], "who reads on misses nothing of it"
    assert LONGEST_CALL < broker.ttl(live_name(1)) <= LONGEST_CALL + SILENCE_SECONDS
    telling.settled(settlement(started(attempt=2)))
    wait_until(lambda: entries(broker)[-1] == Entry(1, 2, end=True))
    assert 0 < broker.ttl(live_name(1)) <= ENDED_SECONDS


def test_an_end_is_told_behind_all_of_the_text_and_only_once_it_is_stored(broker: redis_client.Redis, telling: Teller):
    one = telling.begin(started())
    one("x" * 10)
    wait_until(lambda: text(broker))
    time.sleep(3 * teller.GATHER_SECONDS)
    assert not any(entry.end for entry in entries(broker))
    for _ in range(1000):
        one("y" * 1000)
    telling.settled(settlement(started()))
    wait_until(lambda: entries(broker)[-1].end)
    assert text(broker) == one.text
    assert max(len(entry.text) for entry in entries(broker)) < ENTRY_LIMIT + 1000


def test_what_was_wiped_is_told_again(broker: redis_client.Redis, telling: Teller):
    one = telling.begin(started())
    one("before, ")
    wait_until(lambda: text(broker))
    broker.flushdb()
    one("after")
    wait_until(lambda: text(broker) == "before, after")
    assert broker.ttl(live_name(1)) > LONGEST_CALL


def test_no_text_gets_into_the_append_only_file(broker: redis_client.Redis, telling: Teller):
    where: Any = broker.config_get("dir")
    broker.set("beside", "this does")
    one = telling.begin(started())
    one("this does not")
    wait_until(lambda: text(broker))
    kept = b"".join(file.read_bytes() for file in Path(where["dir"]).glob("appendonlydir/*"))
    assert b"this does" in kept
    assert b"this does not" not in kept


def test_what_is_forgotten_is_not_told_again(broker: redis_client.Redis, telling: Teller):
    """Of a session that is deleted while its worker does not know it yet."""
    one, other = telling.begin(started()), telling.begin(started(session=2))
    one("a secret ")
    wait_until(lambda: text(broker))
    live.forget(broker, 1)
    for _ in range(3):
        one("and more of it")
        other("x")
        time.sleep(2 * teller.GATHER_SECONDS)
    telling.forget(started())
    telling.settled(settlement(started(session=2)))
    wait_until(lambda: entries(broker, 2)[-1].end)
    assert text(broker, 2) == "xxx"
    assert entries(broker) == []
    assert broker.get(live_name(1)) == b""
    assert 0 < broker.ttl(live_name(1)) <= FORGOTTEN_SECONDS


def test_many_are_told_in_one_go(broker: redis_client.Redis, telling: Teller):
    broker.config_resetstat()  # of whoever used it before
    tellings = [telling.begin(started(session)) for session in range(1, 501)]
    for round_ in range(20):
        for one in tellings:
            one(f"{round_} ")
        time.sleep(0.01)
    wait_until(lambda: all(text(broker, session).endswith("19 ") for session in (1, 250, 500)))
    assert {text(broker, session) for session in range(1, 501)} == {tellings[0].text}
    stats: Any = broker.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] < 500


@pytest.mark.parametrize("harm", ["refused", "frozen"])
def test_a_redis_that_does_not_answer_holds_nobody_up(redis: RedisServer, harm: str):
    url = redis.url if harm == "frozen" else f"redis://127.0.0.1:{free_port()}/0"
    if harm == "frozen":
        redis.freeze()
    made = Teller(url, LONGEST_CALL)
    try:
        made.start()
        began = time.perf_counter()
        one = made.begin(started())
        for _ in range(10_000):
            one("piece ")
        made.settled(settlement(started()))
        two = made.begin(started(2))
        two("text")
        assert time.perf_counter() - began < 0.5
        assert one.text == "piece " * 10_000
        time.sleep(0.2)
    finally:
        if harm == "frozen":
            redis.thaw()
            with redis.client() as client:
                wait_until(lambda: text(client, 2) == "text")
        made.stop()


def test_a_thread_of_the_teller_outlives_what_it_does_not_expect(
    broker: redis_client.Redis, telling: Teller, monkeypatch: pytest.MonkeyPatch
):
    write, failed = Stylus.write, threading.Event()

    def fail(self: Stylus, lines: Any) -> set[int]:
        monkeypatch.setattr(Stylus, "write", write)
        failed.set()
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(Stylus, "write", fail)
    one = telling.begin(started())
    one("some")
    assert failed.wait(5)
    one(" more")
    wait_until(lambda: text(broker) == "some more")


def test_a_transcript_takes_each_character_once():
    heard = Transcript(3)
    assert not heard.concerns(Entry(2, 9, 0, "another turn's"))
    assert [heard.add(entry) for entry in (Entry(3, 1), Entry(3, 1, 0, "abc"), Entry(3, 1, 0, "abc"))] == [
        "",
        "abc",
        "",
    ]
    assert heard.add(Entry(3, 1, 1, "bcde")) == "de"
    assert heard.add(Entry(3, 1, 9, "j")) == "", "what is in between has not come"
    assert heard.text == "abcde"
    assert heard.add(Entry(3, 2, 0, "A")) == "A"
    assert not heard.concerns(Entry(3, 1, 5, "f")), "of a worker that has lost the session"
    assert (heard.text, heard.attempt) == ("A", 2)


def test_texts_that_follow_one_another_are_joined():
    begin, end = Entry(3, 1), Entry(3, 1, end=True)
    texts = [Entry(3, 1, 0, "a"), Entry(3, 1, 1, "bc"), Entry(3, 1, 3, "d")]
    assert live.joined([begin, *texts, end]) == [Entry(3, 1, 0, "abcd"), end]
    apart = [Entry(3, 1, 0, "a"), Entry(3, 1, 2, "c"), Entry(3, 2, 3, "d"), Entry(4, 2, 4, "e")]
    assert live.joined(apart) == apart


def test_who_asks_to_hear_a_turn_is_known_to_its_worker(store: Store):
    session = store.session()
    store.send(streams=True)
    assert store.turn(session).streams
    first = store.start(session)
    assert first.streams
    assert store.settle(first)
    store.send()
    assert not store.start(session).streams


def test_a_turn_that_others_were_joined_into_is_heard_if_one_of_them_was(store: Store):
    session = store.session()
    store.send(streams=True)
    assert store.send(when_busy="coalesce").turn.streams
    assert not store.send("s").turn.streams
    assert [store.turn(session, number).streams for number in (1, 2, 3)] == [True, True, False]


def test_what_was_heard_of_a_reply_that_was_cut_off_stays_until_there_is_a_whole_one(store: Store):
    session = store.session()
    store.send(streams=True)
    assert store.settle(store.start(session), TurnState.QUEUED, partial=f"{HEARD}\x00")
    assert store.turn(session).partial == f"{HEARD}\ufffd"
    assert store.settle(store.start(session), TurnState.QUEUED)
    assert store.turn(session).partial == f"{HEARD}\ufffd", "where nothing was heard, the last that was is kept"
    assert store.settle(store.start(session), TurnState.QUEUED, outcome=None)
    again = store.start(session)
    assert again.messages == [{"role": "user", "content": "hello"}]
    assert store.settle(again, partial="and this is never stored")
    assert (store.turn(session).state, store.turn(session).partial) == (TurnState.COMPLETED, None)
    for state in TurnState.FAILED, TurnState.CANCELLED:
        sent = store.send()
        assert store.settle(store.start(session), state, partial=HEARD)
        assert store.turn(session, sent.number).partial == HEARD
    store.send()
    assert HEARD not in str(store.start(session).messages)
    assert HEARD not in str(store.history(session))


@pytest.mark.parametrize("cancelled", [True, False])
def test_what_a_dead_worker_told_is_kept(store: Store, broker: redis_client.Redis, telling: Teller, cancelled: bool):
    session = store.session()
    store.send(streams=True)
    first = store.start(session)
    one = telling.begin(first)
    one(HEARD)
    wait_until(lambda: text(broker, session) == HEARD)
    store.expire(session)
    if cancelled:
        store.change(TURNS, TURNS.c.number == 1, cancel_requested_at=now())
    sweep(store, broker)
    turn = store.turn(session)
    assert (turn.state, turn.partial) == (TurnState.CANCELLED if cancelled else TurnState.QUEUED, HEARD)


def test_what_is_told_of_another_attempt_is_not_taken_for_the_last_ones(
    store: Store, broker: redis_client.Redis, telling: Teller
):
    session = store.session()
    store.send(streams=True)
    first = store.start(session)
    telling.begin(replace(first, attempts=first.attempts + 1))("of a later one")
    wait_until(lambda: text(broker, session))
    store.expire(session)
    sweep(store, broker)
    assert store.turn(session).partial is None
    assert store.outcomes(session) == [(1, 1, AttemptOutcome.LOST)]


def sweep(store: Store, broker: redis_client.Redis) -> None:
    Sweep(
        store.database, Settings(), lambda ready: None, lambda lane: None, lambda turns: live.heard(broker, turns)
    ).run()
