"""The asyncio face keeps what the synchronous one promises, on both kinds of deployment, without a thread for each wait."""

import asyncio
import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import redis
import uvloop

from inturn import (
    ClosedError,
    IdempotencyConflictError,
    InvalidInputError,
    InvalidSessionIdError,
    SendTimeoutError,
    SessionBusyError,
    SessionEvent,
    SessionExistsError,
    SessionNotFoundError,
    TurnCancelledError,
    TurnFailedError,
    TurnNotFoundError,
)
from inturn.aio import Client, Session, Turn
from inturn.models.states import TurnState
from inturn.workers.app import broker_url
from inturn.workers.queues import connect
from tests.acceptance.deployment import Deployment
from tests.stacks import wait_until

T = TypeVar("T")

THREADS = 12
"""The most that a client has, however many wait."""


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


def connected(deployment: Deployment) -> Client:
    return Client(deployment.settings)


async def listed(found: AsyncIterator[T]) -> list[T]:
    return [one async for one in found]


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


def types(events: list[SessionEvent]) -> list[str]:
    return [kind for kind, _ in itertools.groupby(event.type for event in events)]


def heard(events: list[SessionEvent]) -> str:
    return "".join(event.data.delta_content for event in events)


@in_a_loop
async def test_a_session_is_created_resumed_found_and_deleted(deployment: Deployment, name: str):
    async with connected(deployment) as client:
        assert client.settings is deployment.settings
        session = await client.create_session(name, labels={"of": name})
        assert (session.session_id, repr(session)) == (name, f"<Session {name}>")
        with pytest.raises(SessionExistsError):
            await client.create_session(name)
        reply = await session.send_and_wait("Let's discuss generics", timeout=30)
        await session.disconnect()
        with pytest.raises(ClosedError):
            await session.send("no")

        async with await client.resume_session(name) as again:
            assert (await again.send_and_wait("What were we discussing?", timeout=30)).turn == reply.turn + 1
            assert [message.turn async for message in again.get_messages()] == [1, 1, 2, 2]
            assert (await again.metadata()).turns == 2
        assert (await client.get_or_create_session(name)).session_id == name
        assert await client.get_last_session_id() is not None
        assert [found.session_id async for found in client.list_sessions(labels={"of": name})] == [name]
        assert [lane.lane for lane in await client.list_lanes()]
        await client.delete_session(name)
        assert await client.get_session_metadata(name) is None
        with pytest.raises(SessionNotFoundError):
            await client.resume_session(name)
    with pytest.raises(ClosedError):
        await client.create_session(name)


@in_a_loop
async def test_a_turn_is_found_waited_for_cancelled_and_sent_again(deployment: Deployment, name: str):
    async with connected(deployment) as client:
        session = await client.create_session(name)
        turn = await session.send("slow", options={"latency": 60}, idempotency_key="key")
        assert isinstance(turn, Turn)
        assert (turn.session_id, turn.number, turn.prompt, turn.state) == (name, 1, "slow", TurnState.QUEUED)
        assert (await client.get_turn(turn.id)).id == turn.id
        with pytest.raises(SendTimeoutError) as late:
            await turn.wait(timedelta(seconds=0.3))
        assert late.value.turn is turn
        with pytest.raises(SessionBusyError):
            await session.send("no", when_busy="reject")
        with pytest.raises(IdempotencyConflictError):
            await session.send("other", idempotency_key="key")
        assert await turn.cancel()
        with pytest.raises(TurnCancelledError):
            await turn.wait(30)
        assert turn.state is TurnState.CANCELLED
        retried = await turn.retry()
        assert (isinstance(retried, Turn), retried.retry_of) == (True, turn.id)
        await retried.cancel()
        assert [found.state async for found in session.get_turns(state="cancelled")][:1] == [TurnState.CANCELLED]
        failed = await session.send("bad", options={"fail": "invalid_request"})
        with pytest.raises(TurnFailedError) as failure:
            await failed.wait(30)
        assert (failure.value.turn_id, failure.value.status_code) == (failed.id, 400)
        assert (await failed.refresh()) is failed
        assert failed.error is not None
        with pytest.raises(TurnNotFoundError):
            await client.get_turn("1.999999")


@in_a_loop
async def test_whoever_stops_waiting_stops_no_turn(deployment: Deployment, name: str):
    async with connected(deployment) as client:
        turn = await (await client.create_session(name)).send("slow", options={"latency": 1})
        began = time.monotonic()
        with pytest.raises(TimeoutError) as ended:
            async with asyncio.timeout(0.2):
                await turn.wait()
        assert not isinstance(ended.value, SendTimeoutError)
        assert time.monotonic() - began < 1
        others = [asyncio.create_task(turn.wait(30)) for _ in range(3)]
        await asyncio.sleep(0.1)
        others[0].cancel()
        assert [(await other).turn for other in others[1:]] == [1, 1]
        assert others[0].cancelled()


@in_a_loop
async def test_a_stream_is_pieces_and_then_the_whole(deployment: Deployment, name: str):
    async with connected(deployment) as client:
        session = await client.create_session(name)
        *parts, whole = await listed(session.stream("a b c d e f", timeout=30, options={"pace": 0.1}))
        assert types([*parts, whole]) == ["assistant.message_delta", "assistant.message"]
        assert len(parts) > 3, "they came while it was written"
        assert heard(parts) == whole.data.content
        late = await listed((await client.get_turn(f"{(whole.id or '').partition('.')[0]}.1")).stream(30))
        assert heard(late) == late[-1].data.content == whole.data.content

        turn = await session.send("slow", stream=True, options={"latency": 60})
        with pytest.raises(SendTimeoutError) as ended:
            await listed(turn.stream(0.3))
        assert isinstance(ended.value.turn, Turn)
        following = asyncio.create_task(listed(turn.stream(30)))
        await asyncio.sleep(0.2)
        await turn.cancel()
        with pytest.raises(TurnCancelledError):
            await following
        with pytest.raises(TurnFailedError):
            await anext(session.stream("no", timeout=30, options={"fail": "invalid_request"}))


