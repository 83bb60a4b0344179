"""Every type of provider, whole and streamed: what never arrives, how connections are used, and what is not even sent."""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inturn.workers.provider import ProviderError, Reply
from inturn.workers.providers import transport
from ops.chaos.model import ModelServer
from tests.integration.asking import Asker, Config, calls_of, failure, prompt, told, with_providers

# What never arrives


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_refused_connection_is_safe(config: Config, closed_port: int) -> None:
    error = failure(replace(config, base_url=f"http://127.0.0.1:{closed_port}/v1"), prompt("Hello"))
    assert (error.kind, error.error_type, error.status_code) == ("safe", "refused", None)
    assert f"127.0.0.1:{closed_port} refused the connection. Nothing was sent" in error.message


def test_an_unknown_host_is_safe(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    error = failure(replace(config, base_url="http://models.invalid/v1"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("safe", "dns")
    assert "no address for models.invalid" in error.message


def test_failed_tls_is_safe(config: Config) -> None:
    error = failure(replace(config, base_url=config.base_url.replace("http:", "https:")), prompt("Hello"))
    assert (error.kind, error.error_type) == ("safe", "tls")


def test_a_connection_that_never_comes_about_is_safe(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transport.HTTP_TIMEOUTS, "timeout", {"connect": 0.3, "pool": 0.3})
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # they fill the backlog; the kernel answers no further caller
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        error = failure(replace(config, base_url=f"http://127.0.0.1:{full.getsockname()[1]}/v1"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("safe", "connect_timeout")


def test_certificates_that_are_not_there_are_a_mistake_of_the_operator(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    error = failure(replace(config, base_url="https://127.0.0.1:1/v1"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_certificates")
    assert "SSL_CERT_FILE" in error.message


# Connections


def test_hundreds_of_calls_are_in_flight_at_once(server: ModelServer, config: Config, key: str) -> None:
    async def all_of_them(asker: Asker) -> list[Reply]:
        asked = [prompt(f"{number} {told(latency=1)}", key=f"{key}-{number}") for number in range(300)]
        return await asyncio.gather(*map(asker.ask, asked))

    replies = with_providers(config, all_of_them, deadline=20)
    assert [reply.content.split()[2] for reply in replies] == [str(number) for number in range(300)]
    calls = [call for call in server.calls() if (call.key or "").startswith(f"{key}-")]
    assert len(calls) == 300
    assert max(call.start for call in calls) < min(call.end or 0 for call in calls)


def test_a_connection_is_used_again(server: ModelServer, config: Config, key: str) -> None:
    async def three(asker: Asker) -> None:
        for _ in range(3):
            await asker.ask(prompt("Hello", key=key))

    with_providers(config, three)
    assert len({call.peer for call in calls_of(server, key)}) == 1


def test_an_idle_connection_that_was_closed_is_replaced(server: ModelServer, config: Config, key: str) -> None:
    async def with_a_pause(asker: Asker) -> Reply:
        await asker.ask(prompt(told(act="close_soon"), key=key))
        await asyncio.sleep(0.3)
        return await asker.ask(prompt("Hello", key=key))

    assert with_providers(config, with_a_pause).content.startswith("reply to: Hello")
    assert len({call.peer for call in calls_of(server, key)}) == 2


def test_a_post_that_meets_a_closing_connection_is_not_sent_again(
    server: ModelServer, config: Config, key: str
) -> None:
    async def twice(asker: Asker) -> ProviderError:
        await asker.ask(prompt("Hello", key=f"{key}-1"))
        with pytest.raises(ProviderError) as caught:
            await asker.ask(prompt(told(act="close"), key=f"{key}-2"))
        return caught.value

    error = with_providers(config, twice)
    assert (error.kind, error.error_type) == ("ambiguous", "disconnected")
    [first], [second] = calls_of(server, f"{key}-1"), calls_of(server, f"{key}-2")
    assert first.peer == second.peer


def test_a_cookie_is_neither_kept_nor_carried_on(server: ModelServer, config: Config, key: str) -> None:
    async def twice(asker: Asker) -> None:
        for _ in range(2):
            await asker.ask(prompt(told(act="cookie"), key=key))

    with_providers(config, twice)
    assert ["cookie" in call.headers for call in calls_of(server, key)] == [False, False]


def test_the_environment_leads_no_call_astray(
    config: Config, closed_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    message = failure(config, prompt(told(status=401, say="key"))).message
    assert "provided: [key]." in message


# What is wrong before anything is sent


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("openai", "Set OPENAI_API_KEY in the worker's environment"),
        ("anthropic", "Set ANTHROPIC_API_KEY in the worker's environment"),
        ("ollama", "Add [providers.ollama] to the worker's inturn.toml"),
    ],
)
def test_a_provider_that_is_not_configured_is_named(config: Config, name: str, remedy: str) -> None:
    error = failure(config, prompt("Hello"), model=f"{name}/gpt")
    assert (error.kind, error.error_type) == ("permanent", "provider_not_configured")
    assert f"provider '{name}' is not configured: this worker has local. {remedy}" in error.message


def test_a_provider_of_an_unknown_type_is_named(config: Config) -> None:
    error = failure(replace(config, type="telepathy"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "provider_not_configured")
    assert "its type 'telepathy' is none of anthropic, echo, openai" in error.message


def test_a_missing_key_is_named(config: Config) -> None:
    error = failure(replace(config, key=""), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "no_key")
    assert "set KEY_OF_THE_TESTS" in error.message


@pytest.mark.parametrize("bad", ["sk-zwölf", "sk-two\nlines", "sk-\x00"])
def test_a_key_that_cannot_be_one_is_not_shown(config: Config, bad: str) -> None:
    error = failure(replace(config, key=bad), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_key")
    assert "KEY_OF_THE_TESTS" in error.message
    assert "sk-" not in error.message


@pytest.mark.parametrize("headers", [{"X-Team": "a\r\nX-Evil: b"}, {"X Team": "blue"}, {"": "blue"}])
def test_a_header_that_cannot_be_sent_is_refused(config: Config, headers: dict[str, str]) -> None:
    error = failure(replace(config, headers=headers), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_header")


def test_a_header_for_the_key_that_cannot_be_sent_is_refused(config: Config) -> None:
    error = failure(replace(config, api_key_header="api key"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_header")


@pytest.mark.parametrize(
    "base_url", ["", "127.0.0.1:80", "ftp://host/v1", "http://", "http://me:secret@host", "http://host:port"]
)
def test_a_base_url_that_is_none_is_refused(config: Config, base_url: str) -> None:
    error = failure(replace(config, base_url=base_url), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_base_url")
    assert "secret" not in error.message


@pytest.mark.parametrize("options", [{"model": "other"}, {"messages": []}, {"stream": True}, {"stop": {"a", "b"}}])
def test_options_that_cannot_be_sent_are_refused(
    server: ModelServer, config: Config, key: str, options: dict[str, Any]
) -> None:
    error = failure(config, prompt("Hello", key=key, **options))
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert not calls_of(server, key)
