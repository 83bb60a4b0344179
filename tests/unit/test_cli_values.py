"""What people type: spans, moments, pairs."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import click
import pytest

from inturn.cli.values import due, json_pair, moment, pair, retention_rule, shown_retention, span


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90s", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("30m", timedelta(minutes=30)),
        (" 7d ", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_span_has_a_unit(text: str, length: timedelta) -> None:
    assert span(text) == retention_rule(text) == length


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, "is no length of time") for text in ("", "d", "7 d", "1e3d", "\u0663d", "1mo", "sevend", "1h30m")),
        ("7", "'7' has no unit: write 7s, 7m, 7h, 7d or 7w"),
        ("-1d", "'-1d' is not positive"),
        ("-7", "'-7' is not positive"),
        ("0s", "'0s' is not positive"),
        ("999999999w", "'999999999w' is too long: 36,500 days at most"),
        ("9" * 400 + "d", "is too long"),
    ],
)
def test_what_is_no_span(text: str, reason: str) -> None:
    with pytest.raises(click.BadParameter, match=reason):
        span(text)


def test_a_retention_rule_may_be_a_word() -> None:
    assert [retention_rule("never"), retention_rule("policy")] == [None, "policy"]
    with pytest.raises(click.BadParameter):
        retention_rule("forever")


@pytest.mark.parametrize("text", ["90s", "5m", "36h", "7.5s", "6d", "14d", "never", "policy"])
def test_a_retention_rule_is_shown_as_it_is_typed(text: str) -> None:
    assert shown_retention(retention_rule(text)) == text


def test_a_moment_is_a_date_a_time_or_a_span_ago() -> None:
    assert moment("2025-12-31T23:59+01:00") == datetime(2025, 12, 31, 22, 59, tzinfo=UTC)
    assert moment("2025-12-31").tzinfo is UTC
    assert abs(datetime.now(UTC) - timedelta(days=7) - moment("7d")) < timedelta(minutes=1)
    with pytest.raises(click.BadParameter, match="'yesterday' is no time"):
        moment("yesterday")


def test_what_is_to_happen_is_due_at_a_time_or_in_a_span() -> None:
    assert due("2026-12-01T08:00+01:00") == datetime(2026, 12, 1, 7, tzinfo=UTC)
    assert due("2026-12-01T08:00") == datetime(2026, 12, 1, 8).astimezone(UTC)
    assert due("90m") == timedelta(minutes=90)
    assert due("2020-01-01T00:00Z") == datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, f"'{text}' is no time: write") for text in ("", "tomorrow", "1h30m", "2026-13-01", "1.12.2026")),
        ("90", "'90' has no unit"),
        ("-5m", "'-5m' is not positive"),
        ("0m", "'0m' is not positive"),
        ("99999999d", "'99999999d' is too long"),
    ],
)
def test_what_is_no_time_says_why(text: str, reason: str) -> None:
    for read in due, moment:
        with pytest.raises(click.BadParameter, match=reason):
            read(text)


def test_who_writes_no_zone_is_told_which_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        with pytest.raises(click.BadParameter, match=r"2026-12-01T08:00 \(local time, so 2026-12-01T08:00\+05:30\)"):
            due("tomorrow")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_pairs() -> None:
    assert pair("team=red=blue") == ("team", "red=blue")
    assert pair("team=") == ("team", "")
    assert json_pair('stop=["END"]') == ("stop", ["END"])
    assert json_pair("temperature=0.2") == ("temperature", 0.2)


@pytest.mark.parametrize(("read", "text"), [(pair, "team"), (pair, "=x"), (json_pair, "user=ann"), (json_pair, "x")])
def test_what_is_no_pair(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"no pair|not JSON"):
        read(text)
