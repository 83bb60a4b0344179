"""Streamed replies of every type of provider, against a real server that misbehaves in the middle of them."""

import asyncio
import time
import tracemalloc
from itertools import pairwise

import pytest

from inturn.workers.provider import REPLY_LIMIT
from inturn.workers.providers import exchange
from inturn.workers.providers.exchange import STREAM_LIMIT
from ops.chaos.model import ModelServer
from tests.integration.asking import (
    MODEL,
    Asker,
    Config,
    ask,
    calls_of,
    ended,
    failure,
    failure_after,
    pieces,
    prompt,
    told,
    with_providers,
)

HALF = "reply to: Please "
"""What has come of a reply when its stream breaks off half way."""


@pytest.fixture(params=["openai", "anthropic"])
def config(server: ModelServer, request: pytest.FixtureRequest) -> Config:
    return Config(server.base_url, request.param, streams=True)


def test_a_reply_is_told_word_by_word(config: Config) -> None:
    assert pieces(config, prompt("Hello 東京 😀")) == [
        "reply ",
        "to: ",
        "Hello ",
        "東京 ",
        "😀 ",
        "(seen ",
        "1 ",
        "messages)",
    ]


def test_a_word_is_told_before_the_next_one_comes(config: Config) -> None:
    async def hear(asker: Asker) -> list[float]:
        times: list[float] = []
        await asker.providers.reply(MODEL, prompt(told(words=5, gap=0.2)), lambda piece: times.append(time.monotonic()))
        return times

    times = with_providers(config, hear)
    assert len(times) == 5
    assert all(0.1 < later - earlier < 1 for earlier, later in pairwise(times))


def test_who_does_not_stream_is_told_as_one(config: Config) -> None:
    assert pieces(config, prompt(told(act="whole_anyway"))) == [
        'reply to: Please !{"act": "whole_anyway"} (seen 1 messages)'
    ]


@pytest.mark.parametrize("act", ["drip_stream", "crlf", "tight", "talk_on", "no_end", "no_end_cut"])
def test_streams_of_other_kinds_are_understood(config: Config, act: str) -> None:
    reply = ask(config, prompt(f"東京 {told(act=act)}"))
    assert reply.content == f'reply to: 東京 Please !{{"act": "{act}"}} (seen 1 messages)'
    assert (reply.input_tokens, reply.output_tokens) == (1, 9)
    assert reply.request_id == "of-the-model-server"


@pytest.mark.parametrize(("act", "content"), [("split_bytes", "東京 😀 done"), ("split_pair", "be😀fore \ufffd")])
def test_what_is_split_is_joined(config: Config, act: str, content: str) -> None:
    assert ask(config, prompt(told(act=act))).content == content


def test_half_a_pair_is_not_told_before_the_other_half(config: Config) -> None:
    assert pieces(config, prompt(told(act="split_pair"))) == ["be", "😀fore", " ", "\ufffd"]


@pytest.mark.parametrize(("act", "most"), [("kept_open", 1.0), ("no_end_kept_open", 4.0)])
def test_a_reply_that_is_whole_waits_for_no_end(
    server: ModelServer, config: Config, key: str, act: str, most: float
) -> None:
    began = time.monotonic()
    reply = ask(config, prompt(told(act=act), key=key))
    assert time.monotonic() - began < most
    assert (reply.input_tokens, reply.output_tokens) == (1, 8)
    assert ended(server, key).outcome == "client gone"


def test_a_connection_whose_stream_ends_a_little_later_is_used_again(
    server: ModelServer, config: Config, key: str
) -> None:
    async def twice(asker: Asker) -> None:
        for _ in range(2):
            await asker.ask(prompt(told(words=2, gap=0.01), key=key))

    with_providers(config, twice)
    assert len({call.peer for call in calls_of(server, key)}) == 1


# How it goes wrong


