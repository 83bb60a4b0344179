"""``[[webhooks]]``: what is taken, what is refused, why, and that no secret is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inturn.models.errors import SettingsError
from inturn.models.store.webhooks import Hook
from inturn.settings import Settings
from inturn.webhook_settings import OF_BATCHES, WebhookSettings

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
GOOD: dict[str, Any] = {"name": "jobs", "url": "https://example.com/hook", "secret_env": "HOOK_SECRET"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("INTURN_WEBHOOKS", raising=False)


def test_none_by_default():
    assert Settings().webhooks == []


def test_a_file_has_them(tmp_path: Path):
    Path("inturn.toml").write_text(
        '[[webhooks]]\nname = "jobs"\nurl = "https://example.com/hook"\nsecret_env = "HOOK_SECRET"\n\n'
        '[[webhooks]]\nname = "turns"\nurl = "http://10.0.0.7:8080/"\nsecret_env = "HOOK_SECRET"\n'
        'events = ["turn.failed"]\nallow_http = true\nallow_private = true\n'
    )
    settings = Settings()
    assert [webhook.hook() for webhook in settings.webhooks] == [
        Hook("jobs", frozenset(OF_BATCHES)),
        Hook("turns", frozenset({"turn.failed"})),
    ]
    assert settings.origins()["webhooks"] == "./inturn.toml"
    assert not settings.webhooks[0].allow_private


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"url": "http://example.com/hook"}, "plain http"),
        ({"url": "ftp://example.com/hook"}, "starts with https://"),
        ({"url": "https://"}, "names a host"),
        ({"url": "https://exa mple.com/"}, "names a host"),
        ({"url": "https://me:pw@example.com/"}, "neither password nor key"),
        ({"url": "https://example.com/?token=1"}, "neither password nor key"),
        ({"url": "https://example.com:99999/"}, "(?i)port"),
        ({"secret_env": SECRET}, "not a secret"),
        ({"secret_env": "WHSEC_ABC"}, "not a secret"),
        ({"secret_env": "not-a-name"}, "not a secret"),
        ({"secret_env": ""}, "not a secret"),
        ({"name": ""}, "1 to 60 letters"),
        ({"name": "a b"}, "1 to 60 letters"),
        ({"events": []}, "at least 1"),
        ({"events": ["turn.started"]}, "'batch.completed'"),
        ({"headers": {}}, "Extra inputs"),
    ],
)
def test_what_is_refused(values: dict[str, Any], reason: str):
    with pytest.raises(ValidationError, match=reason):
        WebhookSettings(**GOOD | values)


def test_refusals_are_sentences(monkeypatch: pytest.MonkeyPatch):
    for values, sentence in [
        ([{**GOOD, "secret_env": SECRET}], r"webhooks\.0\.secret_env is '\*\*\*' \(environment INTURN_WEBHOOKS\)"),
        ([{**GOOD, "url": "https://e.com/?token=s3cret"}], r"webhooks\.0\.url is '\*\*\*'"),
        ([{**GOOD, "urls": "x"}], "unknown setting webhooks.0.urls .*did you mean url"),
        ([{"name": "a", "secret_env": "B"}], r"webhooks\.0\.url is missing \(environment INTURN_WEBHOOKS\)"),
        ([GOOD, GOOD], "two webhooks are named 'jobs'"),
        ([{**GOOD, "url": "http://e.com"}], "allow_http = true"),
    ]:
        monkeypatch.setenv("INTURN_WEBHOOKS", json.dumps(values))
        with pytest.raises(SettingsError, match=sentence) as refused:
            Settings()
        assert SECRET not in str(refused.value)
        assert "s3cret" not in str(refused.value)
    monkeypatch.setenv("INTURN_WEBHOOKS", "[{]")
    with pytest.raises(SettingsError, match=r"INTURN_WEBHOOKS is not valid JSON: write a list of webhooks"):
        Settings()


@pytest.mark.parametrize(
    "secret", ["", "  ", "secret", SECRET.removeprefix("whsec_"), "whsec_", "whsec_c2hvcnQ=", SECRET + "!"]
)
def test_a_variable_without_a_secret_is_told_without_what_is_in_it(secret: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOOK_SECRET", secret)
    with pytest.raises(SettingsError, match=r"HOOK_SECRET (is not set|holds no secret)") as refused:
        WebhookSettings(**GOOD).secret()
    assert len(secret) < 8 or secret not in str(refused.value)


def test_the_secret_is_in_nothing_that_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    settings = Settings(webhooks=[GOOD])
    assert settings.webhooks[0].secret().get_secret_value() == SECRET
    for shown in (
        repr(settings),
        json.dumps(settings.masked()),
        repr(settings.webhooks[0]),
        repr(settings.webhooks[0].secret()),
    ):
        assert SECRET.removeprefix("whsec_") not in shown
