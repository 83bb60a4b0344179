"""The tool calls of a reply while they are put together, out of one payload or out of many events."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import inturn.workers.providers.payload as read
from inturn.workers.provider import CALLS_LIMIT, REPLY_LIMIT, Prompt, ToolCall, ToolSpec, too_large, too_many_calls
from inturn.workers.providers.question import Question

NO_JSON = "INVALID_JSON"
"""Under this name a model is shown what it had taken for JSON: Anthropic's word, which others understand as well."""


@dataclass(slots=True)
class _Call:
    ident: Any = None
    name: Any = None
    written: list[str] = field(default_factory=list)
    given: Any = None
    """The arguments, by who sends them as an object."""

    @property
    def arguments(self) -> str:
        text = "".join(self.written)
        return text if text.strip() else read.write_json(self.given or {})


class Calls:
    """What there is of them."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._calls: list[_Call] = []
        self._latest: dict[Any, _Call] = {}
        self._left = REPLY_LIMIT

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, place: Any, *, ident: Any = None, name: Any = None, arguments: Any = None) -> None:
        """A call, or another piece of one; nothing where no tools were offered.

        Args:
            place: its index, by which the pieces of one call know each other. Not everybody sends one, and some send
                the same for every call: a name with another ID begins another call.

        Raises:
            ProviderError: it is too much.
        """
        if not self._question.prompt.offers_tools:
            return
        call = self._latest.get(place)
        if call is None or (name and (place is None or (ident and ident != call.ident))):
            call = self._begun(place)
        call.ident, call.name = call.ident or ident, call.name or name
        if not isinstance(arguments, str):
            call.given = arguments or call.given
        elif arguments:
            call.written.append(arguments)
            self._left -= len(arguments)
            if self._left < 0:
                raise too_large(self._question.model)

    @property
    def are_named(self) -> bool:
        """Whether each of them says what it calls."""
        return all(isinstance(call.name, str) and call.name for call in self._calls)

    def finished(self) -> tuple[ToolCall, ...]:
        """All of them. Who has no ID of its own, as with some servers at home, gets the first that is free."""
        taken = set(_shown_ids(self._question.prompt))
        finished: list[ToolCall] = []
        for call in self._calls:
            ident = call.ident
            if not isinstance(ident, str) or not ident or any(ident == other.id for other in finished):
                ident = next(free for free in (f"call_{n}" for n in range(len(taken) + 1)) if free not in taken)
            taken.add(ident)
            finished.append(ToolCall(ident, call.name, call.arguments))
        return tuple(finished)

    def _begun(self, place: Any) -> _Call:
        if len(self._calls) == CALLS_LIMIT:
            raise too_many_calls(self._question.model)
        call = _Call()
        self._calls.append(call)
        self._latest[place] = call
        return call


def schema_of(spec: ToolSpec) -> dict[str, Any]:
    """The parameters, with what OpenAI and Anthropic refuse to do without."""
    return {"type": "object", "properties": {}} | spec.parameters


def calls_of(message: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """ID, name and arguments of each call in a prompt's message. The arguments are an object, whatever the model wrote:
    there are servers that turn a prompt away over a call of their own model's.
    """
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = function["arguments"]
        if not isinstance(read.read_json(arguments), dict):
            arguments = read.write_json({NO_JSON: arguments} if arguments.strip() else {})
        yield call["id"], function["name"], arguments


def _shown_ids(prompt: Prompt) -> Iterator[str]:
    for message in prompt.messages:
        for call in message.get("tool_calls") or ():
            yield call["id"]
