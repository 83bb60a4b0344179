"""A model that answers chat completions after a jittered wait and spends next to no CPU on it.

Run as a process of its own (``python -m ops.bench.model``), so that what it costs is in nobody's figure. It reads only
as much HTTP as httpx sends: a request line, headers with a Content-Length, a body of which only one thing matters:
whether it asks for a stream. Each delta of a stream is the time at which it was sent. ``GET /served`` says how many
completions were answered, ``GET /moments`` when each was asked for. It ends when its standard input does, so that it
cannot outlive the bench.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from array import array
from typing import cast

import uvloop

from ops.bench.workload import REPLY

BACKLOG = 4096  # a thousand slots connect at the same moment


def http_response(body: bytes) -> bytes:
    """The body as a whole keep-alive HTTP response."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


COMPLETION = http_response(
    json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1,
            "model": "bench",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": REPLY}, "finish_reason": "stop"},
            ],
            "usage": {"prompt_tokens": 60, "completion_tokens": 80, "total_tokens": 140},
        }
    ).encode()
)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b'{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench",'


def event(data: bytes) -> bytes:
    """A server-sent event as a chunk of HTTP."""
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data)


def delta(text: str) -> bytes:
    said = b'"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}'
    return event(CHUNK + said % text.encode())


STREAM_END = (
    event(CHUNK + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
    + event(CHUNK + b'"choices":[],"usage":{"prompt_tokens":60,"completion_tokens":200,"total_tokens":260}}')
    + event(b"[DONE]")
    + b"0\r\n\r\n"
)


class Latency:
    """Seconds to wait before each answer, uniform and the same again for the same seed."""

    def __init__(self, seed: int, low: float, high: float) -> None:
        self._random = random.Random(seed)
        self._low = low
        self._width = high - low

    def next(self) -> float:
        return self._low + self._width * self._random.random()


class Served:
    """How many completions were answered, and when each was asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.moments = array("d")


class Connection(asyncio.Protocol):
    """One keep-alive connection; a client sends its next request after it has read the answer."""

    def __init__(self, latency: Latency, served: Served, deltas: int, pace: float) -> None:
        self._latency = latency
        self._deltas, self._pace = deltas, pace
        self._served = served
        self._received = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or len(self._received) < end + 4 + content_length(self._received[:end]):
            return
        request, self._received = self._received, b""
        if request.startswith(b"GET /served"):
            self._transport.write(http_response(b'{"served": %d}' % self._served.count))
        elif request.startswith(b"GET /moments"):
            self._transport.write(http_response(json.dumps(self._served.moments.tolist()).encode()))
        else:
            self._served.moments.append(time.time())
            answer = self._stream if b'"stream":true' in request else self._answer
            self._loop.call_later(self._latency.next(), answer)

    def _stream(self) -> None:
        self._transport.write(STREAM_HEAD)
        self._next_delta(self._loop.time(), self._deltas)

    def _next_delta(self, due: float, left: int) -> None:
        if self._transport.is_closing():
            return
        if not left:
            self._served.count += 1
            self._transport.write(STREAM_END)
            return
        self._transport.write(delta(f"{time.time():.5f} "))
        self._loop.call_at(due + self._pace, self._next_delta, due + self._pace, left - 1)

    def _answer(self) -> None:
        self._served.count += 1
        if not self._transport.is_closing():
            self._transport.write(COMPLETION)


def content_length(head: bytes) -> int:
    """Bytes of body that the head of a request announces."""
    start = head.lower().find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    return int(head[start + 17 :].split(b"\r\n", 1)[0])


async def serve(seed: int, low: float, high: float, deltas: int, pace: float) -> None:
    """Serve on a free loopback port, print it, and go on until standard input ends."""
    loop = asyncio.get_running_loop()
    latency, served = Latency(seed, low, high), Served()
    server = await loop.create_server(
        lambda: Connection(latency, served, deltas, pace), "127.0.0.1", 0, backlog=BACKLOG
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--low", type=float, default=0.5, help="shortest latency in seconds")
    parser.add_argument("--high", type=float, default=1.5, help="longest latency in seconds")
    parser.add_argument("--deltas", type=int, default=200, help="of a stream")
    parser.add_argument("--pace", type=float, default=0.1, help="seconds between two of them")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.seed, arguments.low, arguments.high, arguments.deltas, arguments.pace))


if __name__ == "__main__":
    main()
