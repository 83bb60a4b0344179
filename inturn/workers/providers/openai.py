"""OpenAI's chat completions, and everybody who speaks them: Ollama, vLLM, llama.cpp, LM Studio, LiteLLM, OpenRouter.

https://platform.openai.com/docs/api-reference/chat/create
"""

import json
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from inturn.workers.provider import FailureKind, Prompt, ProviderConfig, ProviderError, Reply, http_transport
from inturn.workers.providers.exchange import Answer, post
from inturn.workers.providers.scrubbing import one_line, scrub
from inturn.workers.retries import parse_retry_after

_OURS = ("model", "messages", "stream")
_MOST_TOKENS = 2**31
_SECRET = 8
_HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)

_REFUSALS: dict[int, tuple[FailureKind, str, str]] = {
    400: ("permanent", "invalid_request", "Check the options of the session and the model's name"),
    401: ("permanent", "unauthorized", "Check the key in {key}"),
    403: ("permanent", "forbidden", "Check what the key in {key} may use"),
    404: ("permanent", "not_found", "Check the model's name and the base_url of provider {provider}"),
    # The same key and an earlier attempt still at work, at those that honour Idempotency-Key: it may yet succeed.
    408: ("ambiguous", "http_408", "It may have been at work"),
    409: ("ambiguous", "http_409", "It may be at work on an earlier attempt"),
    413: ("permanent", "http_413", "Show it less: lower the session's context_turns"),
    422: ("permanent", "unprocessable", "Check the options of the session"),
    429: ("safe", "rate_limited", "Nothing was done; check the quota if this lasts"),
    503: ("safe", "unavailable", "Nothing was done; it is overloaded or starting"),
}


class OpenAI:
    """One endpoint that speaks chat completions.

    Raises:
        ProviderError: its ``base_url`` or one of its headers cannot be used (permanent).
    """

    def __init__(self, name: str, config: ProviderConfig) -> None:
        self._name = name
        self._config = config
        self._url = _endpoint(name, config.base_url)
        for header, value in config.headers.items():
            if not _HEADER.fullmatch(header) or not _fits_a_header(value):
                raise ProviderError("permanent", "bad_header", f"provider {name}: header {header!r} cannot be sent")
        self._headers = {
            "accept": "application/json",
            "accept-encoding": "gzip",
            "content-type": "application/json",
            "user-agent": "inturn",
            **{header.lower(): value for header, value in config.headers.items()},
        }
        self._transport = http_transport(tls=self._url.scheme == "https")

    async def reply(self, prompt: Prompt) -> Reply:
        """POST the prompt, once.

        Raises:
            ProviderError: there is no reply.
        """
        model = f"{self._name}/{prompt.model}"
        key = self._key()
        headers = {**self._headers, "idempotency-key": quote(prompt.key, safe=":@")}
        if key:
            headers["authorization"] = f"Bearer {key}"
        body = _request_body(model, prompt, self._config.options)
        answer = await post(self._transport, self._url, headers, body, model=model)
        if not 200 <= answer.status < 300:
            raise self._refusal(model, answer, prompt, key)
        return _reply(model, answer)

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

    def _refusal(self, model: str, answer: Answer, prompt: Prompt, key: str) -> ProviderError:
        kind, error_type, advice = _classify(answer.status)
        said = scrub(
            _explanation(answer),
            # A shorter one is a version or a flag, and no secret.
            secrets=[key, *(value for value in self._config.headers.values() if len(value) >= _SECRET)],
            prompt_texts=[message["content"] for message in prompt.messages],
        )
        advice = advice.format(key=self._config.api_key_env or "the provider's headers", provider=self._name)
        message = (
            f"{model} answered {answer.status}{': ' if said else ''}{said}{'' if said.endswith('.') else '.'} {advice}"
        )
        return ProviderError(
            kind,
            error_type,
            message,
            status_code=answer.status,
            retry_after=parse_retry_after(answer.headers, datetime.now(UTC)),
        )


def _endpoint(name: str, base_url: str) -> httpx.URL:
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
    return url.copy_with(path=url.path.rstrip("/") + "/chat/completions", fragment=None)


def _request_body(model: str, prompt: Prompt, defaults: dict[str, Any]) -> bytes:
    options = {**defaults, **prompt.options}
    taken = [name for name in _OURS if name in options]
    if taken:
        raise ProviderError("permanent", "invalid_request", f"{model}: {', '.join(taken)} cannot be set as an option")
    try:
        return orjson.dumps({"model": prompt.model, "messages": prompt.messages, **options})
    except TypeError as error:
        # orjson wraps whatever went wrong in its own words, and those quote nothing.
        message = f"{model}: the prompt or its options cannot be written as JSON ({error})"
        raise ProviderError("permanent", "invalid_request", message) from None


def _reply(model: str, answer: Answer) -> Reply:
    payload = _json(answer.body)
    message = _first(_field(payload, "choices"), "message")
    content = _field(message, "content")
    if not isinstance(content, str) or not content:
        raise _bad_reply(model, answer, payload)
    usage = _field(payload, "usage")
    request_id = answer.headers.get("x-request-id") or _field(payload, "id")
    return Reply(
        content,
        input_tokens=_tokens(usage, "prompt_tokens"),
        output_tokens=_tokens(usage, "completion_tokens"),
        request_id=one_line(request_id)[:200] if isinstance(request_id, str) else None,
    )


def _bad_reply(model: str, answer: Answer, payload: Any) -> ProviderError:
    """A success without a reply in it. The content type and the reason for stopping are all that is told of it."""
    if isinstance(payload, dict):
        reason = one_line(str(_first(payload.get("choices"), "finish_reason")))[:40]
        found = f"JSON that has no text in choices[0].message.content (finish_reason {reason}). "
        found += "Raise max_tokens" if reason == "length" else "Check the options of the session"
    else:
        kind = one_line(answer.headers.get("content-type", "no content type"))[:60]
        found = f"no JSON object ({len(answer.body)} bytes of {kind}). Does its base_url end with /v1?"
    message = f"{model} answered {answer.status} with {found}"
    return ProviderError("ambiguous", "bad_reply", message, status_code=answer.status)


def _classify(status: int) -> tuple[FailureKind, str, str]:
    if status in _REFUSALS:
        return _REFUSALS[status]
    if 300 <= status < 400:
        return "permanent", "redirect", "Redirects are not followed: give provider {provider} the final base_url"
    if status < 500:
        return "permanent", f"http_{status}", "The request was turned away"
    return "ambiguous", f"http_{status}", "It may have been at work"


def _explanation(answer: Answer) -> str:
    """What the provider says went wrong: OpenAI's ``error.message``, and how others write it. No HTML."""
    payload = _json(answer.body)
    error = _field(payload, "error")
    for text in (
        _field(error, "message"),
        error,
        _field(payload, "message"),
        _field(payload, "detail"),
        _first(_field(payload, "detail"), "msg"),
    ):
        if isinstance(text, str) and text:
            return text
    if answer.headers.get("content-type", "").startswith("text/plain"):
        return answer.body[:4096].decode("utf-8", "replace")
    return ""


def _json(body: bytes) -> Any:
    """None for what is no JSON. The standard library takes over for a lone surrogate, which orjson refuses."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if b"\\u" not in body:
            return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _first(value: Any, name: str) -> Any:
    return _field(value[0], name) if isinstance(value, list) and value else None


def _tokens(usage: Any, name: str) -> int | None:
    count = _field(usage, name)
    return count if type(count) is int and 0 <= count < _MOST_TOKENS else None


def _fits_a_header(value: str) -> bool:
    return value.isascii() and (value.isprintable() or not value)
