"""How the model server misbehaves: see ``model.py``. What is peculiar to streams is in ``streams.py``."""

import asyncio
import email.utils
import functools
import gzip
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from ops.chaos.wires import Said, Wire, dump

HUGE = 300 * 1024 * 1024
BRIM = 4 * 1024 * 1024
BLOCK = b"x" * 65536

SAYINGS: dict[str, str] = {
    "plain": "The model server was told to say no.",
    "key": "Incorrect API key provided: {key}. You can find your key on the keys page.",
    "masked_key": "Incorrect API key provided: sk-proj-****************cdef.",
    "prompt": "Invalid value: '{prompt}'. Expected something else.",
    "part_of_prompt": "Invalid value: '{prompt_start}...'. Expected something else.",
    "escapes": "\x1b[31mred\x1b[0m \x1b]0;title\x07and\u202e turned\r\nround\x00 \x9b1mbold",
    "long": "word " * 5000,
    "nothing": "",
    "no_images": "This model does not support image input.",
}
FORMS: dict[str, Callable[[str], Any]] = {
    "openai": lambda said: {"error": {"message": said, "type": "refused", "code": None}},
    "anthropic": lambda said: {"type": "error", "error": {"type": "refused", "message": said}},
    "ollama": lambda said: {"error": said},
    "message": lambda said: {"message": said},
    "detail": lambda said: {"detail": said},
    "fastapi": lambda said: {"detail": [{"loc": ["body"], "msg": said, "input": "the whole prompt"}]},
    "list": lambda said: [said],
}

Act = Callable[["Exchange"], Awaitable[web.StreamResponse]]


@dataclass
class Exchange:
    """One call under way, as an act sees it.

    Attributes:
        asked: the request's JSON.
        said: what would be replied.
    """

    request: web.Request
    wire: Wire
    asked: dict[str, Any]
    directive: dict[str, Any]
    said: Said

    @property
    def is_stream(self) -> bool:
        return bool(self.asked.get("stream"))

    @property
    def content_type(self) -> str:
        return "text/event-stream" if self.is_stream else "application/json"

    @property
    def events(self) -> list[bytes]:
        return self.wire.events(self.said, self.asked)

    @property
    def whole(self) -> bytes:
        """The reply in one, whatever was asked for."""
        return dump(self.wire.whole(self.said))

    @property
    def reply(self) -> bytes:
        """The reply as it was asked for."""
        return b"".join(self.events) if self.is_stream else self.whole

    def with_said(self, **changes: Any) -> web.Response:
        """The answer if something else were said."""
        other = replace(self, said=replace(self.said, **changes))
        return whole(other.reply, other.content_type)

    async def write(self, *blocks: bytes, every: float = 0) -> None:
        """Straight to the socket, past everything that would keep it correct HTTP."""
        assert self.request.transport is not None
        for block in blocks:
            self.request.transport.write(block)
            await asyncio.sleep(every)

    async def hang_up(self) -> web.StreamResponse:
        assert self.request.transport is not None
        self.request.transport.close()
        return await hang(self)


def dashed(headers: dict[str, Any]) -> dict[str, str]:
    return {name.replace("_", "-"): str(value) for name, value in headers.items()}


def head(status: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in dashed(headers).items())]
    return "\r\n".join([*lines, "", ""]).encode()


def whole(body: bytes, content_type: str = "application/json", **headers: str) -> web.Response:
    return web.Response(body=body, content_type=content_type, headers=dashed(headers))


