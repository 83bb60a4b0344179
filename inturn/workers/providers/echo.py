"""The provider that is always there: no network, no key, the same answer every time, and it remembers.

It answers out of the history that it is shown and nothing else, so that what it recalls was really stored. It says in
every reply that it is no real model.

Its options, of the provider, the session or the turn, are in ``inturn/options.py``. It counts as tokens the words of what
it is shown (of all messages: texts, and the arguments of calls), and those of what it answers.
"""

import asyncio
import hashlib
import json
import re
from collections import OrderedDict
from typing import Any

from inturn.models.store.working import SUMMED_UP
from inturn.options import FAILURES, fault_of
from inturn.workers.provider import OnDelta, Prompt, ProviderConfig, ProviderError, Reply, ToolCall
from inturn.workers.providers.overlong import FAILURE
from inturn.workers.providers.payload import texts

_ASKS_BACK = re.compile(
    r"\b(what|which)\b.*\b(were|was|did|have|had)\s+(we|i|you)\b"
    r"|\bwhat\b.*\bi\s+(said|asked|told|mentioned)\b"
    r"|\b(what|who)('s|\s+is|\s+are|\s+was|\s+am)\s+(my|our|i)\b"
    r"|\bdo\s+you\s+(still\s+)?(remember|recall)\b|\bremind\s+me\b|\brecap\b|\bwhere\s+were\s+we\b",
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(r"\s*\S+\s*|\s+")
_QUOTED = 200
_RECALLED = 5
_COUNTED_TURNS = 10_000


class Echo:
    """Repeats and remembers. ``fail_times`` is counted here, for the latest ten thousand turns that use it."""

    def __init__(self, name: str, config: ProviderConfig) -> None:
        self._name = name
        self._options = config.options
        self._failed: OrderedDict[str, int] = OrderedDict()

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """Wait, fail or answer, as the options say; to who reads along, word by word.

        Raises:
            ProviderError: the failure that was asked for, or an option that it does not have (``invalid_request``).
        """
        options = {**self._options, **prompt.options}
        shown = sum(len(text.split()) for message in prompt.messages for text in _texts(message))
        if fault := fault_of(options, has_tools=prompt.offers_tools):
            raise ProviderError("permanent", "invalid_request", f"{self._name}/{prompt.model}: {fault}")
        if wait := _seconds(options.get("latency", 0), prompt.key):
            await asyncio.sleep(wait)
        if "fail" in options and self._fails(prompt.key, options.get("fail_times")):
            kind, status, as_if = FAILURES[options["fail"]]
            message = f"{self._name}/{prompt.model} was asked to fail as if {as_if}. Take the option fail away"
            raise ProviderError(kind, options["fail"], message, status_code=status)
        if shown > options.get("context", shown):
            raise self._too_long(prompt.model, shown, options["context"])
        calls = _next_calls(prompt.messages, options.get("call", []))
        content = "" if calls else options.get("reply") or _answer(prompt.messages)
        if content and (on_delta is not None or options.get("pace")):
            await _write(content, float(options.get("pace", 0)), on_delta)
        written = sum(len(text.split()) for text in (content, *(call.arguments for call in calls)))
        return Reply(content, shown, written, tool_calls=calls, finish_reason="tool_calls" if calls else "stop")

    async def aclose(self) -> None:
        """Nothing is open."""

    def _too_long(self, model: str, shown: int, most: int) -> ProviderError:
        kind, error_type, advice = FAILURE
        message = (
            f"{self._name}/{model} was shown {shown} words (status 400), and its option context is {most}. {advice}"
        )
        return ProviderError(kind, error_type, message, status_code=400)

    def _fails(self, key: str, times: int | None) -> bool:
        if times is None:
            return True
        failed = self._failed.pop(key, 0)
        if failed >= times:
            return False
        self._failed[key] = failed + 1
        if len(self._failed) > _COUNTED_TURNS:
            self._failed.popitem(last=False)
        return True


async def _write(content: str, pace: float, on_delta: OnDelta | None) -> None:
    for number, word in enumerate(_WORD.findall(content)):
        if number:
            await asyncio.sleep(pace)
        if on_delta is not None:
            on_delta(word)


def _texts(message: dict[str, Any]) -> list[str]:
    """Whatever is said in a message."""
    return [
        *texts(message.get("content")),
        *(call["function"]["arguments"] for call in message.get("tool_calls") or ()),
    ]


def _next_calls(messages: list[dict[str, Any]], asked: Any) -> tuple[ToolCall, ...]:
    """The calls of this round, in which so many were made since the latest prompt; none after the last one."""
    since, made, rounds = 0, 0, asked if isinstance(asked, list) else [asked]
    for message in messages:
        calls = message.get("tool_calls") or ()
        since, made = 0 if message["role"] == "user" else since + bool(calls), made + len(calls)
    if since >= len(rounds):
        return ()
    now = rounds[since] if isinstance(rounds[since], list) else [rounds[since]]
    return tuple(_call(f"call_{number}", one) for number, one in enumerate(now, made))


def _call(ident: str, asked: dict[str, Any]) -> ToolCall:
    arguments = asked.get("arguments", {})
    return ToolCall(ident, asked["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))


def _answer(messages: list[dict[str, Any]]) -> str:
    said = ["\n".join(texts(message["content"])) for message in messages if message["role"] == "user"]
    if not said:
        return "You have not said anything yet. (echo, not a real model)"
    *earlier, latest = said
    has_summary = any(
        message["role"] == "system" and "".join(texts(message["content"])).startswith(SUMMED_UP) for message in messages
    )
    told = "".join(f"{line}\n" for line in _told_by_tools(messages))
    if not told and _asks_back(latest):
        return _recollection([text for text in earlier if not _asks_back(text)], has_summary=has_summary)
    return f"You said: {_quote(latest)}\n{told}I remember {_known(len(said), has_summary)}. (echo, not a real model)"


def _known(shown: int, has_summary: bool) -> str:
    if has_summary:
        return f"{shown} message{'s' if shown > 1 else ''} of yours, and was shown a summary of what was before"
    return "your first message" if shown == 1 else f"{shown} messages of yours"


def _told_by_tools(messages: list[dict[str, Any]]) -> list[str]:
    """What each tool said since the latest prompt, as sentences."""
    names: dict[str, str] = {}
    told: list[str] = []
    for message in messages:
        if message["role"] == "user":
            told = []
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls") or ()}
        if message["role"] == "tool":
            name = names.get(message["tool_call_id"], "that was called")
            told.append(f"The tool {name} said: {_quote(''.join(texts(message['content'])))}.")
    return told


def _asks_back(text: str) -> bool:
    """A question that is longer is none, and would take the pattern for ever."""
    return len(text) <= _QUOTED and _ASKS_BACK.search(text) is not None


def _recollection(topics: list[str], *, has_summary: bool) -> str:
    if not topics:
        besides = ", but a summary" if has_summary else ""
        return f"Nothing yet: I was shown no earlier message to speak of{besides}. (echo, not a real model)"
    quoted = ", then ".join(_quote(topic) for topic in topics[-_RECALLED:])
    older = len(topics) - _RECALLED
    before = f" And {older} more before that." if older > 0 else ""
    return f"We were discussing: {quoted}.{before}\nI read it in the stored history. (echo, not a real model)"


def _quote(text: str) -> str:
    return f'"{text}"' if len(text) <= _QUOTED else f'"{text[:_QUOTED]}..."'


def _seconds(latency: Any, key: str) -> float:
    if not isinstance(latency, list | tuple):
        return float(latency)
    low, high = latency
    draw = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
    return float(low + (high - low) * draw)
