"""What a line of a batch says, in each of its forms, and what is wrong with it if it says nothing."""

import json
from typing import Any

import pytest

from inturn.intake.lines import CUSTOM_ID_LIMIT, MOST_LEVELS, checked_line, checked_text_line
from inturn.models.content import PARTS_LIMIT, PROMPT_LIMIT
from inturn.models.errors import UnknownModelError
from inturn.models.states import Role
from inturn.models.store.lines import BadLine, Line, Utterance

URL = "/v1/chat/completions"
USER = {"role": "user", "content": "Hello world!"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def check_model(model: str) -> str:
    """As a client does: a bare name is OpenAI's."""
    provider, slash, _ = model.partition("/")
    if slash and provider not in ("openai", "echo"):
        raise UnknownModelError(model, ["echo", "openai"])
    return model if slash else f"openai/{model}"


def read(written: Any, number: int = 7) -> Line | BadLine:
    return checked_line(number, written if isinstance(written, bytes) else json.dumps(written).encode(), check_model)


def line_of(written: Any) -> Line:
    line = read(written)
    assert isinstance(line, Line), line
    return line


def refused(written: Any) -> tuple[str, str]:
    """The code and the message of a line that has to be bad."""
    line = read(written)
    assert isinstance(line, BadLine), line
    assert line.line == 7
    return line.code, line.message


def chat(*messages: Any, **body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": URL, "body": {"model": "gpt-4", "messages": [*messages], **body}}


def test_a_line_of_the_documentation_of_openai() -> None:
    raw = (
        b'{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
        b'"gpt-3.5-turbo-0125", "messages": [{"role": "system", "content": "You are a helpful assistant."},{"role": '
        b'"user", "content": "Hello world!"}],"max_tokens": 1000}}\n'
    )
    assert read(raw) == Line(
        7,
        "request-1",
        "Hello world!",
        model="openai/gpt-3.5-turbo-0125",
        system="You are a helpful assistant.",
        options={"max_tokens": 1000},
    )


def test_a_prompt_alone_goes_by_its_number() -> None:
    assert read({"prompt": "Hi"}) == Line(7, "7", "Hi")


def test_the_short_form_in_full() -> None:
    written = {
        "custom_id": "review-1",
        "prompt": [{"type": "text", "text": "What is it?"}, IMAGE],
        "session": "user-1",
        "model": "echo/fast",
        "system": "Be brief.",
        "options": {"temperature": 0, "stop": ["\n"]},
        "labels": {"team": "legal"},
    }
    assert read(written) == Line(
        7,
        "review-1",
        "What is it?\n[image]",
        {"parts": written["prompt"]},
        session="user-1",
        model="echo/fast",
        system="Be brief.",
        options={"temperature": 0, "stop": ["\n"]},
        labels={"team": "legal"},
    )


def test_null_is_the_same_as_nothing() -> None:
    fields = ("custom_id", "session", "model", "system", "options", "labels")
    assert read({"prompt": "Hi", **dict.fromkeys(fields)}) == Line(7, "7", "Hi")


def test_messages_are_parted_around_the_last_one_of_the_user() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    line = line_of(
        chat(
            {"role": "system", "content": "One."},
            {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
            {"role": "user", "content": "First", "name": "ann"},
            {"role": "assistant", "content": "Reply", "refusal": None},
            {"role": "developer", "content": "In between"},
            {"role": "user", "content": [{"type": "text", "text": "See"}, IMAGE], "name": "bob"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
        )
    )
    assert line.system == "One.\n\nTwo."
    assert line.history == (
        Utterance(Role.USER, "First", {"name": "ann"}),
        Utterance(Role.ASSISTANT, "Reply"),
        Utterance(Role.SYSTEM, "In between"),
    )
    assert (line.prompt, line.data) == (
        "See\n[image]",
        {"name": "bob", "parts": [{"type": "text", "text": "See"}, IMAGE]},
    )
    assert line.follows == (
        Utterance(Role.ASSISTANT, "", {"tool_calls": [call]}),
        Utterance(Role.TOOL, "12:00", {"tool_call_id": "c1"}),
    )


def test_all_of_a_body_are_options_but_what_streams() -> None:
    options = {
        "temperature": 0.5,
        "max_tokens": 9,
        "n": 2,
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "time"}}],
    }
    line = line_of(chat(USER, stream=True, stream_options={"include_usage": True}, **options))
    assert line.options == options


def test_a_body_is_enough_for_openais_form() -> None:
    assert read({"body": {"messages": [USER]}}) == Line(7, "7", "Hello world!")


@pytest.mark.parametrize(
    ("raw", "prompt"),
    [
        (rb'{"prompt": "a\ud800b"}', "a�b"),
        (rb'{"prompt": "a\uDFFFb", "options": {"seed": 123456789012345678901234567890}}', "a�b"),
        (b'{"prompt": "a\\u0000b"}', "a�b"),
        ('{"prompt": "é😀"}'.encode(), "é😀"),
        (rb'{"prompt": "\ud83d\ude00"}', "😀"),
        (b' {"prompt": "a"} \r\n', "a"),
    ],
)
def test_what_no_database_takes_is_replaced(raw: bytes, prompt: str) -> None:
    assert line_of(raw).prompt == prompt


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"prompt": "a"', "the line is no JSON: unexpected end"),
        (b'{"prompt": "' + b"a" * 30 + b" the end\n", "unexpected end of data, at column 50 ('aaaaaaaaaaaa the end')"),
        (b"Summarise this", "--text"),
        (b'"Summarise this"', "the line is a string in JSON, not an object"),
        (b"[1]", "is a list in JSON"),
        (b"null", "is null in JSON"),
        (b'{"prompt": "a\xff"}', "byte 14 of the line, 0xff, is no UTF-8"),
        (b'\xff\xfe{\x00"\x00', "byte 1 of the line, 0xff, is no UTF-8"),
        (b'{"prompt": "a", "options": {"x": NaN}}', "NaN or Infinity, which JSON does not have"),
        (b'{"prompt": "a", "options": {"x": -Infinity}}', "NaN or Infinity, which JSON does not have"),
        (rb'{"prompt": "a\ud800", "options": {"x": NaN}}', "no JSON"),
        (rb'{"prompt": "a\ud800", "options": {"x": 1e999}}', "no JSON"),
        (b'{"prompt": "a"} {"prompt": "b"}', "unexpected content after document, at column 17"),
        (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "no JSON"),
    ],
)
def test_what_is_no_json_object(raw: bytes, says: str) -> None:
    code, message = refused(raw)
    assert code == "invalid_json_line"
    assert says in message


