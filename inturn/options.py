"""Options of sessions, turns and batches: what is wrong with them, as far as that is known before a model is asked.

Who asks looks at those that it is given, where it knows the model; who works, at all that come together for a call. What
OpenAI's and Anthropic's models take, they know themselves: only what inturn says to them is no option. Echo's are these:

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

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from inturn.models.content import storable_json
from inturn.models.errors import InvalidInputError

if TYPE_CHECKING:
    from inturn.provider_settings import ProviderSettings
    from inturn.workers.provider import FailureKind

OURS = {"openai": ("model", "messages", "stream"), "anthropic": ("model", "messages", "stream", "system")}
"""What inturn says in each call, by the type of its provider."""

OPTIONS = ("latency", "pace", "fail", "fail_times", "context", "call", "reply")

IGNORED = frozenset({
    "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "metadata", "n",
    "parallel_tool_calls", "presence_penalty", "reasoning_effort", "response_format", "seed", "service_tier", "stop",
    "store", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
})  # fmt: skip

FAILURES: "dict[str, tuple[FailureKind, int | None, str]]" = {
    "rate_limited": ("safe", 429, "it were busy"),
    "unavailable": ("safe", 503, "it were down"),
    "timeout": ("ambiguous", None, "its deadline had passed"),
    "disconnected": ("ambiguous", None, "it had hung up"),
    "invalid_request": ("permanent", 400, "the request were wrong"),
    "context_length_exceeded": ("permanent", 400, "it had been shown too much"),
}
"""By ``error_type``: the kind, the status, and the rest of a sentence."""


def checked_options(
    options: Mapping[str, Any] | None, models: Iterable[str] = (), known: "Mapping[str, ProviderSettings] | None" = None
) -> dict[str, Any]:
    """As they are stored.

    Args:
        models: who is to be told them.
        known: the providers by name.

    Raises:
        InvalidInputError: they are none, or one of these models would refuse them, every time.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InvalidInputError(f"options are {options!r:.100}: they are a dict, for example {{'temperature': 0.2}}")
    stored: dict[str, Any] = storable_json(dict(options or {}))
    try:
        orjson.loads(json.dumps(stored))  # as the database gets it, and as a worker reads it when it claims
    except ValueError as error:
        raise InvalidInputError(f"options hold a number that JSON does not have ({error})") from None
    for model in models:
        refuse_options(model, stored, known or {})
    return stored


def refuse_options(model: str, options: Mapping[str, Any], known: "Mapping[str, ProviderSettings]") -> None:
    """Options that are refused whatever others come along. Raises: InvalidInputError."""
    provider = known.get(model.partition("/")[0])
    if provider is None or not options:
        return
    fault = fault_of_each(options) if provider.type == "echo" else fault_of_ours(options, OURS.get(provider.type, ()))
    if fault:
        raise InvalidInputError(f"{model}: {fault}")


def fault_of_ours(options: Mapping[str, Any], ours: tuple[str, ...]) -> str | None:
    """What of the options is none; None when all are."""
    taken = [name for name in ours if name in options]
    return f"{', '.join(taken)} cannot be set as an option" if taken else None


def fault_of(options: dict[str, Any], *, has_tools: bool) -> str | None:
    """What is wrong with all the options of a call to echo, as a sentence; None when nothing is."""
    if fault := fault_of_each(options):
        return fault
    if "fail_times" in options and "fail" not in options:
        return f"fail_times is {options['fail_times']!r:.80}, but must be a whole number, together with fail"
    if "call" in options and not has_tools:
        name = _calls(options["call"])[0]["name"]
        return f"it is to call {name!r:.80}, but no tools are offered. Give the session tools, or take call away"
    return None


def fault_of_each(options: Mapping[str, Any]) -> str | None:
    """The same of some of them: what no others that come along can mend."""
    unknown = sorted(options.keys() - set(OPTIONS) - IGNORED)
    if unknown:
        near = difflib.get_close_matches(unknown[0], OPTIONS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        return (
            f"echo has no option {', '.join(map(repr, unknown))}{meant}. It has {', '.join(OPTIONS)}: "
            "use a model that has it, or leave it out"
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
    if type(times) is not int or times < 0:
        return f"fail_times is {times!r:.80}, but must be a whole number, together with fail"
    context = options.get("context", 1)
    if type(context) is not int or context < 1:
        return f"context is {context!r:.80}, but must be a number of words"
    reply = options.get("reply", "text")
    if not isinstance(reply, str) or not reply:
        return "reply must be a text that is not empty"
    return _fault_of_calls(options["call"]) if "call" in options else None


def _fault_of_calls(call: Any) -> str | None:
    calls = _calls(call)
    if not calls or not all(map(_is_call, calls)) or (isinstance(call, list) and [] in call):
        return (
            f'call is {call!r:.80}, but must be {{"name": ..., "arguments": {{...}}}}, or a list of such '
            "(one for each round of tools, where a list is several at once)"
        )
    return None


def _calls(call: Any) -> list[Any]:
    rounds = call if isinstance(call, list) else [call]
    return [one for now in rounds for one in (now if isinstance(now, list) else [now])]


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
