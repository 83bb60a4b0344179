"""How servers say that a prompt is more than their model can be shown: the directive's ``who`` names one of them."""

import json
from typing import Any

from aiohttp import web

from ops.chaos.acts import Act, Exchange, whole
from ops.chaos.wires import event

OPENAI = (
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. "
    "Please reduce the length of the messages."
)
LMSTUDIO = (
    "Trying to keep the first 9000 tokens when context the overflows. However, the model is loaded with context length "
    "of only 8192 tokens, which is not enough."
)
LLAMACPP = "the request exceeds the available context size. try increasing the context size or enable context shift"
OPENROUTER = "This endpoint's maximum context length is 8192 tokens. However, you requested about 9000 tokens."
LITELLM = "litellm.ContextWindowExceededError: litellm.BadRequestError: OpenAIException - too much of it"

WHO: dict[str, tuple[int, Any]] = {
    "openai": (400, {"message": OPENAI, "type": "invalid_request_error", "code": "context_length_exceeded"}),
    "anthropic": (400, {"type": "invalid_request_error", "message": "prompt is too long: 9000 tokens > 8192 maximum"}),
    "anthropic_sum": (
        400,
        {"type": "invalid_request_error", "message": "input length and `max_tokens` exceed context limit: 1 + 2 > 2"},
    ),
    "anthropic_size": (413, {"type": "request_too_large", "message": "Request exceeds the maximum size"}),
    "vllm": (400, {"message": OPENAI, "type": "BadRequestError", "code": 400}),
    "litellm": (400, {"message": LITELLM, "type": None, "code": "400"}),
    "lmstudio": (400, LMSTUDIO),
    "llamacpp": (400, {"code": 400, "message": LLAMACPP, "type": "exceed_context_size_error", "n_ctx": 8192}),
    "llamacpp_before": (500, {"code": 500, "message": LLAMACPP, "type": "exceed_context_size_error"}),
    "openrouter": (400, {"message": OPENROUTER, "code": 400}),
    "openrouter_quoting": (
        400,
        {"message": "Provider returned error", "code": 400, "metadata": {"raw": json.dumps({"error": OPENAI})}},
    ),
}


def is_short(exchange: Exchange) -> bool:
    """Where the directive has ``beyond``, only of more messages than that there are too many."""
    return bool(exchange.said.total <= exchange.directive.get("beyond", 0))


async def too_long(exchange: Exchange) -> web.StreamResponse:
    """With the status that they have for it."""
    if is_short(exchange):
        return whole(exchange.reply, exchange.content_type)
    status, error = WHO[exchange.directive["who"]]
    return web.Response(status=status, text=json.dumps({"error": error}), content_type="application/json")


async def too_long_inside(exchange: Exchange) -> web.StreamResponse:
    """In place of a reply, behind a 200, as LM Studio does."""
    if is_short(exchange):
        return whole(exchange.reply, exchange.content_type)
    error = {"error": WHO[exchange.directive["who"]][1]}
    return whole(event(error) if exchange.is_stream else json.dumps(error).encode(), exchange.content_type)


async def no_room(exchange: Exchange) -> web.StreamResponse:
    """The prompt just fits, in Anthropic's words."""
    return exchange.with_said(content=None, stop="model_context_window_exceeded")


ACTS: dict[str, Act] = {act.__name__: act for act in (too_long, too_long_inside, no_room)}
