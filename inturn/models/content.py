"""What may be stored: session IDs, prompts, and text of any kind."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from inturn.models.errors import InvalidInputError, InvalidPromptError, InvalidSessionIdError, TurnNotFoundError
from inturn.models.states import Lane, Overflow

LONGEST_ID = 200
SESSION_ID = re.compile(rf"[A-Za-z0-9._:@-]{{1,{LONGEST_ID}}}")
PATTERN = re.compile(r"[A-Za-z0-9._:@*?-]+")
PROMPT_LIMIT = 256 * 1024
"""Bytes of UTF-8."""
PARTS_LIMIT = 4 * 1024 * 1024
"""Bytes of a prompt with images, as JSON."""
TURN_ID = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})")
MOST_CONTEXT_TURNS = 1_000_000
LEAST_SUMMARISED = 2
MOST_CONTEXT_TOKENS = 100_000_000
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What OpenAI and Anthropic take."""
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


def checked_pattern(pattern: object) -> str:
    """A pattern of session IDs: ``*`` is any characters, ``?`` any one. Raises: InvalidInputError: no ID can be like it."""
    if not isinstance(pattern, str) or not PATTERN.fullmatch(pattern) or len(pattern.replace("*", "")) > LONGEST_ID:
        raise InvalidInputError(
            f"{pattern!r:.220} can be no session's ID: use letters, digits and . _ : @ - (at most {LONGEST_ID}), * for any "
            "characters and ? for any one"
        )
    return pattern


def new_session_id(wanted: object = None) -> str:
    """The ID that somebody chose for a new session, or a unique one. Raises: InvalidSessionIdError."""
    return f"session-{secrets.token_hex(8)}" if wanted is None else checked_session_id(wanted)


def is_turn_id(text: object) -> bool:
    return isinstance(text, str) and TURN_ID.fullmatch(text) is not None


def checked_turn_id(turn_id: object) -> tuple[int, int]:
    """Its session and its number. Raises: TurnNotFoundError."""
    found = TURN_ID.fullmatch(turn_id) if isinstance(turn_id, str) else None
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
        raise InvalidPromptError(f"a prompt is a str, or a list of parts, and this is a {type(prompt).__name__}")
    if not prompt.strip():
        raise InvalidPromptError("the prompt is empty: there is nothing to answer")
    stored = storable(prompt)
    size = len(stored) if stored.isascii() else len(stored.encode())
    if size > PROMPT_LIMIT:
        raise InvalidPromptError(
            f"the prompt has {size:,} bytes, and {PROMPT_LIMIT:,} (256 KiB) are the limit: shorten it, or send it in parts"
        )
    return stored


def checked_content(prompt: object) -> tuple[str, dict[str, Any] | None]:
    """A prompt as it will be stored: its text, and its parts if it is more than that.

    Raises:
        InvalidPromptError: it is no prompt, or too large.
        InvalidInputError: one of its parts is no JSON.
    """
    if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes):
        return checked_parts(prompt)
    return checked_prompt(prompt), None


