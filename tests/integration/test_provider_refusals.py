"""Every type of provider, whole and streamed, that is told no: what kind of failure it is, and what may be said of it."""

import json
from typing import Any

import pytest

from inturn.workers.provider import Prompt
from ops.chaos.model import ModelServer
from tests.integration.asking import MODEL, Config, calls_of, failure, prompt, told


@pytest.mark.parametrize(
    ("status", "kind", "error_type"),
    [
        (301, "permanent", "redirect"),
        (400, "permanent", "invalid_request"),
        (401, "permanent", "unauthorized"),
        (402, "permanent", "http_402"),
        (403, "permanent", "forbidden"),
        (404, "permanent", "not_found"),
        (408, "ambiguous", "http_408"),
        (409, "ambiguous", "http_409"),
        (413, "permanent", "http_413"),
        (422, "permanent", "unprocessable"),
        (429, "safe", "rate_limited"),
        (500, "ambiguous", "http_500"),
        (502, "ambiguous", "http_502"),
        (503, "safe", "unavailable"),
        (504, "ambiguous", "http_504"),
        (529, "safe", "overloaded"),
    ],
)
def test_a_status_says_what_kind_of_failure_it_is(
    server: ModelServer, config: Config, key: str, status: int, kind: str, error_type: str
) -> None:
    error = failure(config, prompt(told(status=status), key=key))
    assert (error.kind, error.error_type, error.status_code) == (kind, error_type, status)
    assert error.message.startswith(f"{MODEL} answered {status}: The model server was told to say no. ")
    assert len(calls_of(server, key)) == 1


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({"retry_after": 7}, 7.0),
        ({"retry_after": 7, "retry_after_ms": 1500}, 1.5),
        ({"retry_after": "in a while"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_passed_on(config: Config, status: int, asked: dict[str, Any], seconds: float | None) -> None:
    assert failure(config, prompt(told(status=status, **asked))).retry_after == seconds


def test_a_date_to_retry_after_is_passed_on(config: Config) -> None:
    after = failure(config, prompt(told(status=429, retry_after={"in": 30}))).retry_after
    assert after is not None
    assert 28 <= after <= 31


@pytest.mark.parametrize("form", ["openai", "anthropic", "ollama", "message", "detail", "fastapi"])
def test_whoever_refuses_is_quoted(config: Config, form: str) -> None:
    assert ": The model server was told to say no. " in failure(config, prompt(told(status=400, form=form))).message


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ({"act": "html_refusal"}, "answered 502. It may have been at work"),
        ({"act": "text_refusal"}, "answered 404: no such model here. Check the model's name"),
        ({"status": 400, "form": "list"}, "answered 400. Check the options"),
        ({"status": 400, "say": "nothing"}, "answered 400. Check the options"),
    ],
)
def test_a_refusal_without_an_explanation_is_one_all_the_same(
    config: Config, directive: dict[str, Any], message: str
) -> None:
    assert f"{MODEL} {message}" in failure(config, prompt(told(**directive))).message


def test_a_refusal_that_never_ends_is_told_by_its_status(config: Config) -> None:
    error = failure(config, prompt(told(act="drip_refusal")), deadline=4)
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "invalid_request", 400)


@pytest.mark.parametrize("say", ["key", "masked_key"])
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_message_holds_a_key(config: Config, status: int, say: str) -> None:
    message = failure(config, prompt(told(status=status, say=say))).message
    assert "Incorrect API key provided: [key]" in message
    assert "0123456789" not in message
    assert "cdef" not in message


@pytest.mark.parametrize("say", ["prompt", "part_of_prompt"])
def test_no_message_holds_the_prompt(config: Config, say: str) -> None:
    secret = "The treasure lies under the old oak tree, three steps to the north"
    text = f"{secret} !{json.dumps({'status': 400, 'say': say})}"
    for content in text, [{"type": "text", "text": text}]:
        message = failure(config, Prompt("", [{"role": "user", "content": content}], {}, "1.1")).message
        assert "Invalid value: '[prompt]" in message
        assert "treasure" not in message


def test_no_message_moves_a_terminal(config: Config) -> None:
    assert ": red and turned round bold. " in failure(config, prompt(told(status=400, say="escapes"))).message


def test_no_message_is_long_whatever_the_model_is_called(config: Config) -> None:
    error = failure(config, prompt(told(status=400, say="long")), model=f"local/{'g' * 600}")
    assert error.message.endswith("...")


def test_a_long_explanation_is_cut(config: Config) -> None:
    message = failure(config, prompt(told(status=400, say="long"))).message
    assert "... Check the options of the session" in message


def test_a_redirect_is_not_followed(server: ModelServer, config: Config, key: str) -> None:
    error = failure(config, prompt(told(act="redirect"), key=key))
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "redirect", 307)
    assert "final base_url" in error.message
    assert "sk-secret" not in error.message
    assert len(calls_of(server, key)) == 1
