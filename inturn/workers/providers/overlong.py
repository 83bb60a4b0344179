"""How providers say that a model was shown more than it can take; each has words of its own.

OpenAI, Azure, newer vLLM: the code ``context_length_exceeded``. llama.cpp: ``exceed_context_size_error``, by now with
400, before with 500. Anthropic: 400 and a sentence, or 413 and ``request_too_large``. All others: a sentence, with 400 as a
rule; LM Studio may say it in a stream that began with 200, and OpenRouter quotes what its own provider said.
"""

import re
from typing import Any

import inturn.workers.providers.payload as read
from inturn.workers.provider import FailureKind

FAILURE: tuple[FailureKind, str, str] = (
    "permanent",
    "context_length_exceeded",
    'Show it less: lower the session\'s context_turns or context_tokens, or set overflow="summarise"',
)

_WORDS = ("context_length_exceeded", "exceed_context_size_error", "request_too_large")
_SENTENCES = re.compile(
    r"maximum (?:context|prompt) length (?:is|of)\b|\d maximum context length"  # OpenAI, vLLM, LiteLLM, OpenRouter, Mistral
    r"|prompt is too long|input is too long"  # Anthropic, Bedrock
    r"|exceeds? (?:the )?(?:available |maximum |model'?s )?context (?:size|length|window|limit)"
    r"|context (?:size|length|window) (?:has been|was|is) exceeded"
    r"|context_length_exceeded|ContextWindowExceeded"  # LiteLLM, and whoever quotes
    r"|with (?:a )?context length of only \d+ tokens"  # LM Studio
    r"|longer than the maximum model length"  # vLLM
    r"|input token count .{0,30}exceeds the maximum",  # Gemini
    re.IGNORECASE,
)
_READ = 4000
_MAY_SAY_SO = (None, 400, 413, 422)
"""A sentence counts with these only: a 429 that calls a request too large means the minute, not the model."""


def is_told(status: int | None, error: Any) -> bool:
    """Whether an error says so.

    Args:
        status: that it came with, or that its word stands for; None for neither.
    """
    if any(read.field(error, name) in _WORDS for name in ("code", "type")):
        return True
    return status in _MAY_SAY_SO and any(_SENTENCES.search(text[:_READ]) for text in _said(error))


def _said(error: Any) -> list[str]:
    quoted = read.field(read.field(error, "metadata"), "raw")
    told = (error, read.field(error, "message"), read.field(error, "detail"), quoted)
    return [text for text in told if isinstance(text, str)]
