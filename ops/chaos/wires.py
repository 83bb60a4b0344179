"""What the model server speaks: chat completions and Messages, whole and as a stream of events."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ops.chaos.rounds import Call

WORD = re.compile(r"\s*\S+\s*|\s+")
KEY_HEADERS = ("Authorization", "X-Api-Key", "Api-Key")


@dataclass(frozen=True)
class Said:
    """A reply, as any of them would tell it.

    Attributes:
        pieces: what a stream tells it in; None: word by word.
        stop: ``stop``, ``length``, ``refusal`` or ``content_filter``.
        usage: in place of the true figures; empty for none at all.
        calls: of tools, behind the text.
    """

    content: str | None
    total: int
    stop: str = "stop"
    pieces: tuple[str, ...] | None = None
    usage: dict[str, Any] | None = None
    ident: str = "of-the-model-server"
    calls: tuple[Call, ...] = ()

    @property
    def words(self) -> list[str]:
        return list(self.pieces) if self.pieces is not None else WORD.findall(self.content or "")

    def figures(self, prompt: str, reply: str) -> dict[str, Any]:
        if self.usage is not None:
            return self.usage
        return {prompt: self.total, reply: len((self.content or "").split())}


class Wire(Protocol):
    """A way to speak. ``lead`` is how many events come before the first with text in it."""

    place: str
    request_id: str
    form: str
    lead: int

    def total(self, asked: dict[str, Any]) -> int: ...
    def whole(self, said: Said) -> dict[str, Any]: ...
    def events(self, said: Said, asked: dict[str, Any]) -> list[bytes]: ...
    def error(self, word: str, message: str) -> bytes: ...
    def hollow(self, said: Said, *, is_stream: bool) -> bytes: ...
    def odd(self, *, is_stream: bool) -> bytes: ...


ANSWERS = "model-2026-11-30"
"""Whom the server lets answer, whoever was asked."""


def dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate
        return json.dumps(value).encode()


def read(arguments: str) -> Any:
    """An object, as Messages has it; what is none stays the text that it is."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def event(data: Any, name: str = "") -> bytes:
    body = data if isinstance(data, bytes) else dump(data)
    return (b"event: %s\n" % name.encode() if name else b"") + b"data: " + body + b"\n\n"


def presented_key(headers: Mapping[str, str]) -> tuple[str, str]:
    """In which header, and which; empty where none is."""
    for name in KEY_HEADERS:
        if value := headers.get(name):
            return name.lower(), value.removeprefix("Bearer ") if name == "Authorization" else value
    return "", ""


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


