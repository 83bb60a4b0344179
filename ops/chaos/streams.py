"""How the model server misbehaves in the middle of a stream: see ``model.py``."""

import asyncio
import gzip
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from aiohttp import web

from ops.chaos.acts import BLOCK, BRIM, HUGE, SAYINGS, Act, Exchange, hang, whole
from ops.chaos.wires import OpenAI, dump, event

GAP = 0.05


async def opened(exchange: Exchange, headers: dict[str, str] | None = None) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    response.content_type = "text/event-stream"
    await response.prepare(exchange.request)
    return response


async def pour(
    exchange: Exchange, events: Iterable[bytes], *, every: float = 0, headers: dict[str, str] | None = None
) -> web.StreamResponse:
    """A stream and its proper end, at once or with ``every`` seconds between its events."""
    response = await opened(exchange, headers)
    if not every:
        await response.write(b"".join(events))
        return response
    for one in events:
        await response.write(one)
        await asyncio.sleep(every)
    return response


def half(exchange: Exchange) -> list[bytes]:
    """With some of the text, and no end."""
    return exchange.events[: exchange.wire.lead + 3]


async def cut_stream(exchange: Exchange) -> web.StreamResponse:
    await pour(exchange, half(exchange))
    await asyncio.sleep(GAP)
    return await exchange.hang_up()


async def half_stream(exchange: Exchange) -> web.StreamResponse:
    """HTTP finds nothing wrong with it."""
    return await pour(exchange, half(exchange))


async def hang_stream(exchange: Exchange) -> web.StreamResponse:
    await pour(exchange, half(exchange))
    return await hang(exchange)


def error_of(exchange: Exchange) -> bytes:
    return exchange.wire.error(exchange.directive.get("error", "overloaded_error"), SAYINGS["plain"])


async def error_half(exchange: Exchange) -> web.StreamResponse:
    return await pour(exchange, [*half(exchange), error_of(exchange)])


async def error_first(exchange: Exchange) -> web.StreamResponse:
    """Before any text."""
    return await pour(exchange, [*exchange.events[: exchange.wire.lead], error_of(exchange)])


async def garbage_half(exchange: Exchange) -> web.StreamResponse:
    return await pour(exchange, [*half(exchange), event(b'{"cho\xff'), *exchange.events])


async def endless_event(exchange: Exchange) -> web.StreamResponse:
    return await flood(exchange, b"data: ", BLOCK)


async def endless_comments(exchange: Exchange) -> web.StreamResponse:
    """Events without end that say nothing."""
    return await flood(exchange, b"", (b": still here\n\n" + event({"type": "ping", "choices": []})) * 1000)


