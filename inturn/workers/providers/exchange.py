"""One POST over HTTP, and what it means when it comes to nothing.

Whether a failure is safe to repeat hangs on one question: had the request left? The httpx transport's own exceptions
do not tell (refused, reset and hung up are all a ``ConnectTimeout``), but their causes do: aiohttp raises a
``ClientConnectorError`` for what went wrong before, and only for that.

No error is raised ``from`` aiohttp's: those carry the request's headers, and with them the key, in their ``repr``.

An answer is read whole, or event by event where the caller wants that and the server does it: some ignore the wish.
"""

import asyncio
import contextlib
import errno
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import aiohttp
import httpx
from httpx_sse import EventSource, ServerSentEvent

from inturn.workers.provider import REPLY_LIMIT, ProviderError, too_large
from inturn.workers.providers.transport import HTTP_TIMEOUTS

STREAM_LIMIT = 32 * REPLY_LIMIT
"""Bytes of a stream in all: each word comes in an envelope of some hundred bytes. None of them is kept."""
EVENTS = "text/event-stream"

_REFUSAL_LIMIT = 64 * 1024
_REFUSAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: ``body`` is decoded. Of one that is no success the body may be empty or cut short.

    Attributes:
        is_stream: it came event by event, and the body is empty.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_stream: bool = False


class Progress(Enum):
    """How far a reply in a stream has come; the value is for how many seconds more is waited for, from then on."""

    UNDER_WAY = None
    """The deadline around the call decides."""
    WHOLE = 2.0
    """All of its text is there, and figures may follow."""
    OVER = 0.05
    """Nothing follows but the end of the answer. It is worth a moment: the connection can be used again after it."""


OnEvent = Callable[[ServerSentEvent], Progress]
"""Told each event of a stream, also after its end; a ``ProviderError`` that it raises ends the call."""


async def post(
    transport: httpx.AsyncBaseTransport,
    url: httpx.URL,
    headers: dict[str, str],
    body: bytes,
    *,
    model: str,
    on_event: OnEvent | None = None,
) -> Answer:
    """Send once and read the answer, whatever its status; no retry, no redirect.

    Args:
        model: as ``provider/model``, for messages.
        on_event: told the events of a success that is a stream.

    Raises:
        ProviderError: nothing was sent (safe), the answer did not come whole (ambiguous), or it is over the cap.
    """
    request = httpx.Request("POST", url, headers=headers, content=body, extensions=HTTP_TIMEOUTS)
    try:
        response = await transport.handle_async_request(request)
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        raise _failure(error, url, model) from None
    try:
        if not response.is_success:
            return Answer(response.status_code, response.headers, await _read_refusal(response))
        if on_event and _is_stream(response):
            await _listen(response, url, model, on_event)
            return Answer(response.status_code, response.headers, b"", is_stream=True)
        return Answer(response.status_code, response.headers, await _read(response, url, model))
    finally:
        with contextlib.suppress(httpx.HTTPError, aiohttp.ClientError, OSError):
            await response.aclose()


async def _read(response: httpx.Response, url: httpx.URL, model: str) -> bytes:
    decoder = _decoder(response.headers.get("content-encoding", ""), model)
    chunks: list[bytes] = []
    left = REPLY_LIMIT
    try:
        async for raw in response.aiter_raw():
            chunk = decoder.decode(raw, left + 1)
            left -= len(chunk)
            if left < 0:
                raise too_large(model)
            chunks.append(chunk)
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        raise _failure(error, url, model) from None
    except zlib.error:
        raise _bad_reply(f"{model} sent a reply that says gzip and is not") from None
    if not decoder.is_whole:
        raise _cut_off(url, model)
    return b"".join(chunks)


def _is_stream(response: httpx.Response) -> bool:
    kind = str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == EVENTS


async def _listen(response: httpx.Response, url: httpx.URL, model: str, on_event: OnEvent) -> None:
    """Pass on the events, up to the end of the stream or until nothing more is waited for.

    A reply that is whole stays so, whatever comes after it: the time is up, the connection breaks, somebody talks on.
    """
    if not isinstance(_decoder(response.headers.get("content-encoding", ""), model), _Plain):
        raise _bad_reply(f"{model} compressed its stream, unasked")
    stream, progress = _Stream(response, model), Progress.UNDER_WAY
    # A response of our own: httpx would undo any encoding, a whole chunk at a time, and read in the charset it is told.
    source = EventSource(httpx.Response(200, headers={"content-type": EVENTS}, stream=stream))
    try:
        async with asyncio.timeout(None) as patience, contextlib.aclosing(source.aiter_sse()) as events:
            async for event in events:
                stream.since_event = 0
                before, progress = progress, on_event(event)
                if progress is not before and progress.value is not None:
                    patience.reschedule(asyncio.get_running_loop().time() + progress.value)
    except ProviderError:
        if progress is Progress.UNDER_WAY:
            raise
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:  # a TimeoutError of our patience is one of these
        if progress is Progress.UNDER_WAY:
            raise _failure(error, url, model) from None
    if progress is Progress.UNDER_WAY:
        raise _cut_off(url, model)


