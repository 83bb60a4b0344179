"""OpenAI's chat completions, and everybody who speaks them: Azure, Ollama, vLLM, llama.cpp, LM Studio, LiteLLM, OpenRouter.

https://platform.openai.com/docs/api-reference/chat/create
"""

from typing import Any

from httpx_sse import ServerSentEvent

import inturn.workers.providers.payload as read
from inturn.options import OURS
from inturn.workers.provider import OnDelta, Prompt, ProviderConfig, Reply, ToolSpec
from inturn.workers.providers.calls import calls_of, schema_of
from inturn.workers.providers.draft import Draft
from inturn.workers.providers.endpoint import Endpoint
from inturn.workers.providers.exchange import Progress
from inturn.workers.providers.parts import checked_parts
from inturn.workers.providers.question import Question

_END = "[DONE]"
_ELSEWHERE = {
    "image": "an image is a part of type image_url",
    "document": "a document is a part of type file",
    "tool_use": "a tool call stands in the message's tool_calls",
    "tool_result": "what a tool said is a message of role tool",
}
"""Parts of Messages, and what they are here."""


class OpenAI:
    """One endpoint that speaks chat completions.

    Raises:
        ProviderError: its ``base_url`` or one of its headers cannot be used (permanent).
    """

    def __init__(self, name: str, config: ProviderConfig) -> None:
        self._endpoint = Endpoint(name, config, "/chat/completions", key_header="authorization", key_prefix="Bearer ")

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """POST the prompt, once.

        Raises:
            ProviderError: there is no reply.
        """
        question = self._endpoint.question(prompt)
        payload = self._payload(question, is_stream=on_delta is not None)
        if on_delta is None:
            answer = await self._endpoint.post(question, payload)
        else:
            chunks = _Chunks(Draft(question, on_delta))
            answer = await self._endpoint.post(question, payload, chunks.hear)
            if answer.is_stream:
                return chunks.draft.reply(answer)
        draft = Draft(question)
        _take(draft, draft.take(answer.body, answer), "message")
        return draft.reply(answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    def _payload(self, question: Question, *, is_stream: bool) -> dict[str, Any]:
        prompt, options = question.prompt, self._endpoint.options(question, OURS["openai"])
        tools = {"tools": [_tool(spec) for spec in prompt.tools]} if prompt.tools else {}
        # Refused in a call that is no stream; and there are servers that refuse it in every call.
        wanted = options.pop("stream_options", {"include_usage": True})
        payload = {
            "model": prompt.model,
            "messages": [_written(question, one) for one in prompt.messages],
            **tools,
            **options,
        }
        if is_stream:
            payload |= {"stream": True} | ({"stream_options": wanted} if wanted else {})
        return payload


def _tool(spec: ToolSpec) -> dict[str, Any]:
    function = {"name": spec.name, "description": spec.description, "parameters": schema_of(spec)}
    return {"type": "function", "function": function}


def _written(question: Question, message: dict[str, Any]) -> dict[str, Any]:
    checked_parts(question, message.get("content"), _ELSEWHERE)
    if not message.get("tool_calls"):
        return message
    calls = [
        {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}
        for ident, name, arguments in calls_of(message)
    ]
    return message | {"tool_calls": calls}


class _Chunks:
    """The events of a streamed reply, each a piece of it; ``[DONE]`` is the last."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._progress = Progress.UNDER_WAY

    def hear(self, event: ServerSentEvent) -> Progress:
        if event.data.strip() == _END:
            self._progress = Progress.OVER
        elif event.data and self._progress is not Progress.OVER:
            _take(self.draft, self.draft.take(event.data), "delta")
            if self.draft.stop:  # the end for who sends no [DONE]; a chunk with the usage may still come
                self._progress = Progress.WHOLE
        return self._progress


def _take(draft: Draft, payload: dict[str, Any], part: str) -> None:
    """Add what a payload has to say.

    Args:
        part: what its choices hold: the ``message``, or a ``delta`` of it.
    """
    draft.request_id = draft.request_id or read.field(payload, "id")
    draft.model = draft.model or read.field(payload, "model")
    # In a chunk with the last choice, in one without any, or with every chunk: the latest figures hold.
    usage = read.field(payload, "usage")
    if isinstance(usage, dict):
        draft.input_tokens = read.tokens(usage, "prompt_tokens")
        draft.output_tokens = read.tokens(usage, "completion_tokens")
        draft.cache_read_tokens = read.tokens(read.field(usage, "prompt_tokens_details"), "cached_tokens") or 0
    choice = read.first(read.field(payload, "choices"))
    if read.field(choice, "index"):
        return  # another reply to the same prompt: nobody asked for two
    message = read.field(choice, part)
    draft.add(read.field(message, "content"))
    _take_calls(draft, read.field(message, "tool_calls"), is_whole=part == "message")
    draft.is_refused = draft.is_refused or bool(read.field(message, "refusal"))
    draft.stopped(read.field(choice, "finish_reason"))


def _take_calls(draft: Draft, calls: Any, *, is_whole: bool) -> None:
    for place, call in enumerate(calls if isinstance(calls, list) else []):
        function, index = read.field(call, "function"), read.field(call, "index")
        draft.calls.take(
            place if is_whole else index if isinstance(index, int) else None,
            ident=read.field(call, "id"),
            name=read.field(function, "name"),
            arguments=read.field(function, "arguments"),
        )
