"""Every type of provider, whole and streamed, against a real HTTP server that misbehaves on request: what comes back,
and how it goes wrong. What only one type or only a stream can do, and how a call is refused, is in the files beside it.
"""

import asyncio
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from inturn.settings import Settings
from inturn.workers.provider import REPLY_LIMIT, Prompt, ProviderError, Providers
from inturn.workers.providers import BUILDERS
from ops.chaos.model import ModelServer
from tests.integration.asking import (
    KEY,
    MODEL,
    Asker,
    Config,
    ask,
    begun,
    calls_of,
    ended,
    failure,
    failure_after,
    prompt,
    told,
    with_providers,
)

# What is sent and what comes back


def test_a_prompt_is_posted_once_and_answered(server: ModelServer, config: Config, key: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How are you? 東京"},
    ]
    reply = ask(config, Prompt("", messages, {"temperature": 0.5}, f"{key}/1 ü"))
    assert reply.content == "reply to: How are you? 東京 (seen 4 messages)"
    assert (reply.input_tokens, reply.output_tokens) == (4, 9)
    [call] = calls_of(server, f"{key}%2F1%20%C3%BC")
    assert reply.request_id == f"req-{call.number}"
    assert (call.model, call.prompt) == ("gpt-test", "How are you? 東京")
    assert call.path == {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[config.type]
    assert call.key_header == {"openai": "authorization", "anthropic": "x-api-key"}[config.type]
    assert call.options["temperature"] == 0.5
    assert call.options.get("stream", False) is config.streams
    assert call.headers["content-type"] == "application/json"
    assert call.headers["user-agent"] == "inturn"
    assert call.headers["accept-encoding"] == ("identity" if config.streams else "gzip")


def test_a_prompt_has_the_last_word_on_options(server: ModelServer, config: Config, key: str) -> None:
    configured = replace(config, options={"seed": 1, "max_tokens": 7, "stop": ["."]}, headers={"X-Team": "blue"})
    ask(configured, prompt("Hello", key=key, seed=2))
    [call] = calls_of(server, key)
    assert {"seed": 2, "max_tokens": 7, "stop": ["."]}.items() <= call.options.items()
    assert call.headers["x-team"] == "blue"


def test_the_key_is_presented(config: Config) -> None:
    with ModelServer(key=KEY) as guarded:
        config = replace(config, base_url=guarded.base_url)
        for good in config, replace(config, key=f" {KEY}\n"), replace(config, api_key_header="Api-Key"):
            assert ask(good, prompt("Hello")).content.startswith("reply to: Hello")
        assert [call.key_header for call in guarded.calls()][2] == "api-key"
        assert "authorization" not in guarded.calls()[2].headers
        error = failure(replace(config, key="another-one"), prompt("Hello"))
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "unauthorized", 401)
    assert "provided: [key]." in error.message
    assert "KEY_OF_THE_TESTS" in error.message


def test_a_server_that_wants_no_key_is_shown_none(config: Config) -> None:
    open_house = replace(config, key="", api_key_env="")
    error = failure(open_house, prompt(told(status=401, say="key")))
    assert "Incorrect API key provided: . You can" in error.message


@pytest.mark.parametrize(
    ("act", "content"),
    [
        ("compressed", 'reply to: Please !{"act": "compressed"} (seen 1 messages)'),
        ("whole_anyway", 'reply to: Please !{"act": "whole_anyway"} (seen 1 messages)'),
        ("cut_short", 'reply to: Please !{"act": "cut_short"} (seen 1 messages)'),
        ("nul", "be\ufffdfore"),
        ("surrogate", "be\ufffdfore 😀"),
    ],
)
def test_every_text_arrives_and_can_be_stored(config: Config, act: str, content: str) -> None:
    assert ask(config, prompt(told(act=act))).content == content


def test_figures_that_are_none_are_left_out(config: Config) -> None:
    reply = ask(config, prompt(told(act="odd_usage")))
    assert (reply.input_tokens, reply.output_tokens, reply.request_id) == (None, None, "a b")
    reply = ask(config, prompt(told(act="no_usage")))
    assert (reply.input_tokens, reply.output_tokens) == (None, None)


