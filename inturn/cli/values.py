"""What people type for times, spans and pairs, and what it means: functions that serve as the ``type`` of an option."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
SPAN = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)([smhdw]?)")
"""What is meant as a length of time; whether it is one, ``span`` says."""
LONGEST = timedelta(days=36_500)


def span(text: str) -> timedelta:
    """A length of time: ``90s``, ``30m``, ``12h``, ``7d``, ``2w``.

    Raises:
        click.BadParameter: It is none, or it is zero, or longer than a hundred years.
    """
    found = SPAN.fullmatch(text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is no length of time: write 90s, 30m, 12h, 7d or 2w")
    number, unit = found.groups()
    if float(number) <= 0:
        raise click.BadParameter(f"{text!r} is not positive: write 90s, 30m, 12h, 7d or 2w")
    if not unit:
        raise click.BadParameter(f"{text!r} has no unit: write {number}s, {number}m, {number}h, {number}d or {number}w")
    if float(number) > LONGEST / UNITS[unit]:
        raise click.BadParameter(f"{text!r} is too long: {LONGEST.days:,} days at most")
    return float(number) * UNITS[unit]


def shown_span(length: timedelta) -> str:
    """A length of time as ``span`` reads it, in the largest unit up to days that leaves no fraction."""
    for unit in "dhm":
        if length % UNITS[unit] == timedelta():
            return f"{length // UNITS[unit]}{unit}"
    return f"{length.total_seconds():g}s"


def retention_rule(text: str) -> timedelta | str | None:
    """A length of time without activity, ``policy``, or ``never``, which the SDK calls None.

    Raises:
        click.BadParameter: It is none of them.
    """
    if text == "never":
        return None
    return text if text == "policy" else span(text)


def shown_retention(rule: timedelta | str | None) -> str:
    """A retention rule as ``retention_rule`` reads it."""
    return shown_span(rule) if isinstance(rule, timedelta) else rule or "never"


def moment(text: str) -> datetime:
    """A point in time: a date, a date with a time (local, if it names no zone), or a span ago.

    Raises:
        click.BadParameter: It is none of them.
    """
    found = date_or_span(text, "2025-12-31T23:59", "7d (ago)")
    return datetime.now(UTC) - found if isinstance(found, timedelta) else found


def due(text: str) -> datetime | timedelta:
    """When something is to happen: a date, a date with a time (local, if it names no zone), or a span from now.

    Raises:
        click.BadParameter: It is none of them.
    """
    return date_or_span(text, "2026-12-01T08:00", "90m (from now)")


def date_or_span(text: str, date: str, length: str) -> datetime | timedelta:
    """A moment or a length of time; a number alone is one of eight digits, or lacks its unit.

    Args:
        date: what a moment without a zone looks like.
        length: what a length of time looks like.

    Raises:
        click.BadParameter: It is neither.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    if SPAN.fullmatch(text.strip()):
        return span(text)
    zoned = datetime.fromisoformat(date).astimezone().isoformat(timespec="minutes")
    raise click.BadParameter(
        f"{text!r} is no time: write {date} (local time, so {zoned}), or one number with one unit (s, m, h, d, w), such as "
        f"{length}"
    )


def chain(_context: click.Context, _option: click.Parameter, named: tuple[str, ...]) -> str | list[str] | None:
    """Models as the SDK takes them: one, or several in the order in which they are asked.

    Raises:
        click.BadParameter: One of them is empty, as an unset variable is: it must not count as none.
    """
    if not all(named):
        raise click.BadParameter("it is empty: write provider/model, or leave --model out for the default model")
    return list(named) if len(named) > 1 else next(iter(named), None)


def models(told: str) -> Callable[[Command], Command]:
    """The option ``--model``, which may be repeated."""
    return click.option("--model", multiple=True, callback=chain, help=told)


def pair(text: str) -> tuple[str, str]:
    """``key=value``.

    Raises:
        click.BadParameter: It has no key, or no equals sign.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is no pair: write key=value")
    return key, value


def json_pair(text: str) -> tuple[str, Any]:
    """``key=value`` with a value in JSON: ``temperature=0.2``, ``stop=["END"]``, ``user="ann"``.

    Raises:
        click.BadParameter: It is no pair, or the value is not JSON.
    """
    key, value = pair(text)
    try:
        return key, json.loads(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not JSON: a string has quotes, as in '{key}=\"value\"'") from None
