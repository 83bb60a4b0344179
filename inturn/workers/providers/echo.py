"""The provider that is always there: no network, no key, the same answer every time, and it remembers.

It answers out of the history that it is shown and nothing else, so that what it recalls was really stored. It says in
every reply that it is no real model.

Options, of the provider, the session or the turn:

==============  =========================================================================================  ========
option          what it does                                                                               default
==============  =========================================================================================  ========
``latency``     seconds before it answers, or ``[low, high]``: drawn from the turn's key, the same again    0
``pace``        seconds between the words of its answer, whether somebody reads along or not                0
``fail``        answers with a failure: ``rate_limited``, ``unavailable``, ``timeout``, ``disconnected``    none
                or ``invalid_request``
``fail_times``  with ``fail``: only the first so many attempts of a turn in this process fail               all
``reply``       answers with this text                                                                     none
==============  =========================================================================================  ========
"""

import asyncio
import hashlib
import math
import re
from collections import OrderedDict
from typing import Any

from inturn.workers.provider import FailureKind, OnDelta, Prompt, ProviderConfig, ProviderError, Reply
from inturn.workers.providers.payload import texts

OPTIONS = ("latency", "pace", "fail", "fail_times", "reply")

_FAILURES: dict[str, tuple[FailureKind, int | None, str]] = {
    "rate_limited": ("safe", 429, "it were busy"),
    "unavailable": ("safe", 503, "it were down"),
    "timeout": ("ambiguous", None, "its deadline had passed"),
    "disconnected": ("ambiguous", None, "it had hung up"),
    "invalid_request": ("permanent", 400, "the request were wrong"),
}

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
        fault = _fault(options)
        if fault:
            raise ProviderError("permanent", "invalid_request", f"{self._name}/{prompt.model}: {fault}")
        wait = _seconds(options.get("latency", 0), prompt.key)
        if wait:
            await asyncio.sleep(wait)
        if "fail" in options and self._fails(prompt.key, options.get("fail_times")):
            kind, status, as_if = _FAILURES[options["fail"]]
            message = f"{self._name}/{prompt.model} was asked to fail as if {as_if}. Take the option fail away"
            raise ProviderError(kind, options["fail"], message, status_code=status)
        content = options.get("reply") or _answer(prompt.messages)
        if on_delta is not None or options.get("pace"):
            await _write(content, float(options.get("pace", 0)), on_delta)
        return Reply(content)

    async def aclose(self) -> None:
        """Nothing is open."""

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


def _answer(messages: list[dict[str, Any]]) -> str:
    said = ["\n".join(texts(message["content"])) for message in messages if message["role"] == "user"]
    if not said:
        return "You have not said anything yet. (echo, not a real model)"
    *earlier, latest = said
    if _asks_back(latest):
        return _recollection([text for text in earlier if not _asks_back(text)])
    count = "your first message" if not earlier else f"{len(said)} messages of yours"
    return f"You said: {_quote(latest)}\nI remember {count}. (echo, not a real model)"


def _asks_back(text: str) -> bool:
    """A question that is longer is none, and would take the pattern for ever."""
    return len(text) <= _QUOTED and _ASKS_BACK.search(text) is not None


def _recollection(topics: list[str]) -> str:
    if not topics:
        return "Nothing yet: this conversation has only begun. (echo, not a real model)"
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


def _fault(options: dict[str, Any]) -> str | None:
    """What is wrong with the options, as a sentence; None when nothing is."""
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        return (
            f"echo has no option {', '.join(map(repr, unknown))}. It has {', '.join(OPTIONS)}: "
            "use a model that has it, or a session without it"
        )
    latency = options.get("latency", 0)
    pair = latency if isinstance(latency, list | tuple) else (latency, latency)
    if len(pair) != 2 or not all(map(_is_duration, pair)) or pair[0] > pair[1]:
        return f"latency is {latency!r:.80}, but must be seconds, or [low, high] in seconds"
    if not _is_duration(options.get("pace", 0)):
        return f"pace is {options['pace']!r:.80}, but must be seconds"
    if str(options.get("fail", "timeout")) not in _FAILURES:
        return f"fail is {options['fail']!r:.80}, but must be one of {', '.join(_FAILURES)}"
    times = options.get("fail_times", 1)
    if type(times) is not int or times < 0 or ("fail_times" in options and "fail" not in options):
        return f"fail_times is {times!r:.80}, but must be a whole number, together with fail"
    reply = options.get("reply", "text")
    if not isinstance(reply, str) or not reply:
        return "reply must be a text that is not empty"
    return None


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
