"""What history a model is shown: as many turns as its session says, and as many of those as fit.

Nobody counts tokens here: that takes a tokenizer of each model's own, which would have to be downloaded. Messages are
weighed in bytes, and how many of those make a token is learned per model, from what its provider counted in earlier calls.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from inturn.models.states import Overflow, Role
from inturn.models.store.working import Said, Started
from inturn.workers.provider import ProviderConfig, ToolSpec

BYTES_A_TOKEN = 4.0
"""Of a model that nobody has counted for yet: English has some 4, most other languages fewer."""
LEARNED_FROM = 20_000.0
"""How many tokens of what was counted before weigh as much as those of a new call: a few calls, or one long one."""
REMEMBERED = 10_000
"""Models, at most: their names are whatever users put into sessions."""
MESSAGE_BYTES = 16
"""What surrounds each message."""
PART_BYTES = 4000
"""What an image takes, or any other part that is no text: 85 to 1,600 tokens at those who say so."""
REPLY_TOKENS = 4096
"""What is left free for the reply, where the options do not limit it; no more than a quarter of what the model takes."""

SUMMARISE = (
    "You are given the earlier part of a conversation. Write a summary that lets it go on without that part: facts, names, "
    "figures, decisions, what was asked for, and what is still open. Write only the summary, in the language of the "
    "conversation."
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call shows.

    Attributes:
        weight: in bytes, as messages are weighed here.
        tokens: how many that are, by our estimate.
        can_shrink: whether earlier turns are among it, which could be left out; or out of a summary, for the next one.
        sums_up_to: of a call for a summary: the last turn that it covers.
    """

    messages: list[Said]
    weight: int
    tokens: int
    can_shrink: bool = False
    sums_up_to: int | None = None


@dataclass(frozen=True, slots=True)
class TooMuch:
    """The history does not fit, and its session is to fail then."""

    tokens: int
    room: int


@dataclass(frozen=True, slots=True)
class _Turn:
    number: int
    said: list[Said]
    weight: int


class Sizes(Protocol):
    """Who knows how many tokens ``provider/model`` takes; None: not this one."""

    def context_tokens(self, model: str) -> int | None: ...


class Configured:
    """What the providers' settings say."""

    def __init__(self, providers: Mapping[str, ProviderConfig]) -> None:
        self._providers = providers

    def context_tokens(self, model: str) -> int | None:
        name, _, bare = model.partition("/")
        return self._providers[name].context_tokens(bare) if name in self._providers else None


