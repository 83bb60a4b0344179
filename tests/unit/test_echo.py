"""The provider that needs nothing: what it remembers, and how it can be made to misbehave."""

import asyncio
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inturn.models.store.working import SUMMED_UP
from inturn.options import FAILURES, OPTIONS
from inturn.workers.provider import Prompt, ProviderError, Reply, ToolCall, ToolSpec
from inturn.workers.providers import Echo
from inturn.workers.providers import echo as echo_module

ROOT = Path(__file__).parents[2]

GENERICS = "Let's discuss TypeScript generics"


@dataclass(frozen=True)
class Config:
    type: str = "echo"
    base_url: str = ""
    api_key_env: str = ""
    api_key_header: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    deadline_seconds: float | None = None

    def api_key(self) -> None:
        return None

    def model_name(self, model: str) -> str:
        return model

    def context_tokens(self, model: str) -> int | None:
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


def test_it_speaks_of_what_it_was_shown_and_not_of_what_there_is() -> None:
    shown = "Nothing yet: I was shown no earlier message to speak of"
    assert reply("What were we discussing?").content == f"{shown}. (echo, not a real model)"
    assert reply("What were we discussing?", "What did I say?").content.startswith(shown)
    summary = {"role": "system", "content": f"{SUMMED_UP}\n\nThey spoke of Rome."}

    def behind_a_summary(*said: str) -> str:
        prompt = Prompt("echo", [summary, *conversation(*said)], {}, "1.1")
        return asyncio.run(Echo("echo", Config()).reply(prompt)).content

    assert behind_a_summary("What were we discussing?").startswith(f"{shown}, but a summary. (")
    assert "I remember 1 message of yours, and was shown a summary of what was before. (" in behind_a_summary("Hello")
    assert "I remember 2 messages of yours, and was shown a summary" in behind_a_summary("Hello", "And now?")


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
        ("context_length_exceeded", "permanent", 400),
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
        ({"temprature": 1}, "'temprature'. It has latency, pace, fail, fail_times, context, call, reply"),
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
        ({"context": 0}, "context is 0"),
        ({"context": True}, "context is True"),
        ({"call": []}, "call is []"),
        ({"call": [[]]}, "call is [[]]"),
        ({"call": "add"}, "call is 'add'"),
        ({"call": {"name": ""}}, "call is {'name': ''}"),
        ({"call": {"name": "add", "arguments": [1]}}, "call is {'name': 'add', 'arguments': [1]}"),
        ({"call": {"name": "add", "id": "x"}}, "call is {'name': 'add', 'id': 'x'}"),
        ({"call": {"name": "add"}}, "it is to call 'add', but no tools are offered. Give the session tools"),
        ({"reply": ""}, "reply must be"),
        ({"reply": 7}, "reply must be"),
    ],
)
def test_an_option_that_it_does_not_have_is_named(options: dict[str, Any], named: str) -> None:
    error = failure(**options)
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert named in error.message


# Tools


def tried(messages: list[dict[str, Any]], call: Any, **options: Any) -> Reply:
    """What it replies to who offers tools."""
    prompt = Prompt("echo", messages, {"call": call} | options, "1.1", (ToolSpec("add", "Adds.", {}),))
    pieces: list[str] = []
    reply = asyncio.run(Echo("echo", Config()).reply(prompt, pieces.append))
    assert "".join(pieces) == reply.content
    return reply


def after(messages: list[dict[str, Any]], reply: Reply, *said: str) -> list[dict[str, Any]]:
    """The messages with a round of tools behind them."""
    calls = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
        for one in reply.tool_calls
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": text} for call, text in zip(calls, said, strict=True)
    ]
    return [*messages, {"role": "assistant", "content": reply.content, "tool_calls": calls}, *results]


def test_it_calls_a_tool_and_says_what_it_said() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 2 + 3?"}]
    call = {"name": "add", "arguments": {"a": 2, "b": 3}}
    reply = tried(messages, call)
    assert (reply.content, reply.tool_calls) == ("", (ToolCall("call_0", "add", '{"a": 2, "b": 3}'),))
    assert (reply.input_tokens, reply.output_tokens) == (5, 4)
    answer = tried(after(messages, reply, "5"), call)
    assert answer.tool_calls == ()
    assert answer.content == (
        'You said: "What is 2 + 3?"\nThe tool add said: "5".\nI remember your first message. (echo, not a real model)'
    )
    assert answer.input_tokens == 5 + 4 + 1


def test_it_calls_tools_round_by_round_and_anew_for_every_prompt() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Go"}]
    call = [[{"name": "add", "arguments": "{broken"}, {"name": "now"}], {"name": "add"}]
    first = tried(messages, call)
    assert first.tool_calls == (ToolCall("call_0", "add", "{broken"), ToolCall("call_1", "now", "{}"))
    messages = after(messages, first, "no JSON", "noon")
    second = tried(messages, call)
    assert second.tool_calls == (ToolCall("call_2", "add", "{}"),)
    messages = after(messages, second, "0")
    answer = tried(messages, call).content
    assert 'add said: "no JSON".\nThe tool now said: "noon".\nThe tool add said: "0".\n' in answer
    again = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "Again"}]
    assert [one.id for one in tried(again, call).tool_calls] == ["call_3", "call_4"]
    assert "The tool" not in tried([*again[:-1], {"role": "user", "content": "Again"}], call, reply="Done").content


def test_its_tokens_are_words() -> None:
    answer = reply("one two three", reply="four five")
    assert (answer.input_tokens, answer.output_tokens) == (2 + 3, 2)


def test_it_refuses_to_be_shown_more_than_its_context() -> None:
    assert reply("one two three", context=5, reply="ok").content == "ok"
    error = failure(context=2)
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "context_length_exceeded", 400)
    assert error.message.startswith(
        "echo/echo was shown 3 words (status 400), and its option context is 2. Show it less"
    )


def test_its_options_and_failures_are_documented() -> None:
    docs, readme = ((ROOT / name).read_text() for name in ("docs/providers.md", "README.md"))
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", docs.partition("- **echo**")[2].partition("\n## ")[0], re.MULTILINE)
    assert tuple(name for name, _ in rows) == OPTIONS
    about = readme.partition("its options `latency`")[2].partition("```")[0]
    for named in dict(rows)["fail"], about:
        assert [word for word in re.findall(r"`(\w+)`", named) if word in FAILURES] == list(FAILURES)
    assert set(OPTIONS) - {"latency"} <= set(re.findall(r"`(\w+)`", about))
