"""What was said, as the conventions for generative AI write it: for traces that are asked for it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from inturn.workers.provider import Reply


def as_told(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a model is shown."""
    return _json({"role": said["role"], "parts": list(_parts(said))} for said in messages)


def reply_as_told(reply: "Reply") -> str:
    """What it answered."""
    texts = [{"type": "text", "content": reply.content}] if reply.content else []
    calls = [_call(one.id, one.name, one.arguments) for one in reply.tool_calls]
    return _json([{"role": "assistant", "parts": [*texts, *calls], "finish_reason": reply.finish_reason or ""}])


def _parts(said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    content = said.get("content")
    if said["role"] == "tool":
        yield {"type": "tool_call_response", "id": said.get("tool_call_id"), "response": content}
        return
    if isinstance(content, str) and content:
        yield {"type": "text", "content": content}
    for part in content if isinstance(content, list) else ():
        # Of what is no text its kind only: an image may have megabytes.
        yield (
            {"type": "text", "content": part["text"]} if part.get("type") == "text" else {"type": str(part.get("type"))}
        )
    for call in said.get("tool_calls") or ():
        yield _call(call.get("id"), call["function"]["name"], call["function"]["arguments"])


def _call(ident: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"type": "tool_call", "id": ident, "name": name, "arguments": arguments}


def _json(messages: Iterable[dict[str, Any]]) -> str:
    return orjson.dumps(list(messages)).decode()