class Context:
    """One per worker process. Used in the pool's loop.

    Args:
        sizes: those who know how much a model takes; the first is believed.
    """

    def __init__(self, *sizes: Sizes) -> None:
        self._sizes = sizes
        self._known: dict[str, int | None] = {}
        self._counted: dict[str, tuple[float, float]] = {}
        """By model: bytes and tokens of the latest calls."""

    def plan(self, started: Started, tools: Sequence[ToolSpec] = ()) -> Plan | TooMuch:
        """What the turn's next call is to show; or that it must not be made."""
        room = self._room(started)
        if room is None and len(started.history) <= started.window:  # as with most turns of most sessions
            weight = weight_of(messages := started.messages) + _weight_of_tools(tools)
            return Plan(messages, weight, self.tokens(started.model, weight), can_shrink=bool(started.history))
        turns = [_Turn(number, said, weight_of(said)) for number, said in started.history]
        fixed = weight_of([*started.preamble, *started.prompt]) + _weight_of_tools(tools)
        left = None if room is None else int(room * self.bytes_a_token(started.model)) - fixed
        kept = _newest(turns, left)
        if len(kept) == len(turns) <= started.window:
            return self._shown(started, turns, fixed)
        if (
            started.overflow is Overflow.SUMMARISE
            and not started.cuts
            and (older := _older(turns, left, started.window))
        ):
            return self._summary(started, older, room)
        if started.overflow is Overflow.FAIL and room is not None:
            return TooMuch(self.tokens(started.model, fixed + sum(turn.weight for turn in turns)), room)
        return self._shown(started, kept[max(0, len(kept) - started.window) :], fixed)

    def bytes_a_token(self, model: str) -> float:
        weight, tokens = self._counted.get(model, (BYTES_A_TOKEN, 1.0))
        return weight / tokens

    def tokens(self, model: str, weight: int) -> int:
        """Our estimate."""
        return int(weight / self.bytes_a_token(model)) + 1

    def learn(self, model: str, weight: int, tokens: int) -> None:
        """What a provider counted of what it was shown."""
        if tokens <= 0:
            return
        known, counted = self._counted.get(model, (BYTES_A_TOKEN * MESSAGE_BYTES, float(MESSAGE_BYTES)))
        part = LEARNED_FROM / (LEARNED_FROM + tokens)
        self._counted[model] = (known * part + weight, counted * part + tokens)

    def size(self, model: str) -> int | None:
        """How many tokens a model takes; None: nobody knows."""
        if model not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
                self._counted.clear()
            said = (who.context_tokens(model) for who in self._sizes)
            self._known[model] = next((size for size in said if size is not None), None)
        return self._known[model]

    def _room(self, started: Started) -> int | None:
        """How many tokens may be shown; None: nobody knows of a limit."""
        size = self.size(started.model)
        left = None if size is None else size - min(_reply_tokens(started.options), size // 4)
        return min((most for most in (started.context_tokens, started.room, left) if most is not None), default=None)

    def _shown(self, started: Started, turns: Sequence[_Turn], fixed: int) -> Plan:
        messages = [*started.preamble, *(one for turn in turns for one in turn.said), *started.prompt]
        weight = fixed + sum(turn.weight for turn in turns)
        return Plan(messages, weight, self.tokens(started.model, weight), can_shrink=bool(turns))

    def _summary(self, started: Started, older: Sequence[_Turn], room: int | None) -> Plan:
        """Of as many of the older turns as the model can be shown at once; the rest is for the next one."""
        messages: list[Said] = [{"role": str(Role.SYSTEM), "content": SUMMARISE}]
        most, before = None, _bytes(transcript(started.summary, ()))
        if room is not None:
            around = weight_of(messages) + MESSAGE_BYTES
            most = max(int(room * self.bytes_a_token(started.model)) - around, around)
        summed = _oldest(older, None if most is None else most - before) or older[:1]
        text = transcript(started.summary, (one for turn in summed for one in turn.said))
        if most is not None:
            text = text.encode()[:most].decode(errors="ignore")
        messages.append({"role": str(Role.USER), "content": text})
        weight = weight_of(messages)
        tokens = self.tokens(started.model, weight)
        return Plan(messages, weight, tokens, can_shrink=True, sums_up_to=summed[-1].number)


def _newest(turns: Sequence[_Turn], room: int | None) -> Sequence[_Turn]:
    """As many of the last turns as weigh no more."""
    return list(reversed(_oldest(list(reversed(turns)), room)))


def _oldest(turns: Sequence[_Turn], room: int | None) -> Sequence[_Turn]:
    weight = 0
    for place, turn in enumerate(turns):
        weight += turn.weight
        if room is not None and weight > room:
            return turns[:place]
    return turns


def _older(turns: Sequence[_Turn], left: int | None, window: int) -> Sequence[_Turn]:
    """What goes into a summary: all but the newest that take half of the room, or else one would be due every turn."""
    kept = _newest(turns[-max(1, window // 2) :], None if left is None else left // 2)
    return turns[: len(turns) - len(kept)]


def weight_of(messages: Iterable[Said]) -> int:
    weight = 0
    for message in messages:  # one loop: there are dozens in every call
        content = message["content"]
        weight += MESSAGE_BYTES + (_bytes(content) if isinstance(content, str) else sum(map(_weight_of_part, content)))
        if "tool_calls" in message:
            weight += len(orjson.dumps(message["tool_calls"]))
    return weight


def _weight_of_part(part: Any) -> int:
    return _bytes(str(part["text"])) if part.get("type") == "text" and "text" in part else PART_BYTES


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _weight_of_tools(tools: Sequence[ToolSpec]) -> int:
    return sum(len(tool.name) + len(tool.description) + len(orjson.dumps(tool.parameters)) for tool in tools)


def _reply_tokens(options: dict[str, Any]) -> int:
    asked = options.get("max_tokens") or options.get("max_completion_tokens")
    return asked if type(asked) is int and asked > 0 else REPLY_TOKENS


def transcript(summary: str | None, messages: Iterable[Said]) -> str:
    """A conversation as a text."""
    before = [] if summary is None else [f"Summary of what was said before:\n{summary}"]
    return "\n\n".join([*before, *(line for message in messages for line in _lines(message))])


def _lines(message: Said) -> Iterator[str]:
    content = message["content"]
    parts = [content] if isinstance(content, str) else [str(part.get("text", f"[{part['type']}]")) for part in content]
    if text := "\n".join(part for part in parts if part):
        yield f"{message['role']}: {text}"
    for call in message.get("tool_calls", ()):
        yield f"{message['role']} called {call['function']['name']} with {call['function']['arguments']}"
