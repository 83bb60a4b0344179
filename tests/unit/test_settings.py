"""Settings: precedence and origins, refusals as sentences, secrets masked."""

import os
import re
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from inturn import provider_settings
from inturn.models.errors import SettingsError
from inturn.settings import ProviderSettings, Settings
from inturn.urls import masked_url

FOREIGN = ("INTURN_", "CELERY_", "OPENAI_", "ANTHROPIC_")


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable, no file: what a test sets is all there is."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / "user" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_user_file(directory: Path, text: str) -> Path:
    file = directory / "user" / "inturn" / "inturn.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refusal(**flags: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.load(**flags)
    return str(caught.value)


def test_defaults_need_nothing(bare_machine: Path) -> None:
    settings = Settings.load(home=bare_machine / "home")
    assert settings.effective_database_url == f"sqlite:///{bare_machine}/home/inturn.db"
    assert settings.is_embedded
    assert settings.has_embedded_broker
    assert settings.effective_default_model == "echo/echo"
    assert list(settings.available_providers) == ["echo"]
    assert set(settings.origins()) == set(Settings.model_fields)
    assert settings.origins()["lease_seconds"] == "default"


def test_every_source_goes_ahead_of_the_next(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = write_user_file(bare_machine, "concurrency = 1\nslice_turns = 1\nmax_rescues = 1\nmax_attempts = 9")
    Path("inturn.toml").write_text("concurrency = 2\nslice_turns = 2\nmax_rescues = 2")
    monkeypatch.setenv("INTURN_CONCURRENCY", "3")
    monkeypatch.setenv("INTURN_SLICE_TURNS", "3")
    monkeypatch.setenv("INTURN_CLEANUP_CHUNK", "")
    settings = Settings.load(concurrency=4, home=None)
    found = {name: (getattr(settings, name), origin) for name, origin in settings.origins().items()}
    assert found["concurrency"] == (4, "flag")
    assert found["slice_turns"] == (3, "environment INTURN_SLICE_TURNS")
    assert found["max_rescues"] == (2, "./inturn.toml")
    assert found["max_attempts"] == (9, str(user))
    assert found["cleanup_chunk"] == (1000, "default")


def test_providers_of_all_files_are_merged(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = write_user_file(bare_machine, '[providers.lab]\nbase_url = "http://lab:8000/v1/"\n')
    Path("inturn.toml").write_text('[providers.lab]\napi_key_env = "LAB_KEY"\n[providers.slow]\ntype = "echo"\n')
    settings = Settings.load()
    assert settings.origins()["providers"] == f"./inturn.toml, {user}"
    assert settings.available_providers.keys() == {"echo", "lab", "slow"}
    lab = settings.providers["lab"]
    assert (lab.base_url, lab.api_key()) == ("http://lab:8000/v1", None)
    monkeypatch.setenv("LAB_KEY", " secret\n")
    key = lab.api_key()
    assert key is not None
    assert key.get_secret_value() == "secret"
    assert "secret" not in repr(key) + repr(settings)


@pytest.mark.parametrize(
    ("vendor", "model", "url"),
    [
        ("openai", "openai/gpt-5", "https://api.openai.com/v1"),
        ("anthropic", "anthropic/claude-sonnet-4-5", "https://api.anthropic.com"),
    ],
)
def test_a_vendor_is_there_when_its_key_is(vendor: str, model: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, base = f"{vendor.upper()}_API_KEY", f"{vendor.upper()}_BASE_URL"
    monkeypatch.setenv(key, "sk-1")
    settings = Settings.load()
    assert settings.effective_default_model == model
    assert settings.available_providers.keys() == {"echo", vendor}
    provider = settings.available_providers[vendor]
    assert (provider.type, provider.base_url, provider.api_key_env) == (vendor, url, key)
    monkeypatch.setenv(base, "http://localhost:9/v1")
    assert Settings.load().available_providers[vendor].base_url == "http://localhost:9/v1"
    monkeypatch.setenv(base, "localhost")
    assert f"{base} is 'localhost'" in refusal()
    monkeypatch.setenv(base, "http://localhost?key=hidden")
    assert f"{base} is 'http://localhost'" in refusal()


def test_of_two_vendors_openai_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-2")
    assert Settings.load().effective_default_model == "openai/gpt-5"
    assert Settings.load().available_providers.keys() == {"echo", "openai", "anthropic"}
    assert Settings.load(default_model="lab/x").effective_default_model == "lab/x"


@pytest.mark.parametrize(
    ("vendor", "url"), [("openai", "https://api.openai.com/v1"), ("anthropic", "https://api.anthropic.com")]
)
def test_a_configured_vendor_keeps_what_it_says(vendor: str, url: str) -> None:
    configured = {vendor: {"deadline_seconds": 7, "api_key_env": "MY_KEY"}}
    provider = Settings.load(providers=configured).available_providers[vendor]
    assert (provider.type, provider.base_url, provider.api_key_env) == (vendor, url, "MY_KEY")
    assert provider.deadline_seconds == 7
    assert Settings.load(providers=configured).effective_default_model == "echo/echo"


def test_anthropics_name_can_be_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://localhost:9")
    configured = {"anthropic": {"type": "openai", "base_url": "http://h/v1"}}
    provider = Settings.load(providers=configured).available_providers["anthropic"]
    assert (provider.type, provider.base_url) == ("openai", "http://h/v1")


def test_azure_and_aliases_can_be_configured() -> None:
    base = "https://me.openai.azure.com/openai/deployments/mine?api-version=2024-10-21"
    azure = {"base_url": base, "api_key_env": "AZURE_KEY", "api_key_header": "api-key", "models": {"best": "gpt-5"}}
    provider = Settings.load(providers={"azure": azure}).providers["azure"]
    assert (provider.base_url, provider.api_key_header, provider.model_name("best")) == (base, "api-key", "gpt-5")
    sentence = refusal(providers={"azure": azure | {"models": {"best": ""}}})
    assert "providers.azure.models.best is ''" in sentence


def test_a_model_may_say_how_much_it_can_be_shown() -> None:
    models = {"a": {"name": "x", "context_tokens": 7}, "y": {"context_tokens": 8}, "b": "x", "x": "z"}
    provider = Settings.load(providers={"h": {"base_url": "http://h/v1", "models": models}}).providers["h"]
    assert [provider.model_name(one) for one in ("a", "y", "b", "x", "other")] == ["x", "y", "x", "z", "other"]
    assert [provider.context_tokens(one) for one in ("a", "y", "b", "x", "other")] == [7, 8, 7, None, None]
    again = ProviderSettings.model_validate(provider.model_dump(mode="json"))
    assert again == provider
    assert again.model_dump()["models"] == models | {"y": {"name": "y", "context_tokens": 8}}


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("", "models.m is ''"),
        ({"name": "x", "context_tokens": 0}, "models.m.context_tokens is '0'"),
        ({"context": 7}, "a model has name and context_tokens, and no context"),
        (7, "a model is written as its name, or as {"),
    ],
)
def test_a_model_that_is_none_is_refused(written: Any, named: str) -> None:
    assert named in refusal(providers={"h": {"base_url": "http://h/v1", "models": {"m": written}}})


@pytest.mark.parametrize("fallback", ["gpt-5", "openai/", "/gpt-5", "open ai/gpt-5", ""])
def test_a_fallback_is_a_model(fallback: str) -> None:
    sentence = refusal(providers={"h": {"base_url": "http://h/v1", "fallbacks": ["echo/echo", fallback]}})
    assert "providers.h.fallbacks is" in sentence
    assert f"{fallback!r} is no model: write provider/model" in sentence


def test_the_settings_that_the_docs_show_are_accepted() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```$", docs, re.DOTALL | re.MULTILINE)
    Path("inturn.toml").write_text("\n".join(blocks))
    providers = Settings.load().available_providers
    assert (providers["anthropic"].type, providers["anthropic"].base_url) == ("anthropic", "https://api.anthropic.com")
    assert providers["openai"].requests_per_minute == 600
    assert providers["openrouter"].model_name("fast") == "meta-llama/llama-3.3-70b-instruct:free"
    assert providers["openrouter"].context_tokens("fast") == 131072
    assert providers["vllm"].context_tokens("llama-3.3") == 65536
    assert providers["openai"].fallbacks == ["anthropic/claude-sonnet-4-5", "ollama/llama3.2"]
    every = ProviderSettings.model_fields.keys()
    assert set(re.findall(r"^\| `(\w+)` \|", docs, re.MULTILINE)) & every == every


def test_nothing_that_is_installed_is_looked_through_for_types_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_settings, "plug_ins", lambda: pytest.fail("asked"))
    configured = {type_: {"type": type_, "base_url": "http://h/v1"} for type_ in provider_settings.TYPES}
    assert set(Settings.load(providers=configured).available_providers) == set(provider_settings.TYPES)


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        ("postgres://u:p@h/db", "postgresql+psycopg://u:p@h/db"),
        ("postgresql://h/db?sslmode=require", "postgresql+psycopg://h/db?sslmode=require"),
        ("postgresql+psycopg://h/db", "postgresql+psycopg://h/db"),
        ("sqlite:////var/lib/x.db", "sqlite:////var/lib/x.db"),
    ],
)
def test_database_urls_are_normalised(given: str, effective: str) -> None:
    settings = Settings.load(database_url=given)
    assert settings.effective_database_url == effective
    assert not settings.is_embedded


def test_a_relative_sqlite_file_is_tied_to_its_place(bare_machine: Path) -> None:
    assert Settings.load(database_url="sqlite:///x.db?a=b").database_url == f"sqlite:///{bare_machine}/x.db?a=b"


@pytest.mark.parametrize("url", ["mysql://h/x", "sqlite://", "sqlite:///:memory:", "nonsense", "postgresql://"])
def test_other_databases_are_refused(url: str) -> None:
    assert f"database_url is '{url}' (flag), which is refused: a database is" in refusal(database_url=url)


@pytest.mark.parametrize(
    ("given", "normal"),
    [(url, url) for url in ("redis://h:1/0", "redis+socket:///a/b", "rediss://h/1?ssl_cert_reqs=none")]
    + [
        ("unix:///a/b", "redis+socket:///a/b"),
        ("rediss://:p@h/1", "rediss://:p@h/1?ssl_cert_reqs=required"),
        ("rediss://h/1?ssl_ca_certs=/a", "rediss://h/1?ssl_ca_certs=/a&ssl_cert_reqs=required"),
        ("rediss://h/1?ssl_cert_reqs=CERT_REQUIRED&a=b", "rediss://h/1?ssl_cert_reqs=required&a=b"),
        ("rediss://h/1?ssl_cert_reqs=CERT_NONE", "rediss://h/1?ssl_cert_reqs=none"),
    ],
)
def test_brokers_are_normalised(given: str, normal: str) -> None:
    assert Settings.load(broker_url=given).broker_url == normal


@pytest.mark.parametrize("url", ["sentinel://h:1", "redis+cluster://h", "redis://a;redis://b", "amqp://h", "redis://"])
def test_other_brokers_are_refused(url: str) -> None:
    assert "broker_url is" in refusal(broker_url=url)


def test_a_broker_that_celery_would_put_ahead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:hidden@elsewhere/0")
    sentence = refusal()
    assert "CELERY_BROKER_URL is redis://:***@elsewhere/0" in sentence
    assert "broker_url is the embedded one" in sentence
    assert Settings.load(broker_url="redis://:hidden@elsewhere/0").broker_url.startswith("redis://")
    monkeypatch.setenv("CELERY_BROKER_URL", "unix:///a/b")
    assert Settings.load(broker_url="redis+socket:///a/b").broker_url == "redis+socket:///a/b"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"heartbeat_seconds": 10}, ("heartbeat_seconds is 10 (flag)", "lease_seconds, which is 20 (default)")),
        ({"sweep_seconds": 21}, ("sweep_seconds", "lease_seconds")),
        ({"cancel_poll_seconds": 6}, ("cancel_poll_seconds", "heartbeat_seconds")),
        ({"max_attempts": 1}, ("max_ambiguous_attempts is 2 (default)", "max_attempts, which is 1 (flag)")),
        ({"retry_base_seconds": 61}, ("retry_base_seconds", "retry_cap_seconds")),
        ({"attempt_deadline_seconds": 130}, ("attempt_deadline_seconds", "shutdown_grace_seconds")),
        (
            {"providers": {"slow": {"type": "echo", "deadline_seconds": 200}}},
            ("providers.slow.deadline_seconds is 200", "shutdown_grace_seconds, which is 130 (default)"),
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named_both(values: dict[str, object], names: tuple[str, str]) -> None:
    sentence = refusal(**values)
    assert names[0] in sentence
    assert names[1] in sentence


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "soon", "1e999"])
def test_times_are_positive_numbers(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTURN_SWEEP_SECONDS", value)
    assert f"sweep_seconds is '{value}' (environment INTURN_SWEEP_SECONDS), which is refused: should be" in refusal()


def test_all_wrong_values_are_told_at_once() -> None:
    assert len(refusal(concurrency=0, lease_seconds="x").splitlines()) == 2


def test_unknown_settings_are_errors_with_a_guess() -> None:
    Path("inturn.toml").write_text("heartbeat = 3\n[providers.lab]\nbase_ulr = 'http://h'\n")
    sentence = refusal()
    assert "unknown setting heartbeat (./inturn.toml): did you mean heartbeat_seconds?" in sentence
    assert "unknown setting providers.lab.base_ulr (./inturn.toml): did you mean base_url?" in sentence
    assert "there are home, database_url" in refusal(xyzzy=1)


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ({}, "has no base_url"),
        ({"base_url": "ftp://h"}, "starts with http"),
        ({"base_url": "https://:x@h/v1"}, "carries no password"),
        ({"base_url": "https://h/v1?api_key=:x@"}, "carries no key"),
        ({"type": "anthropic"}, "has no base_url"),
        ({"type": "oracle"}, "the types here are openai, anthropic, echo. A package that brings another"),
    ],
)
def test_bad_providers_are_refused(provider: dict[str, str], reason: str) -> None:
    sentence = refusal(providers={"lab": provider})
    assert reason in sentence
    assert ":x@" not in sentence
    assert "no name for a provider" in refusal(providers={"a/b": {"type": "echo"}})


def test_a_header_is_shown_to_nobody() -> None:
    provider = {"base_url": "http://h/v1", "headers": {"X-Key": "hidden"}}
    settings = Settings.load(providers={"lab": provider})
    assert settings.providers["lab"].headers == {"X-Key": "hidden"}
    assert "hidden" not in f"{settings!r}{settings}{settings.masked()}{settings.providers['lab']!r}"
    assert "hidden" not in refusal(providers={"lab": provider | {"headers": {"X-Key": ["hidden"]}}})


@pytest.mark.parametrize("key", ["sk-proj-abc", "A" * 65, "1KEY", "LAB KEY", "LAB_KEY\n", "Schlüssel"])
def test_a_key_in_place_of_its_variable_is_refused_and_shown_to_nobody(key: str) -> None:
    sentence = refusal(providers={"lab": {"base_url": "http://h/v1", "api_key_env": key}})
    assert "providers.lab.api_key_env is '***' (flag), which is refused: it is the name of an environment" in sentence
    assert key not in sentence
    assert "hidden" not in refusal(providers={"lab": {"base_url": "http://h/v1", "api_key_env": ["hidden"]}})


def test_broken_files_are_named(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("inturn.toml").write_text("lease_seconds = = 3")
    assert "settings file inturn.toml is not valid TOML" in refusal()
    Path("inturn.toml").write_bytes(b'home = "\xff"')
    assert "settings file inturn.toml is not valid TOML" in refusal()
    Path("inturn.toml").unlink()
    Path("inturn.toml").mkdir()
    assert "settings file inturn.toml cannot be read" in refusal()
    Path("inturn.toml").rmdir()
    monkeypatch.setenv("INTURN_PROVIDERS", "{")
    assert "INTURN_PROVIDERS is not valid JSON" in refusal()


def test_a_model_names_its_provider() -> None:
    assert "a model is written provider/model" in refusal(default_model="gpt-5")
    assert Settings.load(default_model="router/meta/llama:free").effective_default_model == "router/meta/llama:free"


def test_home_is_absolute(monkeypatch: pytest.MonkeyPatch, bare_machine: Path) -> None:
    monkeypatch.setenv("INTURN_HOME", "here")
    assert Settings.load().home == bare_machine / "here"
    assert Settings.load(home="~/x").home == Path.home() / "x"
    assert "question mark" in refusal(home="a?b")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p@ss/w@h/db", "postgresql://u:***@h/db"),
        ("redis://:p@h:1/0", "redis://:***@h:1/0"),
        ("postgresql://u@h/db?password=p&sslpassword=q&a=b", "postgresql://u@h/db?password=***&sslpassword=***&a=b"),
        ("redis+socket:///a/b?virtual_host=1", "redis+socket:///a/b?virtual_host=1"),
        ("sqlite:////a/b:c.db", "sqlite:////a/b:c.db"),
        ("", ""),
    ],
)
def test_passwords_are_masked(url: str, masked: str) -> None:
    assert masked_url(url) == masked


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().concurrency = 3
    with pytest.raises(ValueError, match="frozen"):
        ProviderSettings().type = "echo"


def test_budgets_of_a_file_and_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("inturn.toml").write_text("[[budgets]]\nusd = 20\n\n[[budgets]]\nscope = 'label:team'\ntokens = 5\n")
    settings = Settings.load()
    assert [(each.scope, each.usd, each.tokens) for each in settings.budgets] == [
        ("all", 20, None),
        ("label:team", None, 5),
    ]
    assert settings.origins()["budgets"] == "./inturn.toml"
    monkeypatch.setenv("INTURN_BUDGETS", '[{"usd": 1}]')
    assert [each.usd for each in Settings.load().budgets] == [1]


@pytest.mark.parametrize(
    ("budgets", "sentence"),
    [
        (
            '[{"usd": 1, "scop": "all"}]',
            "unknown setting budgets.0.scop (environment INTURN_BUDGETS): did you mean scope?",
        ),
        ('[{"usd": 1}, {"usd": -1}]', "budgets.1.usd is '-1' (environment INTURN_BUDGETS), which is refused"),
        ('[{"scope": "all"}]', "a budget limits something: give it usd, tokens, or both"),
        ("{", "INTURN_BUDGETS is not valid JSON: write a list of budgets"),
    ],
)
def test_a_budget_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, budgets: str, sentence: str) -> None:
    monkeypatch.setenv("INTURN_BUDGETS", budgets)
    assert sentence in refusal()


def test_of_two_budgets_in_a_file_the_wrong_one_has_its_origin() -> None:
    Path("inturn.toml").write_text("[[budgets]]\nusd = 20\n\n[[budgets]]\nusd = 0\n")
    assert "budgets.1.usd is '0' (./inturn.toml)" in refusal()