class _Stream(httpx.AsyncByteStream):
    """The bytes of a stream, as many as may be.

    Attributes:
        since_event: bytes that came after the latest event, which the parser may have to keep.
    """

    def __init__(self, response: httpx.Response, model: str) -> None:
        self._response = response
        self._model = model
        self._left = STREAM_LIMIT
        self.since_event = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, httpx.AsyncByteStream)
        # Not by aiter_raw: each layer around a chunk is paid for with every word of a reply.
        async for raw in self._response.stream:
            self._left -= len(raw)
            self.since_event += len(raw)
            if self._left < 0 or self.since_event > REPLY_LIMIT:
                raise too_large(self._model)
            yield raw


async def _read_refusal(response: httpx.Response) -> bytes:
    """What there is of it, soon: the status already says what happened, and a body that drips must not hide it."""
    chunks: list[bytes] = []
    with contextlib.suppress(httpx.HTTPError, aiohttp.ClientError, OSError, zlib.error, ProviderError, TimeoutError):
        async with asyncio.timeout(_REFUSAL_SECONDS):
            decoder = _decoder(response.headers.get("content-encoding", ""), "")
            left = _REFUSAL_LIMIT
            async for raw in response.aiter_raw():
                chunks.append(decoder.decode(raw, left))
                left -= len(chunks[-1])
                if left <= 0:
                    break
    return b"".join(chunks)


class _Plain:
    is_whole = True

    def decode(self, raw: bytes, limit: int) -> bytes:
        return raw[:limit]


class _Gzip:
    """httpx's own decoder inflates a whole chunk at a time: 16 KiB of a gzip bomb are 16 MiB."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def is_whole(self) -> bool:
        return self._inflate.eof

    def decode(self, raw: bytes, limit: int) -> bytes:
        if self._inflate.eof:
            # zlib would keep them all, in a buffer that it copies for each chunk.
            raise zlib.error("bytes after the end")
        return self._inflate.decompress(raw, limit)


def _decoder(encoding: str, model: str) -> _Plain | _Gzip:
    match encoding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":
            return _Gzip()
        case other:
            raise _bad_reply(f"{model} replied in the encoding {other[:40]!r}, unasked")


def _failure(error: Exception, url: httpx.URL, model: str) -> ProviderError:
    """The failure of a connection by its cause; see the table in ``retries.decide``."""
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) and error.__cause__ is not None else error
    place = url.netloc.decode("ascii")
    match cause:
        case aiohttp.ClientConnectorDNSError():
            return _unsent("dns", f"{model}: no address for {url.host}", "Check the provider's base_url")
        case aiohttp.ClientSSLError():
            remedy = "Check its base_url; SSL_CERT_FILE can name the certificates of a private authority"
            return _unsent("tls", f"{model}: no TLS with {place} ({_reason(cause)})", remedy)
        case aiohttp.ClientConnectorError() if cause.os_error.errno == errno.ECONNREFUSED:
            return _unsent("refused", f"{model}: {place} refused the connection", "Does the server run?")
        case aiohttp.ClientConnectorError():
            return _unsent("unreachable", f"{model}: no connection to {place} ({_reason(cause)})", "Is it up?")
        case aiohttp.ConnectionTimeoutError():
            return _unsent("connect_timeout", f"{model}: no connection to {place} in time", "Is it up?")
        case aiohttp.ClientPayloadError():
            return _cut_off(url, model)
        case aiohttp.ClientResponseError():
            return _bad_reply(f"{model}: {place} sent what is no proper HTTP")
        case _:
            fact = f"{model}: {place} hung up before its reply came. Does it restart, or run out of memory?"
            return ProviderError("ambiguous", "disconnected", fact)


def _cut_off(url: httpx.URL, model: str) -> ProviderError:
    fact = f"{model}: {url.host} cut its reply off; it is not kept as one. Is there a proxy with a deadline before it?"
    return ProviderError("ambiguous", "truncated", fact)


def _bad_reply(fact: str) -> ProviderError:
    return ProviderError("ambiguous", "bad_reply", f"{fact}. Check the provider's base_url, and what stands before it")


def _unsent(error_type: str, fact: str, remedy: str) -> ProviderError:
    return ProviderError("safe", error_type, f"{fact}. Nothing was sent. {remedy}")


def _reason(error: aiohttp.ClientConnectorError) -> str:
    certificate = getattr(error, "certificate_error", None)
    verdict = getattr(certificate, "verify_message", "") or error.os_error.strerror
    return str(verdict or type(error.os_error).__name__)[:120]
