"""What a person hears of a session: replies while they are written, and what tools were asked and said."""

from datetime import UTC, datetime
from typing import Any

import pytest

from inturn.cli import render
from inturn.cli.hearing import ANEW, Tail, hear
from inturn.records import EventData, EventType, SessionEvent

CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'}},
    {"id": "c2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
]


def event(kind: EventType, turn: int = 1, **data: Any) -> SessionEvent:
    return SessionEvent(None, kind, EventData(**data), datetime.now(UTC), turn)


def delta(text: str, turn: int = 1) -> SessionEvent:
    return event("assistant.message_delta", turn, delta_content=text)


DISCARDED = event("assistant.message_discarded")
CALLED = event("assistant.message", content="Let me look.", tool_calls=CALLS)
TOLD = event("tool.message", content='{"degrees": 4}', tool_call_id="c1", name="get_weather")
REPLY = event("assistant.message", content="It is cold.")


def tail(*events: SessionEvent) -> None:
    shown = Tail()
    for each in events:
        shown.show(each)
    shown.end()


def test_calls_and_results_have_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    tail(event("user.message", content="Is it cold?"), CALLED, TOLD, REPLY)
    assert capsys.readouterr().out.splitlines() == [
        "you: Is it cold?",
        "assistant: Let me look.",
        'calls get_weather({"city": "Ulm"})',
        "calls get_time({})",
        'tool get_weather: {"degrees": 4}',
        "assistant: It is cold.",
    ]


def test_a_reply_that_was_heard_is_not_said_again_behind_its_tools(capsys: pytest.CaptureFixture[str]) -> None:
    tail(CALLED, TOLD, delta("It is "), delta("cold."), event("user.message", 2, content="thanks"), REPLY)
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["assistant: It is cold.", "you: thanks"]
    assert [line.count("It is cold.") for line in said] == [0, 0, 0, 0, 1, 0]


def test_what_was_heard_with_a_call_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    tail(delta("Let me "), delta("look."), CALLED, TOLD, delta("It is cold."), REPLY)
    done = capsys.readouterr()
    assert done.out.splitlines() == [
        "assistant: Let me look.",
        'assistant: calls get_weather({"city": "Ulm"})',
        "calls get_time({})",
        'tool get_weather: {"degrees": 4}',
        "assistant: It is cold.",
    ]
    assert done.err == ""


def test_what_is_void_after_somebody_else_has_spoken_is_a_remark_and_no_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tail(delta("Let me"), event("user.message", 2, content="hurry"), DISCARDED, delta("It is cold."), REPLY)
    done = capsys.readouterr()
    assert done.out.splitlines() == ["assistant: Let me", "you: hurry", "assistant: It is cold."]
    assert done.err.splitlines() == [ANEW]


def test_another_turns_reply_is_said_whole(capsys: pytest.CaptureFixture[str]) -> None:
    tail(delta("It is cold."), REPLY, event("assistant.message", 2, content="Still cold."))
    assert capsys.readouterr().out.splitlines() == ["assistant: It is cold.", "assistant: Still cold."]


def test_who_streams_one_reply_hears_its_pieces_and_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    speech = render.PlainSpeech()
    hear([delta("Let me look."), DISCARDED, delta("It is "), delta("cold."), REPLY], speech)
    speech.close()
    done = capsys.readouterr()
    assert (done.out, done.err) == ("Let me look.\nIt is cold.\n", f"{ANEW}\n")


def test_who_streams_one_reply_is_told_of_tools_in_remarks(capsys: pytest.CaptureFixture[str]) -> None:
    speech = render.PlainSpeech()
    hear([delta("Let me look."), CALLED, TOLD, delta("It is cold."), REPLY], speech)
    speech.close()
    done = capsys.readouterr()
    assert done.out == "Let me look.\nIt is cold.\n"
    assert done.err.splitlines() == [
        '(calls get_weather({"city": "Ulm"}) calls get_time({}))',
        '(get_weather: {"degrees": 4})',
    ]