@pytest.mark.parametrize("raw", [b'{"prompt": "a"', b"{nope", b"a\0b"])
def test_what_is_no_plain_prompt_is_not_to_be_called_one(raw: bytes) -> None:
    assert "--text" not in refused(raw)[1]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({}, "there is no prompt"),
        ({"prompt": None}, "there is no prompt"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": []}, "prompt: the prompt is empty"),
        ({"prompt": [{"type": "text", "text": " "}]}, "prompt: the prompt is empty"),
        ({"url": URL}, "there is no body"),
        ({"body": {"model": "gpt-4"}}, "body.messages is missing or empty"),
        (chat(), "body.messages is missing or empty"),
        (chat({"role": "system", "content": "x"}), "no message of the role user"),
        (chat({"content": "x"}), "body.messages[0] has no role"),
        (chat(USER, {"role": "assistant"}), "body.messages[1].content is missing"),
        (chat(USER, {"role": "assistant", "content": None, "tool_calls": []}), "body.messages[1].content is missing"),
        (chat({"role": "user", "content": ""}), "body.messages[0].content is empty"),
    ],
)
def test_what_is_missing(written: dict[str, Any], says: str) -> None:
    code, message = refused(written)
    assert code == "missing_field"
    assert says in message


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"prompt": "a", "custom_id": 5}, "custom_id is 5: it is a string"),
        ({"prompt": "a", "custom_id": ""}, "custom_id is '': it is a string"),
        ({"prompt": "a", "custom_id": "x" * (CUSTOM_ID_LIMIT + 1)}, "has 513 characters, and 512 are the limit"),
        ({"prompt": "a", "custom_id": "a\0"}, "holds NUL"),
        ({"prompt": "a", "custom_id": "a\ud800"}, "half a surrogate pair"),
        ({"prompt": 5}, "prompt is 5: it is a text, or a list of parts"),
        ({"prompt": {"type": "text"}}, "it is a text, or a list of parts"),
        ({"prompt": ["a"]}, "it is a text, or a list of parts"),
        ({"prompt": "a", "model": 5}, "model is 5: it is a string"),
        ({"prompt": "a", "system": 5}, "system is 5"),
        ({"prompt": "a", "options": []}, "options are []: they are an object"),
        ({"prompt": "a", "labels": []}, "labels are []"),
        ({"prompt": "a", "labels": {"team": 5}}, "label 'team'=5"),
        ({"prompt": "a", "sesion": "s"}, "there is no field 'sesion': the nearest is 'session'"),
        ({"promt": "a"}, "the nearest is 'prompt'"),
        ({"prompt": "a", "messages": []}, "there is no field 'messages'"),
        ({"prompt": "a", "options": {"x": None}, "lables": {}}, "the nearest is 'labels'"),
        ({**chat(USER), "method": "GET"}, "method is 'GET'"),
        ({**chat(USER), "session": "s"}, "there is 'session' beside url, method or body"),
        ({**chat(USER), "body": []}, "body is a list"),
        ({"body": {"messages": {}}}, "body.messages is an object"),
        (chat("Hi"), "body.messages[0] is a string"),
        (chat({"role": "function", "content": "x"}, USER), "body.messages[0].role is 'function'"),
        (chat({"role": 5, "content": "x"}), "body.messages[0].role is 5"),
        (chat({"role": "user", "content": 5}), "body.messages[0].content is 5"),
        (chat({"role": "user", "content": "x", "parts": []}), "body.messages[0].parts"),
        (chat({"role": "system", "content": [{"type": "text", "text": "x"}, IMAGE]}, USER), "instructions are text"),
        (chat(USER, model=5), "body.model is 5"),
    ],
)
def test_what_is_not_as_it_should_be(written: dict[str, Any], says: str) -> None:
    code, message = refused(written)
    assert code == "invalid_field"
    assert says in message