class OpenAI:
    place: str = "/chat/completions"
    request_id: str = "X-Request-Id"
    form: str = "openai"
    lead: int = 1
    done = event(b"[DONE]")

    def total(self, asked: dict[str, Any]) -> int:
        return len(asked["messages"])

    def whole(self, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said.content}
        if said.stop == "refusal":
            message = {"role": "assistant", "content": None, "refusal": said.content}
        if said.calls:
            message["tool_calls"] = [self._call(call) for call in said.calls]
        choice = {"index": 0, "message": message, "finish_reason": self._reason(said)}
        whole: dict[str, Any] = {
            "id": said.ident,
            "object": "chat.completion",
            "model": ANSWERS,
            "choices": [choice],
        }
        if usage := said.figures("prompt_tokens", "completion_tokens"):
            whole["usage"] = usage
        return whole

    def events(self, said: Said, asked: dict[str, Any]) -> list[bytes]:
        part = "refusal" if said.stop == "refusal" else "content"
        last = self._chunk(said, {}, self._reason(said))
        usage = said.figures("prompt_tokens", "completion_tokens")
        events = [self._chunk(said, {"role": "assistant", "content": None})]
        events += [self._chunk(said, {part: word}) for word in said.words]
        events += [self._chunk(said, {"tool_calls": [fragment]}) for fragment in self._fragments(said)]
        events.append(last)
        if usage and (asked.get("stream_options") or {}).get("include_usage"):
            events.append({**last, "choices": [], "usage": usage})
        return [*map(event, events), self.done]

    def error(self, word: str, message: str) -> bytes:
        return event({"error": {"message": message, "type": word, "code": None}})

    def hollow(self, said: Said, *, is_stream: bool) -> bytes:
        payload = self.whole(said) | {"choices": []}
        return event(payload) + self.done if is_stream else dump(payload)

    def odd(self, *, is_stream: bool) -> bytes:
        payload = {"choices": {"0": [1]}, "usage": 7, "id": 3}
        return event(payload) + self.done if is_stream else dump(payload)

    def _call(self, call: Call, arguments: str | None = None) -> dict[str, Any]:
        function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
        ident = {"id": call.ident} if call.ident is not None else {}
        return {**ident, "type": "function", "function": function}

    def _fragments(self, said: Said) -> Iterator[dict[str, Any]]:
        for index, call in enumerate(said.calls):
            yield {"index": index, **self._call(call, "")}
            for piece in call.pieces:
                yield {"index": index, "function": {"arguments": piece}}

    def _reason(self, said: Said) -> str:
        if said.calls and said.stop == "stop":
            return "tool_calls"
        return "stop" if said.stop == "refusal" else said.stop

    def _chunk(self, said: Said, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {"id": said.ident, "object": "chat.completion.chunk", "model": ANSWERS, "choices": [choice]}


class Anthropic:
    place: str = "/messages"
    request_id: str = "Request-Id"
    form: str = "anthropic"
    lead: int = 3

    def total(self, asked: dict[str, Any]) -> int:
        return len(asked["messages"]) + ("system" in asked)

    def whole(self, said: Said) -> dict[str, Any]:
        content = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]
        content += [{"type": "text", "text": said.content}] if said.content is not None else []
        content += [self._use(call) | {"input": read(call.arguments)} for call in said.calls]
        whole = self._message(said) | {"content": content, "stop_reason": self._reason(said)}
        if usage := said.figures("input_tokens", "output_tokens"):
            whole["usage"] = usage
        return whole

    def events(self, said: Said, asked: dict[str, Any]) -> list[bytes]:
        usage = said.figures("input_tokens", "output_tokens")
        begun = {"usage": usage if said.usage else usage | {"output_tokens": 1}} if usage else {}
        ended = {"usage": {"output_tokens": usage["output_tokens"]}} if usage else {}
        delta = {"stop_reason": self._reason(said), "stop_sequence": None}
        thought = {"type": "thinking_delta", "thinking": "Hm."}
        return [
            self._event("message_start", message=self._message(said) | begun),
            self._event("content_block_delta", index=0, delta=thought),
            self._event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
            *(
                self._event("content_block_delta", index=1, delta={"type": "text_delta", "text": word})
                for word in said.words
            ),
            self._event("ping"),
            self._event("content_block_stop", index=1),
            *self._fragments(said),
            self._event("message_delta", delta=delta, **ended),
            self._event("message_stop"),
        ]

    def error(self, word: str, message: str) -> bytes:
        return self._event("error", error={"type": word, "message": message})

    def hollow(self, said: Said, *, is_stream: bool) -> bytes:
        if not is_stream:
            return dump(self._message(said) | {"content": None})
        return self._event("message_start", message=self._message(said)) + self._event("message_stop")

    def odd(self, *, is_stream: bool) -> bytes:
        payload = {"content": {"0": [1]}, "usage": 7, "id": 3, "stop_reason": 5}
        if not is_stream:
            return dump(payload)
        events = [event({"type": ["?"]}), self._event("content_block_delta", delta=[1])]
        events.append(self._event("content_block_delta", delta={"type": "new_delta", "text": "no part of the reply"}))
        events += [self._event("message_start", message=payload), self._event("message_delta", delta=7, usage=[2])]
        return b"".join([*events, self._event("message_stop")])

    def _message(self, said: Said) -> dict[str, Any]:
        return {"id": said.ident, "type": "message", "role": "assistant", "model": ANSWERS, "content": []}

    def _use(self, call: Call) -> dict[str, Any]:
        ident = {"id": call.ident} if call.ident is not None else {}
        return {**ident, "type": "tool_use", "name": call.name, "input": {}}

    def _fragments(self, said: Said) -> Iterator[bytes]:
        for index, call in enumerate(said.calls, 2):
            yield self._event("content_block_start", index=index, content_block=self._use(call))
            for piece in call.pieces:
                delta = {"type": "input_json_delta", "partial_json": piece}
                yield self._event("content_block_delta", index=index, delta=delta)
            yield self._event("content_block_stop", index=index)

    def _reason(self, said: Said) -> str:
        if said.calls and said.stop == "stop":
            return "tool_use"
        return {"stop": "end_turn", "length": "max_tokens"}.get(said.stop, said.stop)

    def _event(self, name: str, **fields: Any) -> bytes:
        return event({"type": name} | fields, name)


WIRES: tuple[Wire, ...] = (OpenAI(), Anthropic())
