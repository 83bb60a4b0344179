"""Anthropic's Messages, and everybody who speaks them.

https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

import re
from typing import Any

from httpx_sse import ServerSentEvent

import inturn.workers.providers.payload as read
from inturn.workers.provider import OnDelta, Prompt, ProviderConfig, Reply
from inturn.workers.providers.draft import Draft
from inturn.workers.providers.endpoint import Endpoint
from inturn.workers.providers.exchange import Progress
from inturn.workers.providers.question import Question

VERSION = "2023-06-01"
MOST_TOKENS = 8192
"""``max_tokens``, which the API wants to be told, unless an option says otherwise."""

_OURS = ("model", "messages", "stream", "system")
_SYSTEM = ("system", "developer")
_INLINE = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)


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
        messages = question.prompt.messages
        system = [text for one in messages if one["role"] in _SYSTEM for text in read.texts(one["content"])]
        return {
            "model": question.prompt.model,
            "messages": _converted(question, [one for one in messages if one["role"] not in _SYSTEM]),
            **({"system": "\n\n".join(system)} if system else {}),
            "max_tokens": MOST_TOKENS,
            **self._endpoint.options(question, _OURS),
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
                self.draft.add([payload.get("content_block")])
            case "content_block_delta":
                delta = payload.get("delta")
                if read.field(delta, "type") == "text_delta":
                    self.draft.add(read.field(delta, "text"))
            case "message_delta":
                _take_figures(self.draft, payload.get("usage"))
                self.draft.stopped(read.field(payload.get("delta"), "stop_reason"))
                if self.draft.stop:
                    self._progress = Progress.WHOLE
            case "message_stop":
                self._progress = Progress.OVER
            # "ping", the ends of blocks, and whatever is new: nothing of it is text


def _take_message(draft: Draft, message: Any) -> None:
    draft.request_id = read.field(message, "id")
    _take_figures(draft, read.field(message, "usage"))
    content = read.field(message, "content")
    draft.add(content if isinstance(content, list) else None)
    draft.stopped(read.field(message, "stop_reason"))


def _take_figures(draft: Draft, usage: Any) -> None:
    """They are of the whole reply so far, wherever they stand. What was read from a cache was shown to the model, too."""
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    counts = [read.tokens(usage, name) for name in parts]
    if counts[0] is not None:
        draft.input_tokens = sum(count or 0 for count in counts)
    if (written := read.tokens(usage, "output_tokens")) is not None:
        draft.output_tokens = written


def _converted(question: Question, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as they are written here. Several of one role (a turn may have failed) are one: not everybody who
    speaks Messages joins them.
    """
    converted: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if isinstance(content, list):
            content = [_part(question, part) for part in content]
        if converted and converted[-1]["role"] == role:
            content = _joined(converted.pop()["content"], content)
        converted.append({"role": role, "content": content})
    return converted


def _joined(former: Any, latter: Any) -> Any:
    if isinstance(former, str) and isinstance(latter, str):
        return f"{former}\n\n{latter}"
    return [*_parts(former), *_parts(latter)]


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _part(question: Question, part: Any) -> Any:
    """An image as it is written here; any other part as it is.

    Raises:
        ProviderError: it is an image of which one cannot tell where it is (permanent).
    """
    if read.field(part, "type") != "image_url":
        return part
    url = read.field(read.field(part, "image_url"), "url")
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    inline = _INLINE.match(url) if isinstance(url, str) else None
    if inline is None:
        fact = "cannot be shown an image whose url is neither http(s):// nor data:TYPE;base64,..."
        raise question.failed("permanent", "invalid_request", fact)
    return {"type": "image", "source": {"type": "base64", "media_type": inline[1], "data": url[inline.end() :]}}
