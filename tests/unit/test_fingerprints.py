"""Which settings processes are compared by, and that nothing of a secret is in a digest."""

from typing import Any

import pytest

from inturn.fingerprints import EVERYWHERE, IN_CLEANUPS, IN_TURNS, fingerprints
from inturn.models.states import Lane, ProcessKind
from inturn.settings import Settings

LAB = {"base_url": "http://lab.example/v1", "headers": {"x-team": "one"}, "api_key_env": "LAB_KEY"}
HOOK = {"name": "one", "url": "https://example.org/hook", "secret_env": "HOOK_SECRET"}


def of(settings: Settings, *lanes: str) -> dict[str, str]:
    kind = ProcessKind.WORKER if lanes else ProcessKind.BEAT
    return fingerprints(settings, kind, lanes)


def test_a_process_tells_of_what_it_uses() -> None:
    settings = Settings()
    assert set(of(settings)) == {*EVERYWHERE, *IN_CLEANUPS}
    assert set(of(settings, "chat")) == set(of(settings, "batch")) == {*EVERYWHERE, *IN_TURNS}
    assert set(of(settings, *Lane)) == {*EVERYWHERE, *IN_CLEANUPS, *IN_TURNS}


@pytest.mark.parametrize(
    ("about", "change"),
    [
        ("retention", {"retention": [{"name": "drafts", "match": "draft-*", "idle_days": 1}]}),
        ("retention", {"retention_days": 7}),
        ("retention", {"receipt_days": 7}),
        ("providers", {"providers": {"lab": LAB | {"requests_per_minute": 60}}}),
        ("providers", {"providers": {"lab": LAB | {"models": {"fast": "long-name"}}}}),
        ("budgets", {"budgets": [{"usd": 5}]}),
        ("limits", {"max_attempts": 3}),
        ("webhooks", {"webhooks": [HOOK]}),
    ],
)
def test_a_change_is_told_by_what_it_is_about(about: str, change: dict[str, Any]) -> None:
    before, after = (of(Settings(**{"providers": {"lab": LAB}} | more), *Lane) for more in ({}, change))
    assert [name for name in before if before[name] != after[name]] == [about]


@pytest.mark.parametrize(
    "change",
    [
        {"concurrency": 7, "metrics_port": 9810, "log_format": "json", "attempt_deadline_seconds": 60},
        {"database_url": "postgresql://inturn:secret@db/inturn", "broker_url": "redis://:secret@broker/0"},
        {"providers": {"lab": LAB | {"headers": {"x-team": "a secret"}}}, "flower_basic_auth": "me:a-secret"},
    ],
)
def test_what_may_differ_and_what_is_secret_makes_no_difference(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(Settings(providers={"lab": LAB}), *Lane)
    monkeypatch.setenv("LAB_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert of(Settings(**{"providers": {"lab": LAB}} | change), *Lane) == before


def test_it_is_the_same_wherever_it_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said = of(Settings(retention_days=7, providers={"lab": LAB}), *Lane)
    monkeypatch.setenv("INTURN_RETENTION_DAYS", "7.0")
    monkeypatch.setenv(
        "INTURN_PROVIDERS",
        '{"lab": {"api_key_env": "LAB_KEY", "headers": {"x-team": "one"}, "base_url": "http://lab.example/v1/"}}',
    )
    assert of(Settings(), *Lane) == said
