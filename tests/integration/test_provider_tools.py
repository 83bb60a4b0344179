"""Tools, with every type of provider, whole and streamed: offered, called, and shown what they said.

The model server refuses calls and results that do not belong together, as OpenAI and Anthropic do.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from inturn.models.content import storable
from inturn.workers.provider import CALLS_LIMIT, Prompt, Reply, ToolCall
from ops.chaos.model import Call, ModelServer
from tests.integration.asking import ADD, MODEL, NOW, Config, ask, calls_of, failure, failure_after, prompt, told

SUM = {"name": "add", "arguments": {"a": 2, "b": 3}}


def offered(text: str, *, key: str = "1.1", **options: Any) -> Prompt:
    return replace(prompt(text, key=key, **options), tools=(ADD, NOW))


def after(asked: Prompt, reply: Reply, *said: Any) -> Prompt:
    """The prompt of the next round."""
    calls = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
        for one in reply.tool_calls
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": text} for call, text in zip(calls, said, strict=True)
    ]
    called = {"role": "assistant", "content": reply.content, "tool_calls": calls}
    return replace(asked, messages=[*asked.messages, called, *results])


def latest(server: ModelServer, key: str) -> Call:
    return calls_of(server, key)[-1]


def test_tools_are_offered_in_the_providers_own_form(server: ModelServer, config: Config, key: str) -> None:
    ask(config, offered("Hello", key=key))
    nothing = {"type": "object", "properties": {}}
    assert (
        latest(server, key).options["tools"]
        == {
            "openai": [
                {
                    "type": "function",
                    "function": {"name": "add", "description": "Adds two numbers.", "parameters": ADD.parameters},
                },
                {
                    "type": "function",
                    "function": {"name": "now", "description": "Says what time it is.", "parameters": nothing},
                },
            ],
            "anthropic": [
                {"name": "add", "description": "Adds two numbers.", "input_schema": ADD.parameters},
                {"name": "now", "description": "Says what time it is.", "input_schema": nothing},
            ],
        }[config.type]
    )


def test_a_tool_is_called(config: Config) -> None:
    reply = ask(config, offered(told(calls=[SUM])))
    [call] = reply.tool_calls
    assert (reply.content, call.id, call.name) == ("", "toolu_0_0", "add")
    assert call.arguments.replace(" ", "") == '{"a":2,"b":3}'
    assert reply.input_tokens == 1


def test_a_text_may_come_before_a_call(config: Config) -> None:
    reply = ask(config, offered(told(calls=[SUM], text="Let me see.")))
    assert (reply.content, len(reply.tool_calls)) == ("Let me see.", 1)


def test_what_tools_said_is_shown_round_after_round(server: ModelServer, config: Config, key: str) -> None:
    asked = offered(told(calls=[[SUM, {"name": "now"}], SUM]), key=key)
    first = ask(config, asked)
    assert [(call.id, call.name) for call in first.tool_calls] == [("toolu_0_0", "add"), ("toolu_0_1", "now")]
    assert first.tool_calls[1].arguments == "{}"
    asked = after(asked, first, "5", "")
    second = ask(config, asked)
    assert [call.id for call in second.tool_calls] == ["toolu_1_0"]
    asked = after(asked, second, [{"type": "text", "text": "five"}])
    reply = ask(config, asked)
    assert reply.tool_calls == ()
    assert reply.content.endswith("messages); a tool said: 5; a tool said: ; a tool said: five")
    if config.type == "anthropic":
        _, called, results, *_ = latest(server, key).messages
        assert called["content"] == [
            {"type": "tool_use", "id": "toolu_0_0", "name": "add", "input": {"a": 2, "b": 3}},
            {"type": "tool_use", "id": "toolu_0_1", "name": "now", "input": {}},
        ]
        assert results == {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_0_0", "content": "5"},
                {"type": "tool_result", "tool_use_id": "toolu_0_1"},
            ],
        }
    else:
        assert latest(server, key).messages == asked.messages


def test_the_next_prompt_comes_behind_what_tools_said(server: ModelServer, config: Config, key: str) -> None:
    asked = offered(told(calls=[SUM]), key=key)
    asked = after(asked, ask(config, asked), "5")
    ask(config, replace(asked, messages=[*asked.messages, {"role": "user", "content": "Well?"}]))
    messages = latest(server, key).messages
    if config.type == "anthropic":
        assert [part["type"] for part in messages[-1]["content"]] == ["tool_result", "text"]
    else:
        assert messages[-1] == {"role": "user", "content": "Well?"}


@pytest.mark.parametrize("arguments", ['{"a": 2, "b":', "two and three", '"text"'])
def test_arguments_that_are_no_json_are_handed_on_and_shown_as_what_they_are(
    server: ModelServer, config: Config, key: str, arguments: str
) -> None:
    asked = offered(told(calls=[{"name": "add", "arguments": arguments}]), key=key)
    reply = ask(config, asked)
    wanted = "text" if config.type == "anthropic" and not config.streams and arguments == '"text"' else arguments
    assert reply.tool_calls == (ToolCall("toolu_0_0", "add", wanted),)
    assert ask(config, after(asked, reply, "no JSON")).content.endswith("a tool said: no JSON")
    called = latest(server, key).messages[1]
    if config.type == "anthropic":
        assert called["content"][0]["input"] == {"INVALID_JSON": wanted}
    else:
        assert '"INVALID_JSON"' in called["tool_calls"][0]["function"]["arguments"]


def test_a_call_without_an_id_gets_one_that_is_free(config: Config) -> None:
    nameless = {"name": "now", "id": None}
    asked = offered(told(calls=[[nameless, nameless], nameless]))
    reply = ask(config, asked)
    assert [call.id for call in reply.tool_calls] == ["call_0", "call_1"]
    assert [call.id for call in ask(config, after(asked, reply, "a", "b")).tool_calls] == ["call_2"]


def test_two_calls_of_one_id_are_told_apart(config: Config) -> None:
    twin = {"name": "now", "id": "x"}
    assert [call.id for call in ask(config, offered(told(calls=[[twin, twin]]))).tool_calls] == ["x", "call_0"]


def test_a_call_of_nothing_is_no_reply(config: Config) -> None:
    error = failure(config, offered(told(calls=[{"name": ""}])))
    assert (error.kind, error.error_type) == ("ambiguous", "bad_reply")
    assert error.message.startswith(f"{MODEL} answered 200 and called a tool without naming it")
    assert error.input_tokens == 1


def test_a_model_that_calls_without_end_is_stopped(config: Config) -> None:
    most = [{"name": "now"}] * CALLS_LIMIT
    assert len(ask(config, offered(told(calls=[most]))).tool_calls) == CALLS_LIMIT
    error = failure(config, offered(told(calls=[[*most, SUM]])))
    assert (error.kind, error.error_type) == ("ambiguous", "bad_reply")
    assert f"more than {CALLS_LIMIT} tools at once" in error.message


def test_the_cap_holds_for_arguments(config: Config) -> None:
    error = failure(config, offered(told(act="brimful_call", calls=[SUM])), deadline=20)
    assert (error.kind, error.error_type) == ("permanent", "reply_too_large")


def test_arguments_can_be_stored(config: Config) -> None:
    asked = offered(told(calls=[{"name": "a\x00", "arguments": {"a": "\ud800"}, "id": "i"}]))
    reply = ask(config, asked)
    [call] = reply.tool_calls
    assert call.name == "a\ufffd"
    assert storable(call.arguments) == call.arguments
    assert ask(config, after(asked, reply, "ok")).content.endswith("a tool said: ok")


def test_a_call_that_was_cut_off_is_none(config: Config) -> None:
    act = "half_stream" if config.streams else "cut_body"
    error, before = failure_after(config, offered(told(act=act, calls=[SUM])))
    assert (error.kind, error.error_type, before) == ("ambiguous", "truncated", "")


def test_an_error_in_the_middle_of_a_call_is_ambiguous(config: Config) -> None:
    if config.streams:
        error = failure(config, offered(told(act="error_half", calls=[SUM])))
        assert (error.kind, error.error_type) == ("ambiguous", "overloaded")


def test_where_no_tools_were_offered_a_call_is_no_reply(config: Config) -> None:
    error = failure(config, prompt(told(calls=[SUM])))
    assert (error.kind, error.error_type) == ("ambiguous", "bad_reply")
    reply = ask(config, prompt(told(calls=[SUM], text="I would call.")))
    assert (reply.content, reply.tool_calls) == ("I would call.", ())


def test_calls_of_tools_that_an_option_offers_come_back(config: Config) -> None:
    reply = ask(config, prompt(told(calls=[SUM], text="I would call."), tools=[{"name": "raw"}]))
    assert reply.content == "I would call."
    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [("add", {"a": 2, "b": 3})]


def test_tools_are_offered_once(server: ModelServer, config: Config, key: str) -> None:
    error = failure(config, offered("Hello", key=key, tools=[{"name": "raw"}]))
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert "tools are offered twice" in error.message
    assert not calls_of(server, key)


def test_after_the_last_round_tools_are_not_offered_any_more(server: ModelServer, config: Config, key: str) -> None:
    asked = offered(told(calls=[SUM]), key=key)
    reply = ask(config, replace(after(asked, ask(config, asked), "5"), tools=()))
    assert reply.content.endswith("a tool said: 5")
    options = latest(server, key).options
    if config.type == "anthropic":  # which refuses calls in messages where no tools are named
        schema = {"type": "object", "properties": {}}
        assert options["tools"] == [{"name": "add", "description": "", "input_schema": schema}]
        assert options["tool_choice"] == {"type": "none"}
    else:
        assert "tools" not in options


def test_ids_of_other_providers_are_shown_to_anthropic_as_it_takes_them(server: ModelServer, key: str) -> None:
    asked = offered(told(calls=[{"name": "now", "id": "functions.now:0"}]), key=key)
    config = Config(server.base_url)
    asked = after(asked, ask(config, asked), "noon")
    ask(replace(config, type="anthropic"), asked)
    _, called, results = latest(server, key).messages
    assert called["content"][0]["id"] == results["content"][0]["tool_use_id"] == "functions_now_0"


@pytest.mark.parametrize("act", ["calls_without_index", "calls_of_one_index", "calls_as_objects"])
def test_calls_are_told_apart_however_a_stream_has_them(server: ModelServer, act: str) -> None:
    reply = ask(Config(server.base_url, streams=True), offered(told(act=act)))
    assert reply.tool_calls == (ToolCall("a", "add", '{"a":2}'), ToolCall("b", "now", "{}"))