@in_a_loop
async def test_iterators_refuse_at_the_first_step_and_may_be_left_early(
    deployment: Deployment, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inturn.aio.staff.PAGE", 2)
    async with connected(deployment) as client:
        session = await client.create_session(name)
        turns = [await session.send(f"prompt {number}", lane="batch") for number in range(5)]
        await turns[-1].wait(30)
        assert [turn.id async for turn in session.get_turns()] == [turn.id for turn in turns]
        messages = await listed(session.get_messages())
        assert await listed(session.get_messages(after=messages[2].id, limit=4)) == messages[3:7]
        for refused in (
            session.get_messages(after="x"),
            session.get_turns(state="x"),
            client.list_quarantined("no.such"),
        ):
            with pytest.raises((InvalidInputError, SessionNotFoundError)):
                await anext(refused)
        with pytest.raises(InvalidSessionIdError):
            await client.create_session("no such ID")
        for iterator in (session.get_messages(), session.tail(3, follow=True), turns[0].stream(), session.get_events()):
            async with aclosing(iterator):
                assert await anext(iterator)
            with pytest.raises(StopAsyncIteration):
                await anext(iterator)
        assert types(await listed(session.tail(2))) == ["user.message", "assistant.message"]
        before = threading.active_count()
        followers = [asyncio.create_task(listed(session.tail(0, follow=True))) for _ in range(20)]
        await asyncio.sleep(0.3)
        assert threading.active_count() <= max(before, THREADS), "those who follow take no threads"
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


@in_a_loop
async def test_handlers_hear_in_the_loop_whether_they_await_or_not(deployment: Deployment, name: str):
    plain: list[SessionEvent] = []
    awaited: list[SessionEvent] = []

    async def hear(event: SessionEvent) -> None:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is loop
        awaited.append(event)

    def burst(event: SessionEvent) -> None:
        raise ValueError("what did you expect")

    async with connected(deployment) as client, connected(deployment) as other:
        loop = asyncio.get_running_loop()
        session = await client.create_session(name)
        await session.on(burst)
        stop = await session.on(plain.append)
        await session.on(hear)
        await listed((await other.get_session(name)).stream("first words", timeout=30, options={"pace": 0.05}))
        await until(lambda: all(events and events[-1].type == "assistant.message" for events in (plain, awaited)))
        assert types(plain) == types(awaited) == ["user.message", "assistant.message_delta", "assistant.message"]
        assert heard(plain) == plain[-1].data.content
        stop()
        count = len(plain)
        await session.send_and_wait("second", timeout=30)
        await until(lambda: awaited[-1].type == "assistant.message" and awaited[-1].turn == 2)
        assert len(plain) == count
        await session.disconnect()
        with pytest.raises(ClosedError):
            await session.on(hear)


def cut_off(broker: redis.Redis) -> None:
    broker.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


def freeze(broker: redis.Redis) -> None:
    server: Any = broker.info("server")
    os.kill(server["process_id"], signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(server["process_id"], signal.SIGCONT)


@pytest.mark.parametrize("harm", [cut_off, freeze])
@in_a_loop
async def test_redis_may_break_off_and_nobody_waits_in_vain(
    deployment: Deployment, name: str, harm: Callable[[redis.Redis], None]
):
    async with connected(deployment) as client:
        slow, told = await client.create_session(f"{name}-slow"), await client.create_session(f"{name}-told")
        waiting = asyncio.create_task(slow.send_and_wait("wait", timeout=60, options={"latency": 3}))
        events = told.stream("a b c d e f g", timeout=60, options={"pace": 0.4})
        first = await anext(events)
        broker = connect(broker_url(deployment.settings), socket_timeout=10)
        await asyncio.to_thread(harm, broker)
        broker.close()
        *parts, whole = [first, *await listed(events)]
        assert heard(parts) == whole.data.content
        assert len(parts) > 2, "it went on"
        assert (await waiting).turn == 1
        assert await slow.send_and_wait("again", timeout=30)


@in_a_loop
async def test_who_waits_when_the_client_stops_hears_of_it(deployment: Deployment, name: str):
    client = await connected(deployment).start()
    turn = await (await client.create_session(name)).send("slow", stream=True, options={"latency": 60})
    waiting = [asyncio.create_task(turn.wait()), asyncio.create_task(listed(turn.stream()))]
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await client.stop()
    assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [ClosedError, ClosedError]
    assert time.monotonic() - began < 5
    await client.stop()
    async with connected(deployment) as another:
        await (await another.get_turn(turn.id)).cancel()


def test_hundreds_wait_at_once_in_any_loop_and_leave_no_thread_behind(deployment: Deployment, name: str):
    before = threading.active_count()
    most = 0

    async def ask(session: Session, prompt: str) -> bool:
        nonlocal most
        reply = await session.send_and_wait(prompt, timeout=60, options={"latency": [0.1, 0.3]})
        most = max(most, threading.active_count())
        return f'"{prompt}"' in reply.data.content

    async def many() -> None:
        async with connected(deployment) as client:
            sessions = [client.create_session(f"{name}-{number}") for number in range(100)]
            asked = [ask(session, f"{name} {number}") for number, session in enumerate(await asyncio.gather(*sessions))]
            assert all(await asyncio.gather(*asked))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(many())
    assert most <= before + THREADS
    wait_until(lambda: threading.active_count() <= before)
