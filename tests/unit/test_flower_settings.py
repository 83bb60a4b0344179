"""Who may look at Flower, and where it may listen without asking who looks."""

import re
from pathlib import Path

import pytest

from inturn.cli.checkup.flower import check_flower
from inturn.flower_settings import about_open_door, is_loopback, logins, url_of
from inturn.models.errors import SettingsError
from inturn.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTURN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("", []),
        ("ann:correct-horse", ["ann:correct-horse"]),
        ("ann:correct-horse, bob:battery:staple", ["ann:correct-horse", "bob:battery:staple"]),
        ("ann@example.org:päss wörd", ["ann@example.org:päss wörd"]),
    ],
)
def test_logins_are_names_and_passwords(text: str, known: list[str]) -> None:
    assert logins(Settings.load(flower_basic_auth=text).flower_basic_auth) == known


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ann", "it is not written USER:PASSWORD"),
        (":correct-horse", "it is not written USER:PASSWORD"),
        ("ann smith:correct-horse", "it is not written USER:PASSWORD"),
        ("ann:correct\nhorse", "it is not written USER:PASSWORD"),
        (",", "login 1 is not written USER:PASSWORD"),
        ("ann:correct-horse,", "login 2 is not written USER:PASSWORD"),
        ("ann:", "the password of it is too weak: it needs 8 characters"),
        ("ann:shorty7", "the password of it is too weak"),
        ("ann:aaaaaaaaaaaaa", "the password of it is too weak"),
        ("ann:correct-horse,bob:hunter2", "the password of login 2 is too weak"),
        ("administrator:Administrator", "the password of it is its name"),
        ("flowerpower:rewoprewolf", "the password of it is its name"),
    ],
)
def test_what_is_none_or_weak_is_refused_and_not_repeated(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTURN_FLOWER_BASIC_AUTH", text)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    told = str(caught.value)
    assert reason in told
    assert "flower_basic_auth is '***' (environment INTURN_FLOWER_BASIC_AUTH)" in told
    for password in filter(None, text.partition(":")[2].split(",")):
        assert password not in told


def test_a_password_is_shown_to_nobody() -> None:
    settings = Settings.load(flower_basic_auth="ann:correct-horse")
    assert settings.masked()["flower_basic_auth"] == "***"
    assert "horse" not in f"{settings}{settings!r}"
    assert Settings.load().masked()["flower_basic_auth"] == ""


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_login(address: str) -> None:
    assert is_loopback(address)
    assert about_open_door(address, []) is None


@pytest.mark.parametrize(
    "address",
    ["", "0.0.0.0", "::", "192.0.2.1", "localhost.example.org", "127.0.0.1.example.org", "example.org", "127.1", " "],
)
def test_any_other_address_does(address: str) -> None:
    assert not is_loopback(address)
    refusal = about_open_door(address, [])
    assert refusal
    assert "INTURN_FLOWER_BASIC_AUTH" in refusal
    assert about_open_door(address, ["ann:correct-horse"]) is None


def test_the_password_of_the_example_is_none_where_others_come_in() -> None:
    example = (ROOT / "ops" / "env.example").read_text()
    found = re.findall("^INTURN_FLOWER_BASIC_AUTH=(.*)$", example, re.MULTILINE)
    assert logins(found[0]) == found
    assert about_open_door("127.0.0.1", found) is None
    for known in found, ["ann:correct-horse", *found]:
        refusal = about_open_door("0.0.0.0", known)
        assert refusal
        assert "on 0.0.0.0 with the password of ops/env.example (change-me)" in refusal
        assert "INTURN_FLOWER_BASIC_AUTH" in refusal


def test_a_url_is_one_that_opens_here() -> None:
    urls = {
        "127.0.0.1": "http://127.0.0.1:5555",
        "": "http://127.0.0.1:5555",
        "0.0.0.0": "http://127.0.0.1:5555",
        "::": "http://[::1]:5555",
        "::1": "http://[::1]:5555",
        "example.org": "http://example.org:5555",
    }
    assert {address: url_of(address, 5555) for address in urls} == urls


def test_a_check_up_finds_an_open_door() -> None:
    [finding] = check_flower(Settings.load(flower_address="0.0.0.0"))
    assert (finding.state, finding.subject) == ("warn", "flower")
    assert list(check_flower(Settings.load())) == []
