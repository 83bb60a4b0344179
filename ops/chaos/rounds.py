"""Tools, as the model server calls them and as it wants their results back: strictly, as the real ones do."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A tool that is called.

    Attributes:
        ident: None where the server is one that gives none.
        piece: how many characters of the arguments come with one event of a stream.
    """

    name: str
    arguments: str
    ident: str | None
    piece: int = 7

    @property
    def pieces(self) -> list[str]:
        return [self.arguments[start : start + self.piece] for start in range(0, len(self.arguments), self.piece)]


def next_calls(calls: list[Any], messages: list[dict[str, Any]]) -> tuple[Call, ...]:
    """What is called now, of a directive's ``calls``: a list for each round, or one call."""
    number = len(rounds(messages))
    if number >= len(calls):
        return ()
    asked = calls[number] if isinstance(calls[number], list) else [calls[number]]
    return tuple(_call(one, f"toolu_{number}_{place}") for place, one in enumerate(asked))


def _call(asked: dict[str, Any], ident: str) -> Call:
    arguments = asked.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Call(asked.get("name", ""), text, asked.get("id", ident))


def rounds(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of the model in which it called tools, since somebody last said something."""
    since: list[dict[str, Any]] = []
    for message in messages:
        if is_prompt(message):
            since = []
        elif called(message):
            since.append(message)
    return since


def is_prompt(message: dict[str, Any]) -> bool:
    """Whether somebody said something; Messages has what tools said as a user's, too."""
    return message["role"] == "user" and (not results(message) or bool(text(message["content"])))


def called(message: dict[str, Any]) -> list[str]:
    """The IDs of the calls in a message."""
    ours = [call["id"] for call in message.get("tool_calls") or ()]
    return ours + [part["id"] for part in _parts(message) if part.get("type") == "tool_use"]


def results(message: dict[str, Any]) -> dict[str, str]:
    """What tools said, by the IDs of their calls."""
    if message["role"] == "tool":
        return {message["tool_call_id"]: text(message["content"])}
    found = [part for part in _parts(message) if part.get("type") == "tool_result"]
    return {part["tool_use_id"]: text(part.get("content", "")) for part in found}


def said(messages: list[dict[str, Any]]) -> list[str]:
    """What tools said since somebody last said something else."""
    found: list[str] = []
    for message in messages:
        theirs = results(message)
        found = found + list(theirs.values()) if theirs or message["role"] == "assistant" else []
    return found


def fault(asked: dict[str, Any]) -> str | None:
    """What OpenAI or Anthropic would say of calls and results that do not belong together."""
    messages = asked["messages"]
    for place, message in enumerate(messages):
        wanted = called(message)
        if wanted and set(wanted) != (answered := _answers(messages[place + 1 :])).keys():
            return f"messages.{place}: {wanted} are answered by {sorted(answered)}"
        if results(message) and not _belongs(messages, place):
            return f"messages.{place}: a result without a call before it"
        for call in message.get("tool_calls") or ():
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                return f"messages.{place}: arguments that are no object"
    return None


def _answers(messages: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for message in messages:
        if not results(message):
            break
        found |= results(message)
        if message["role"] == "user":
            break
    return found


def _belongs(messages: list[dict[str, Any]], place: int) -> bool:
    while place and messages[place]["role"] == "tool":
        place -= 1
    before = messages[place] if messages[place]["role"] == "assistant" else messages[place - 1]
    return bool(called(before))


def text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
