"""Replies on their way to whoever sits there."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from inturn.cli import render

if TYPE_CHECKING:
    from inturn.client import SessionEvent

ANEW = "(the call was broken off in the middle; the reply begins anew)"
SPEAKERS = {"user.message": "you", "assistant.message": "assistant", "system.message": "system"}


def hear(events: Iterable["SessionEvent"], speech: render.Speech) -> None:
    """Let a reply be spoken while it is written."""
    for event in events:
        if event.type == "assistant.message_delta":
            speech.say(event.data.delta_content)
        elif event.type == "assistant.message_discarded":
            speech.break_off(ANEW)


class Tail:
    """What happens in a session, line by line."""

    def __init__(self) -> None:
        self._speech: render.Speech | None = None

    def show(self, event: "SessionEvent") -> None:
        if event.type == "assistant.message_delta":
            self._speech = self._speech or render.PlainSpeech("assistant")
            self._speech.say(event.data.delta_content)
        elif event.type == "assistant.message_discarded" and self._speech is not None:
            self._speech.break_off(ANEW)
        else:
            was_spoken = self._speech is not None and event.type == "assistant.message"
            self.end()
            if not was_spoken:
                self._say(event)

    def end(self) -> None:
        """Whatever comes next has a line of its own."""
        if self._speech is not None:
            self._speech.close()
            self._speech = None

    def _say(self, event: "SessionEvent") -> None:
        data = event.data
        if event.type == "session.error":
            render.utterance(f"turn {event.turn} failed", f"({data.error_type}) {data.message}")
        elif event.type == "abort":
            render.utterance(f"turn {event.turn} was cancelled", data.message or "")
        else:
            render.utterance(SPEAKERS.get(event.type, event.type), data.content)
