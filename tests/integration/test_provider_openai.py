"""What is peculiar to chat completions, and to those who speak them each in their own way."""

from typing import Any

import pytest

from inturn.workers.provider import Prompt
from ops.chaos.model import ModelServer
from tests.integration.asking import Config, ask, calls_of, failure, prompt, told


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def config(server: ModelServer, request: pytest.FixtureRequest) -> Config:
    return Config(server.base_url, streams=request.param)


def test_what_is_sent_is_the_prompt_and_nothing_else(server: ModelServer, config: Config, key: str) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "user", "content": "Two"},
    ]
    ask(config, Prompt("", messages, {}, key))
    [call] = calls_of(server, key)
    assert call.messages == messages
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    assert call.options == (streamed if config.streams else {})


@pytest.mark.parametrize(
    ("asked", "sent"), [({"include_obfuscation": False}, {"include_obfuscation": False}), (False, None), ({}, None)]
)
def test_the_wish_for_figures_can_be_changed_or_taken_back(
    server: ModelServer, config: Config, key: str, asked: Any, sent: Any
) -> None:
    reply = ask(config, prompt("Hello", key=key, stream_options=asked))
    [call] = calls_of(server, key)
    assert call.options.get("stream_options") == (sent if config.streams else None)
    assert (reply.output_tokens is None) == config.streams


def test_parts_of_a_message_are_sent_as_they_are(server: ModelServer, config: Config, key: str) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
    ]
    reply = ask(config, Prompt("", [{"role": "user", "content": parts}], {}, key))
    assert reply.content == "reply to: What is this? (seen 1 messages)"
    [call] = calls_of(server, key)
    assert call.messages == [{"role": "user", "content": parts}]


def test_azure_is_asked_as_it_wants_to_be(server: ModelServer, config: Config, key: str) -> None:
    base = f"{server.base_url.removesuffix('/v1')}/openai/deployments/mine?api-version=2024-10-21"
    ask(Config(base, streams=config.streams, api_key_header="api-key"), prompt("Hello", key=key))
    [call] = calls_of(server, key)
    assert call.path == "/openai/deployments/mine/chat/completions?api-version=2024-10-21"
    assert call.key_header == "api-key"


def test_an_error_for_a_reason_to_stop_is_one(config: Config) -> None:
    error = failure(config, prompt(told(act="stopped", stop="error")))
    assert (error.kind, error.error_type) == ("ambiguous", "error_in_reply")


@pytest.mark.parametrize("stop", ["tool_calls", "something_new"])
def test_a_text_is_a_reply_whatever_it_stopped_for(config: Config, stop: str) -> None:
    assert ask(config, prompt(told(act="stopped", stop=stop))).content.startswith("reply to: Please")


def test_figures_may_come_with_the_last_choice_and_a_second_choice_is_nobodys(server: ModelServer) -> None:
    reply = ask(Config(server.base_url, streams=True), prompt(told(act="usage_with_last_choice")))
    assert (reply.content, reply.input_tokens, reply.output_tokens) == ("Hello", 7, 5)
    assert (reply.cache_read_tokens, reply.cache_write_tokens) == (4, 0)


def test_the_parts_of_a_reply_are_joined_and_thoughts_are_none_of_it(server: ModelServer) -> None:
    assert ask(Config(server.base_url), prompt(told(act="parts"))).content == "in parts"


def test_a_stream_that_nobody_asked_for_is_no_reply(server: ModelServer) -> None:
    error = failure(Config(server.base_url), prompt(told(act="streams_anyway")))
    assert (error.kind, error.error_type) == ("ambiguous", "bad_reply")
    assert "bytes of text/event-stream" in error.message
