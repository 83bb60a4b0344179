"""What people type for times, spans and pairs, and what it means: functions that serve as the ``type`` of an option."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
LONGEST = timedelta(days=36_500)


def span(text: str) -> timedelta:
    """A length of time: ``90s``, ``30m``, ``12h``, ``7d``, ``2w``.

    Raises:
        click.BadParameter: It is none, or it is zero, or longer than a hundred years.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text.strip())
    if not found or not 0 < float(found[1]) <= LONGEST / UNITS[found[2]]:
        raise click.BadParameter(f"{text!r} is no length of time: write 90s, 30m, 12h, 7d or 2w")
    return float(found[1]) * UNITS[found[2]]


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
    try:
        return datetime.now(UTC) - span(text)
    except click.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time: write 2025-12-31, 2025-12-31T23:59 or 7d (ago)") from None


def due(text: str) -> datetime | timedelta:
    """When something is to happen: a date, a date with a time (local, if it names no zone), or a span from now.

    Raises:
        click.BadParameter: It is none of them.
    """
    try:
        return span(text)
    except click.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time: write 2026-12-01T08:00 or 90m (from now)") from None


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
