"""The only kind of HTTP connections that a model is called through."""

import ssl

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from inturn.workers import departures
from inturn.workers.provider import ProviderError

_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 4.0


def http_transport(*, tls: bool) -> httpx.AsyncBaseTransport:
    """Open the only kind of HTTP connections that a model is called through.

    httpx's transport interface, on aiohttp's connections: httpx's own pool looks through every open connection for every
    call. And no ``httpx.AsyncClient`` on top: redirects, cookies, proxies and retries are not wanted (the operator's base
    URL is where the key and the prompt go, and nowhere else), and looking for them costs CPU in every call. There is
    no read timeout: the deadline around the call is the one that counts.

    Args:
        tls: whether ``https`` will be spoken; only then are certificates loaded (certifi's, or those that
            ``SSL_CERT_FILE`` names).

    Raises:
        ProviderError: there are none at the place that ``SSL_CERT_FILE`` names (permanent).
    """
    try:
        context = httpx.create_ssl_context() if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except OSError as error:
        message = f"SSL_CERT_FILE of the worker names no certificates that can be read ({error.strerror}). Unset it"
        raise ProviderError("permanent", "bad_certificates", message) from None

    def open_session() -> aiohttp.ClientSession:
        # Left to itself the transport keeps aiohttp's limit of 100 connections. An idle connection is let go before the
        # server does it: uvicorn (vLLM, LiteLLM) and Node close after 5 s, and a POST that meets the closing is lost.
        connector = aiohttp.TCPConnector(limit=0, ssl=context, keepalive_timeout=_IDLE_SECONDS)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),  # one session's routing cookie must not travel with another's prompt
            trust_env=False,
            trace_configs=departures.traces(),
        )

    return departures.watched(AiohttpTransport(client=open_session, verify=context, trust_env=False))


# "pool" is the transport's word for the whole of connecting, with name lookup, which "connect" leaves out.
HTTP_TIMEOUTS = {"timeout": {"connect": _CONNECT_SECONDS, "pool": _CONNECT_SECONDS, "read": None, "write": None}}
"""The ``extensions`` of every request."""
