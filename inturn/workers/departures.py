"""The moment in which a request has left and no answer was read: the fail-point ``call.after_send``.

Nothing here is at work unless that one is set. aiohttp says when it is about to write a body, not that it was written.
"""

import asyncio
from contextvars import ContextVar
from types import SimpleNamespace

import aiohttp
import httpx

from inturn.models.failpoints import is_set, reached

POINT = "call.after_send"

_left: ContextVar[asyncio.Event] = ContextVar("left")


def traces() -> list[aiohttp.TraceConfig] | None:
    """What aiohttp has to tell."""
    if not is_set(POINT):
        return None
    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(_leaving)
    return [trace]


async def _leaving(
    session: aiohttp.ClientSession, context: SimpleNamespace, chunk: aiohttp.TraceRequestChunkSentParams
) -> None:
    # The whole body is written in this very step of the loop, after this returns: in the next step it has left.
    asyncio.get_running_loop().call_soon(_left.get().set)


def watched(transport: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    """The transport as it is, or one that notices when a request has left."""
    return Departures(transport) if is_set(POINT) else transport


class Departures(httpx.AsyncBaseTransport):
    """Reaches the fail-point between a request and its answer."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        left = asyncio.Event()
        _left.set(left)
        answer = asyncio.create_task(self._transport.handle_async_request(request))
        leaving = asyncio.create_task(left.wait())
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if left.is_set():
                reached(POINT)
            return await answer
        finally:
            answer.cancel()
            leaving.cancel()

    async def aclose(self) -> None:
        await self._transport.aclose()
