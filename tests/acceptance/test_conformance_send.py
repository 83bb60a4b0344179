"""The conformance list, lines 10 to 17: send and wait."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from inturn import (
    Client,
    ClosedError,
    IdempotencyConflictError,
    InvalidInputError,
    SendTimeoutError,
    SessionBusyError,
    Turn,
    TurnCancelledError,
    TurnNotFoundError,
)
from inturn.models.states import TurnState
from ops.chaos.model import Call
from tests.acceptance.deployment import SLOTS, WORKERS, Deployment
from tests.stacks import wait_until

Calls = Callable[[str], list[Call]]

FIND_TURN = """
with Client() as client:
    turn = client.get_turn(sys.argv[1])
    answer([turn.session_id, turn.number, turn.prompt, turn.wait(30).data.content])
"""


HANG = '!{"act": "hang"}'
"""Ahead of a turn, it keeps that one waiting until it is cancelled."""
LATE_SECONDS = 3.0
"""A second is what is meant, on a machine with nothing else to do."""


def test_10_send_returns_once_stored_and_the_turn_is_found_anywhere(deployment: Deployment, client: Client, name: str):
    session = client.create_session(name, model="server/model")
    ahead, turn = session.send(HANG), session.send("a long question")
    assert (turn.state, turn.started_at, turn.finished_at) == (TurnState.QUEUED, None, None)
    assert [message.type for message in session.get_messages()] == ["user.message"] * 2
    assert (turn.session_id, turn.number, turn.prompt) == (name, 2, "a long question")
    found = client.get_turn(turn.id)
    assert (found.id, found.session_id, found.prompt) == (turn.id, name, turn.prompt)
    ahead.cancel()
    said = deployment.python(FIND_TURN, turn.id)
    assert said[:3] == [name, 2, turn.prompt]
    assert turn.wait(30).data.content == said[3]
    surrogate = turn.id.partition(".")[0]
    for unknown in (
        f"{surrogate}.3",
        f"{'9' * 12}.1",
        f"{'9' * 25}.1",
        f"1.{'9' * 25}",
        "1",
        "",
        "x.1",
        "1.2.3",
        "-1.1",
    ):
        with pytest.raises(TurnNotFoundError):
            client.get_turn(unknown)


def test_11_send_and_wait_answers_its_own_prompt(
    deployment: Deployment, client: Client, name: str, threads: ThreadPoolExecutor
):
    client.create_session(name)

    def talk(caller: int) -> list[tuple[str, str]]:
        with deployment.client() as own:
            session = own.resume_session(name)
            prompts = [f"{caller}: prompt {number}" for number in range(3)]
            return [(prompt, session.send_and_wait(prompt, timeout=60).data.content) for prompt in prompts]

    talks = list(itertools.chain(*threads.map(talk, range(10))))
    assert len(talks) == 30
    assert [reply.partition("\n")[0] for _, reply in talks] == [f'You said: "{prompt}"' for prompt, _ in talks]
    messages = list(client.resume_session(name).get_messages())
    assert len(messages) == 60
    replies = {message.turn: message.data.content for message in messages if message.type == "assistant.message"}
    prompts = {message.turn: message.data.content for message in messages if message.type == "user.message"}
    assert {prompts[turn]: replies[turn] for turn in prompts} == dict(talks)


@pytest.mark.parametrize("timeout", [0.05, timedelta(milliseconds=50), 0])
def test_12_a_timeout_carries_the_turn_which_goes_on(client: Client, name: str, timeout: float | timedelta):
    session = client.create_session(name, model="server/model")
    ahead = session.send(HANG)
    with pytest.raises(SendTimeoutError, match=r"turn\.wait\(\)") as late:
        session.send_and_wait("take your time", timeout=timeout)
    assert isinstance(late.value, TimeoutError)
    turn = late.value.turn
    assert isinstance(turn, Turn)
    assert turn.id in str(late.value)
    assert turn.refresh().state is TurnState.QUEUED
    ahead.cancel()
    assert turn.wait(30).data.content.startswith("reply to: take your time")
    assert turn.wait(0).turn == turn.number, "what is there is not waited for"
    assert session.metadata().messages == 3


def test_13_an_idempotency_key_sends_once(
    deployment: Deployment, client: Client, name: str, calls: Calls, threads: ThreadPoolExecutor
):
    session = client.create_session(name, model="server/model")

    def send(_: int) -> str:
        with deployment.client() as own:
            return own.resume_session(name).send(f"{name} pay", idempotency_key="order-1").id

    (turn_id,) = set(threads.map(send, range(8)))
    reply = client.get_turn(turn_id).wait(30)
    again = session.send(f"{name} pay", idempotency_key="order-1")
    assert (again.id, again.state, again.wait(0)) == (turn_id, TurnState.COMPLETED, reply)
    assert session.metadata().messages == 2
    assert len(calls(name)) == 1
    with pytest.raises(IdempotencyConflictError, match="order-1") as conflict:
        session.send(f"{name} pay more", idempotency_key="order-1")
    assert (conflict.value.session_id, conflict.value.idempotency_key) == (name, "order-1")
    assert session.metadata().messages == 2

    other = session.send(f"{name} pay", idempotency_key="order-2")
    keyless = session.send(f"{name} pay")
    assert len({turn_id, other.id, keyless.id}) == 3
    keyless.wait(30)
    assert len(calls(name)) == 3
    elsewhere = client.create_session(f"{name}-other").send("something else", idempotency_key="order-1")
    assert elsewhere.number == 1, "a key counts within its session"


def test_14_a_busy_session_enqueues_or_rejects(deployment: Deployment, client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/model")
    first = session.send(f"{name} 0 {HANG}")
    waiting = [session.send(f"{name} {number}", when_busy="enqueue") for number in range(1, 4)]
    with deployment.client() as other, pytest.raises(SessionBusyError, match=name) as busy:
        other.resume_session(name).send("too early", when_busy="reject")
    assert busy.value.session_id == name
    assert [turn.state for turn in (*session.get_turns(),)][1:] == [TurnState.QUEUED] * 3
    first.cancel()
    assert [turn.wait(30).turn for turn in waiting] == [2, 3, 4]
    assert [call.prompt.removeprefix(f"{name} ")[0] for call in calls(name)] == ["0", "1", "2", "3"]
    assert session.send_and_wait("now", when_busy="reject", timeout=30).turn == 5
    messages = list(session.get_messages())
    assert [message.turn for message in messages] == [1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert not any("too early" in message.data.content for message in messages)


def test_14_an_interrupt_cancels_what_runs_and_waits_and_is_answered_next(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/model")
    ahead = [session.send(f"{name} 0 {HANG}"), *(session.send(f"{name} {number}") for number in (1, 2))]
    wait_until(lambda: calls(name))
    reply = session.send_and_wait(f"{name} rather this", when_busy="interrupt", timeout=30)
    assert reply.turn == 4
    assert reply.data.content.startswith(f"reply to: {name} rather this")
    for turn in ahead:
        with pytest.raises(TurnCancelledError, match=turn.id):
            turn.wait(30)
    aborted, answered = calls(name)
    assert (aborted.outcome, answered.outcome) == ("client gone", "200")
    assert answered.messages == [{"role": "user", "content": f"{name} rather this"}]
    assert session.send_and_wait("nothing to interrupt", when_busy="interrupt", timeout=30).turn == 5


def test_14_coalescing_joins_the_prompts_that_wait_into_one_turn(
    deployment: Deployment, client: Client, name: str, calls: Calls, threads: ThreadPoolExecutor
):
    session, one = client.create_session(name, model="server/model"), f"{name} one"
    running = session.send(f"{name} 0 {HANG}")
    wait_until(lambda: calls(name))
    first, second = session.send(one, idempotency_key="k1"), session.send("two")

    def wait_elsewhere() -> str:
        with deployment.client() as other:
            return other.get_turn(first.id).wait(60).data.content

    waiting = threads.submit(wait_elsewhere)
    turn = session.send("three", when_busy="coalesce", idempotency_key="k3")
    assert (turn.prompt, turn.state) == (f"{one}\n\ntwo\n\nthree", TurnState.QUEUED)
    for joined in first, second:
        assert (joined.refresh().state, joined.merged_into) == (TurnState.CANCELLED, turn.id)
        assert not joined.cancel(), "harmless"
        with pytest.raises(InvalidInputError, match=f"joined into turn {turn.id}"):
            joined.retry()
    with pytest.raises(SendTimeoutError) as late:
        second.wait(0.05)
    assert late.value.turn is second
    assert running.refresh().state is TurnState.RUNNING, "it is not joined"
    running.cancel()

    reply = turn.wait(30)
    assert reply.turn == turn.number
    assert reply.data.content.startswith(f"reply to: {one}\n\ntwo\n\nthree")
    assert second.wait(30) == reply
    assert waiting.result(30) == reply.data.content
    assert [session.send(text, idempotency_key=key).id for text, key in ((one, "k1"), ("three", "k3"))] == [
        first.id, turn.id,
    ]  # fmt: skip
    assert len(calls(f"{one}\n\ntwo\n\nthree")) == 1
    assert [message.turn for message in session.get_messages()] == [1, 2, 3, 4, 4]


def test_15_history_alternates_in_the_order_of_sending(
    deployment: Deployment, client: Client, name: str, calls: Calls, threads: ThreadPoolExecutor
):
    session = client.create_session(name, model="server/model", context_turns=40)

    def send_some(sender: int) -> list[Turn]:
        with deployment.client() as own:
            mine = own.resume_session(name)
            return [mine.send(f'{name} {sender}-{number} !{{"latency": 0.01}}') for number in range(6)]

    sent = {turn.number: turn for turns in threads.map(send_some, range(4)) for turn in turns}
    assert sorted(sent) == list(range(1, 25))
    client.get_turn(sent[24].id).wait(60)
    messages = list(session.get_messages())
    assert [message.type for message in messages] == ["user.message", "assistant.message"] * 24
    for prompt, reply in zip(messages[::2], messages[1::2], strict=True):
        assert prompt.data.content == sent[prompt.turn].prompt
        assert (reply.turn, reply.data.content.startswith(f"reply to: {prompt.data.content}")) == (prompt.turn, True)
    for sender in range(4):
        mine = [turn.number for turn in sent.values() if f" {sender}-" in (turn.prompt or "")]
        assert mine == sorted(mine)

    made = calls(name)
    assert [call.prompt for call in made] == [sent[number].prompt for number in range(1, 25)]
    assert [len(call.messages) for call in made] == list(range(1, 49, 2)), "each was shown all that came before it"
    assert all(before.end is not None and before.end <= after.start for before, after in itertools.pairwise(made))


def test_16_a_handle_that_was_let_go_raises_and_changes_nothing(client: Client, name: str):
    session = client.create_session(name)
    turn = session.send("keep this")
    turn.wait(30)
    stored, history = client.get_session_metadata(name), list(session.get_messages())
    page = session.get_messages()
    session.disconnect()
    session.disconnect()
    with client.resume_session(name) as other:
        pass
    other.destroy()
    for handle in (session, other):
        for use in (
            lambda handle=handle: handle.send("late"),
            lambda handle=handle: handle.send_and_wait("late"),
            lambda handle=handle: handle.get_messages(),
            lambda handle=handle: handle.get_turns(),
            lambda handle=handle: handle.metadata(),
        ):
            with pytest.raises(ClosedError, match=name):
                use()
    with pytest.raises(ClosedError, match=name):
        next(page)
    assert turn.wait(0).data.content.startswith('You said: "keep this"'), "turns go on"
    with client.resume_session(name) as session:
        assert list(session.get_messages()) == history
    after = client.get_session_metadata(name)
    assert after is not None
    assert stored is not None
    assert (after.turns, after.messages, after.cursor) == (stored.turns, stored.messages, stored.cursor)


@pytest.mark.parametrize("of_the_clock", [False, True])
def test_17_not_before_delays_a_turn(client: Client, name: str, calls: Calls, of_the_clock: bool):
    session = client.create_session(name, model="server/model")
    wait = timedelta(seconds=2)
    turn = session.send(f"{name} then", not_before=datetime.now(UTC) + wait if of_the_clock else wait)
    behind = session.send(f"{name} behind it")
    assert (turn.state, calls(name)) == (TurnState.QUEUED, [])
    assert behind.wait(30).turn == 2
    assert turn.refresh().started_at is not None
    assert turn.started_at is not None
    late = turn.started_at - turn.created_at - wait
    assert timedelta(seconds=-0.1) < late < timedelta(seconds=LATE_SECONDS)
    assert [call.prompt for call in calls(name)] == [f"{name} then", f"{name} behind it"]

    far = session.send("next year", not_before=timedelta(days=365))
    with pytest.raises(SendTimeoutError) as held_up:
        session.send_and_wait("behind it as well", timeout=0.5)
    assert far.cancel()
    waiting = held_up.value.turn
    assert isinstance(waiting, Turn)
    assert waiting.wait(30).turn == 4, "nothing is put off any more"
    session.send("next year", not_before=timedelta(days=365))
    assert session.send_and_wait("rather now", when_busy="interrupt", timeout=30).turn == 6


def test_17_batch_goes_behind_interactive_work(client: Client, name: str):
    """More of it than there are slots, and it keeps them: what is said in chat meanwhile is answered."""
    batch = [
        client.create_session(f"{name}-{number}", model="server/model").send(f"{name} {HANG}", lane="batch")
        for number in range(WORKERS * SLOTS + 2)
    ]
    wait_until(lambda: any(turn.refresh().state is TurnState.RUNNING for turn in batch))
    chat = client.create_session(name, model="server/model")
    assert chat.send_and_wait("a question", timeout=15).turn == 1
    assert any(turn.refresh().attempts == 0 for turn in batch), "batch has not had its turn yet"
    for turn in batch:
        turn.cancel()
    mixed = [chat.send("one", lane="batch"), chat.send("two"), chat.send("three", lane="batch")]
    assert [turn.wait(30).turn for turn in mixed] == [2, 3, 4], "a session's own order holds whatever the lane"


@pytest.mark.parametrize(
    "refused",
    [
        {"not_before": datetime(2030, 1, 1)},  # noqa: DTZ001 - that is what is refused
        {"not_before": timedelta(0)},
        {"not_before": timedelta(seconds=-1)},
        {"not_before": timedelta.max},
        {"not_before": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        {"not_before": 5},
        {"lane": "maintenance"},
        {"lane": "Chat"},
        {"lane": None},
        {"when_busy": "join"},
        {"when_busy": ["enqueue"]},
    ],
)
def test_17_what_is_no_time_or_no_lane_is_refused(client: Client, name: str, refused: dict[str, Any]):
    session = client.create_session(name)
    with pytest.raises(InvalidInputError, match=r"not_before|no timezone|lane|when_busy"):
        session.send("hello", **refused)
    assert session.metadata().turns == 0
