"""Rules of retention in the settings: what is read, and what is refused before anything is removed by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from inturn.models.cron import Cron
from inturn.models.errors import SettingsError
from inturn.models.states import Kept
from inturn.models.store.rules import OWN, Rule, default_rule
from inturn.settings import Settings

DAY = 86400.0


def load(*rules: dict[str, Any]) -> Settings:
    return Settings.load(retention=list(rules))


def test_rules_stand_between_sessions_own_times_and_the_default():
    settings = Settings.load(
        retention_days=10,
        retention=[
            {"name": "drafts", "match": "draft-*", "idle_days": 0.5, "more_than": 9, "archive": "/a"},
            {"name": "gold", "labels": {"tier": "gold"}, "model": "openai/*", "kind": "interactive", "forever": True},
        ],
    )
    assert settings.rules() == [
        OWN,
        Rule("drafts", match="draft-*", idle_seconds=DAY / 2, more_than=9, archive="/a"),
        Rule("gold", labels={"tier": "gold"}, model="openai/*", from_batch=False),
        default_rule(10 * DAY),
    ]


def test_they_are_read_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inturn.toml").write_text('[[retention]]\nname = "old"\nage_days = 7\nkind = "batch"\n')
    assert Settings.load().rules()[1] == Rule("old", age_seconds=7 * DAY, from_batch=True)
    monkeypatch.setenv("INTURN_RETENTION", json.dumps([{"name": "new", "idle_days": 1}]))
    assert [rule.name for rule in Settings.load().rules()] == ["own", "new", "default"]
    monkeypatch.setenv("INTURN_RETENTION", "{")
    with pytest.raises(SettingsError, match="INTURN_RETENTION is not valid JSON: write a list of rules"):
        Settings.load()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"name": "x"}], "says nothing of when: give it idle_days, age_days, more_than, or forever"),
        ([{"name": "x", "idle_days": 0}], "would remove every session there is.*allow_remove_all = true"),
        ([{"name": "x", "age_days": 0}], "would remove every session there is"),
        ([{"name": "x", "more_than": 0}], "would remove every session there is"),
        ([{"name": "x", "forever": True, "idle_days": 3}], "keeps its sessions for ever"),
        ([{"name": "x", "forever": True, "archive": "/a"}], "keeps its sessions for ever"),
        (
            [{"name": "x", "forever": True, "keep": "metadata"}],
            "for ever, and says that of a session only metadata is kept",
        ),
        (
            [{"name": "x", "idle_days": 0, "keep": "metadata"}],
            "would remove what was said in every session there is.*allow_remove_all = true",
        ),
        ([{"name": "x", "idle_days": 1, "keep": "usage"}], "'nothing' or 'metadata'"),
        (
            [{"name": "x", "idle_days": 1, "keep": "metadata"}, {"name": "y", "idle_days": 90}],
            "'y' never applies: 'x'",
        ),
        ([{"name": "default", "idle_days": 3}], "none of default, own"),
        ([{"name": "a b", "idle_days": 3}], "1 to 60 letters"),
        (
            [{"name": "x", "match": "ann[1-3]*", "idle_days": 3}],
            r"match.*'ann\[1-3\]\*' can be no session's ID: use letters, digits",
        ),
        ([{"name": "x", "match": "ann *", "idle_days": 3}], r"'ann \*' can be no session's ID"),
        ([{"name": "x", "match": "björn-*", "idle_days": 3}], r"'björn-\*' can be no session's ID"),
        ([{"name": "x", "match": "a" * 150 + "*" + "?" * 51, "idle_days": 3}], "can be no session's ID"),
        ([{"name": "x", "idle_days": -1}], "greater than or equal to 0"),
        ([{"name": "x", "idle_days": "7 days"}], "7 days.*valid number"),
        ([{"name": "x", "more_than": -1}], "greater than or equal to 0"),
        ([{"name": "x", "kind": "both", "idle_days": 1}], "'any', 'batch' or 'interactive'"),
        ([{"name": "x", "match": "", "idle_days": 1}], "at least 1 character"),
        ([{"name": "x", "idle_day": 1}], "unknown setting retention.0.idle_day .*did you mean idle_days"),
        ([{"match": "x"}], "retention.0.name is missing"),
        ([{"name": "x", "idle_days": 1, "match": "a"}, {"name": "x", "idle_days": 2}], "two rules are named 'x'"),
        ([{"name": "x", "idle_days": 1}, {"name": "y", "match": "a", "idle_days": 2}], "'y' never applies: 'x'"),
        (
            [{"name": "x", "match": "a", "idle_days": 1}, {"name": "y", "match": "a", "age_days": 2}],
            "'y' never applies: 'x'",
        ),
        (
            [{"name": "x", "match": "a-*", "idle_days": 1}, {"name": "y", "match": "a-b*", "forever": True}],
            "'y' never applies: 'x'",
        ),
        ([{"name": "x", "match": "**", "idle_days": 0}], "would remove every session there is"),
        (
            [{"name": "x", "idle_days": 1, "cron": "0 3 * *"}],
            "retention.0.cron is '0 3 . .'.*write five fields, such as",
        ),
        ([{"name": "x", "idle_days": 1, "cron": "@daily"}], "which is written '0 0 . . .' here: write five fields"),
        ([{"name": "x", "idle_days": 1, "cron": "0 0 30 2 *"}], r"would never fire \(there is no such day\)"),
        ([{"name": "x", "idle_days": 1, "cron": 3}], "cron is 3: write five fields"),
        ([{"name": "x", "idle_days": 1, "cron": ""}], "cron is '': write five fields"),
        (
            [{"name": "x", "idle_days": 1, "cron": "0 3 * * *", "timezone": "Europe/Berln"}],
            "retention.0.timezone is 'Europe/Berln'.*did you mean 'Europe/Berlin'",
        ),
        ([{"name": "x", "idle_days": 1, "cron": "0 3 * * *", "timezone": ""}], "write an IANA name"),
        ([{"name": "x", "idle_days": 1, "timezone": "UTC"}], "has a timezone, but no cron"),
        ([{"name": "x", "forever": True, "cron": "0 3 * * *"}], "keeps its sessions for ever"),
        ([{"name": "x", "more_than": True}], "more_than is 'True'.*valid integer"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: list[dict[str, Any]], said: str):
    with pytest.raises(SettingsError, match=said):
        load(*rules)


def test_a_rule_may_have_moments_of_its_own():
    settings = load(
        {"name": "x", "match": "x", "idle_days": 1, "cron": " 0 3  * * mon", "timezone": "Europe/Berlin"},
        {"name": "y", "match": "y", "idle_days": 1, "cron": "*/5 * * * *"},
        {"name": "z", "match": "z", "idle_days": 1},
    )
    assert settings.crons() == {"x": Cron("0 3 * * mon", "Europe/Berlin"), "y": Cron("*/5 * * * *", "UTC")}
    assert settings.rules()[3] == Rule("z", match="z", idle_seconds=DAY)
    assert load(*settings.model_dump()["retention"]).crons() == settings.crons()


def test_a_directory_is_tied_to_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    places = {"a": "here", "b": "s3://bucket/x"}
    given = [{"name": name, "match": name, "idle_days": 1, "archive": place} for name, place in places.items()]
    rules = load(*given).rules()
    assert [rule.archive for rule in rules[1:3]] == [str(tmp_path / "here"), "s3://bucket/x"]


def test_what_is_wider_may_stand_behind_and_what_is_other_anywhere():
    settings = load(
        {"name": "a", "match": "a-b*", "idle_days": 1},
        {"name": "b", "match": "a-*", "labels": {"x": "1"}, "idle_days": 1},
        {"name": "c", "match": "a-*", "kind": "batch", "idle_days": 1},
        {"name": "d", "match": "a-*", "labels": {"x": "2"}, "idle_days": 1},
        {"name": "e", "match": "a-?*", "idle_days": 1},
        {"name": "f", "match": "a-*", "idle_days": 1},
    )
    assert [rule.name for rule in settings.rules()] == ["own", *"abcdef", "default"]


def test_what_stays_of_a_session():
    rules = load(
        {"name": "x", "match": "a*", "idle_days": 30, "keep": "metadata"},
        {"name": "y", "match": "b*", "idle_days": 30, "keep": "nothing"},
        {"name": "z", "idle_days": 0, "keep": "metadata", "allow_remove_all": True},
    ).rules()
    assert [rule.keep for rule in rules] == [
        Kept.NOTHING, Kept.METADATA, Kept.NOTHING, Kept.METADATA, Kept.NOTHING,
    ]  # fmt: skip


def test_who_means_it_may_remove_everything():
    assert load({"name": "x", "idle_days": 0, "allow_remove_all": True}).rules()[1] == Rule("x", idle_seconds=0.0)