@pytest.mark.parametrize(("vendor", "base"), [("openai", "/v1"), ("anthropic", ""), ("anthropic", "/v1/")])
def test_the_settings_own_providers_answer(
    server: ModelServer, vendor: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{vendor.upper()}_API_KEY", KEY)
    monkeypatch.setenv(f"{vendor.upper()}_BASE_URL", server.base_url.removesuffix("/v1") + base)

    async def both() -> list[str]:
        providers = Providers(Settings.load().available_providers, BUILDERS, deadline_seconds=5)
        replies = [await providers.reply(model, prompt("Hello")) for model in (f"{vendor}/m", "echo/echo")]
        await providers.aclose()
        return [reply.content for reply in replies]

    theirs, echo = asyncio.run(both())
    assert theirs.startswith("reply to: Hello")
    assert echo.startswith('You said: "Hello"')


def test_a_model_has_other_names(server: ModelServer, config: Config, key: str) -> None:
    aliased = replace(config, models={"best": "gpt-test-2030-01-01", "gpt-test": "other"})
    ask(aliased, prompt("Hello", key=key), model="local/best")
    ask(aliased, prompt("Hello", key=key), model="local/unnamed")
    assert [call.model for call in calls_of(server, key)] == ["gpt-test-2030-01-01", "unnamed"]


# How it goes wrong half way


@pytest.mark.parametrize(
    ("act", "error_type", "status_code"),
    [
        ("close", "disconnected", None),
        ("reset", "disconnected", None),
        ("cut_body", "truncated", None),
        ("cut_chunk", "truncated", None),
        ("cut_gzip", "truncated", None),
        ("reset_body", "truncated", None),
        ("not_http", "bad_reply", None),
        ("false_gzip", "bad_reply", None),
        ("brotli", "bad_reply", None),
        ("gzip_tail", "bad_reply", None),
        ("garbage", "bad_reply", 200),
        ("html", "bad_reply", 200),
        ("empty", "bad_reply", 200),
        ("hollow", "bad_reply", 200),
        ("null_content", "bad_reply", 200),
        ("empty_content", "bad_reply", 200),
        ("cut_silent", "bad_reply", 200),
        ("wrong_types", "bad_reply", 200),
    ],
)
def test_what_may_have_been_paid_for_is_ambiguous(
    server: ModelServer, config: Config, key: str, act: str, error_type: str, status_code: int | None
) -> None:
    error, before = failure_after(config, prompt(told(act=act), key=key))
    assert (error.kind, error.error_type, error.status_code) == ("ambiguous", error_type, status_code)
    assert error.message.startswith(MODEL)
    assert before == ""
    assert len(calls_of(server, key)) == 1


def test_who_thought_for_as_long_as_it_was_allowed_needs_more(config: Config) -> None:
    assert "Raise max_tokens" in failure(config, prompt(told(act="cut_silent"))).message


def test_a_model_that_declines_declines_again(config: Config) -> None:
    error = failure(config, prompt(told(act="declined")))
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "refusal", 200)
    assert error.message.startswith(f"{MODEL} refused to answer (status 200). ")


def test_a_filter_that_stopped_a_reply_stops_it_again(config: Config) -> None:
    error = failure(config, prompt(told(act="filtered")))
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "content_filter", 200)
    assert error.message.startswith(f"{MODEL} was stopped by the provider's content filter (status 200). ")


@pytest.mark.parametrize(("act", "words"), [("declined", 8), ("filtered", 8), ("cut_silent", 0)])
def test_a_call_that_failed_was_paid_for_all_the_same(config: Config, act: str, words: int) -> None:
    error = failure(config, prompt(told(act=act)))
    assert (error.input_tokens, error.output_tokens) == (1, words)


def test_a_call_that_failed_without_figures_has_none(config: Config) -> None:
    error = failure(config, prompt(told(status=500)))
    assert (error.input_tokens, error.output_tokens) == (None, None)


@pytest.mark.parametrize(
    ("directive", "status", "remedy"),
    [
        ({"status": 401}, 401, "Check the key in KEY_OF_THE_TESTS"),
        ({"status": 404}, 404, "Check the model's name and the base_url of provider local"),
        ({"status": 400}, 400, "Check the options of the session"),
        ({"status": 429}, 429, "check the quota if this lasts"),
        ({"act": "html"}, 200, "Check the base_url of provider local"),
        ({"act": "garbage"}, 200, "Check the base_url of provider local"),
        ({"act": "hollow"}, 200, "Check the options of the session"),
        ({"act": "cut_silent"}, 200, "Raise max_tokens"),
        ({"act": "declined"}, 200, "change the prompt"),
        ({"act": "filtered"}, 200, "change the prompt"),
        ({"act": "redirect"}, 307, "give provider local the final base_url"),
        ({"act": "too_long", "who": "openai"}, 400, 'or set overflow="summarise"'),
        ({"act": "close"}, None, "Does it restart"),
        ({"act": "cut_body"}, None, "Is there a proxy"),
        ({"act": "not_http"}, None, "Check the provider's base_url"),
        ({"act": "over_the_brim"}, None, "limit max_tokens"),
    ],
)
def test_every_failure_names_the_model_the_status_and_what_to_do(
    config: Config, directive: dict[str, Any], status: int | None, remedy: str
) -> None:
    message = failure(config, prompt(told(**directive))).message
    assert message.startswith(MODEL)
    assert status is None or str(status) in message
    assert remedy in message


