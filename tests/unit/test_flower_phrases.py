"""How pages say things: in words, and never with somebody's HTML."""

from datetime import UTC, datetime, timedelta

import pytest

from inturn.flower import phrases
from inturn.flower.application import Templates, without_passwords
from inturn.models.states import BatchState, Kept
from inturn.models.store.batches import Progress
from inturn.models.store.rules import OWN, Rule

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HTML = "<script>alert('x')</script>"


@pytest.mark.parametrize(
    ("away", "said"),
    [
        (timedelta(milliseconds=400), "just now"),
        (timedelta(seconds=1), "1 second ago"),
        (timedelta(seconds=59), "59 seconds ago"),
        (timedelta(minutes=61), "1 hour ago"),
        (timedelta(days=2, hours=23), "2 days ago"),
        (timedelta(minutes=-90), "in 1 hour"),
        (timedelta(days=-30), "in 30 days"),
    ],
)
def test_a_moment_is_told_from_now(away: timedelta, said: str) -> None:
    told = phrases.moment(NOON - away, NOON)
    assert f">{said}</time>" in told
    assert f'datetime="{(NOON - away).isoformat()}"' in told


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (30 * 86400, "30 days"), (86400, "1 day"), (7200, "2 hours"), (5400, "90 minutes"), (90, "90 seconds"),
        (0.25, "250 ms"),
    ],
)  # fmt: skip
def test_a_length_of_time_is_told_exactly(seconds: float, said: str) -> None:
    assert phrases.span(seconds) == said


def test_what_makes_html_escapes() -> None:
    assert "<script" not in phrases.badge(HTML)
    assert phrases.number(1234567) == "1,234,567"
    assert phrases.cost(0.0042) == "$0.0042"
    assert phrases.cost(0.00001) == "$&lt;0.0001"


def test_a_link_keeps_what_was_asked_and_escapes_it() -> None:
    assert phrases.link("/sessions", {"q": 'a"&b', "before": None, "label": ""}) == "/sessions?q=a%22%26b"
    assert phrases.link("/sessions", {}) == "/sessions"


def test_rules_are_told_in_words() -> None:
    rule = Rule("old", "user-*", labels={"team": "hr"}, idle_seconds=7 * 86400, age_seconds=86400.0, keep=Kept.METADATA)
    assert (phrases.covers(rule), phrases.limits(rule)) == ("user-*, team=hr", "idle for 7 days or made 1 day ago")
    assert (phrases.covers(OWN), phrases.limits(OWN)) == ("sessions with an idle time of their own", "after that time")


def test_a_bar_is_as_long_as_what_it_shows() -> None:
    progress = Progress(BatchState.IN_PROGRESS, 8, 8, completed=4, failed=1, running=2, queued=1)
    assert [(part.name, part.begin, part.width) for part in phrases.parts(progress)] == [
        ("completed", 0.0, 50.0), ("failed", 50.0, 12.5), ("running", 62.5, 25.0),
    ]  # fmt: skip
    assert phrases.percent(progress) == 62
    assert phrases.counts(progress) == [("failed", 1), ("running", 2), ("waiting", 1)]
    assert phrases.parts(Progress(BatchState.VALIDATING, 0, 0)) == []


def test_flowers_navigation_has_our_tabs_and_its_scripts_our_nonce() -> None:
    templates = Templates()
    for name in ("navbar.html", "workers.html", "sessions.html", "session.html", "batches.html", "retention.html"):
        assert templates.load(name)
    inline = "<script>"
    assert inline not in templates.load("workers.html").code


def test_no_password_of_an_url_is_passed_on() -> None:
    told = {"conf": {"broker_url": "redis://:secret@host/0", "list": ["redis://u:secret@h", 5]}, "plain": "a:b@c"}
    hidden = without_passwords(told)
    assert "secret" not in str(hidden)
    assert hidden["plain"] == "a:b@c"
    assert hidden["conf"]["broker_url"] == "redis://:***@host/0"