async def flood(exchange: Exchange, first: bytes, block: bytes) -> web.StreamResponse:
    try:
        response = await opened(exchange)
        await response.write(first)
        for _ in range(HUGE // len(block)):
            await response.write(block)
    except ConnectionResetError:
        return await hang(exchange)
    return response


async def gzip_stream(exchange: Exchange) -> web.StreamResponse:
    return whole(gzip.compress(exchange.reply), exchange.content_type, Content_Encoding="gzip")


def saying(exchange: Exchange, *pieces: str) -> list[bytes]:
    said = replace(exchange.said, content="".join(pieces), pieces=pieces)
    return exchange.wire.events(said, exchange.asked)


async def split_pair(exchange: Exchange) -> web.StreamResponse:
    """The first half of a surrogate pair in one event, the other in the next; then a half that stays alone."""
    return await pour(exchange, saying(exchange, "be\ud83d", "\ude00fore", " \ud83d"), every=GAP)


async def split_bytes(exchange: Exchange) -> web.StreamResponse:
    """Three bytes at a time: no piece is a whole character, line or event."""
    body = b"".join(saying(exchange, "東京 😀", " done"))
    return await pour(exchange, [body[start : start + 3] for start in range(0, len(body), 3)], every=0.001)


async def drip_stream(exchange: Exchange) -> web.StreamResponse:
    return await pour(exchange, exchange.events, every=GAP)


async def kept_open(exchange: Exchange) -> web.StreamResponse:
    await pour(exchange, exchange.events)
    return await hang(exchange)


def ended(exchange: Exchange) -> list[bytes]:
    """All but the very last event."""
    return exchange.events[:-1]


async def no_end(exchange: Exchange) -> web.StreamResponse:
    """The reason for stopping came, and nothing behind it."""
    return await pour(exchange, ended(exchange))


async def no_end_cut(exchange: Exchange) -> web.StreamResponse:
    await pour(exchange, ended(exchange))
    await asyncio.sleep(GAP)
    return await exchange.hang_up()


async def no_end_kept_open(exchange: Exchange) -> web.StreamResponse:
    await pour(exchange, ended(exchange))
    return await hang(exchange)


async def talk_on(exchange: Exchange) -> web.StreamResponse:
    """The end, and then more."""
    return await pour(exchange, [*exchange.events, *saying(exchange, "and another thing")])


async def crlf(exchange: Exchange) -> web.StreamResponse:
    """Line ends of another kind, comments, and fields that mean nothing here."""
    events = [b": keep-alive\n\nid: 7\nretry: 10\n\n"]
    for one in exchange.events:
        events += [one, b": OPENROUTER PROCESSING\n\n"]
    return await pour(exchange, [b"".join(events).replace(b"\n", b"\r\n")])


async def tight(exchange: Exchange) -> web.StreamResponse:
    """Without the blank after the colon, and with a charset."""
    body = b"".join(exchange.events).replace(b"data: ", b"data:").replace(b"event: ", b"event:")
    return web.Response(body=body, headers={"Content-Type": "Text/Event-Stream; charset=latin-1"})


async def usage_with_last_choice(exchange: Exchange) -> web.StreamResponse:
    """And the figures so far with every chunk before it, as vLLM can."""
    assert isinstance(exchange.wire, OpenAI)
    cached_figures = figures(7, 5) | {"prompt_tokens_details": {"cached_tokens": 4}}
    chunks: list[dict[str, Any]] = [
        {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hello"}}], "usage": figures(7, 1)},
        {"id": "c", "choices": [{"index": 1, "delta": {"content": "other"}}], "usage": None},
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": cached_figures},
        {"id": "c", "choices": [], "usage": None},
    ]
    return await pour(exchange, [*map(event, chunks), exchange.wire.done])


def figures(prompt: int, reply: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


async def brimful_call(exchange: Exchange) -> web.StreamResponse:
    """Arguments of more than the cap, for the first call."""
    long = replace(exchange.said.calls[0], arguments='{"a": "' + "x" * BRIM + '"}', piece=65536)
    return exchange.with_said(calls=(long,))


async def pour_calls(exchange: Exchange, *fragments: dict[str, Any]) -> web.StreamResponse:
    assert isinstance(exchange.wire, OpenAI)
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [one]}}]} for one in fragments]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    return await pour(exchange, [*map(event, [*chunks, last]), exchange.wire.done])


async def calls_without_index(exchange: Exchange) -> web.StreamResponse:
    function = {"arguments": '{"a'}
    return await pour_calls(
        exchange,
        {"id": "a", "function": {"name": "add", "arguments": ""}},
        {"function": function},
        {"id": "a", "function": {"arguments": '":2}'}},
        {"id": "b", "function": {"name": "now"}},
    )


async def calls_of_one_index(exchange: Exchange) -> web.StreamResponse:
    """As some have it who send each call whole."""
    return await pour_calls(
        exchange,
        {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"a":2}'}},
        {"index": 0, "id": "b", "function": {"name": "now", "arguments": ""}},
    )


async def calls_as_objects(exchange: Exchange) -> web.StreamResponse:
    return await pour_calls(
        exchange,
        {"index": 0, "id": "a", "function": {"name": "add", "arguments": {"a": 2}}},
        {"index": 1, "id": "b", "function": {"name": "now", "arguments": None}},
    )


async def brimful_stream(exchange: Exchange) -> web.StreamResponse:
    """A reply of just the cap."""
    return await pour(exchange, saying(exchange, *["x" * 65536] * (BRIM // 65536)))


async def over_the_brim_stream(exchange: Exchange) -> web.StreamResponse:
    return await pour(exchange, saying(exchange, *["x" * 65536] * (BRIM // 65536), "y"))


async def streams_anyway(exchange: Exchange) -> web.StreamResponse:
    """A stream for who asked for none."""
    return await pour(exchange, exchange.wire.events(exchange.said, exchange.asked))


async def cached(exchange: Exchange) -> web.StreamResponse:
    """Messages' figures where a part of the prompt came out of a cache."""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 7, "output_tokens": 2}
    return exchange.with_said(usage=usage)


async def parts(exchange: Exchange) -> web.StreamResponse:
    """A content in parts, as Mistral's thinking models have it."""
    content = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
    whole_reply = exchange.wire.whole(exchange.said)
    whole_reply["choices"][0]["message"]["content"] = content
    return whole(dump(whole_reply))


ACTS: dict[str, Act] = {
    act.__name__: act
    for act in (
        *(cut_stream, half_stream, hang_stream, error_half, error_first, garbage_half, endless_event),
        *(endless_comments, gzip_stream, split_pair, split_bytes, drip_stream, kept_open, no_end, no_end_cut),
        *(no_end_kept_open, talk_on, crlf, tight, usage_with_last_choice, brimful_stream, over_the_brim_stream),
        *(streams_anyway, cached, parts, brimful_call, calls_without_index, calls_of_one_index, calls_as_objects),
    )
}
