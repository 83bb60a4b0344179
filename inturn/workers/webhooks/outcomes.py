"""What becomes of a delivery after an attempt: it is over, or it is tried again later."""

import random
import time
from email.utils import parsedate_to_datetime

from inturn.models.states import DeliveryState
from inturn.models.store.webhooks import Outcome
from inturn.workers.webhooks.poster import Answer

MINUTE, HOUR = 60.0, 3600.0
WAITS = (5.0, MINUTE, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR)
"""Seconds between one attempt and the next, as Standard Webhooks suggests: a day and a half in all."""
JITTER = 0.2
LONGEST_SECONDS = 24 * HOUR
"""A receiver cannot put us off for longer."""
GONE, TOO_MANY, UNAVAILABLE = 410, 429, 503


def outcome_of(answer: Answer, attempts: int) -> Outcome:
    """What an attempt comes to, the ``attempts``-th of its delivery."""
    status, message = answer.status_code, answer.error_message
    if message is None:
        return Outcome(DeliveryState.DELIVERED, status)
    if status == GONE:
        return Outcome(DeliveryState.FAILED, status, f"{message}: it wants no more of it")
    if attempts > len(WAITS):
        return Outcome(DeliveryState.FAILED, status, message)
    delay = WAITS[attempts - 1] * random.uniform(1.0, 1.0 + JITTER)
    if status in (TOO_MANY, UNAVAILABLE):
        delay = max(delay, min(wished_seconds(answer.retry_after), LONGEST_SECONDS))
    return Outcome(DeliveryState.PENDING, status, message, delay)


def wished_seconds(retry_after: str | None) -> float:
    """What ``Retry-After`` asks for, in seconds or as a date; 0 where it says nothing."""
    words = (retry_after or "").strip()
    if words.isascii() and words.isdigit():
        return float(words[:9])
    try:
        return max(0.0, parsedate_to_datetime(words).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
