"""What is said in a line, checked as it will be stored: texts, parts, and the model that is to hear them."""

from collections.abc import Callable, Mapping
from typing import Any

from inturn.intake.refusal import Refusal, invalid_field, missing_field
from inturn.models.content import PROMPT_LIMIT, checked_parts, checked_prompt, parts_size
from inturn.models.errors import InvalidPromptError


def content_of(name: str, content: object) -> tuple[str, dict[str, Any] | None]:
    """A text or a list of parts: its text, and its parts if it is more than that.

    Args:
        name: what it is called in the line.

    Raises:
        Refusal: it is neither, empty, or too large.
    """
    if isinstance(content, str):
        return _text_of(name, content), None
    if not isinstance(content, list) or not all(_is_part(part) for part in content):
        raise invalid_field(
            f"{name} is {content!r:.60}: it is a text, or a list of parts, each an object with a type, such as "
            '{"type": "text", "text": "..."}'
        )
    try:
        return checked_parts(content)
    except InvalidPromptError as refused:  # for one of the two reasons that are left
        is_large = parts_size(content) > PROMPT_LIMIT
        raise Refusal("prompt_too_large" if is_large else "missing_field", f"{name}: {refused}") from None


def _text_of(name: str, text: str) -> str:
    if not text.strip():
        raise missing_field(f"{name} is empty: there is nothing to answer")
    try:
        return checked_prompt(text)
    except InvalidPromptError as refused:  # for the reason that is left
        raise Refusal("prompt_too_large", f"{name}: {refused}") from None


def _is_part(part: object) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("type"), str)


def checked_model(name: str, model: object, check_model: Callable[[str], str]) -> str | None:
    """Raises: Refusal, UnknownModelError."""
    if model is None:
        return None
    if not isinstance(model, str):
        raise invalid_field(f'{name} is {model!r:.60}: it is a string, such as "openai/gpt-4.1"')
    return check_model(model)
