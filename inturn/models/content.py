"""What may be stored: session IDs, prompts, and text of any kind."""

import re
from collections.abc import Mapping
from typing import Any

from inturn.models.errors import InvalidInputError, InvalidPromptError, InvalidSessionIdError, TurnNotFoundError
from inturn.models.states import Lane

SESSION_ID = re.compile(r"[A-Za-z0-9._:@-]{1,200}")
PROMPT_LIMIT = 256 * 1024
"""Bytes of UTF-8."""
TURN_ID = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})")
MOST_CONTEXT_TURNS = 1_000_000
TURN_LANES = (Lane.CHAT, Lane.BATCH)
REPLACEMENT = "\ufffd"


def storable(text: str) -> str:
    """``text`` with what no database takes replaced by U+FFFD: NUL (PostgreSQL) and lone surrogates (both)."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\x00", REPLACEMENT)


def storable_json(value: Any) -> Any:
    """``value`` with every string in it made storable."""
    match value:
        case str():
            return storable(value)
        case dict():
            return {storable(str(name)): storable_json(item) for name, item in value.items()}
        case list() | tuple():
            return [storable_json(item) for item in value]
        case None | bool() | int() | float():
            return value
    raise InvalidInputError(f"{value!r:.100} is a {type(value).__name__}: labels and options hold what JSON can")


def checked_session_id(session_id: object) -> str:
    """Raises: InvalidSessionIdError."""
    if not isinstance(session_id, str) or not SESSION_ID.fullmatch(session_id):
        raise InvalidSessionIdError(session_id)
    return session_id


def is_turn_id(text: str) -> bool:
    return TURN_ID.fullmatch(text) is not None


def checked_turn_id(turn_id: str) -> tuple[int, int]:
    """Its session and its number. Raises: TurnNotFoundError."""
    found = TURN_ID.fullmatch(turn_id)
    if found is None:
        raise TurnNotFoundError(turn_id)
    return int(found[1]), int(found[2])


def checked_lane(lane: str) -> Lane:
    """A lane that turns go through. Raises: InvalidInputError."""
    if lane not in TURN_LANES:
        raise InvalidInputError(f"{lane!r:.100} is no lane for turns: there are {' and '.join(TURN_LANES)}")
    return Lane(lane)


def checked_prompt(prompt: object) -> str:
    """The prompt as it will be stored.

    Raises:
        InvalidPromptError: it is no text, empty, or larger than 256 KiB.
    """
    if not isinstance(prompt, str):
        raise InvalidPromptError(f"a prompt is a str, and this is a {type(prompt).__name__}")
    if not prompt.strip():
        raise InvalidPromptError("the prompt is empty: there is nothing to answer")
    stored = storable(prompt)
    size = len(stored) if stored.isascii() else len(stored.encode())
    if size > PROMPT_LIMIT:
        raise InvalidPromptError(
            f"the prompt has {size:,} bytes, and {PROMPT_LIMIT:,} (256 KiB) are the limit: shorten it, or send it in parts"
        )
    return stored


def checked_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Raises: InvalidInputError."""
    for name, value in (labels or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidInputError(
                f"label {name!r:.100}={value!r:.100} is refused: names and values of labels are str"
            )
    return {storable(name): storable(value) for name, value in (labels or {}).items()}


def checked_context(turns: int | None) -> int | None:
    """Raises: InvalidInputError."""
    if turns is not None and (not isinstance(turns, int) or not 0 <= turns <= MOST_CONTEXT_TURNS):
        raise InvalidInputError(f"context_turns is {turns!r:.50}: it is a number from 0 to {MOST_CONTEXT_TURNS:,}")
    return turns


def checked_system_message(text: object) -> str | None:
    """Raises: InvalidInputError."""
    if text is not None and not isinstance(text, str):
        raise InvalidInputError(f"a system message is a str, and this is a {type(text).__name__}")
    return None if text is None else storable(text)
