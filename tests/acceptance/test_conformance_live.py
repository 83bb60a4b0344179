"""The conformance list, line 19 and lines 23 to 25: events, and replies that are heard while they are written."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from inturn import (
    Client,
    ClosedError,
    InvalidInputError,
    Message,
    SendTimeoutError,
    SessionEvent,
    SessionNotFoundError,
    TurnCancelledError,
    TurnFailedError,
)
from inturn.models.states import TurnState
from inturn.workers.app import broker_url
from inturn.workers.queues import connect, live
from ops.chaos.model import Call
from tests.acceptance.deployment import Deployment
from tests.overhearing import overheard
from tests.stacks import wait_until

Calls = Callable[[str], list[Call]]

SLOWLY = '!{"words": 60, "gap": 0.04}'
HANGS = '!{"act": "hang_stream"}'


def types(events: Iterable[SessionEvent | Message]) -> list[str]:
    """The types of events, neighbours of one type as one."""
    return [kind for kind, _ in itertools.groupby(event.type for event in events)]


def heard(events: Iterable[SessionEvent]) -> str:
    """The pieces since the last discarding, put together."""
    text = ""
    for event in events:
        text = "" if event.type == "assistant.message_discarded" else text + event.data.delta_content
    return text


def pieces(events: Iterable[SessionEvent]) -> list[SessionEvent]:
    return [event for event in events if event.type == "assistant.message_delta"]


def surrogate(turn_id: str) -> int:
    return int(turn_id.partition(".")[0])


@contextmanager
def broker(deployment: Deployment) -> Iterator[redis.Redis]:
    client = connect(broker_url(deployment.settings), socket_timeout=10)
    try:
        yield client
    finally:
        client.close()


def test_19_events_are_the_sessions_life_in_order(client: Client, name: str, monkeypatch: pytest.MonkeyPatch):
    session = client.create_session(name)
    list(session.stream("one", timeout=30))
    failed = session.send("two", options={"fail": "invalid_request"})
    with pytest.raises(TurnFailedError):
        failed.wait(30)
    running = session.send("three", options={"latency": 60})
    wait_until(lambda: running.refresh().state is TurnState.RUNNING)
    waiting, joined = session.send("four"), session.send("five", when_busy="coalesce")
    running.cancel()
    with pytest.raises(TurnCancelledError):
        running.wait(30)
    assert waiting.wait(30).turn == 5
    events = list(session.get_events())
    assert [(event.type, event.turn) for event in events] == [
        ("session.start", None),
        ("user.message", 1), ("assistant.message", 1),
        ("user.message", 2), ("session.error", 2),
        ("user.message", 3), ("abort", 3),
        ("user.message", 4), ("abort", 4),
        ("user.message", 5), ("assistant.message", 5),
    ]  # fmt: skip
    said = {event.id: event.data.content for event in events if event.type.endswith(".message")}
    assert said == {message.id: message.data.content for message in session.get_messages()}
    assert (events[4].data.error_type, events[4].data.status_code) == ("invalid_request", 400)
    assert failed.error is None or events[4].data.message == failed.error.message
    assert (events[6].data.message, events[8].data.message) == (None, f"joined into turn {joined.id}")
    assert all(event.timestamp.tzinfo for event in events)

    monkeypatch.setattr("inturn.session.PAGE", 2)
    assert list(session.get_events()) == events
    for place, event in enumerate(events):
        assert list(session.get_events(after=event.id)) == events[place + 1 :]
    assert list(session.get_events(after=events[2].id, limit=3)) == events[3:6]
    with pytest.raises(InvalidInputError, match="no ID of an event"):
        session.get_events(after="1.end")


@pytest.mark.parametrize(("asked", "options"), [("echo/echo", {"pace": 0.05}), ("server/model", None)])
def test_23_a_stream_is_pieces_and_then_the_message_that_is_their_sum(
    client: Client, name: str, asked: str, options: dict[str, Any] | None
):
    session = client.create_session(name, model=asked)
    *parts, whole = session.stream(f"{name} and twenty words more {SLOWLY}", timeout=30, options=options)
    assert types(parts) == ["assistant.message_delta"]
    assert len(parts) > 5
    assert parts[0].timestamp < parts[3].timestamp < whole.timestamp, "they came while it was written"
    assert whole.type == "assistant.message"
    assert whole.data.content == heard(parts)
    assert {event.turn for event in parts} == {whole.turn} == {1}
    *_, stored = session.get_messages()
    assert (stored.id, stored.data.content) == (whole.id, whole.data.content)


def test_23_a_turn_that_was_not_sent_to_be_heard_comes_in_one_piece(deployment: Deployment, client: Client, name: str):
    session = client.create_session(name)
    with broker(deployment) as redis:
        with overheard(broker_url(deployment.settings)) as said:
            turn = session.send("hello", options={"pace": 0.05})
            part, whole = turn.stream(30)
        assert turn.partial is None
        told = [
            each for each in said if each.command.startswith("EVALSHA") and live(surrogate(turn.id)) in each.command
        ]
        assert said
        assert not told, "its worker told Redis, and nobody listens"
        assert not redis.exists(live(surrogate(turn.id)))
    assert (part.data.delta_content, part.turn) == (whole.data.content, 1)


ANEW = ["assistant.message_delta", "assistant.message_discarded", "assistant.message_delta"]


def test_23_what_is_made_anew_is_told_anew(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/model")
    for number in range(1, 9):
        said = f"{name}-{number} one two three"
        *parts, whole = session.stream(f'{said} !{{"act": "cut_stream", "times": 1}}', timeout=30)
        assert heard(parts) == whole.data.content
        assert len(calls(said)) == 2
        assert client.get_turn(f"{surrogate(whole.id or '')}.{number}").partial is None
        told = types(parts)
        # Who comes so late that the next attempt is under way has heard nothing that would be void.
        assert told in (["assistant.message_delta"], ANEW)
        if told == ANEW:
            return
    raise AssertionError("nobody ever heard the first attempt")


def test_23_it_raises_as_waiting_does(client: Client, name: str):
    session = client.create_session(name)
    with pytest.raises(TurnFailedError, match="invalid_request"):
        list(session.stream("no", timeout=30, options={"fail": "invalid_request"}))
    with pytest.raises(SendTimeoutError) as late:
        list(session.stream("slow", timeout=0.5, options={"latency": 2}))
    turn = client.get_turn(late.value.turn.id)
    *parts, whole = turn.stream(30)
    assert heard(parts) == whole.data.content
    turn = session.send("never", stream=True, options={"latency": 60})
    events = turn.stream(30)
    turn.cancel()
    with pytest.raises(TurnCancelledError):
        list(events)
    with pytest.raises(InvalidInputError):
        session.stream("no", when_busy="wait")  # type: ignore[arg-type]


def test_23_a_reply_that_is_cancelled_is_no_part_of_the_history(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/model")
    turn = session.send(f"{name} cut {HANGS}", stream=True)
    events = turn.stream(30)
    parts = [next(events)]
    assert turn.cancel()
    with pytest.raises(TurnCancelledError):
        parts.extend(events)
    assert turn.refresh().partial is not None
    assert turn.partial == heard(parts)
    assert turn.partial.startswith("reply to")
    assert session.send_and_wait(f"{name} next", timeout=30).turn == 2
    assert calls(f"{name} next")[0].messages == [{"role": "user", "content": f"{name} next"}]
    assert types(session.get_events())[1:] == ["user.message", "abort", "user.message", "assistant.message"]


def test_23_a_worker_killed_in_mid_stream(deployment: Deployment, client: Client, name: str):
    session = client.create_session(name, model="server/model")
    turn = session.send(f'{name} !{{"act": "hang_stream", "times": 1}}', stream=True)
    events = turn.stream(60)
    parts = [next(events)]
    deployment.kill(deployment.worker_of(surrogate(turn.id)))
    parts += events
    assert types(parts) == [
        "assistant.message_delta", "assistant.message_discarded", "assistant.message_delta", "assistant.message",
    ]  # fmt: skip
    assert heard(parts[:-1]) == parts[-1].data.content
    assert types(session.get_messages()) == ["user.message", "assistant.message"]
    assert turn.refresh().partial is None
    deployment.await_workers()


def wipe(deployment: Deployment) -> None:
    with broker(deployment) as redis:
        redis.flushdb()


def freeze(deployment: Deployment) -> None:
    with broker(deployment) as redis:
        server: Any = redis.info("server")
    os.kill(server["process_id"], signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(server["process_id"], signal.SIGCONT)


@pytest.mark.parametrize("harm", [wipe, freeze])
def test_23_redis_may_lose_or_delay_what_it_likes(
    deployment: Deployment, client: Client, name: str, harm: Callable[[Deployment], None]
):
    session = client.create_session(name, model="server/model")
    turn = session.send(f'{name} !{{"words": 100, "gap": 0.04}}', stream=True)
    events = turn.stream(60)
    parts = list(itertools.islice(events, 5))
    harm(deployment)
    at_once = next(events)
    assert not turn.refresh().finished_at, "nothing was proven"
    *more, whole = [at_once, *events]
    assert heard([*parts, *more]) == whole.data.content
    assert types([*parts, *more]) == ["assistant.message_delta"]
    assert len(more) > 5, "it went on"


def test_24_listeners_hear_of_their_session_and_nothing_else(deployment: Deployment, client: Client, name: str):
    one, two = client.create_session(f"{name}-1"), client.create_session(f"{name}-2")
    mine: list[SessionEvent] = []
    theirs: list[SessionEvent] = []
    seen: list[str] = []

    def burst(event: SessionEvent) -> None:
        seen.append(event.type)
        raise ValueError("what did you expect")

    one.on(burst)
    stop = one.on(mine.append)
    two.on(theirs.append)
    with deployment.client() as other:
        list(other.get_session(f"{name}-1").stream("first", timeout=30, options={"pace": 0.05}))
        other.get_session(f"{name}-2").send("second").cancel()
    wait_until(lambda: mine and mine[-1].type == "assistant.message")
    wait_until(lambda: "abort" in types(theirs) or "assistant.message" in types(theirs))
    assert types(mine) == ["user.message", "assistant.message_delta", "assistant.message"]
    assert mine[0].data.content == "first"
    assert heard(mine) == mine[-1].data.content
    assert [event.data.content for event in theirs if event.type == "user.message"] == ["second"]
    assert pieces(theirs) == []
    # Each listener may have the pieces in other portions.
    wait_until(lambda: [kind for kind, _ in itertools.groupby(seen)] == types(mine))

    count = len(mine)
    stop()
    one.send_and_wait("third", timeout=30)
    wait_until(lambda: seen[-2:] == ["user.message", "assistant.message"])
    assert len(mine) == count, "who has unsubscribed hears no more"
    assert {event.turn for event in theirs} == {1}


def test_24_listening_ends_with_the_handle_the_client_and_the_session(deployment: Deployment, name: str):
    with deployment.client() as client:
        session, events = client.create_session(name), list[SessionEvent]()
        session.on(events.append)
        session.disconnect()
        client.get_session(name).send_and_wait("unheard", timeout=30)
        with pytest.raises(ClosedError):
            session.on(events.append)
        followed = client.get_session(name).tail(1, follow=True)
        assert next(followed).type == "assistant.message"
        client.delete_session(name)
        with pytest.raises(SessionNotFoundError):
            next(followed)
        client.create_session(name).on(events.append)
        began = time.monotonic()
    assert time.monotonic() - began < 2, "a listener holds nobody up"
    assert events == []


def test_25_who_comes_late_gets_what_was_missed(deployment: Deployment, client: Client, name: str):
    session = client.create_session(name, model="server/model")
    turn = session.send(f"{name} {SLOWLY}", stream=True)
    early = turn.stream(30)
    missed = list(itertools.islice(early, 8))
    from_now_on: list[SessionEvent] = []
    with deployment.client() as late:
        late.get_session(name).on(from_now_on.append)
        *parts, whole = late.get_turn(turn.id).stream(30)
        assert parts[0].data.delta_content.startswith(heard(missed))
        assert len(parts) > 5
        assert heard(parts) == whole.data.content == heard([*missed, *pieces(early)])
        wait_until(lambda: from_now_on and from_now_on[-1].type == "assistant.message")
        assert types(from_now_on) == ["assistant.message_delta", "assistant.message"]
        assert pieces(from_now_on)[0].data.delta_content.startswith(heard(missed))
        assert heard(from_now_on) == whole.data.content
        part, again = late.get_turn(turn.id).stream(30)
        assert (part.data.delta_content, again) == (whole.data.content, whole)
