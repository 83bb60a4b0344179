"""Contents in parts: what a provider cannot be shown is told before anything is sent."""

from collections.abc import Mapping
from typing import Any

import inturn.workers.providers.payload as read
from inturn.workers.provider import ProviderError
from inturn.workers.providers.question import Question
from inturn.workers.providers.scrubbing import one_line


def checked_parts(question: Question, content: Any, elsewhere: Mapping[str, str]) -> None:
    """See that each part is one. What nobody here has heard of is the provider's to judge.

    Args:
        elsewhere: types that this provider does not know, and what to write instead.

    Raises:
        ProviderError: a part is none, or of a type that the provider does not know (permanent).
    """
    for part in content if isinstance(content, list) else []:
        type_ = read.field(part, "type")
        if not isinstance(type_, str) or not type_:
            raise unfit(question, "a part of a content that has no type: text and image_url are some")
        if type_ in elsewhere:
            raise unfit(question, f"a part of type {type_}: {elsewhere[type_]}")
        if type_ == "text" and not isinstance(part.get("text"), str):
            raise unfit(question, "a part of type text that has no text")
        if type_ == "image_url" and not isinstance(read.field(part.get("image_url"), "url"), str):
            raise unfit(question, 'an image without its url: write {"image_url": {"url": "https://..."}}')


def unfit(question: Question, what: str) -> ProviderError:
    """It cannot be shown this; the sentence quotes no more of the prompt than a type."""
    return question.failed("permanent", "invalid_request", f"cannot be shown {one_line(what)[:200]}")
