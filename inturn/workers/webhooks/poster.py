"""One attempt at telling one webhook of one event."""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from standardwebhooks import Webhook

from inturn import __version__
from inturn.models.errors import SettingsError
from inturn.models.store.webhooks import body_of, new_event_id
from inturn.webhook_settings import WebhookSettings
from inturn.workers.webhooks.addresses import any_socket, public_socket

DEADLINE_SECONDS = 15.0
"""Of an attempt in all: connecting, sending, and the answer."""
IDLE_SECONDS = 4.0
"""A connection is let go before its server does it: many close after 5 s, and what meets the closing has failed."""
READ_BYTES = 65_536
"""So much of an answer is read, only for its connection to be used again: what counts is the status."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said, or why it said nothing.

    Attributes:
        status_code: None: there was no answer.
        error_message: of what was no success.
        retry_after: the header of that name, as it came.
    """

    status_code: int | None = None
    error_message: str | None = None
    retry_after: str | None = None


def certificates() -> ssl.SSLContext:
    """Whom receivers may be certified by: certifi's, or those that ``SSL_CERT_FILE`` names.

    Raises:
        SettingsError: there are none at the place that it names.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise SettingsError(
            f"SSL_CERT_FILE names no certificates that can be read ({error.strerror}): unset it, or correct it"
        ) from None


def signed(secret: str, event_id: str, body: str) -> dict[str, str]:
    """The headers of Standard Webhooks, for an attempt that is made now."""
    moment = datetime.now(UTC)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(event_id, moment, body),
        "content-type": "application/json",
        "user-agent": f"inturn/{__version__}",
    }


class Poster:
    """Sends to one webhook, and to nobody else: no redirect is followed, no proxy asked, no cookie kept. Use it within an
    event loop, in ``async with``.

    aiohttp and not httpx, since its connector lets us make the socket: whatever the address was made of, a name or
    digits, the one that is checked is the one that is connected to. httpx has no public place for that.

    Args:
        tls: for ``https``.
        resolver: of names; default: the system's.
    """

    def __init__(
        self,
        webhook: WebhookSettings,
        tls: ssl.SSLContext,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.webhook, self._deadline_seconds = webhook, deadline_seconds
        # The connector's memory of names stays on: many at once are one look-up. The address is checked after it.
        connector = aiohttp.TCPConnector(
            ssl=tls,
            limit=0,
            keepalive_timeout=IDLE_SECONDS,
            resolver=resolver,
            socket_factory=any_socket if webhook.allow_private else public_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=deadline_seconds),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(self, event_id: str, body: str) -> Answer:
        """Send an event, once. What goes wrong is in the answer."""
        try:
            headers = signed(self.webhook.secret().get_secret_value(), event_id, body)
        except SettingsError as error:
            return Answer(error_message=str(error))
        try:
            return await self._posted(headers, body)
        except TimeoutError:
            return Answer(error_message=f"no answer within {self._deadline_seconds:g} s")
        except aiohttp.ClientConnectorCertificateError as error:
            return Answer(error_message=f"its certificate is refused ({error.certificate_error})"[:500])
        except aiohttp.ClientConnectorError as error:
            return Answer(error_message=f"no connection ({error.os_error.strerror or error.os_error})"[:500])
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(error_message=f"no answer ({type(error).__name__})")

    async def _posted(self, headers: dict[str, str], body: str) -> Answer:
        async with self._session.post(
            self.webhook.url, data=body.encode(), headers=headers, allow_redirects=False
        ) as response:
            answer = self._answer(response)
            try:
                await response.content.readexactly(READ_BYTES)
            except asyncio.IncompleteReadError:
                return answer
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            response.close()
            return answer

    def _answer(self, response: aiohttp.ClientResponse) -> Answer:
        status = response.status
        if 200 <= status < 300:
            return Answer(status)
        why = ", a redirect, which is not followed" if 300 <= status < 400 else ""
        return Answer(status, f"it answered {status}{why}", response.headers.get("Retry-After"))


async def post_test(webhook: WebhookSettings) -> Answer:
    """Tell a webhook that it is told. Raises: SettingsError: there are no certificates."""
    body = body_of("webhook.test", datetime.now(UTC), {"webhook": webhook.name})
    async with Poster(webhook, certificates()) as poster:
        return await poster.post(new_event_id(), body)
