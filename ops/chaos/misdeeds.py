"""What prompts tell the model server to do wrong, and what inturn must make of it."""

import json
import random
from typing import Any

from inturn.models.states import AttemptOutcome

SAFE, AMBIGUOUS, PERMANENT = AttemptOutcome.SAFE, AttemptOutcome.AMBIGUOUS, AttemptOutcome.PERMANENT

STATUSES: dict[int, AttemptOutcome] = {429: SAFE, 503: SAFE, 500: AMBIGUOUS, 400: PERMANENT, 401: PERMANENT}
ACTS: dict[str, AttemptOutcome] = {
    **dict.fromkeys(("hang", "drip_headers", "drip_body", "cut_body", "reset_body", "close", "reset"), AMBIGUOUS),
    **dict.fromkeys(("garbage", "html", "empty", "not_http", "false_gzip", "short_length"), AMBIGUOUS),
    **dict.fromkeys(("huge", "gzip_bomb", "redirect"), PERMANENT),
}
"""Acts that are not here end in a reply that can be stored."""

ONCE: tuple[dict[str, Any], ...] = (
    *({"status": status} for status in (429, 500, 503)),
    *({"act": act} for act, outcome in ACTS.items() if outcome is AMBIGUOUS),
)
ALWAYS: tuple[dict[str, Any], ...] = (
    *({"status": status} for status in (400, 401, 500, 503)),
    *({"act": act} for act in ("nul", "surrogate", "huge", "gzip_bomb", "redirect", "garbage", "reset")),
)
ALWAYS_SHARE = 0.2


def draw(dice: random.Random) -> dict[str, Any]:
    """A directive for the model server: mostly to misbehave once, so that the turn completes at the second attempt."""
    if dice.random() < ALWAYS_SHARE:
        return dice.choice(ALWAYS)
    if dice.random() < 1 / len(ONCE):
        return {"status": 429, "retry_after": 1, "times": 2}
    return dice.choice(ONCE) | {"times": 1}


def told(prompt: str) -> tuple[AttemptOutcome | None, float]:
    """How the first attempts at this prompt must end, and how many of them; None where nothing goes wrong."""
    _, found, rest = prompt.partition("!{")
    if not found:
        return None, 0
    directive: dict[str, Any] = json.JSONDecoder().raw_decode("{" + rest)[0]
    outcome = STATUSES.get(directive.get("status", 0)) or ACTS.get(directive.get("act", ""))
    return outcome, directive.get("times", float("inf"))
