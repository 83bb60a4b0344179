"""What a line of a result file says: as programs read it that were written for OpenAI's, and as we read it back."""

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from inturn.models.errors import InvalidInputError
from inturn.models.states import TurnState
from inturn.results.codes import error_of
from inturn.results.forms import Entry, Form, form
from tests.unit.finished_lines import BATCH, START, completed, failed, invalid

LONG, SHORT = form(BATCH, short=False), form(BATCH, short=True)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(Strict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None


class Choice(Strict):
    index: int
    message: Message
    logprobs: None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Usage(Strict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(Strict):
    """As OpenAI's API reference describes it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


def said(text: bytes) -> Any:
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    return json.loads(text)


def test_a_completed_line_is_a_chat_completion():
    entry = said(LONG.write(completed(7)))
    assert entry == {
        "id": "batch_req_0123456789abcdef_7_7-1",
        "custom_id": "request-7",
        "response": {
            "status_code": 200,
            "request_id": "7.1",
            "body": {
                "id": "chatcmpl-7.1",
                "object": "chat.completion",
                "created": int(START.timestamp()) + 7,
                "model": "openai/gpt-5",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "reply 7", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
            },
        },
        "error": None,
    }
    ChatCompletion.model_validate(entry["response"]["body"])


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (None, "stop"),
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("length", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something new", "stop"),
    ],
)
def test_why_the_model_stopped_is_said_in_openais_words(theirs: str | None, reason: str):
    body = said(LONG.write(completed(1, finish_reason=theirs)))["response"]["body"]
    assert ChatCompletion.model_validate(body).choices[0].finish_reason == reason


def test_tokens_that_were_not_counted_can_be_added_up():
    body = said(LONG.write(completed(1, input_tokens=None, output_tokens=None)))["response"]["body"]
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_a_refusal_of_the_provider_is_quoted_with_its_status():
    entry = said(LONG.write(failed(3, "rate_limited", 429)))
    assert entry["response"] == {
        "status_code": 429,
        "request_id": "3.1",
        "body": {
            "error": {
                "message": "line 3 is refused",
                "type": "rate_limited",
                "param": None,
                "code": "rate_limited",
            }
        },
    }
    assert entry["error"] is None


@pytest.mark.parametrize(
    ("error_type", "status", "code"),
    [
        ("batch_cancelled", None, "batch_cancelled"),
        ("batch_expired", None, "batch_expired"),
        ("timeout", None, "request_timeout"),
        ("timeout", 200, "request_timeout"),
        ("worker_lost", None, "attempts_exhausted"),
        ("dns", None, "attempts_exhausted"),
        ("bad_reply", 200, "attempts_exhausted"),
        ("session_deleted", None, "session_deleted"),
        ("content_filter", 200, "content_filter"),
        ("reply_too_large", None, "reply_too_large"),
    ],
)
def test_a_line_without_an_answer_has_a_code(error_type: str, status: int | None, code: str):
    """A status of success is none of a refusal: who looks only at the status would take the line for completed."""
    entry = said(LONG.write(failed(3, error_type, status)))
    assert entry["response"] is None
    assert entry["error"]["code"] == code
    assert "line 3 is refused" in entry["error"]["message"]


def test_an_exhausted_line_still_says_what_happened():
    assert error_of(failed(3, "dns", None)) == ("attempts_exhausted", "dns: line 3 is refused")


def test_a_cancelled_line_of_which_nothing_is_stored_has_a_message():
    result = completed(3, state=TurnState.CANCELLED, reply=None)
    assert error_of(result) == ("batch_cancelled", "the line was cancelled before it had a reply")


def test_a_cancelled_line_that_failed_before_tells_the_two_apart():
    result = failed(3, "rate_limited", 429, state=TurnState.CANCELLED)
    code, message = error_of(result)
    assert code == "batch_cancelled"
    assert message == (
        "the line was cancelled before it had a reply; its last attempt failed: rate_limited: line 3 is refused"
    )
    assert said(LONG.write(result))["response"] is None, "the status was that of an earlier attempt"


def test_an_expired_line_has_no_status_of_an_earlier_attempt():
    assert said(LONG.write(failed(3, "batch_expired", 429)))["response"] is None


def test_an_invalid_line_has_its_own_code_and_no_turn():
    entry = said(LONG.write(invalid(12, "invalid_json_line", custom_id="12")))
    assert entry["id"] == "batch_req_0123456789abcdef_12"
    assert (entry["response"], entry["error"]["code"]) == (None, "invalid_json_line")


def test_the_short_form_says_no_more_than_most_programs_want():
    assert said(SHORT.write(completed(7))) == {"custom_id": "request-7", "session": f"{BATCH}:7", "reply": "reply 7"}
    assert said(SHORT.write(failed(8, "rate_limited", 429))) == {
        "custom_id": "request-8",
        "session": f"{BATCH}:8",
        "error": {"code": "rate_limited", "message": "line 8 is refused", "line": 8, "turn": "8.1"},
    }


@pytest.mark.parametrize(
    "text", ["one\u2028line", "one\u2029line", "one\x85line", "one\rline\n", "\x0b\x0c\x1c\x1d\x1e", "é😀"]
)
@pytest.mark.parametrize("each", [LONG, SHORT])
def test_no_text_breaks_a_line_for_whoever_splits_them(each: Form, text: str):
    """``str.splitlines`` takes more for the end of a line than JSON does, and is what examples of OpenAI's use."""
    for result in (completed(1, reply=text, custom_id=text), failed(1, error_message=text, custom_id=text)):
        (line,) = each.write(result).decode().splitlines()
        entry = json.loads(line)
        assert entry["custom_id"] == text
        assert text in json.dumps(entry, ensure_ascii=False) or json.dumps(text)[1:-1] in json.dumps(entry)


@given(
    st.integers(1, 10**9 - 1),
    st.tuples(st.integers(0, 10**18 - 1), st.integers(0, 10**9 - 1)),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_every_entry_says_which_line_and_turn_it_is_of(line: int, turn: tuple[int, int], text: str):
    turn_id = f"{turn[0]}.{turn[1]}"
    whole = completed(line, turn_id=turn_id, custom_id=text, reply=text)
    refused = failed(line, turn_id=turn_id, custom_id=text, error_message=text)
    bad = invalid(line, custom_id=text, error_message=text)
    assert LONG.read(LONG.write(whole)) == Entry(line, text, turn_id, True)
    assert SHORT.read(SHORT.write(whole)) == Entry(None, text, None, True)
    for each in (LONG, SHORT):
        assert each.read(each.write(refused)) == Entry(line, text, turn_id, False)
        assert each.read(each.write(bad)) == Entry(line, text, None, False)


@given(st.data())
def test_what_was_cut_off_anywhere_is_known_as_a_beginning(data: st.DataObject):
    text = data.draw(st.text(st.characters(exclude_categories=["Cs"])))
    for each in (LONG, SHORT):
        for result in (completed(5, custom_id=text, reply=text), failed(5, custom_id=text)):
            line = each.write(result)
            half = line[: data.draw(st.integers(1, len(line) - 2))]
            assert each.began(half)
            assert each.read(half) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null\n",
        b"[]\n",
        b"no JSON\n",
        b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}\n',
        b'{"custom_id":"a","session":"s","prompt":"p"}\n',
        LONG.write(completed(1)).replace(b"0123456789abcdef", b"fedcba9876543210"),
        LONG.write(completed(1)).replace(b'"error":null', b'"error":null,"more":1'),
        LONG.write(completed(1)).replace(b"_1_1-1", b"_0_1-1"),
        SHORT.write(failed(1)).replace(b'"line":1', b'"line":-1'),
    ],
)
def test_what_is_no_entry_of_the_batch_is_known(text: bytes):
    assert LONG.read(text) is None
    assert SHORT.read(text) is None


@pytest.mark.parametrize(
    "text", [b"prompt", b'{"custom_id": "a"', b'{"custom_id":"a","method"', b'{"id":"batch_req_00']
)
def test_what_is_no_beginning_of_an_entry_is_known(text: bytes):
    assert not LONG.began(text)
    assert not SHORT.began(text)


def test_a_batch_has_an_id_of_its_own_kind():
    with pytest.raises(InvalidInputError, match="'batch_123' is no ID of a batch"):
        form("batch_123", short=False)


def test_calls_of_tools_are_written_as_openai_does():
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    result = completed(1)._replace(reply="", finish_reason="tool_use", tool_calls=calls)
    (choice,) = said(LONG.write(result))["response"]["body"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    assert said(SHORT.write(result))["tool_calls"] == calls
    for each in LONG, SHORT:
        entry = each.read(each.write(result))
        assert entry is not None
        assert (entry.custom_id, entry.completed) == (result.custom_id, True)
