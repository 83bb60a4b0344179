"""The provider that needs nothing: what it remembers, and how it can be made to misbehave."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from inturn.workers.provider import Prompt, ProviderError, Reply
from inturn.workers.providers import Echo
from inturn.workers.providers import echo as echo_module

GENERICS = "Let's discuss TypeScript generics"


@dataclass(frozen=True)
class Config:
    type: str = "echo"
    base_url: str = ""
    api_key_env: str = ""
    api_key_header: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    deadline_seconds: float | None = None

    def api_key(self) -> None:
        return None


def conversation(*said: str) -> list[dict[str, str]]:
    """User messages, each but the last answered."""
    messages = [{"role": "system", "content": "Be brief."}]
    for text in said:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": f"I see: {text}"}]
    return messages[:-1]


def reply(*said: str, key: str = "1.1", echo: Echo | None = None, **options: Any) -> Reply:
    prompt = Prompt("echo", conversation(*said), options, key)
    return asyncio.run((echo or Echo("echo", Config())).reply(prompt))


def failure(key: str = "1.1", echo: Echo | None = None, **options: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        reply("Hello", key=key, echo=echo, **options)
    return caught.value


def test_it_repeats_counts_and_says_what_it_is() -> None:
    assert reply("Hello").content == 'You said: "Hello"\nI remember your first message. (echo, not a real model)'
    third = reply("Hello", "How are you?", "Fine").content
    assert '"Fine"' in third
    assert "I remember 3 messages of yours" in third


def test_it_is_deterministic() -> None:
    assert reply("Hello", "again") == reply("Hello", "again")


@pytest.mark.parametrize(
    "question",
    [
        "What were we discussing?",
        "what did I say?",
        "Do you remember?",
        "Remind me, please",
        "Which things have we talked about?",
        "What is my name?",
        "what was the first thing I mentioned?",
    ],
)
def test_asked_back_it_answers_from_the_history(question: str) -> None:
    answer = reply(GENERICS, question).content
    assert GENERICS in answer
    assert question not in answer
    assert "not a real model" in answer


@pytest.mark.parametrize("text", [GENERICS, "What is a generic?", "Can we discuss generics?", "I remember Rome"])
def test_other_prompts_are_repeated(text: str) -> None:
    assert reply("Something else", text).content.startswith(f'You said: "{text}"')


def test_it_recalls_nothing_that_it_was_not_shown() -> None:
    assert reply("What were we discussing?").content.startswith("Nothing yet")


def test_questions_about_the_past_are_no_topics() -> None:
    answer = reply(GENERICS, "What were we discussing?", "And tuples", "What were we discussing?").content
    assert f'We were discussing: "{GENERICS}", then "And tuples".' in answer


def test_of_a_long_history_it_recalls_the_latest() -> None:
    answer = reply(*(f"topic {number}" for number in range(1, 21)), "What were we discussing?").content
    assert '"topic 20"' in answer
    assert '"topic 15"' not in answer
    assert "And 15 more before that." in answer


def test_a_long_prompt_is_quoted_in_part() -> None:
    assert len(reply("word " * 50_000).content) < 400


def test_a_prompt_of_many_questions_holds_nobody_up() -> None:
    began = time.monotonic()
    reply("what which " * 20_000)
    assert time.monotonic() - began < 1


def test_a_fixed_reply() -> None:
    assert reply("Hello", reply="42").content == "42"


def test_the_options_of_the_provider_hold_unless_the_prompt_has_its_own() -> None:
    echo = Echo("echo", Config(options={"reply": "configured"}))
    assert reply("Hello", echo=echo).content == "configured"
    assert reply("Hello", echo=echo, reply="asked for").content == "asked for"


def told(text: str, **options: Any) -> list[str]:
    """What it tells who reads along."""
    pieces: list[str] = []
    prompt = Prompt("echo", conversation("Hello"), {"reply": text} | options, "1.1")
    assert asyncio.run(Echo("echo", Config()).reply(prompt, pieces.append)).content == text
    return pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("two words", ["two ", "words"]),
        (" before\n\nafter\t", [" before\n\n", "after\t"]),
        (" \n ", [" \n "]),
        ("東京 😀", ["東京 ", "😀"]),
    ],
)
def test_it_is_told_word_by_word(text: str, pieces: list[str]) -> None:
    assert told(text) == pieces


def test_it_writes_at_a_pace_whether_somebody_reads_along_or_not() -> None:
    began = time.monotonic()
    told("one two three four", pace=0.05)
    assert 0.15 <= time.monotonic() - began < 1
    began = time.monotonic()
    reply("Hello", reply="one two three four", pace=0.05)
    assert 0.15 <= time.monotonic() - began < 1


def test_of_a_prompt_in_parts_it_repeats_the_texts() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "https://h/a.png"}}]
    prompt = Prompt("echo", [{"role": "user", "content": parts}], {}, "1.1")
    assert asyncio.run(Echo("echo", Config()).reply(prompt)).content.startswith('You said: "What is this?"\n')


def test_latency_is_waited_for() -> None:
    began = time.monotonic()
    reply("Hello", latency=0.15)
    assert 0.15 <= time.monotonic() - began < 1


def test_latency_is_drawn_from_the_key() -> None:
    drawn = [echo_module._seconds([0.5, 1.5], f"7.{number}") for number in range(200)]
    assert drawn == [echo_module._seconds([0.5, 1.5], f"7.{number}") for number in range(200)]
    assert all(0.5 <= seconds <= 1.5 for seconds in drawn)
    assert 0.9 < sum(drawn) / len(drawn) < 1.1


def test_thousands_wait_at_once() -> None:
    async def all_of_them() -> list[Reply]:
        echo = Echo("echo", Config())
        prompts = [Prompt("echo", conversation("Hello"), {"latency": 0.2}, f"1.{number}") for number in range(3000)]
        return await asyncio.gather(*(echo.reply(prompt) for prompt in prompts))

    began = time.monotonic()
    assert len(asyncio.run(all_of_them())) == 3000
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("fail", "kind", "status_code"),
    [
        ("rate_limited", "safe", 429),
        ("unavailable", "safe", 503),
        ("timeout", "ambiguous", None),
        ("disconnected", "ambiguous", None),
        ("invalid_request", "permanent", 400),
    ],
)
def test_it_fails_as_told(fail: str, kind: str, status_code: int | None) -> None:
    error = failure(fail=fail)
    assert (error.kind, error.error_type, error.status_code) == (kind, fail, status_code)
    assert error.message.startswith("echo/echo was asked to fail")


def test_fail_times_counts_by_turn() -> None:
    echo = Echo("echo", Config())
    options = {"fail": "unavailable", "fail_times": 2}
    failure("1.1", echo, **options)
    failure("1.1", echo, **options)
    failure("1.2", echo, **options)
    assert reply("Hello", key="1.1", echo=echo, **options).content.startswith("You said")
    failure("1.2", echo, **options)
    assert reply("Hello", key="1.2", echo=echo, **options).content.startswith("You said")


def test_the_memory_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_module, "_COUNTED_TURNS", 3)
    echo = Echo("echo", Config())
    for number in range(10):
        failure(f"1.{number}", echo, fail="timeout", fail_times=1)
    assert len(echo._failed) == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 1}, "'temperature'. It has latency, pace, fail, fail_times, reply"),
        ({"latency": -1}, "latency is -1"),
        ({"latency": "slow"}, "latency is 'slow'"),
        ({"latency": [2, 1]}, "latency is [2, 1]"),
        ({"latency": [1]}, "latency is [1]"),
        ({"latency": True}, "latency is True"),
        ({"latency": float("inf")}, "latency is inf"),
        ({"pace": -1}, "pace is -1"),
        ({"pace": [0, 1]}, "pace is [0, 1]"),
        ({"fail": "badly"}, "must be one of rate_limited"),
        ({"fail": ["timeout"]}, "must be one of rate_limited"),
        ({"fail_times": 1}, "together with fail"),
        ({"fail": "timeout", "fail_times": -1}, "fail_times is -1"),
        ({"fail": "timeout", "fail_times": "2"}, "fail_times is '2'"),
        ({"reply": ""}, "reply must be"),
        ({"reply": 7}, "reply must be"),
    ],
)
def test_an_option_that_it_does_not_have_is_named(options: dict[str, Any], named: str) -> None:
    error = failure(**options)
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert named in error.message