async def hang(exchange: Exchange) -> web.StreamResponse:
    """Until the client hangs up, which cancels the handler."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def drip_headers(exchange: Exchange) -> web.StreamResponse:
    await exchange.write(b"HTTP/1.1 200 OK\r\n", *(b"x-%d: y\r\n" % number for number in range(9000)), every=0.05)
    return await hang(exchange)


async def drip_body(exchange: Exchange) -> web.StreamResponse:
    await exchange.write(head("200 OK", content_type=exchange.content_type, content_length=9000))
    await exchange.write(*(b" " for _ in range(9000)), every=0.05)
    return await hang(exchange)


async def drip_refusal(exchange: Exchange) -> web.StreamResponse:
    await exchange.write(head("400 Bad Request", content_type="application/json", content_length=9000))
    return await hang(exchange)


async def cut_body(exchange: Exchange) -> web.StreamResponse:
    reply = exchange.reply
    await exchange.write(head("200 OK", content_type=exchange.content_type, content_length=len(reply)), reply[:20])
    return await exchange.hang_up()


async def cut_chunk(exchange: Exchange) -> web.StreamResponse:
    begun = head("200 OK", content_type=exchange.content_type, transfer_encoding="chunked")
    await exchange.write(begun, b"ff\r\n", exchange.reply[:20])
    return await exchange.hang_up()


async def reset_body(exchange: Exchange) -> web.StreamResponse:
    await exchange.write(head("200 OK", content_type=exchange.content_type, content_length=9000), b"{", every=0.05)
    return await reset(exchange)


async def cut_gzip(exchange: Exchange) -> web.StreamResponse:
    return whole(gzip.compress(exchange.whole)[:-12], Content_Encoding="gzip")


async def close(exchange: Exchange) -> web.StreamResponse:
    return await exchange.hang_up()


async def reset(exchange: Exchange) -> web.StreamResponse:
    assert exchange.request.transport is not None
    plug = exchange.request.transport.get_extra_info("socket")
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.request.transport.abort()
    return await hang(exchange)


async def not_http(exchange: Exchange) -> web.StreamResponse:
    await exchange.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    return await exchange.hang_up()


async def garbage(exchange: Exchange) -> web.StreamResponse:
    rubbish = b'{"choices": [{"mess\xff'
    return whole(b"data: %s\n\n" % rubbish if exchange.is_stream else rubbish, exchange.content_type)


async def html(exchange: Exchange) -> web.StreamResponse:
    return whole(b"<html><body>Sign in to the network</body></html>", "text/html")


async def html_refusal(exchange: Exchange) -> web.StreamResponse:
    return web.Response(status=502, body=b"<html>Bad gateway</html>", content_type="text/html")


async def text_refusal(exchange: Exchange) -> web.StreamResponse:
    return web.Response(status=404, text="no such model here")


async def empty(exchange: Exchange) -> web.StreamResponse:
    return whole(b"")


async def hollow(exchange: Exchange) -> web.StreamResponse:
    """No choices, no blocks."""
    return whole(exchange.wire.hollow(exchange.said, is_stream=exchange.is_stream), exchange.content_type)


async def null_content(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(content=None)


async def empty_content(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(content="", pieces=("", ""))


async def wrong_types(exchange: Exchange) -> web.StreamResponse:
    return whole(exchange.wire.odd(is_stream=exchange.is_stream), exchange.content_type)


async def odd_usage(exchange: Exchange) -> web.StreamResponse:
    names = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
    return exchange.with_said(usage=dict(zip(names, ["many", 10**18] * 2, strict=True)), ident="a\x00b")


async def no_usage(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(usage={})


async def cut_short(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(stop="length")


async def cut_silent(exchange: Exchange) -> web.StreamResponse:
    """It thought for as long as it was allowed to."""
    return exchange.with_said(content=None, stop="length")


async def declined(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(stop="refusal")


async def filtered(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(stop="content_filter")


async def stopped(exchange: Exchange) -> web.StreamResponse:
    """For the reason that the directive's ``stop`` is."""
    return exchange.with_said(stop=exchange.directive["stop"])


async def error_inside(exchange: Exchange) -> web.StreamResponse:
    """A success with an error in it; the directive's ``error`` is its word."""
    error = exchange.wire.error(exchange.directive.get("error", "server_error"), SAYINGS["plain"])
    return whole(error if exchange.is_stream else error.partition(b"data: ")[2], exchange.content_type)


