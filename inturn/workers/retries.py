"""Which failures are tried again, when, and how often. Pure functions: the clock and the dice are handed in."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from inturn.workers.provider import FailureKind

RETRY_AFTER_CAP = 3600.0
"""Seconds. Beyond an hour a ``Retry-After`` is a daily quota or a broken clock, and a turn that waited for it would
look lost; asking once an hour costs nothing, since the provider turns it away unread."""

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|h|m|s)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Again:
    """Try again once ``delay`` seconds have passed; the turn waits as ``queued`` with ``ready_at``."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The turn fails; ``reason`` is half a sentence for people."""

    reason: str


def decide(
    error_kind: FailureKind,
    *,
    attempts: int,
    ambiguous: int,
    max_attempts: int,
    max_ambiguous: int,
    retry_after: float | None,
    base: float,
    cap: float,
    draw: float,
) -> Again | GiveUp:
    """Decide about a turn whose attempt has just failed.

    ==========  =====================================================================  ==========================
    kind        failures                                                               tried again
    ==========  =====================================================================  ==========================
    safe        refused, unreachable, dns, tls, connect_timeout, rate_limited (429),   up to ``max_attempts``
                unavailable (503), overloaded (529), cell_not_started
    ambiguous   timeout, disconnected, truncated, bad_reply, error_in_reply,           up to ``max_ambiguous``,
                provider_bug, http_408, http_409, http_500 and every other 5xx; and    and ``max_attempts``
                what is safe elsewhere, where a part of the reply had come before
    permanent   invalid_request (400), context_length_exceeded, unauthorized (401),    never
                forbidden (403), not_found (404), unprocessable (422), other 4xx,
                redirect, refusal, content_filter, reply_too_large, no_key, bad_key,
                bad_base_url, bad_header, bad_certificates,
                provider_not_configured, provider_not_loaded,
                unknown_tool
    ==========  =====================================================================  ==========================

    Args:
        attempts: tries so far, of every kind, with this one.
        ambiguous: how many of them were ambiguous, with this one.
        retry_after: seconds that the provider asked for. A lower bound: the jitter comes on top, or everybody who was
            told the same would come back at once. At most ``RETRY_AFTER_CAP`` of it is believed.
        base: seconds; the longest first wait. It doubles with each attempt up to ``cap``.
        cap: seconds.
        draw: uniform in [0, 1): full jitter, anything from at once to the longest wait.
    """
    if error_kind == "permanent":
        return GiveUp("trying again would fail again")
    if attempts >= max_attempts:
        return GiveUp(f"all {max_attempts} attempts are used up")
    if error_kind == "ambiguous" and ambiguous >= max_ambiguous:
        return GiveUp(f"{ambiguous} attempts may have been worked on and paid for; more are not risked")
    # The exponent is bounded, as 2.0**1024 is an OverflowError.
    longest = min(cap, base * 2.0 ** min(attempts - 1, 64))
    asked = min(max(retry_after or 0.0, 0.0), RETRY_AFTER_CAP)
    return Again(asked + longest * draw)


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """How long a response asks to be left alone, in seconds; None when it does not say, or nonsense.

    Understands ``retry-after-ms`` (OpenAI, Azure; the more exact one wins), ``retry-after`` as seconds or as an HTTP
    date (RFC 9110, 10.2.3), and, where neither is there, ``x-ratelimit-reset-requests`` and ``-tokens`` (OpenAI; ``6m0s``),
    of what is used up: whose ``x-ratelimit-remaining-...`` is 0. A date is compared with the response's own ``date``,
    where there is one, so that a clock that is wrong on either side does no harm.

    Args:
        headers: of the response; looked up in lower case.
        now: timezone-aware, for a date without a ``date`` beside it.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return seconds
    until = _http_date(value)
    if until is None:
        return _until_reset(headers)
    return max(0.0, (until - (_http_date(headers.get("date")) or now)).total_seconds())


def _until_reset(headers: Mapping[str, str]) -> float | None:
    used_up = [what for what in ("requests", "tokens") if headers.get(f"x-ratelimit-remaining-{what}") == "0"]
    resets = [_duration(headers.get(f"x-ratelimit-reset-{what}", "")) for what in used_up]
    return max((seconds for seconds in resets if seconds is not None), default=None)


def _duration(value: str) -> float | None:
    """``1h2m3.5s`` or ``20ms``, as Go writes a length of time."""
    if not _DURATION.fullmatch(value):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _http_date(value: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
