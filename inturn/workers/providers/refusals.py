"""What a provider's no means: by its status, or by the error object that came where a reply should be."""

from datetime import UTC, datetime
from typing import Any

import inturn.workers.providers.overlong as overlong
import inturn.workers.providers.payload as read
from inturn.workers.provider import FailureKind, ProviderError
from inturn.workers.providers.exchange import Answer
from inturn.workers.providers.question import Question
from inturn.workers.retries import parse_retry_after

_STATUS: dict[int, tuple[FailureKind, str, str]] = {
    400: ("permanent", "invalid_request", "Check the options of the session and the model's name"),
    401: ("permanent", "unauthorized", "Check the key in {key}"),
    403: ("permanent", "forbidden", "Check what the key in {key} may use"),
    404: ("permanent", "not_found", "Check the model's name and the base_url of provider {provider}"),
    # The same key and an earlier attempt still at work, at those that honour Idempotency-Key: it may yet succeed.
    408: ("ambiguous", "http_408", "It may have been at work"),
    409: ("ambiguous", "http_409", "It may be at work on an earlier attempt"),
    413: ("permanent", "http_413", "Show it less: lower the session's context_turns or context_tokens"),
    422: ("permanent", "unprocessable", "Check the options of the session"),
    429: ("safe", "rate_limited", "Nothing was done; check the quota if this lasts"),
    503: ("safe", "unavailable", "Nothing was done; it is overloaded or starting"),
    529: ("safe", "overloaded", "Nothing was done; it has too much to do"),  # Anthropic's own number
}
_WORDS = {
    "api_error": 500,
    "authentication_error": 401,
    "billing_error": 402,
    "insufficient_quota": 429,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "request_too_large": 413,
    "server_error": 500,
    "timeout_error": 504,
}
"""The status that an error's ``code`` or ``type`` stands for."""


def refusal(question: Question, answer: Answer) -> ProviderError:
    """The failure of a call that was answered with another status than a success's."""
    payload = read.read_json(answer.body)
    kind, error_type, advice = _classify(answer.status, payload)
    said = _explanation(payload)
    if not said and answer.headers.get("content-type", "").startswith("text/plain"):
        said = answer.body[:4096].decode("utf-8", "replace")
    return ProviderError(
        kind,
        error_type,
        _sentence(question, f"answered {answer.status}", said, advice),
        status_code=answer.status,
        retry_after=parse_retry_after(answer.headers, datetime.now(UTC)),
    )


def error_of(payload: Any) -> Any:
    """The error that a payload is, or holds; None when it is none."""
    return payload if read.field(payload, "object") == "error" else read.field(payload, "error") or None


def broken_off(question: Question, payload: Any, *, has_part: bool) -> ProviderError:
    """The failure of a call that was answered with a success, and then with an error.

    Args:
        has_part: a part of the reply had come before: that much work was done.
    """
    status = _status_of(error_of(payload))
    kind, error_type, advice = _classify(status, payload)
    if kind == "safe" and has_part:
        kind, advice = "ambiguous", "A part of the reply had come before"
    message = _sentence(question, "answered 200 and broke off with an error", _explanation(payload), advice)
    return ProviderError(kind, error_type, message, status_code=status)


def _status_of(error: Any) -> int | None:
    """The HTTP status that an error object names, by number or by word."""
    for named in (read.field(error, "code"), read.field(error, "status"), read.field(error, "type")):
        if isinstance(named, str):
            named = _WORDS.get(named) or (int(named) if named.isascii() and named.isdigit() and len(named) == 3 else 0)
        if type(named) is int and 400 <= named < 600:
            return named
    return None


def _classify(status: int | None, payload: Any) -> tuple[FailureKind, str, str]:
    """What it means; ``status`` is None for an error in place of a reply that names none."""
    if overlong.is_told(status, error_of(payload) or payload):
        return overlong.FAILURE
    if status is None:
        return "ambiguous", "error_in_reply", "It was at work"
    if status in _STATUS:
        return _STATUS[status]
    if 300 <= status < 400:
        return "permanent", "redirect", "Redirects are not followed: give provider {provider} the final base_url"
    if status < 500:
        return "permanent", f"http_{status}", "The request was turned away"
    return "ambiguous", f"http_{status}", "It may have been at work"


def _sentence(question: Question, fact: str, said: str, advice: str) -> str:
    said = question.scrubbed(said)
    advice = advice.format(key=question.key_place, provider=question.provider)
    return f"{question.model} {fact}{': ' if said else ''}{said}{'' if said.endswith('.') else '.'} {advice}"


def _explanation(payload: Any) -> str:
    """What the provider says went wrong: OpenAI's ``error.message``, and how others write it. No HTML."""
    error = read.field(payload, "error")
    for text in (
        read.field(error, "message"),
        error,
        read.field(payload, "message"),
        read.field(payload, "detail"),
        read.field(read.first(read.field(payload, "detail")), "msg"),
    ):
        if isinstance(text, str) and text:
            return text
    return ""
