"""A prompt's messages and tools, as Anthropic's Messages writes them.

https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/implement-tool-use
"""

import re
from collections.abc import Iterable
from typing import Any

import inturn.workers.providers.payload as read
from inturn.models.content import storable_json
from inturn.workers.provider import Prompt, ToolSpec
from inturn.workers.providers.calls import calls_of, schema_of
from inturn.workers.providers.parts import checked_parts, unfit
from inturn.workers.providers.question import Question

_SYSTEM = ("system", "developer")
_INLINE = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)
_NOT_IN_AN_ID = re.compile(r"[^\w-]", re.ASCII)
_ELSEWHERE = {
    "file": "a document is a part of type document",
    "input_audio": "no sound can be shown",
    "audio_url": "no sound can be shown",
    "video_url": "no film can be shown",
    "input_text": "a text is a part of type text",
    "input_image": "an image is a part of type image_url",
    "refusal": "what a model declined is no part of a conversation here",
}
"""Parts of chat completions and their kin, and what they are here."""


def system_text(question: Question) -> str:
    """What goes beside the messages.

    Raises:
        ProviderError: it is not all text (permanent).
    """
    found: list[str] = []
    for message in question.prompt.messages:
        if message["role"] in _SYSTEM:
            content = message["content"]
            checked_parts(question, content, _ELSEWHERE)
            if isinstance(content, list) and any(part["type"] != "text" for part in content):
                raise unfit(question, "anything but text in a system message: put it into the user's")
            found += read.texts(content)
    return "\n\n".join(found)


def converted(question: Question) -> list[dict[str, Any]]:
    """The messages. Several of one role (a turn may have failed; what several tools said in one round) are one: not
    everybody who speaks Messages joins them.

    Raises:
        ProviderError: one of them has a part that cannot be shown (permanent).
    """
    messages: list[dict[str, Any]] = []
    for message in question.prompt.messages:
        if message["role"] in _SYSTEM:
            continue
        role = "user" if message["role"] == "tool" else message["role"]
        content = _content(question, message)
        if messages and messages[-1]["role"] == role:
            content = _joined(messages.pop()["content"], content)
        messages.append({"role": role, "content": content})
    return messages


def tools_of(prompt: Prompt, options: dict[str, Any]) -> dict[str, Any]:
    """The tools that are offered; or that were, as calls among the messages are refused where no tools are named."""
    if prompt.tools:
        return {"tools": [_tool(spec) for spec in prompt.tools]}
    called = dict.fromkeys(name for message in prompt.messages for _, name, _ in calls_of(message))
    if not called or "tools" in options:
        return {}
    return {"tools": [_tool(ToolSpec(name, "", {})) for name in called], "tool_choice": {"type": "none"}}


def _tool(spec: ToolSpec) -> dict[str, Any]:
    return {"name": spec.name, "description": spec.description, "input_schema": schema_of(spec)}


def _content(question: Question, message: dict[str, Any]) -> Any:
    content = message.get("content")
    if isinstance(content, list):
        checked_parts(question, content, _ELSEWHERE)
        content = [_part(question, part) for part in content]
    if message["role"] == "tool":
        said = {"content": content} if content else {}
        return [{"type": "tool_result", "tool_use_id": _ident(message["tool_call_id"]), **said}]
    if message.get("tool_calls"):
        return [*_parts(content), *_uses(message)]
    return content


def _uses(message: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for ident, name, arguments in calls_of(message):
        yield {"type": "tool_use", "id": _ident(ident), "name": name, "input": storable_json(read.read_json(arguments))}


def _ident(ident: str) -> str:
    """An ID that somebody else gave may have characters that are refused here."""
    return _NOT_IN_AN_ID.sub("_", ident)


def _joined(former: Any, latter: Any) -> Any:
    if isinstance(former, str) and isinstance(latter, str):
        return f"{former}\n\n{latter}"
    return [*_parts(former), *_parts(latter)]


def _parts(content: Any) -> list[Any]:
    """A content in parts; an empty text is refused as one."""
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content and content.strip() else []


def _part(question: Question, part: Any) -> Any:
    """An image as it is written here; any other part as it is.

    Raises:
        ProviderError: it is an image of which one cannot tell where it is (permanent).
    """
    if part["type"] != "image_url":
        return part
    url = part["image_url"]["url"]
    if url.startswith(("http://", "https://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    inline = _INLINE.match(url)
    if inline is None:
        raise unfit(question, "an image whose url is neither http(s):// nor data:TYPE;base64,...")
    return {"type": "image", "source": {"type": "base64", "media_type": inline[1], "data": url[inline.end() :]}}
