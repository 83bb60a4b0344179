"""Why a line is refused, on its way to becoming a ``BadLine``."""

from typing import Any


class Refusal(Exception):
    """Raised where a line is found to be wrong, and caught where its number is known.

    Attributes:
        code: ``missing_field``, ...; see ``BadLine``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def missing_field(message: str) -> Refusal:
    return Refusal("missing_field", message)


def invalid_field(message: str) -> Refusal:
    return Refusal("invalid_field", message)


def of_type(value: object) -> str:
    """Its type, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def json_kind(value: Any) -> str:
    """What a value is called in JSON, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"