@pytest.mark.parametrize(
    ("word", "kind", "error_type", "status_code"),
    [
        ("overloaded_error", "safe", "overloaded", 529),
        ("rate_limit_error", "safe", "rate_limited", 429),
        ("503", "safe", "unavailable", 503),
        ("server_error", "ambiguous", "http_500", 500),
        ("invalid_request_error", "permanent", "invalid_request", 400),
        ("something_new", "ambiguous", "error_in_reply", None),
    ],
)
def test_an_error_in_place_of_a_reply_is_told_by_its_word(
    config: Config, word: str, kind: str, error_type: str, status_code: int | None
) -> None:
    error = failure(config, prompt(told(act="error_inside", error=word)))
    assert (error.kind, error.error_type, error.status_code) == (kind, error_type, status_code)
    assert error.message.startswith(
        f"{MODEL} answered 200 and broke off with an error: The model server was told to say no. "
    )


def test_a_length_that_is_too_short_spoils_neither_this_reply_nor_the_next(config: Config) -> None:
    async def one_after_the_other(asker: Asker) -> str:
        with pytest.raises(ProviderError) as caught:
            await asker.ask(prompt(told(act="short_length")))
        assert (caught.value.kind, caught.value.error_type) == ("ambiguous", "bad_reply")
        return (await asker.ask(prompt("And now?"))).content

    assert with_providers(config, one_after_the_other) == "reply to: And now? (seen 1 messages)"


@pytest.mark.parametrize("act", ["hang", "drip_headers", "drip_body"])
def test_the_deadline_is_for_the_whole_reply(server: ModelServer, config: Config, key: str, act: str) -> None:
    began = time.monotonic()
    error = failure(config, prompt(told(act=act), key=key), deadline=0.6)
    assert 0.6 <= time.monotonic() - began < 2
    assert (error.kind, error.error_type, error.status_code) == ("ambiguous", "timeout", None)
    assert f"{MODEL} gave no whole reply within 0.6 s" in error.message
    assert ended(server, key).outcome == "client gone"


def test_a_provider_may_have_a_deadline_of_its_own(config: Config) -> None:
    error = failure(replace(config, deadline_seconds=0.3), prompt(told(act="hang")), deadline=60)
    assert "within 0.3 s" in error.message


def test_a_cancelled_call_is_hung_up(server: ModelServer, config: Config, key: str) -> None:
    async def cancelled(asker: Asker) -> str:
        call = asyncio.create_task(asker.ask(prompt(told(act="hang"), key=key)))
        await begun(server, key)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return (await asker.ask(prompt("And now?"))).content

    assert with_providers(config, cancelled) == "reply to: And now? (seen 1 messages)"
    assert ended(server, key).outcome == "client gone"


@pytest.mark.parametrize(
    ("act", "error_type"),
    [
        ("huge", "reply_too_large"),
        ("gzip_bomb", "reply_too_large"),
        ("over_the_brim", "reply_too_large"),
        ("bomb_refusal", "http_500"),
    ],
)
def test_what_is_over_the_cap_is_not_read_to_its_end(
    server: ModelServer, config: Config, key: str, act: str, error_type: str
) -> None:
    ask(config, prompt("Hello"))  # so that what is imported late is not counted
    tracemalloc.start()
    try:
        error = failure(config, prompt(told(act=act), key=key), deadline=20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.error_type == error_type
    assert error.kind == ("permanent" if error_type == "reply_too_large" else "ambiguous")
    assert peak < 3 * REPLY_LIMIT
    if act == "huge":
        assert ended(server, key).outcome == "client gone"


def test_a_reply_of_just_the_cap_is_kept(config: Config) -> None:
    assert ask(config, prompt(told(act="brimful"))).content.startswith("reply to: Please")
