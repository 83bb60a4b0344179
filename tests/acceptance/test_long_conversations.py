"""Conversations that are longer than their model can be shown, on both kinds of deployment."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from inturn import Client, Message, Session, Turn, TurnCancelledError, TurnFailedError
from inturn.models.states import TurnState
from inturn.models.store.working import SUMMED_UP
from inturn.workers.context import SUMMARISE
from ops.chaos.model import Call
from tests.acceptance.deployment import Deployment
from tests.stacks import wait_until

REPLY_SECONDS = 30
TURNS, WINDOW = 30, 6

Calls = Callable[[str], list[Call]]


@pytest.fixture
def all_calls(calls: Calls, name: str) -> Callable[[], list[Call]]:
    """Those that were made for this test, for summaries as well."""
    return lambda: [call for call in calls("") if any(name in str(message["content"]) for message in call.messages)]


def ends(turn: Turn) -> list[tuple[str | None, str | None]]:
    return [(each.outcome, each.error_type) for each in turn.get_attempts()]


def talk(session: Session, name: str, turns: int) -> list[Message]:
    return [session.send_and_wait(f"{name} {number}", timeout=REPLY_SECONDS) for number in range(1, turns + 1)]


UNCOUNTED = '!{"act": "no_usage"}'
"""Else it would be learned that a token is a message, which is what the model server counts."""


def is_summary(call: Call) -> bool:
    return bool(call.messages[0]["content"] == SUMMARISE)


def types(session: Session) -> list[tuple[int, str]]:
    return [(message.turn, message.type.partition(".")[0]) for message in session.get_messages()]


TOO_LONG: list[tuple[str, str]] = [("openai", "too_long"), ("vllm", "too_long"), ("lmstudio", "too_long_inside")]


@pytest.mark.parametrize(("who", "act"), TOO_LONG)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_model_finds_too_long_is_shown_again_with_half_of_it(
    client: Client, name: str, all_calls: Callable[[], list[Call]], who: str, act: str, stream: bool
):
    session = client.create_session(name, model="server/model")
    talk(session, name, 5)
    turn = session.send(f"{name} !{json.dumps({'act': act, 'who': who, 'beyond': 7})}", stream=stream)
    assert turn.wait(REPLY_SECONDS).data.content.startswith(f"reply to: {name} !")
    failure, success = ends(turn)
    assert failure[1] == "context_length_exceeded"
    assert (success, turn.refresh().error) == (("completed", None), None)
    first, second = all_calls()[-2:]
    assert len(first.messages) == 11
    assert 1 < len(second.messages) <= 7
    assert second.messages == first.messages[-len(second.messages) :], "the newest turns, and each of them whole"
    assert len(second.messages) % 2 == 1
    assert first.key != second.key, "it is another call"
    session.send_and_wait(f"{name} later", timeout=REPLY_SECONDS)
    assert len(all_calls()[-1].messages) == 13, "that was for this turn only"


def test_what_is_too_long_twice_fails_and_says_what_to_do(
    client: Client, name: str, all_calls: Callable[[], list[Call]]
):
    session = client.create_session(name, model="server/model")
    talk(session, name, 3)
    turn = session.send(f'{name} !{{"act": "too_long", "who": "openai"}}')
    with pytest.raises(TurnFailedError) as caught:
        turn.wait(REPLY_SECONDS)
    assert (caught.value.error_type, caught.value.status_code, caught.value.retryable) == (
        "context_length_exceeded", 400, False,
    )  # fmt: skip
    assert "context_turns" in str(caught.value)
    assert ends(turn) == [("permanent", "context_length_exceeded")] * 2
    assert [len(call.messages) for call in all_calls()][-2:] in ([7, 3], [7, 1])
    alone = client.create_session(f"{name}-new", model="server/model").send(turn.prompt or "")
    with pytest.raises(TurnFailedError, match="context_length_exceeded"):
        alone.wait(REPLY_SECONDS)
    assert len(ends(alone)) == 1, "there was nothing to leave out"


def test_who_is_to_fail_makes_no_call(client: Client, name: str, all_calls: Callable[[], list[Call]]):
    model = f"server/{name}"
    session = client.create_session(name, model=model, context_tokens=100, overflow="fail")
    prompt = f"{name} {UNCOUNTED} {'x' * 100}"
    session.send_and_wait(prompt, timeout=REPLY_SECONDS)
    turn = session.send(prompt)
    with pytest.raises(TurnFailedError) as caught:
        turn.wait(REPLY_SECONDS)
    assert (caught.value.error_type, caught.value.retryable) == ("context_overflow", False)
    assert f"and 100 may be shown to {model}" in str(caught.value)
    assert (turn.refresh().attempts, turn.started_at, turn.get_attempts()) == (0, None, [])
    assert len(all_calls()) == 1
    assert session.send_and_wait("hi", timeout=REPLY_SECONDS), "what is short enough is answered"


def test_a_window_in_tokens_shows_the_newest_turns_that_fit(
    client: Client, name: str, all_calls: Callable[[], list[Call]]
):
    how: dict[str, Any] = {"context_tokens": 250, "system_message": f"{name} is brief"}
    session = client.create_session(name, model=f"server/{name}", **how)
    for number in range(1, 11):
        session.send_and_wait(f"{name} {UNCOUNTED} {number}", timeout=REPLY_SECONDS)
    shown = [call.messages for call in all_calls()]
    assert all(messages[0] == {"role": "system", "content": f"{name} is brief"} for messages in shown)
    prompts = [[one["content"].split()[-1] for one in messages if one["role"] == "user"] for messages in shown]
    assert prompts[0] == ["1"]
    assert prompts[1] == ["1", "2"]
    for number, said in enumerate(prompts, 1):
        assert said == [str(one) for one in range(number - len(said) + 1, number + 1)]
    assert all(len(messages) == 2 * len(said) for messages, said in zip(shown, prompts, strict=True))
    assert 3 <= len(prompts[-1]) < 8
    assert all(sum(len(one["content"]) for one in messages) < 250 * 4 for messages in shown)


def test_what_a_model_takes_by_its_providers_settings_is_kept_to(
    client: Client, name: str, all_calls: Callable[[], list[Call]]
):
    session = client.create_session(name, model="leaning/tiny")
    for number in range(1, 11):
        session.send_and_wait(f"{name} {UNCOUNTED} {number}", timeout=REPLY_SECONDS)
    shown = [call.messages for call in all_calls()]
    assert 3 <= len(shown[-1]) < 2 * 10 - 1
    assert all(sum(len(one["content"]) for one in messages) < 300 * 4 for messages in shown), "a quarter is the reply's"


def test_thirty_turns_go_on_behind_summaries(client: Client, name: str, all_calls: Callable[[], list[Call]]):
    session = client.create_session(
        name, model="server/model", context_turns=WINDOW, overflow="summarise", system_message="be brief"
    )
    replies = talk(session, name, TURNS)
    assert [reply.turn for reply in replies] == list(range(1, TURNS + 1))
    messages = list(session.get_messages())
    spoken = [message for message in messages if message.type in ("user.message", "assistant.message")]
    assert [message.turn for message in spoken] == [number for number in range(1, TURNS + 1) for _ in range(2)]
    assert [message.data.content for message in spoken[::2]] == [f"{name} {number}" for number in range(1, TURNS + 1)]
    assert [message.data.content for message in spoken[1::2]] == [reply.data.content for reply in replies]

    summaries = [(place, message) for place, message in enumerate(messages) if message.type == "summary.message"]
    assert [message.turn for _, message in summaries] == list(range(4, TURNS, 4))[: len(summaries)]
    assert len(summaries) >= 5
    for place, message in summaries:
        before = messages[place - 1]
        assert (before.turn, before.type) == (message.turn, "assistant.message"), "behind the last turn that it covers"
        assert messages[place + 1].turn == message.turn + 1
        assert message.id == f"{message.id.partition('.')[0]}.{message.turn}.{message.id.rpartition('.')[2]}"
    assert list(session.get_messages(after=summaries[0][1].id, limit=1)) == [messages[summaries[0][0] + 1]]

    events = list(session.get_events())
    assert [event.id for event in events[1:]] == [message.id for message in messages]
    assert [event.type for event in session.get_events(after=summaries[0][1].id, limit=1)] == ["user.message"]

    texts = {message.turn: message.data.content for _, message in summaries}
    for number, call in enumerate([call for call in all_calls() if not is_summary(call)], 1):
        system, *rest, prompt = call.messages
        assert system == {"role": "system", "content": "be brief"}
        assert prompt == {"role": "user", "content": f"{name} {number}"}
        upto = 0
        if rest and rest[0]["role"] == "system":
            said = rest.pop(0)["content"]
            upto = next(turn for turn, text in texts.items() if said == f"{SUMMED_UP}\n\n{text}")
        assert [one["content"] for one in rest[::2]] == [f"{name} {one}" for one in range(upto + 1, number)], "no gap"
        assert len(rest) // 2 <= WINDOW
        if number > WINDOW + 1:
            assert upto
            assert len(rest) // 2 >= WINDOW // 2


def test_the_call_for_a_summary_is_an_attempt_of_its_own_with_its_tokens(
    client: Client, name: str, all_calls: Callable[[], list[Call]]
):
    session = client.create_session(
        name, model="server/model", context_turns=2, overflow="summarise", options={"temperature": 0.5}
    )
    session.send_and_wait(f'{name} !{{"words": 4, "summary": {{"words": 5}}}}', timeout=REPLY_SECONDS)
    talk(session, name, 2)
    turn = session.send(f"{name} last")
    turn.wait(REPLY_SECONDS)
    summary, reply = turn.get_attempts()
    assert [(each.number, each.model, each.outcome, each.estimated) for each in (summary, reply)] == [
        (1, "server/model", "completed", False), (2, "server/model", "completed", False),
    ]  # fmt: skip
    assert (summary.input_tokens, summary.output_tokens) == (2, 5), "as the server counts messages and words"
    assert (turn.refresh().input_tokens, turn.attempts) == (2 + (reply.input_tokens or 0), 2)
    assert turn.output_tokens == 5 + (reply.output_tokens or 0)
    asked_for_it, asked = all_calls()[-2:]
    assert is_summary(asked_for_it)
    assert "temperature" not in asked_for_it.options, "the options are for replies"
    assert asked.options["temperature"] == 0.5
    assert asked_for_it.key != asked.key
    assert asked.messages[0] == {"role": "system", "content": f"{SUMMED_UP}\n\nword0 word1 word2 word3 word4"}
    assert f"user: {name} 1" in asked_for_it.messages[1]["content"]
    assert [kind for _, kind in types(session)] == [
        *("user", "assistant") * 2, "summary", *("user", "assistant") * 2,
    ]  # fmt: skip


def due_for_summary(client: Client, name: str, summary: dict[str, Any], **how: Any) -> Session:
    """A session whose next turn begins with a call for a summary, in which the model server does this."""
    asked: dict[str, Any] = {"model": "server/model", "context_turns": 2} | how
    session = client.create_session(name, overflow="summarise", **asked)
    session.send_and_wait(f"{name} !{json.dumps({'summary': summary})}", timeout=REPLY_SECONDS)
    talk(session, name, 2)
    return session


def test_a_streamed_turn_tells_its_reply_and_never_its_summary(client: Client, name: str):
    session = due_for_summary(client, name, {"words": 5})
    turn = session.send(f"{name} last", stream=True)
    *pieces, whole = turn.stream(REPLY_SECONDS)
    assert {piece.type for piece in pieces} == {"assistant.message_delta"}
    assert "".join(piece.data.delta_content for piece in pieces) == whole.data.content
    assert whole.data.content.startswith(f"reply to: {name} last")
    assert ends(turn) == [("completed", None)] * 2
    assert (2, "summary") in types(session)
    assert turn.refresh().partial is None


def test_a_summary_that_fails_is_tried_again_and_falls_back_as_any_call(client: Client, name: str):
    session = due_for_summary(client, name, {"status": 503, "times": 1})
    turn = session.send(f"{name} last")
    turn.wait(REPLY_SECONDS)
    assert ends(turn) == [("safe", "unavailable"), ("completed", None), ("completed", None)]
    other = due_for_summary(
        client, f"{name}-two", {"status": 401, "only": "model"}, model=["server/model", "server/second"]
    ).send(f"{name} last")
    other.wait(REPLY_SECONDS)
    assert [each.model for each in other.get_attempts()] == ["server/model", "server/second", "server/second"]


def test_a_summary_that_is_too_long_itself_is_asked_for_of_less(client: Client, name: str):
    session = due_for_summary(client, name, {"act": "too_long", "who": "openai"})
    turn = session.send(f"{name} last")
    assert turn.wait(REPLY_SECONDS).data.content.startswith(f"reply to: {name} last"), "it goes on without"
    assert ends(turn) == [*[("permanent", "context_length_exceeded")] * 2, ("completed", None)]
    assert "summary" not in [kind for _, kind in types(session)]


def test_a_summary_that_cannot_be_had_keeps_nobody_from_going_on(client: Client, name: str, calls: Calls):
    session = due_for_summary(client, name, {"status": 422})
    for said in ("last", "very last"):
        turn = session.send(f"{name} {said}")
        assert turn.wait(REPLY_SECONDS).data.content.startswith(f"reply to: {name} {said}")
        assert ends(turn) == [("permanent", "unprocessable"), ("completed", None)], "each turn tries once"
    assert "summary" not in [kind for _, kind in types(session)]


def test_a_cancel_in_the_call_for_a_summary_cancels_the_turn(client: Client, name: str, calls: Calls):
    session = due_for_summary(client, name, {"act": "hang", "only": "model"})
    turn = session.send(f"{name} last")
    wait_until(lambda: [call for call in calls("") if is_summary(call) and name in call.prompt])
    assert turn.cancel()
    with pytest.raises(TurnCancelledError):
        turn.wait(REPLY_SECONDS)
    assert ends(turn) == [("cancelled", None)]
    assert "summary" not in [kind for _, kind in types(session)]
    after = client.resume_session(name, model="server/other").send(f"{name} after")
    assert after.wait(REPLY_SECONDS).data.content.startswith(f"reply to: {name} after")
    assert (2, "summary") in types(session), "and then it was made"
    assert turn.refresh().state is TurnState.CANCELLED


def test_a_worker_killed_in_the_call_for_a_summary_leaves_nothing_half_done(
    deployment: Deployment, client: Client, name: str, calls: Calls
):
    session = due_for_summary(client, name, {"act": "hang", "times": 1})
    turn = session.send(f"{name} last")
    wait_until(lambda: [call for call in calls("") if is_summary(call) and name in call.prompt])
    deployment.kill(deployment.worker_of(int(turn.id.partition(".")[0])))
    assert turn.wait(REPLY_SECONDS).data.content.startswith(f"reply to: {name} last")
    assert ends(turn) == [("lost", None), ("completed", None), ("completed", None)]
    assert [kind for _, kind in types(session)].count("summary") == 1
    summaries = [call for call in calls("") if is_summary(call) and name in call.prompt]
    assert len(summaries) == 2
    assert len({call.key for call in summaries}) == 1, "the same call, made again"
    deployment.await_workers()