@pytest.mark.parametrize(
    ("act", "error_type", "before"),
    [
        ("cut_stream", "truncated", HALF),
        ("half_stream", "truncated", HALF),
        ("garbage_half", "bad_reply", HALF),
        ("error_half", "overloaded", HALF),
        ("gzip_stream", "bad_reply", ""),
    ],
)
def test_a_stream_that_breaks_off_is_ambiguous(
    server: ModelServer, config: Config, key: str, act: str, error_type: str, before: str
) -> None:
    error, heard = failure_after(config, prompt(told(act=act), key=key))
    assert (error.kind, error.error_type) == ("ambiguous", error_type)
    assert error.message.startswith(MODEL)
    assert heard == before
    assert len(calls_of(server, key)) == 1


def test_an_error_before_any_text_is_safe_if_it_says_so(config: Config) -> None:
    error, heard = failure_after(config, prompt(told(act="error_first")))
    assert (error.kind, error.error_type, heard) == ("safe", "overloaded", "")
    assert "The model server was told to say no. Nothing was done" in error.message


def test_an_error_after_some_text_says_that_it_was_at_work(config: Config) -> None:
    assert "A part of the reply had come before" in failure(config, prompt(told(act="error_half"))).message
    permanent = failure(config, prompt(told(act="error_half", error="invalid_request_error")))
    assert (permanent.kind, permanent.error_type) == ("permanent", "invalid_request")


def test_a_stream_that_stops_without_ending_meets_the_deadline(server: ModelServer, config: Config, key: str) -> None:
    error, heard = failure_after(config, prompt(told(act="hang_stream"), key=key), deadline=0.6)
    assert (error.kind, error.error_type, heard) == ("ambiguous", "timeout", HALF)
    assert ended(server, key).outcome == "client gone"


def test_a_stream_that_is_cancelled_is_hung_up(server: ModelServer, config: Config, key: str) -> None:
    async def cancelled(asker: Asker) -> str:
        heard, half = [], asyncio.Event()

        def hear(piece: str) -> None:
            heard.append(piece)
            if "".join(heard) == HALF:
                half.set()

        call = asyncio.create_task(asker.providers.reply(MODEL, prompt(told(act="hang_stream"), key=key), hear))
        await half.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return (await asker.ask(prompt("And now?"))).content

    assert with_providers(config, cancelled) == "reply to: And now? (seen 1 messages)"
    assert ended(server, key).outcome == "client gone"


def test_a_model_that_declines_half_way_declines(config: Config) -> None:
    error, heard = failure_after(config, prompt(told(act="declined")))
    assert (error.kind, error.error_type) == ("permanent", "refusal")
    assert heard == ("" if config.type == "openai" else 'reply to: Please !{"act": "declined"} (seen 1 messages)')


# How much of it there may be


@pytest.mark.parametrize(
    ("act", "limit"),
    [("endless_event", STREAM_LIMIT), ("over_the_brim_stream", STREAM_LIMIT), ("endless_comments", 256 * 1024)],
)
def test_no_stream_is_kept_beyond_the_cap(
    server: ModelServer, config: Config, key: str, act: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "STREAM_LIMIT", limit)
    ask(config, prompt("Hello"))  # so that what is imported late is not counted
    tracemalloc.start()
    try:
        error = failure(config, prompt(told(act=act), key=key), deadline=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (error.kind, error.error_type) == ("permanent", "reply_too_large")
    assert peak < 4 * REPLY_LIMIT
    assert ended(server, key).end is not None


def test_a_streamed_reply_of_just_the_cap_is_kept(config: Config) -> None:
    assert ask(config, prompt(told(act="brimful_stream"))).content == "x" * REPLY_LIMIT


def test_hundreds_of_streams_are_told_apart(config: Config) -> None:
    async def all_of_them(asker: Asker) -> list[str]:
        async def one(number: int) -> str:
            heard: list[str] = []
            asked = prompt(f"{number} {told(gap=0.1)}", key=f"{number}")
            reply = await asker.providers.reply(MODEL, asked, heard.append)
            assert "".join(heard) == reply.content
            return reply.content.split()[2]

        return await asyncio.gather(*map(one, range(200)))

    assert with_providers(config, all_of_them, deadline=20) == [str(number) for number in range(200)]
