"""What echo can be told, and what is wrong with what it was told.

==============  =========================================================================================  ========
option          what it does                                                                               default
==============  =========================================================================================  ========
``latency``     seconds before it answers, or ``[low, high]``: drawn from the turn's key, the same again    0
``pace``        seconds between the words of its answer, whether somebody reads along or not                0
``fail``        answers with a failure: ``rate_limited``, ``unavailable``, ``timeout``, ``disconnected``,   none
                ``invalid_request`` or ``context_length_exceeded``
``fail_times``  with ``fail``: only the first so many attempts of a turn in this process fail               all
``context``     words; of more than that it refuses to be shown (``context_length_exceeded``)               any
``call``        calls a tool: ``{"name": ..., "arguments": {...}}``, or a list of such, one for each round   none
                of tools, in which a list is several calls in one round. Arguments that are a text are
                passed on as they are, JSON or not. Then it answers, and says what each tool said
``reply``       answers with this text                                                                     none
==============  =========================================================================================  ========

What OpenAI's models are told besides (``IGNORED``) changes nothing, so that files and programs made for them can be tried.
"""

import math
from typing import Any

from inturn.workers.provider import FailureKind

OPTIONS = ("latency", "pace", "fail", "fail_times", "context", "call", "reply")

IGNORED = frozenset({
    "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "metadata", "n",
    "parallel_tool_calls", "presence_penalty", "reasoning_effort", "response_format", "seed", "service_tier", "stop",
    "store", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
})  # fmt: skip

FAILURES: dict[str, tuple[FailureKind, int | None, str]] = {
    "rate_limited": ("safe", 429, "it were busy"),
    "unavailable": ("safe", 503, "it were down"),
    "timeout": ("ambiguous", None, "its deadline had passed"),
    "disconnected": ("ambiguous", None, "it had hung up"),
    "invalid_request": ("permanent", 400, "the request were wrong"),
    "context_length_exceeded": ("permanent", 400, "it had been shown too much"),
}
"""By ``error_type``: the kind, the status, and the rest of a sentence."""


def fault_of(options: dict[str, Any], *, has_tools: bool) -> str | None:
    """What is wrong with the options, as a sentence; None when nothing is."""
    unknown = sorted(options.keys() - set(OPTIONS) - IGNORED)
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
    if str(options.get("fail", "timeout")) not in FAILURES:
        return f"fail is {options['fail']!r:.80}, but must be one of {', '.join(FAILURES)}"
    times = options.get("fail_times", 1)
    if type(times) is not int or times < 0 or ("fail_times" in options and "fail" not in options):
        return f"fail_times is {times!r:.80}, but must be a whole number, together with fail"
    context = options.get("context", 1)
    if type(context) is not int or context < 1:
        return f"context is {context!r:.80}, but must be a number of words"
    reply = options.get("reply", "text")
    if not isinstance(reply, str) or not reply:
        return "reply must be a text that is not empty"
    return _fault_of_calls(options["call"], has_tools=has_tools) if "call" in options else None


def _fault_of_calls(call: Any, *, has_tools: bool) -> str | None:
    rounds = call if isinstance(call, list) else [call]
    calls = [one for now in rounds for one in (now if isinstance(now, list) else [now])]
    if not calls or not all(map(_is_call, calls)) or [] in rounds:
        return (
            f'call is {call!r:.80}, but must be {{"name": ..., "arguments": {{...}}}}, or a list of such '
            "(one for each round of tools, where a list is several at once)"
        )
    if not has_tools:
        return f"it is to call {calls[0]['name']!r:.80}, but no tools are offered. Give the session tools, or take call away"
    return None


def _is_call(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and one.keys() <= {"name", "arguments"}
        and isinstance(one.get("name"), str)
        and bool(one["name"])
        and isinstance(one.get("arguments", {}), dict | str)
    )


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
