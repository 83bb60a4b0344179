"""Where a provider is and how it is asked over HTTP, whatever the JSON: URL, headers, key, and a no for an answer."""

import re
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from inturn.options import fault_of_ours
from inturn.workers.provider import Prompt, ProviderConfig, ProviderError
from inturn.workers.providers.exchange import EVENTS, Answer, OnEvent, post
from inturn.workers.providers.question import Question
from inturn.workers.providers.refusals import refusal
from inturn.workers.providers.transport import http_transport

_SECRET = 8
_HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


class Endpoint:
    """One configured base URL.

    Args:
        place: what is asked, below the base URL. A query of the base URL (Azure) stays behind it.
        version: what the base URL's path ends with, whether it says so or not.
        key_header: where the type sends its key, with ``key_prefix`` before it; another header, if one is configured,
            gets the bare key.
        headers: of the type; configured ones win.

    Raises:
        ProviderError: the ``base_url`` or one of the headers cannot be used (permanent).
    """

    def __init__(
        self,
        name: str,
        config: ProviderConfig,
        place: str,
        *,
        version: str = "",
        key_header: str,
        key_prefix: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._name = name
        self._config = config
        base = _checked_url(name, config.base_url)
        path = base.path.rstrip("/").removesuffix(version) + version
        self._url = base.copy_with(path=path + place, fragment=None)
        self._key_header = config.api_key_header.lower() or key_header
        self._key_prefix = "" if config.api_key_header else key_prefix
        for header, value in {**config.headers, self._key_header: ""}.items():
            if not _HEADER.fullmatch(header) or not _fits_a_header(value):
                raise ProviderError("permanent", "bad_header", f"provider {name}: header {header!r} cannot be sent")
        self._headers = {
            "accept": "application/json",
            "accept-encoding": "gzip",
            "content-type": "application/json",
            "user-agent": "inturn",
            **(headers or {}),
            **{header.lower(): value for header, value in config.headers.items()},
        }
        # Compressed, the words of a stream would wait for one another.
        self._stream_headers = self._headers | {"accept": f"{EVENTS}, application/json", "accept-encoding": "identity"}
        self._transport = http_transport(tls=self._url.scheme == "https")

    def question(self, prompt: Prompt) -> Question:
        """What the prompt is asked with, the key read now.

        Raises:
            ProviderError: the key is not there, or cannot be one (permanent).
        """
        key = self._key()
        # A shorter one is a version or a flag, and no secret.
        secrets = (key, *(value for value in self._config.headers.values() if len(value) >= _SECRET))
        return Question(self._name, prompt, key, secrets, self._config.api_key_env or "the provider's headers")

    def options(self, question: Question, ours: tuple[str, ...]) -> dict[str, Any]:
        """What provider and prompt want to be sent along; the prompt has the last word.

        Raises:
            ProviderError: one of them is ours to say (permanent).
        """
        options = {**self._config.options, **question.prompt.options}
        if "tools" in options and question.prompt.tools:
            message = (
                f"{question.model}: tools are offered twice, by the session and by the option tools. Take one away"
            )
            raise ProviderError("permanent", "invalid_request", message)
        if fault := fault_of_ours(options, ours):
            raise ProviderError("permanent", "invalid_request", f"{question.model}: {fault}")
        return options

    async def post(self, question: Question, payload: dict[str, Any], on_event: OnEvent | None = None) -> Answer:
        """Ask, once.

        Args:
            on_event: told the events of a stream; the answer may come whole all the same.

        Raises:
            ProviderError: there is no answer, or it is a no.
        """
        body = _written(question, payload)
        key = quote(question.prompt.key, safe=":@")
        headers = {**(self._stream_headers if on_event else self._headers), "idempotency-key": key}
        if question.key:
            headers[self._key_header] = self._key_prefix + question.key
        answer = await post(self._transport, self._url, headers, body, model=question.model, on_event=on_event)
        if not 200 <= answer.status < 300:
            raise refusal(question, answer)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    def _key(self) -> str:
        """Empty where none is asked for, as with most servers at home."""
        variable = self._config.api_key_env
        secret = self._config.api_key()
        key = secret.get_secret_value().strip() if secret else ""
        if variable and not key:
            raise ProviderError(
                "permanent",
                "no_key",
                f"provider {self._name} has no key: set {variable} in the worker's environment and restart it",
            )
        if not _fits_a_header(key):
            raise ProviderError(
                "permanent",
                "bad_key",
                f"provider {self._name}: the key in {variable} has characters that no key has; was it pasted whole?",
            )
        return key


def _checked_url(name: str, base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        # Not quoted: a URL with a password in it is one of the ways to get here.
        raise ProviderError(
            "permanent",
            "bad_base_url",
            f"provider {name}: its base_url must be http(s)://host/path with no user or password in it, "
            "for example http://127.0.0.1:11434/v1",
        )
    return url


def _written(question: Question, payload: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(payload)
    except TypeError as error:
        # orjson wraps whatever went wrong in its own words, and those quote nothing.
        message = f"{question.model}: the prompt or its options cannot be written as JSON ({error})"
        raise ProviderError("permanent", "invalid_request", message) from None


def _fits_a_header(value: str) -> bool:
    return value.isascii() and (value.isprintable() or not value)
