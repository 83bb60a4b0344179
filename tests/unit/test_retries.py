"""What is tried again, when, and how often."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inturn.workers.retries import RETRY_AFTER_CAP, Again, GiveUp, decide, parse_retry_after

ROOT = Path(__file__).parents[2]
WORKERS = ROOT / "inturn" / "workers"
KINDS = ("safe", "ambiguous", "permanent")
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def decision(kind: Any, **changes: Any) -> Again | GiveUp:
    usual: dict[str, Any] = {
        "attempts": 1,
        "ambiguous": 1 if kind == "ambiguous" else 0,
        "max_attempts": 5,
        "max_ambiguous": 2,
        "retry_after": None,
        "base": 1.0,
        "cap": 60.0,
        "draw": 0.5,
    }
    return decide(kind, **usual | changes)


def test_a_permanent_failure_is_never_tried_again() -> None:
    assert isinstance(decision("permanent", retry_after=1.0), GiveUp)


@pytest.mark.parametrize("kind", ["safe", "ambiguous"])
def test_the_first_failure_of_another_kind_is_tried_again(kind: str) -> None:
    assert decision(kind) == Again(0.5)


def test_safe_failures_are_tried_again_until_the_attempts_are_used_up() -> None:
    outcomes = [decision("safe", attempts=attempts) for attempts in range(1, 7)]
    assert [type(outcome) for outcome in outcomes] == [Again, Again, Again, Again, GiveUp, GiveUp]
    assert outcomes[4] == GiveUp("all 5 attempts are used up")


def test_ambiguous_failures_have_a_smaller_budget_of_their_own() -> None:
    assert isinstance(decision("ambiguous", attempts=4, ambiguous=1), Again)
    given_up = decision("ambiguous", attempts=2, ambiguous=2)
    assert isinstance(given_up, GiveUp)
    assert "2 attempts may have been worked on" in given_up.reason


def test_a_safe_failure_does_not_spend_the_ambiguous_budget() -> None:
    assert isinstance(decision("safe", attempts=3, ambiguous=2), Again)


def test_the_wait_doubles_up_to_its_cap() -> None:
    waits = [decision("safe", attempts=n, max_attempts=99, draw=0.999) for n in range(1, 9)]
    assert [round(wait.delay) for wait in waits if isinstance(wait, Again)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_is_full() -> None:
    assert decision("safe", attempts=4, draw=0.0) == Again(0.0)
    assert decision("safe", attempts=4, draw=0.25) == Again(2.0)


def test_no_number_of_attempts_overflows() -> None:
    assert decision("safe", attempts=5000, max_attempts=9999, draw=0.5) == Again(30.0)


def test_retry_after_is_a_lower_bound_and_spread() -> None:
    assert decision("safe", retry_after=7.0, draw=0.0) == Again(7.0)
    assert decision("safe", retry_after=7.0, draw=0.5) == Again(7.5)


def test_retry_after_may_exceed_the_cap_of_the_backoff() -> None:
    assert decision("safe", retry_after=300.0, draw=0.0) == Again(300.0)


def test_an_absurd_retry_after_is_not_believed() -> None:
    assert decision("safe", retry_after=10.0**9, draw=0.0) == Again(RETRY_AFTER_CAP)


@given(
    attempts=st.integers(1, 4),
    retry_after=st.none() | st.floats(0, 1e12),
    draw=st.floats(0, 1, exclude_max=True),
    cap=st.floats(1, 600),
)
def test_every_wait_lies_between_what_was_asked_and_that_plus_the_backoff(
    attempts: int, retry_after: float | None, draw: float, cap: float
) -> None:
    asked = min(retry_after or 0.0, RETRY_AFTER_CAP)
    wait = decision("safe", attempts=attempts, retry_after=retry_after, draw=draw, cap=cap)
    assert isinstance(wait, Again)
    assert asked <= wait.delay <= asked + min(cap, 2.0 ** (attempts - 1))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:09 GMT"}, 9.0),
        ({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0.0),
        # Its clock is an hour ahead, and both of its times tell so.
        ({"retry-after": "Sun, 01 Mar 2026 13:00:05 GMT", "date": "Sun, 01 Mar 2026 13:00:00 GMT"}, 5.0),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:09 -0000"}, 9.0),
    ],
)
def test_retry_after_is_understood(headers: dict[str, str], seconds: float) -> None:
    assert parse_retry_after(headers, NOW) == seconds


@pytest.mark.parametrize("value", ["", "soon", "nan", "inf", "-1", "Sun, 99 Mar 2026 12:00:00 GMT", "1,5", "\x00"])
def test_nonsense_in_retry_after_asks_for_nothing(value: str) -> None:
    assert parse_retry_after({"retry-after": value}, NOW) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "12", "x-ratelimit-reset-tokens": "20s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h0m1.5s", "retry-after": "7"}, 7.0),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "1m1s",
            },
            61.0,
        ),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-requests": "0"}, None),
    ],
)
def test_what_is_used_up_says_when_it_is_there_again(headers: dict[str, str], seconds: float | None):
    assert parse_retry_after(headers, NOW) == seconds


@given(st.text())
def test_no_retry_after_raises(value: str) -> None:
    seconds = parse_retry_after({"retry-after": value, "retry-after-ms": value, "date": value}, NOW)
    assert seconds is None or seconds >= 0


# What the docs say


def rows_of_the_docs() -> dict[str, str]:
    """The table of failures in the docs: what stands beside each kind."""
    docs = (ROOT / "docs" / "providers.md").read_text()
    return dict(re.findall(rf"^\| ({'|'.join(KINDS)}): [^|]*\|([^|]*)\|", docs, re.MULTILINE))


def rows_of_the_source() -> dict[str, str]:
    """The same table where it is decided."""
    table = (decide.__doc__ or "").rpartition("tried again")[2]
    rows = re.split(rf"^ *({'|'.join(KINDS)}) ", table, flags=re.MULTILINE)
    return dict(zip(rows[1::2], rows[2::2], strict=True))


def failures_of_the_code() -> set[tuple[str, str]]:
    """Every kind and type of failure that is written down in the code of the working side."""
    found = set()
    for path in WORKERS.rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(rf'"({"|".join(KINDS)})",\s*"([a-z0-9_]+)"', text))
        found |= {("safe", name) for name in re.findall(r'_unsent\("(\w+)"', text)}
        found |= {("permanent", name) for name in re.findall(r'_kept_back\(answer, "(\w+)"', text)}
    return {(kind, name) for kind, name in found if name not in KINDS}


def test_the_docs_and_the_source_name_every_failure_with_its_kind() -> None:
    docs, source = rows_of_the_docs(), rows_of_the_source()
    assert tuple(docs) == tuple(source) == KINDS
    named = {(kind, name) for kind, row in docs.items() for name in re.findall(r"`([a-z0-9_]+)`", row)}
    assert named - {("ambiguous", "http_500")} == failures_of_the_code()
    for kind, name in named - {("permanent", "http_413")}:
        assert re.search(rf"\b{name}\b", source[kind]), name