@pytest.mark.parametrize("session", ["a b", "", "x" * 201, 5, {}])
def test_session_ids_are_checked(session: object) -> None:
    code, message = refused({"prompt": "a", "session": session})
    assert code == "invalid_session_id"
    assert "is no session ID" in message


def test_models_are_checked() -> None:
    assert line_of({"prompt": "a", "model": "gpt-4.1"}).model == "openai/gpt-4.1"
    for written in ({"prompt": "a", "model": "nobody/x"}, chat(USER, model="nobody/x")):
        code, message = refused(written)
        assert code == "unknown_model"
        assert "'nobody/x' cannot be used" in message


@pytest.mark.parametrize(
    "url", ["/v1/embeddings", "/v1/responses", "https://api.openai.com/v1/chat/completions", 5, None]
)
def test_other_calls_are_refused(url: object) -> None:
    code, message = refused({**chat(USER), "url": url})
    assert code == "url_mismatch"
    assert f"url is {url!r}" in message
    assert URL in message


@pytest.mark.parametrize(
    "written",
    [
        {"prompt": "x" * (PROMPT_LIMIT + 1)},
        {"prompt": "é" * (PROMPT_LIMIT // 2 + 1)},
        {"prompt": [{"type": "text", "text": "x" * (PROMPT_LIMIT + 1)}]},
        {"prompt": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x" * PARTS_LIMIT}}]},
        chat({"role": "user", "content": "x" * (PROMPT_LIMIT + 1)}),
        chat({"role": "assistant", "content": "x" * (PARTS_LIMIT + 1)}, USER),
        chat({"role": "assistant", "content": "é" * (PARTS_LIMIT // 2 + 1)}, USER),
    ],
    ids=range(7),
)
def test_what_is_too_large(written: dict[str, Any]) -> None:
    code, message = refused(written)
    assert code == "prompt_too_large"
    assert "limit" in message


def test_history_may_be_as_long_as_replies_are() -> None:
    line = line_of(chat({"role": "assistant", "content": "x" * (PROMPT_LIMIT + 1)}, {"role": "user", "content": "y"}))
    assert len(line.history[0].content) == PROMPT_LIMIT + 1


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_what_is_nested_too_deeply() -> None:
    assert line_of({"prompt": "a", "options": {"x": nested(MOST_LEVELS - 2)}})
    assert line_of({"prompt": "a", "options": {"x": [[] for _ in range(1_000)]}})
    code, message = refused({"prompt": "a", "options": {"x": nested(MOST_LEVELS - 1)}})
    assert code == "invalid_field"
    assert "more than 100 levels deep" in message


def test_a_bad_line_keeps_its_custom_id_if_it_has_one() -> None:
    assert [
        line.custom_id
        for line in map(read, ({"custom_id": "a"}, {"custom_id": 5, "prompt": "a"}, b"{", {"custom_id": "a", "url": 1}))
    ] == ["a", "7", "7", "a"]


def test_text_is_a_prompt_a_line() -> None:
    assert checked_text_line(7, b'  {"no": JSON}\r\n') == Line(7, "7", '  {"no": JSON}')
    bad = checked_text_line(7, b"caf\xe9\n")
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.code) == (7, "invalid_json_line")
    assert "byte 4 of the line, 0xe9, is no UTF-8" in bad.message
    large = checked_text_line(7, b"x" * (PROMPT_LIMIT + 1))
    assert isinstance(large, BadLine)
    assert large.code == "prompt_too_large"
