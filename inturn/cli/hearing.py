"""Replies on their way to whoever sits there."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from inturn.cli import render

if TYPE_CHECKING:
    from inturn.client import SessionEvent

REMARK_WIDTH = 200
ANEW = "(this is void: the call broke off, or the model called tools; the reply begins anew)"
SPEAKERS = {
    "user.message": "you",
    "assistant.message": "assistant",
    "system.message": "system",
    "tool.message": "tool",
    "summary.message": "summary of what was said up to here",
    "session.content_removed": "removed",
}


def hear(events: Iterable["SessionEvent"], speech: render.Speech) -> None:
    """Let a reply be spoken while it is written."""
    for event in events:
        if event.type == "assistant.message_delta":
            speech.say(event.data.delta_content)
        elif event.type == "assistant.message_discarded":
            speech.interject(ANEW)
        elif event.type == "tool.message" or event.data.tool_calls:
            speech.interject(f"({shortened(event)})")


def shortened(event: "SessionEvent") -> str:
    """What a tool is asked, or said, in a line."""
    told = called(event.data) if event.data.tool_calls else f"{event.data.name}: {event.data.content}"
    line = " ".join(told.split())
    return line if len(line) <= REMARK_WIDTH else f"{line[: REMARK_WIDTH - 1]}…"


class Said(Protocol):
    """What an utterance holds, of a message or of an event."""

    @property
    def content(self) -> str: ...
    @property
    def tool_calls(self) -> list[dict[str, Any]] | None: ...
    @property
    def name(self) -> str | None: ...


def speaker_of(kind: str, data: Said) -> str:
    return f"{SPEAKERS.get(kind, kind)}{f' {data.name}' if data.name else ''}"


def spoken(data: Said) -> str:
    """The text, and what the model wants called."""
    return "\n".join(part for part in (data.content, called(data)) if part)


def called(data: Said) -> str:
    calls = (call["function"] for call in data.tool_calls or ())
    return "\n".join(f"calls {call['name']}({call['arguments']})" for call in calls)


class Tail:
    """What happens in a session, line by line."""

    def __init__(self) -> None:
        self._speech: render.Speech | None = None
        self._heard: int | None = None
        """The turn whose next message was heard while it was written."""

    def show(self, event: "SessionEvent") -> None:
        if event.type == "assistant.message_delta":
            self._speech, self._heard = self._speech or render.PlainSpeech("assistant"), event.turn
            self._speech.say(event.data.delta_content)
        elif event.type == "assistant.message_discarded":
            (self._speech or render.PlainSpeech()).interject(ANEW)
        else:
            was_heard = event.type == "assistant.message" and event.turn == self._heard
            self.end()
            self._say(event, called(event.data) if was_heard else spoken(event.data))
            if was_heard:
                self._heard = None

    def end(self) -> None:
        """Whatever comes next has a line of its own."""
        if self._speech is not None:
            self._speech.close()
            self._speech = None

    def _say(self, event: "SessionEvent", said: str) -> None:
        data = event.data
        if event.type == "session.error":
            render.utterance(f"turn {event.turn} failed", f"({data.error_type}) {data.message}")
        elif event.type == "abort":
            render.utterance(f"turn {event.turn} was cancelled", data.message or "")
        elif said:
            render.utterance(speaker_of(event.type, data), said)