async def nul(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(content="be\x00fore")


async def surrogate(exchange: Exchange) -> web.StreamResponse:
    return exchange.with_said(content="be\ud800fore \U0001f600")


async def compressed(exchange: Exchange) -> web.StreamResponse:
    return whole(gzip.compress(exchange.whole), Content_Encoding="gzip")


async def false_gzip(exchange: Exchange) -> web.StreamResponse:
    return whole(exchange.whole, Content_Encoding="gzip")


async def brotli(exchange: Exchange) -> web.StreamResponse:
    return whole(b"\x0b\x02\x80hello\x03", Content_Encoding="br")


async def stream(exchange: Exchange, blocks: Callable[[], Any], **headers: str) -> web.StreamResponse:
    response = web.StreamResponse(headers=dashed(headers))
    await response.prepare(exchange.request)
    try:
        for block in blocks():
            await response.write(block)
    except ConnectionResetError:
        return await hang(exchange)
    return response


async def huge(exchange: Exchange) -> web.StreamResponse:
    def blocks() -> Any:
        yield b'{"choices": [{"message": {"content": "'
        for _ in range(HUGE // len(BLOCK)):
            yield BLOCK

    return await stream(exchange, blocks)


@functools.cache
def bomb() -> bytes:
    """Made once: meanwhile the server would see nobody come or go."""
    return gzip.compress(bytes(64 * 1024 * 1024))


async def gzip_bomb(exchange: Exchange) -> web.StreamResponse:
    """64 MiB in 64 KiB, which arrive together."""
    return whole(bomb(), Content_Encoding="gzip")


async def bomb_refusal(exchange: Exchange) -> web.StreamResponse:
    return web.Response(status=500, body=bomb(), headers={"Content-Encoding": "gzip"})


async def gzip_tail(exchange: Exchange) -> web.StreamResponse:
    def blocks() -> Any:
        yield gzip.compress(exchange.whole)
        for _ in range(HUGE // len(BLOCK)):
            yield BLOCK

    return await stream(exchange, blocks, Content_Encoding="gzip")


async def brimful(exchange: Exchange) -> web.StreamResponse:
    return whole(exchange.whole.ljust(BRIM))


async def over_the_brim(exchange: Exchange) -> web.StreamResponse:
    return whole(exchange.whole.ljust(BRIM + 1))


async def redirect(exchange: Exchange) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": f"http://{exchange.request.host}/elsewhere?key=sk-secret"})


async def short_length(exchange: Exchange) -> web.StreamResponse:
    """Says less than it sends: the rest lies in the connection when the next call takes it."""
    reply = exchange.whole
    await exchange.write(head("200 OK", content_type="application/json", content_length=len(reply) - 9) + reply)
    return await hang(exchange)


async def cookie(exchange: Exchange) -> web.StreamResponse:
    return whole(exchange.reply, exchange.content_type, Set_Cookie="session=of-somebody-else; Path=/")


async def close_soon(exchange: Exchange) -> web.StreamResponse:
    """Closes the connection as soon as it lies idle."""
    transport = exchange.request.transport
    assert transport is not None
    asyncio.get_running_loop().call_later(0.1, transport.close)
    return whole(exchange.reply, exchange.content_type)


async def whole_anyway(exchange: Exchange) -> web.StreamResponse:
    """There are servers that know no streams."""
    return whole(exchange.whole)


ACTS: dict[str, Act] = {
    act.__name__: act
    for act in (
        *(hang, drip_headers, drip_body, drip_refusal, cut_body, cut_chunk, reset_body, cut_gzip, close, reset),
        *(not_http, garbage, html, html_refusal, text_refusal, bomb_refusal, empty, hollow, null_content),
        *(
            empty_content,
            wrong_types,
            odd_usage,
            no_usage,
            cut_short,
            cut_silent,
            declined,
            filtered,
            stopped,
            error_inside,
        ),
        *(nul, surrogate, compressed, false_gzip, brotli, huge, gzip_bomb, gzip_tail, brimful, over_the_brim),
        *(redirect, short_length, cookie, close_soon, whole_anyway),
    )
}


def refusal(directive: dict[str, Any], wire: Wire, key: str, prompt: str) -> web.Response:
    said = SAYINGS[directive.get("say", "plain")]
    for name, value in (("{key}", key), ("{prompt}", prompt), ("{prompt_start}", prompt[:40])):
        said = said.replace(name, value)
    headers = {}
    after = directive.get("retry_after")
    if isinstance(after, dict):
        after = email.utils.formatdate(time.time() + after["in"], usegmt=True)
    if after is not None:
        headers["Retry-After"] = str(after)
    if "retry_after_ms" in directive:
        headers["Retry-After-Ms"] = str(directive["retry_after_ms"])
    body = json.dumps(FORMS[directive.get("form", wire.form)](said)).encode()
    return web.Response(status=directive["status"], body=body, content_type="application/json", headers=headers)