def checked_parts(parts: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """A prompt in parts, as OpenAI writes them: its text, with a mark for each part that is none, and what is stored.

    Raises:
        InvalidPromptError: there is no part that says or shows anything, one has no type, or they are larger than 4 MiB, or
            their text than 256 KiB.
        InvalidInputError: there is something in it that is no JSON.
    """
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise InvalidPromptError(
                f"{part!r:.60} is no part of a prompt: a part is a dict with a type, such as "
                "{'type': 'text', 'text': ...}; inturn.image(...) makes one of an image"
            )
    stored = [
        part for part in storable_json(list(parts)) if not _is_blank(part)
    ]  # of which some models want to hear nothing
    text = checked_prompt("\n".join(_said_in(part) for part in stored))
    try:
        size = parts_size(stored)
    except ValueError:
        raise InvalidInputError("a part of the prompt holds a number that JSON does not have, such as nan") from None
    if size > PARTS_LIMIT:
        raise InvalidPromptError(
            f"the prompt's parts have {size:,} bytes, and {PARTS_LIMIT:,} (4 MiB) are the limit: as base64 an image grows "
            "by a third, so that files may have about 3 MB together. Make them smaller, or send their URLs"
        )
    return text, {"parts": stored}


def _is_blank(part: Mapping[str, Any]) -> bool:
    return part["type"] == "text" and not str(part.get("text") or "").strip()


def _said_in(part: Mapping[str, Any]) -> str:
    return str(part.get("text", "")) if part["type"] == "text" else f"[{part['type'].removesuffix('_url')}]"


def parts_size(parts: Sequence[Any]) -> int:
    """As JSON, in bytes. Raises: ValueError: there is a number in it that JSON does not have."""
    return len(json.dumps(parts, allow_nan=False))


def checked_tools(names: Sequence[str] | None) -> list[str] | None:
    """Raises: InvalidInputError."""
    if isinstance(names, str) or not all(isinstance(name, str) and TOOL_NAME.fullmatch(name) for name in names or ()):
        raise InvalidInputError(
            f"tools are {names!r:.100}: they are a list of names of 1 to 64 letters, digits, _ and -"
        )
    return list(dict.fromkeys(names)) if names else None


def checked_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Raises: InvalidInputError."""
    if labels is not None and not isinstance(labels, Mapping):
        raise InvalidInputError(f"labels are {labels!r:.100}: they are a dict, for example {{'team': 'legal'}}")
    for name, value in (labels or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidInputError(
                f"label {name!r:.100}={value!r:.100} is refused: names and values of labels are str"
            )
    return {storable(name): storable(value) for name, value in (labels or {}).items()}


def checked_text(name: str, text: object) -> str | None:
    """Raises: InvalidInputError."""
    if text is not None and not isinstance(text, str):
        raise InvalidInputError(f"{name} is {text!r:.100}: it is a str")
    return None if text is None else storable(text)


def checked_flag(name: str, flag: object) -> bool:
    """Raises: InvalidInputError."""
    if not isinstance(flag, bool):
        raise InvalidInputError(f"{name} is {flag!r:.100}: it is True or False")
    return flag


def checked_context(turns: int | None) -> int | None:
    """Raises: InvalidInputError."""
    if turns is not None and (not isinstance(turns, int) or not 0 <= turns <= MOST_CONTEXT_TURNS):
        raise InvalidInputError(f"context_turns is {turns!r:.50}: it is a number from 0 to {MOST_CONTEXT_TURNS:,}")
    return turns


def checked_tokens(tokens: int | None) -> int | None:
    """Raises: InvalidInputError."""
    if tokens is not None and (type(tokens) is not int or not 1 <= tokens <= MOST_CONTEXT_TOKENS):
        raise InvalidInputError(f"context_tokens is {tokens!r:.50}: it is a number from 1 to {MOST_CONTEXT_TOKENS:,}")
    return tokens


def checked_overflow(overflow: str, context_turns: int | None) -> Overflow:
    """Raises: InvalidInputError."""
    if overflow not in set(Overflow):
        raise InvalidInputError(
            f"overflow is {overflow!r:.50}: it is one of {', '.join(map(repr, map(str, Overflow)))}"
        )
    if overflow == Overflow.SUMMARISE and context_turns is not None and context_turns < LEAST_SUMMARISED:
        raise InvalidInputError(
            f"context_turns is {context_turns}, and where history is summarised it is {LEAST_SUMMARISED} or more: half "
            "of them go into each summary"
        )
    return Overflow(overflow)


def checked_system_message(text: object) -> str | None:
    """Raises: InvalidInputError."""
    if text is not None and not isinstance(text, str):
        raise InvalidInputError(f"a system message is a str, and this is a {type(text).__name__}")
    return None if text is None else storable(text)
