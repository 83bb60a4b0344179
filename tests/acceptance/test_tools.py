"""Models that call tools, in real workers, on both kinds of deployment: with echo, and through both types of provider."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inturn import Client, Message, Session, SessionEvent, TurnCancelledError, TurnFailedError
from ops.chaos import rounds
from ops.chaos.model import Call, ModelServer
from ops.chaos.wires import text_of
from tests.acceptance.deployment import Deployment
from tests.acceptance.toolshed import BOOK
from tests.stacks import wait_until

PATIENCE_SECONDS = 60
TOOLS = ["note", "add", "refuse", "break_down", "oversleep", "linger"]
NOTE: dict[str, Any] = {"name": "note", "arguments": {"text": "milk"}}
ADD: dict[str, Any] = {"name": "add", "arguments": {"a": 2, "b": 3}}
MODELS = ("server/model", "claude/model")


@pytest.fixture
def session(client: Client, name: str) -> Session:
    return client.create_session(name, tools=TOOLS)


@pytest.fixture(params=MODELS)
def asked(client: Client, name: str, request: pytest.FixtureRequest) -> Session:
    """A session with each type of provider."""
    return client.create_session(name, model=request.param, tools=TOOLS)


@pytest.fixture
def shown(model: ModelServer) -> Callable[[str], list[Call]]:
    """The calls to the model server whose conversation holds a text, in order; those that had no fault in them."""

    def find(words: str) -> list[Call]:
        found = [call for call in model.calls() if any(words in text_of(each["content"]) for each in call.messages)]
        for call in found:
            assert rounds.fault({"messages": call.messages}) is None
            assert call.outcome != "400"
        return found

    return find


def directed(session: Session, **directive: Any) -> str:
    """A prompt that tells the model server what to do."""
    return f"do it, {session.session_id} !{json.dumps(directive)}"


def book(deployment: Deployment, session: Session) -> list[dict[str, Any]]:
    """What tools did for a session, in order."""
    path = deployment.home / BOOK
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if line["session"] == session.session_id]


def spoken(session: Session) -> list[tuple[str, str]]:
    return [(message.type.removesuffix(".message"), message.data.content) for message in session.get_messages()]


def results(session: Session) -> list[str]:
    return [text for kind, text in spoken(session) if kind == "tool"]


def answer(session: Session, prompt: str, *, streamed: bool = False, **how: Any) -> Message:
    if not streamed:
        return session.send_and_wait(prompt, timeout=PATIENCE_SECONDS, **how)
    events = list(session.stream(prompt, timeout=PATIENCE_SECONDS, **how))
    stored = [message for message in session.get_messages() if message.turn == events[-1].turn]
    assert [event.id for event in events if event.id] == [message.id for message in stored if message.type in SAID]
    assert said_in_pieces(events) == [
        message.data.content for message in stored if is_reply(message) or is_call(message)
    ]
    return stored[-1]


SAID = ("assistant.message", "tool.message")


def said_in_pieces(events: list[SessionEvent]) -> list[str]:
    """What was heard before each message of the model, since the one before, or since all of it was void."""
    said, heard = [], ""
    for event in events:
        if event.type in ("assistant.message", "assistant.message_discarded"):
            said += [heard] if event.type == "assistant.message" else []
            heard = ""
        heard += event.data.delta_content
    return said


def is_call(said: SessionEvent | Message) -> bool:
    return said.type == "assistant.message" and bool(said.data.tool_calls)


def is_reply(said: SessionEvent | Message) -> bool:
    return said.type == "assistant.message" and not said.data.tool_calls


def has_discarded(events: list[SessionEvent]) -> bool:
    return any(event.type == "assistant.message_discarded" for event in events)


# What comes of a round.


def test_echo_calls_a_tool_and_its_user_sees_the_reply(deployment: Deployment, session: Session) -> None:
    reply = answer(session, "buy some", options={"call": NOTE})
    assert reply.data.content.startswith('You said: "buy some"\nThe tool note said: "noted milk".')
    called, result = list(session.get_messages())[1:3]
    assert called.data.tool_calls is not None
    [call] = called.data.tool_calls
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("note", {"text": "milk"})
    assert (result.type, result.data.name, result.data.tool_call_id) == ("tool.message", "note", call["id"])
    assert [(line["name"], line["turn"]) for line in book(deployment, session)] == [
        ("note", f"{reply.id.split('.')[0]}.1")
    ]
    [turn] = session.get_turns()
    assert (turn.attempts, [attempt.outcome for attempt in turn.get_attempts()]) == (2, ["completed"] * 2)
    found = turn.get_reply()
    assert found is not None
    assert found.id == reply.id
    assert [event.type for event in session.get_events()][2:] == [
        "assistant.message", "tool.message", "assistant.message",
    ]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_rounds_with_several_calls_go_through_both_types_of_provider(
    asked: Session, shown: Callable[[str], list[Call]], *, streamed: bool
) -> None:
    prompt = directed(asked, calls=[[NOTE, ADD], ADD, [NOTE]])
    reply = answer(asked, prompt, streamed=streamed)
    assert reply.data.content.startswith("reply to: do it")
    assert results(asked) == ["noted milk", '{"sum":5}', '{"sum":5}', "noted milk"]
    kinds = [kind for kind, _ in spoken(asked)]
    assert kinds == ["user", "assistant", "tool", "tool", *["assistant", "tool"] * 2, "assistant"]
    calls = shown(asked.session_id)
    assert len(calls) == 4
    assert rounds.said(calls[3].messages) == results(asked)
    assert len({call.key for call in calls}) == 4, "each round is a call of its own"
    assert {tool["name"] for tool in map(named, calls[0].options["tools"])} == set(TOOLS)
    later = answer(asked, f"and then? {asked.session_id}", streamed=streamed)
    last = shown(asked.session_id)[-1]
    assert [len(rounds.called(each)) for each in last.messages if rounds.called(each)] == [2, 1, 1]
    assert later.data.content.startswith("reply to: and then?")


def named(offered: dict[str, Any]) -> dict[str, Any]:
    return dict(offered.get("function", offered))


def test_what_is_said_with_a_call_is_a_message_of_its_own(asked: Session) -> None:
    prompt = directed(asked, calls=[NOTE], text="let me write that down first", gap=0.02)
    events = list(asked.stream(prompt, timeout=PATIENCE_SECONDS))
    reply = list(asked.get_messages())[-1].data.content
    assert said_in_pieces(events) == ["let me write that down first", reply]
    kinds = [event.type for event in events if event.id]
    assert kinds == ["assistant.message", "tool.message", "assistant.message"]
    assert not has_discarded(events), "nothing was broken off"
    last_piece = max(place for place, event in enumerate(events) if event.data.delta_content)
    assert last_piece > [event.type for event in events].index("tool.message"), "the round was told before the reply"


def test_who_listens_to_the_session_hears_the_pieces_of_the_reply_and_each_message_once(asked: Session) -> None:
    events: list[SessionEvent] = []
    stop = asked.on(events.append)
    answer(asked, directed(asked, calls=[[NOTE, ADD], NOTE], gap=0.02), streamed=True)
    wait_until(lambda: [event for event in events if is_reply(event)], PATIENCE_SECONDS)
    stop()
    stored = [event.id for event in events if event.id is not None]
    assert stored == [message.id for message in asked.get_messages()]
    assert said_in_pieces(events) == ["", "", events[-1].data.content]
    assert not has_discarded(events)


def test_a_model_is_told_what_went_wrong_and_answers(asked: Session, shown: Callable[[str], list[Call]]) -> None:
    wrong = [
        {"name": "make_tea"},
        {"name": "add", "arguments": "{no json"},
        {"name": "add", "arguments": {"a": "many"}},
        {"name": "refuse"},
        {"name": "break_down"},
        {"name": "oversleep"},
    ]
    reply = answer(asked, directed(asked, calls=[wrong]))
    assert reply.data.content.startswith("reply to: do it")
    told = results(asked)
    expected = ["there is no tool", "JSON", "a: ", "we are closed", "failed with LookupError", "within 0.5 s"]
    assert all(text.startswith("error:") for text in told), told
    assert [words in text for words, text in zip(expected, told, strict=True)] == [True] * 6, told
    assert "secret" not in "".join(told)
    assert rounds.said(shown(asked.session_id)[-1].messages) == told


def test_a_tool_that_the_session_does_not_allow_is_not_run(client: Client, deployment: Deployment, name: str) -> None:
    session = client.create_session(name, tools=["add"])
    answer(session, "do it", options={"call": NOTE})
    assert results(session) == ["error: there is no tool of that name: there are add"]
    assert book(deployment, session) == []


def test_a_session_with_a_tool_that_no_worker_has_fails_its_turn_and_goes_on(client: Client, name: str) -> None:
    session = client.create_session(name, tools=["add", "make_tea"])
    with pytest.raises(TurnFailedError, match="no tool 'make_tea'") as failed:
        answer(session, "do it")
    assert failed.value.error_type == "unknown_tool"
    [turn] = session.get_turns()
    assert (turn.attempts, turn.get_attempts()) == (0, [])


def test_rounds_without_an_end_fail_the_turn(session: Session) -> None:
    with pytest.raises(TurnFailedError, match="max_tool_rounds") as failed:
        answer(session, "go on and on", options={"call": [ADD] * 11})
    assert failed.value.error_type == "too_many_tool_rounds"
    assert len(results(session)) == 10
    [turn] = session.get_turns()
    assert (turn.attempts, turn.get_reply()) == (11, None)
    assert answer(session, "and now?").data.content.startswith('You said: "and now?"\nI remember your first message')


def test_who_follows_on_the_command_line_reads_each_line_once(
    deployment: Deployment, client: Client, name: str, tmp_path: Path
) -> None:
    session = client.create_session(name, model="server/model", tools=TOOLS)
    with (tmp_path / "said").open("wb") as said, deployment.process("session", "tail", name, "-f", output=said):
        while name not in (tmp_path / "said").read_text():
            answer(session, f"one, {name}")  # until it listens
        reply = answer(session, directed(session, calls=[[NOTE, ADD], NOTE], gap=0.02), streamed=True)
        last = answer(session, "and now?", streamed=True)
        wait_until(lambda: last.data.content in (tmp_path / "said").read_text(), PATIENCE_SECONDS)
    lines = (tmp_path / "said").read_text().splitlines()
    assert lines.count(f"assistant: {reply.data.content}") == 1
    assert lines.count(f"assistant: {last.data.content}") == 1
    assert lines.count("tool note: noted milk") == 2
    assert lines.count('tool add: {"sum":5}') == 1
    assert len([line for line in lines if "calls note(" in line]) == 2
    assert not [line for line in lines if line.startswith("assistant.message") or not line.strip()]


# What happens while a tool is at work.


@pytest.fixture
def lingering(deployment: Deployment, name: str) -> Iterator[Path]:
    """Has the PID of its worker in it once the tool is at work."""
    yield deployment.home / f"{name}.begun"
    (deployment.home / f"{name}.go").touch()


def begun(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text(), PATIENCE_SECONDS)
    return int(path.read_text())


def test_a_turn_is_taken_back_while_its_tool_is_at_work(session: Session, lingering: Path, name: str) -> None:
    turn = session.send("do it", options={"call": {"name": "linger", "arguments": {"name": name}}})
    begun(lingering)
    assert turn.cancel()
    with pytest.raises(TurnCancelledError):
        turn.wait(PATIENCE_SECONDS)
    assert spoken(session) == [("user", "do it")], "nothing of the round is stored"
    wait_until(lambda: lingering.with_suffix(".over").exists(), PATIENCE_SECONDS)
    assert turn.refresh().state == "cancelled"
    assert answer(session, "and now?").turn == 2


@pytest.mark.parametrize(("provider", "streamed"), [("server", False), ("claude", True)])
def test_a_worker_that_is_killed_in_a_round_leaves_nothing_of_it(
    deployment: Deployment, client: Client, shown: Callable[[str], list[Call]], lingering: Path, name: str,
    provider: str, *, streamed: bool,
) -> None:  # fmt: skip
    asked = client.create_session(name, model=f"{provider}/model", tools=TOOLS)
    linger = {"name": "linger", "arguments": {"name": name}}
    turn = asked.send(directed(asked, calls=[NOTE, [NOTE, linger]]), stream=streamed)
    deployment.kill(begun(lingering))
    reply = turn.wait(PATIENCE_SECONDS)
    deployment.await_workers()
    assert reply.data.content.startswith("reply to: do it")
    assert results(asked) == ["noted milk", "noted milk", f"{name} is done"]
    assert [kind for kind, _ in spoken(asked)].count("assistant") == 3, "two rounds and one reply"
    first, *twice = book(deployment, asked)
    notes, lingers = ([line["key"] for line in twice if line["name"] == name] for name in ("note", "linger"))
    assert (len(notes), len(set(notes))) == (2, 1), "the same call has the same key"
    assert (len(lingers), len(set(lingers))) == (2, 1)
    assert first["key"] not in notes, "the same call in another round is another call"
    assert len({line["pid"] for line in twice}) == 2
    assert turn.refresh().attempts == 4
    assert [attempt.outcome for attempt in turn.get_attempts()] == ["completed", "lost", "completed", "completed"]
    keys = [call.key for call in shown(asked.session_id)]
    assert (len(keys), len(set(keys))) == (4, 3), "the model is asked the same again under the same key"


def let_go(lingering: Path) -> None:
    """Once its worker has surely heard that it is to stop."""
    time.sleep(2)
    lingering.with_suffix(".go").touch()


def test_a_worker_that_is_stopped_warmly_finishes_its_round_and_another_goes_on(
    deployment: Deployment, client: Client, shown: Callable[[str], list[Call]], lingering: Path, name: str
) -> None:
    asked = client.create_session(name, model="server/model", tools=TOOLS)
    turn = asked.send(directed(asked, calls=[{"name": "linger", "arguments": {"name": name}}, NOTE]))
    former = begun(lingering)
    deployment.kill(former, signal.SIGTERM, meanwhile=lambda: let_go(lingering))
    assert turn.wait(PATIENCE_SECONDS).data.content.startswith("reply to: do it")
    deployment.await_workers()
    lingered, noted = book(deployment, asked)
    assert (lingered["name"], lingered["pid"], noted["name"]) == ("linger", former, "note")
    assert noted["pid"] != former
    assert turn.refresh().attempts == 3
    assert {attempt.outcome for attempt in turn.get_attempts()} == {"completed"}
    assert len(shown(asked.session_id)) == 3


# Tools in the provider's own words.


OFFERED = {
    "server/model": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    "claude/model": [{"name": "weather", "input_schema": {"type": "object"}}],
}
WEATHER = {"name": "weather", "arguments": {"town": "Oslo"}}


@pytest.mark.parametrize("answers", OFFERED)
def test_calls_of_tools_that_an_option_offers_are_the_answer(
    client: Client, name: str, shown: Callable[[str], list[Call]], answers: str
) -> None:
    session = client.create_session(name, model=answers)
    reply = answer(session, directed(session, calls=[WEATHER]), options={"tools": OFFERED[answers]})
    (call,) = reply.data.tool_calls or []
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"town": "Oslo"})
    assert [kind for kind, _ in spoken(session)] == ["user", "assistant"], "nobody ran it"
    assert answer(session, f"and then? {name}").data.content.startswith("reply to: and then?")
    last = shown(name)[-1]
    assert [rounds.called(each) for each in last.messages if rounds.called(each)] == [], "no call without its result"
    assert "[called weather(" in json.dumps(last.messages)
