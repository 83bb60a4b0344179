"""Anthropic's Messages, and everybody who speaks them.

https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from typing import Any

from httpx_sse import ServerSentEvent

import inturn.workers.providers.payload as read
from inturn.options import OURS
from inturn.workers.provider import OnDelta, Prompt, ProviderConfig, Reply
from inturn.workers.providers.draft import Draft
from inturn.workers.providers.endpoint import Endpoint
from inturn.workers.providers.exchange import Progress
from inturn.workers.providers.messages import converted, system_text, tools_of
from inturn.workers.providers.question import Question

VERSION = "2023-06-01"
MOST_TOKENS = 8192
"""``max_tokens``, which the API wants to be told, unless an option says otherwise."""


class Anthropic:
    """One endpoint that speaks Messages.

    Raises:
        ProviderError: its ``base_url`` or one of its headers cannot be used (permanent).
    """

    def __init__(self, name: str, config: ProviderConfig) -> None:
        version = {"anthropic-version": VERSION}
        self._endpoint = Endpoint(name, config, "/messages", version="/v1", key_header="x-api-key", headers=version)

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """POST the prompt, once.

        Raises:
            ProviderError: there is no reply.
        """
        question = self._endpoint.question(prompt)
        payload = self._payload(question)
        if on_delta is None:
            answer = await self._endpoint.post(question, payload)
        else:
            events = _Events(Draft(question, on_delta))
            answer = await self._endpoint.post(question, payload | {"stream": True}, events.hear)
            if answer.is_stream:
                return events.draft.reply(answer)
        draft = Draft(question)
        _take_message(draft, draft.take(answer.body, answer))
        return draft.reply(answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._endpoint.aclose()

    def _payload(self, question: Question) -> dict[str, Any]:
        system, options = system_text(question), self._endpoint.options(question, OURS["anthropic"])
        return {
            "model": question.prompt.model,
            "messages": converted(question),
            **({"system": system} if system else {}),
            "max_tokens": MOST_TOKENS,
            **tools_of(question.prompt, options),
            **options,
        }


class _Events:
    """The events of a streamed reply; ``message_stop`` is the last."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._progress = Progress.UNDER_WAY

    def hear(self, event: ServerSentEvent) -> Progress:
        if event.data and self._progress is not Progress.OVER:
            self._take(self.draft.take(event.data))
        return self._progress

    def _take(self, payload: dict[str, Any]) -> None:
        match payload.get("type"):
            case "message_start":
                _take_message(self.draft, read.field(payload, "message"))
            case "content_block_start":
                _take_block(self.draft, payload.get("index"), payload.get("content_block"))
            case "content_block_delta":
                self._take_delta(payload.get("index"), payload.get("delta"))
            case "message_delta":
                _take_figures(self.draft, payload.get("usage"))
                self.draft.stopped(read.field(payload.get("delta"), "stop_reason"))
                if self.draft.stop:
                    self._progress = Progress.WHOLE
            case "message_stop":
                self._progress = Progress.OVER
            # "ping", the ends of blocks, and whatever is new: nothing of it is text

    def _take_delta(self, place: Any, delta: Any) -> None:
        match read.field(delta, "type"):
            case "text_delta":
                self.draft.add(read.field(delta, "text"))
            case "input_json_delta":
                self.draft.calls.take(place, arguments=read.field(delta, "partial_json"))


def _take_message(draft: Draft, message: Any) -> None:
    draft.request_id, draft.model = read.field(message, "id"), read.field(message, "model")
    _take_figures(draft, read.field(message, "usage"))
    content = read.field(message, "content")
    for place, block in enumerate(content if isinstance(content, list) else []):
        _take_block(draft, place, block)
    draft.stopped(read.field(message, "stop_reason"))


def _take_block(draft: Draft, place: Any, block: Any) -> None:
    """A text, or a call; what a model thought, and what the provider's own tools did, is neither."""
    if read.field(block, "type") == "tool_use":
        ident, name, given = (read.field(block, name) for name in ("id", "name", "input"))
        draft.calls.take(place, ident=ident, name=name, arguments=given)
    else:
        draft.add([block])


def _take_figures(draft: Draft, usage: Any) -> None:
    """They are of the whole reply so far, wherever they stand. What was read from a cache was shown to the model, too."""
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    counts = [read.tokens(usage, name) for name in parts]
    if counts[0] is not None:
        draft.input_tokens = sum(count or 0 for count in counts)
        draft.cache_write_tokens, draft.cache_read_tokens = counts[1] or 0, counts[2] or 0
    if (written := read.tokens(usage, "output_tokens")) is not None:
        draft.output_tokens = written
