"""JSON that a stranger sent: what is not there, or is something else, is None."""

import json
from collections.abc import Iterator
from typing import Any

import orjson

_MOST_TOKENS = 2**31


def read_json(text: bytes | str) -> Any:
    """None for what is no JSON. The standard library takes over for a lone surrogate, which orjson refuses."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if (b"\\u" if isinstance(text, bytes) else "\\u") not in text:  # type: ignore[operator]
            return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def write_json(value: Any) -> str:
    """The standard library takes over for what orjson refuses: lone surrogates, and more depth than it likes."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"))


def field(value: Any, name: str) -> Any:
    """What an object has under this name."""
    return value.get(name) if isinstance(value, dict) else None


def first(value: Any) -> Any:
    """What a list begins with."""
    return value[0] if isinstance(value, list) and value else None


def tokens(usage: Any, name: str) -> int | None:
    """A count that can be one."""
    count = field(usage, name)
    return count if type(count) is int and 0 <= count < _MOST_TOKENS else None


def texts(content: Any) -> Iterator[str]:
    """The texts of a message's content, which is one, or a list of parts. What a model thought is none."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = field(part, "text")
            if field(part, "type") == "text" and isinstance(text, str):
                yield text
