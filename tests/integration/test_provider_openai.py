"""Chat completions against a real HTTP server that misbehaves on request: what comes back, and how it fails."""

import asyncio
import json
import socket
import time
import traceback
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr

from inturn.settings import Settings
from inturn.workers import provider
from inturn.workers.provider import REPLY_LIMIT, Prompt, ProviderError, Providers, Reply
from inturn.workers.providers import BUILDERS
from ops.chaos.model import Call, ModelServer

KEY = "sk-of-the-tests-0123456789"
MODEL = "local/gpt-test"
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    base_url: str
    type: str = "openai"
    key: str = KEY
    api_key_env: str = "KEY_OF_THE_TESTS"
    options: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    deadline_seconds: float | None = None

    def api_key(self) -> SecretStr | None:
        return SecretStr(self.key) if self.key else None


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def config(server: ModelServer) -> Config:
    return Config(server.base_url)


def prompt(text: str, *, key: str = "1.1", **options: Any) -> Prompt:
    return Prompt("", [{"role": "user", "content": text}], options, key)


def told(**directive: Any) -> str:
    """A prompt that tells the server what to do."""
    return f"Please !{json.dumps(directive)}"


def with_providers(config: Config, work: Callable[[Providers], Awaitable[T]], *, deadline: float = 5) -> T:
    async def main() -> T:
        providers = Providers({"local": config}, BUILDERS, deadline_seconds=deadline)
        try:
            return await work(providers)
        finally:
            await providers.aclose()

    return asyncio.run(main())


def ask(config: Config, asked: Prompt, *, model: str = MODEL, deadline: float = 5) -> Reply:
    return with_providers(config, lambda providers: providers.reply(model, asked), deadline=deadline)


def failure(config: Config, asked: Prompt, *, model: str = MODEL, deadline: float = 5) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(config, asked, model=model, deadline=deadline)
    error = caught.value
    assert len(error.message) <= 500
    assert error.message.isprintable()
    assert KEY not in "".join([repr(error), *traceback.format_exception(error)])
    assert error.__cause__ is None  # those of aiohttp hold the request's headers
    assert error.__context__ is None or error.__suppress_context__
    return error


def calls_of(server: ModelServer, key: str) -> list[Call]:
    return [call for call in server.calls() if call.key == key]


async def begun(server: ModelServer, key: str) -> Call:
    for _ in range(100):
        if calls := calls_of(server, key):
            return calls[0]
        await asyncio.sleep(0.02)
    raise AssertionError("the server was not asked")


def ended(server: ModelServer, key: str) -> Call:
    """The one call with this key, once the server is done with it."""
    for _ in range(100):
        [call] = calls_of(server, key)
        if call.end is not None:
            return call
        time.sleep(0.02)
    raise AssertionError("the server still works on it")


# What is sent and what comes back


def test_a_prompt_is_posted_once_and_answered(server: ModelServer, config: Config) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How are you? 東京"},
    ]
    reply = ask(config, Prompt("", messages, {"temperature": 0.5}, "sent/1 ü"))
    assert reply.content == "reply to: How are you? 東京 (seen 4 messages)"
    assert (reply.input_tokens, reply.output_tokens) == (4, 9)
    [call] = calls_of(server, "sent%2F1%20%C3%BC")
    assert reply.request_id == f"req-{call.number}"
    assert call.model == "gpt-test"
    assert call.messages == messages
    assert call.options == {"temperature": 0.5}
    assert call.headers["content-type"] == "application/json"
    assert call.headers["user-agent"] == "inturn"
    assert call.headers["accept-encoding"] == "gzip"


def test_a_prompt_has_the_last_word_on_options(server: ModelServer, config: Config) -> None:
    configured = Config(config.base_url, options={"seed": 1, "stop": ["."]}, headers={"X-Team": "blue"})
    ask(configured, prompt("Hello", key="options", seed=2))
    [call] = calls_of(server, "options")
    assert call.options == {"seed": 2, "stop": ["."]}
    assert call.headers["x-team"] == "blue"


def test_the_key_is_presented() -> None:
    with ModelServer(key=KEY) as guarded:
        assert ask(Config(guarded.base_url), prompt("Hello")).content.startswith("reply to: Hello")
        assert ask(Config(guarded.base_url, key=f" {KEY}\n"), prompt("Hello")).content.startswith("reply to: Hello")
        error = failure(Config(guarded.base_url, key="another-one"), prompt("Hello"))
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "unauthorized", 401)
    assert "provided: [key]." in error.message
    assert "KEY_OF_THE_TESTS" in error.message


def test_a_server_that_wants_no_key_is_shown_none(server: ModelServer) -> None:
    open_house = Config(server.base_url, key="", api_key_env="")
    error = failure(open_house, prompt(told(status=401, say="key")))
    assert "Incorrect API key provided: . You can" in error.message


@pytest.mark.parametrize(
    ("act", "content"),
    [
        ("compressed", 'reply to: Please !{"act": "compressed"} (seen 1 messages)'),
        ("nul", "be\ufffdfore"),
        ("surrogate", "be\ufffdfore 😀"),
    ],
)
def test_every_text_arrives_and_can_be_stored(config: Config, act: str, content: str) -> None:
    assert ask(config, prompt(told(act=act))).content == content


def test_figures_that_are_none_are_left_out(config: Config) -> None:
    reply = ask(config, prompt(told(act="odd_usage")))
    assert (reply.input_tokens, reply.output_tokens, reply.request_id) == (None, None, "a b")


def test_the_settings_own_providers_answer(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

    async def both() -> list[str]:
        providers = Providers(Settings.load().available_providers, BUILDERS, deadline_seconds=5)
        replies = [await providers.reply(model, prompt("Hello")) for model in ("openai/gpt-5", "echo/echo")]
        await providers.aclose()
        return [reply.content for reply in replies]

    openai, echo = asyncio.run(both())
    assert openai.startswith("reply to: Hello")
    assert echo.startswith('You said: "Hello"')


# How it is refused


@pytest.mark.parametrize(
    ("status", "kind", "error_type"),
    [
        (301, "permanent", "redirect"),
        (400, "permanent", "invalid_request"),
        (401, "permanent", "unauthorized"),
        (402, "permanent", "http_402"),
        (403, "permanent", "forbidden"),
        (404, "permanent", "not_found"),
        (408, "ambiguous", "http_408"),
        (409, "ambiguous", "http_409"),
        (413, "permanent", "http_413"),
        (422, "permanent", "unprocessable"),
        (429, "safe", "rate_limited"),
        (500, "ambiguous", "http_500"),
        (502, "ambiguous", "http_502"),
        (503, "safe", "unavailable"),
        (504, "ambiguous", "http_504"),
        (529, "ambiguous", "http_529"),
    ],
)
def test_a_status_says_what_kind_of_failure_it_is(
    server: ModelServer, config: Config, status: int, kind: str, error_type: str
) -> None:
    error = failure(config, prompt(told(status=status), key=f"status-{status}"))
    assert (error.kind, error.error_type, error.status_code) == (kind, error_type, status)
    assert error.message.startswith(f"{MODEL} answered {status}: The model server was told to say no. ")
    assert len(calls_of(server, f"status-{status}")) == 1


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({"retry_after": 7}, 7.0),
        ({"retry_after": 7, "retry_after_ms": 1500}, 1.5),
        ({"retry_after": "in a while"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_passed_on(config: Config, status: int, asked: dict[str, Any], seconds: float | None) -> None:
    assert failure(config, prompt(told(status=status, **asked))).retry_after == seconds


def test_a_date_to_retry_after_is_passed_on(config: Config) -> None:
    after = failure(config, prompt(told(status=429, retry_after={"in": 30}))).retry_after
    assert after is not None
    assert 28 <= after <= 31


@pytest.mark.parametrize("form", ["openai", "ollama", "message", "detail", "fastapi"])
def test_whoever_refuses_is_quoted(config: Config, form: str) -> None:
    assert ": The model server was told to say no. " in failure(config, prompt(told(status=400, form=form))).message


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ({"act": "html_refusal"}, "answered 502. It may have been at work"),
        ({"act": "text_refusal"}, "answered 404: no such model here. Check the model's name"),
        ({"status": 400, "form": "list"}, "answered 400. Check the options"),
        ({"status": 400, "say": "nothing"}, "answered 400. Check the options"),
    ],
)
def test_a_refusal_without_an_explanation_is_one_all_the_same(
    config: Config, directive: dict[str, Any], message: str
) -> None:
    assert f"{MODEL} {message}" in failure(config, prompt(told(**directive))).message


def test_a_refusal_that_never_ends_is_told_by_its_status(config: Config) -> None:
    error = failure(config, prompt(told(act="drip_refusal")), deadline=4)
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "invalid_request", 400)


@pytest.mark.parametrize("say", ["key", "masked_key"])
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_message_holds_a_key(config: Config, status: int, say: str) -> None:
    message = failure(config, prompt(told(status=status, say=say))).message
    assert "Incorrect API key provided: [key]" in message
    assert "0123456789" not in message
    assert "cdef" not in message


@pytest.mark.parametrize("say", ["prompt", "part_of_prompt"])
def test_no_message_holds_the_prompt(config: Config, say: str) -> None:
    secret = "The treasure lies under the old oak tree, three steps to the north"
    message = failure(config, prompt(f"{secret} !{json.dumps({'status': 400, 'say': say})}")).message
    assert "Invalid value: '[prompt]" in message
    assert "treasure" not in message


def test_no_message_moves_a_terminal(config: Config) -> None:
    assert ": red and turned round bold. " in failure(config, prompt(told(status=400, say="escapes"))).message


def test_no_message_is_long_whatever_the_model_is_called(config: Config) -> None:
    error = failure(config, prompt(told(status=400, say="long")), model=f"local/{'g' * 600}")
    assert error.message.endswith("...")


def test_a_long_explanation_is_cut(config: Config) -> None:
    message = failure(config, prompt(told(status=400, say="long"))).message
    assert "... Check the options of the session" in message


def test_a_redirect_is_not_followed(server: ModelServer, config: Config) -> None:
    error = failure(config, prompt(told(act="redirect"), key="redirect"))
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "redirect", 307)
    assert "final base_url" in error.message
    assert "sk-secret" not in error.message
    assert len(calls_of(server, "redirect")) == 1


# How it goes wrong half way


@pytest.mark.parametrize(
    ("act", "error_type", "status_code"),
    [
        ("close", "disconnected", None),
        ("reset", "disconnected", None),
        ("cut_body", "truncated", None),
        ("cut_chunk", "truncated", None),
        ("cut_gzip", "truncated", None),
        ("reset_body", "truncated", None),
        ("not_http", "bad_reply", None),
        ("false_gzip", "bad_reply", None),
        ("brotli", "bad_reply", None),
        ("gzip_tail", "bad_reply", None),
        ("garbage", "bad_reply", 200),
        ("html", "bad_reply", 200),
        ("empty", "bad_reply", 200),
        ("empty_choices", "bad_reply", 200),
        ("null_content", "bad_reply", 200),
        ("empty_content", "bad_reply", 200),
        ("wrong_types", "bad_reply", 200),
    ],
)
def test_what_may_have_been_paid_for_is_ambiguous(
    server: ModelServer, config: Config, act: str, error_type: str, status_code: int | None
) -> None:
    error = failure(config, prompt(told(act=act), key=f"half-{act}"))
    assert (error.kind, error.error_type, error.status_code) == ("ambiguous", error_type, status_code)
    assert error.message.startswith(MODEL)
    assert len(calls_of(server, f"half-{act}")) == 1


def test_a_length_that_is_too_short_spoils_neither_this_reply_nor_the_next(config: Config) -> None:
    async def one_after_the_other(providers: Providers) -> str:
        with pytest.raises(ProviderError) as caught:
            await providers.reply(MODEL, prompt(told(act="short_length")))
        assert (caught.value.kind, caught.value.error_type) == ("ambiguous", "bad_reply")
        return (await providers.reply(MODEL, prompt("And now?"))).content

    assert with_providers(config, one_after_the_other) == "reply to: And now? (seen 1 messages)"


@pytest.mark.parametrize("act", ["hang", "drip_headers", "drip_body"])
def test_the_deadline_is_for_the_whole_reply(server: ModelServer, config: Config, act: str) -> None:
    began = time.monotonic()
    error = failure(config, prompt(told(act=act), key=f"late-{act}"), deadline=0.6)
    assert 0.6 <= time.monotonic() - began < 2
    assert (error.kind, error.error_type, error.status_code) == ("ambiguous", "timeout", None)
    assert f"{MODEL} gave no whole reply within 0.6 s" in error.message
    assert ended(server, f"late-{act}").outcome == "client gone"


def test_a_provider_may_have_a_deadline_of_its_own(server: ModelServer) -> None:
    error = failure(Config(server.base_url, deadline_seconds=0.3), prompt(told(act="hang")), deadline=60)
    assert "within 0.3 s" in error.message


def test_a_cancelled_call_is_hung_up(server: ModelServer, config: Config) -> None:
    async def cancelled(providers: Providers) -> str:
        call = asyncio.create_task(providers.reply(MODEL, prompt(told(act="hang"), key="cancelled")))
        await begun(server, "cancelled")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return (await providers.reply(MODEL, prompt("And now?"))).content

    assert with_providers(config, cancelled) == "reply to: And now? (seen 1 messages)"
    assert ended(server, "cancelled").outcome == "client gone"


@pytest.mark.parametrize(
    ("act", "error_type"),
    [
        ("huge", "reply_too_large"),
        ("gzip_bomb", "reply_too_large"),
        ("over_the_brim", "reply_too_large"),
        ("bomb_refusal", "http_500"),
    ],
)
def test_what_is_over_the_cap_is_not_read_to_its_end(
    server: ModelServer, config: Config, act: str, error_type: str
) -> None:
    ask(config, prompt("Hello"))  # so that what is imported late is not counted
    tracemalloc.start()
    try:
        error = failure(config, prompt(told(act=act), key=f"over-{act}"), deadline=20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.error_type == error_type
    assert error.kind == ("permanent" if error_type == "reply_too_large" else "ambiguous")
    assert peak < 3 * REPLY_LIMIT
    if act == "huge":
        assert ended(server, f"over-{act}").outcome == "client gone"


def test_a_reply_of_just_the_cap_is_kept(config: Config) -> None:
    assert ask(config, prompt(told(act="brimful"))).content.startswith("reply to: Please")


# What never arrives


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_refused_connection_is_safe(closed_port: int) -> None:
    error = failure(Config(f"http://127.0.0.1:{closed_port}/v1"), prompt("Hello"))
    assert (error.kind, error.error_type, error.status_code) == ("safe", "refused", None)
    assert f"127.0.0.1:{closed_port} refused the connection. Nothing was sent" in error.message


def test_an_unknown_host_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    error = failure(Config("http://models.invalid/v1"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("safe", "dns")
    assert "no address for models.invalid" in error.message


def test_failed_tls_is_safe(server: ModelServer) -> None:
    error = failure(Config(server.base_url.replace("http:", "https:")), prompt("Hello"))
    assert (error.kind, error.error_type) == ("safe", "tls")


def test_a_connection_that_never_comes_about_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(provider.HTTP_TIMEOUTS, "timeout", {"connect": 0.3, "pool": 0.3})
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # they fill the backlog; the kernel answers no further caller
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        error = failure(Config(f"http://127.0.0.1:{full.getsockname()[1]}/v1"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("safe", "connect_timeout")


def test_certificates_that_are_not_there_are_a_mistake_of_the_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    error = failure(Config("https://127.0.0.1:1/v1"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_certificates")
    assert "SSL_CERT_FILE" in error.message


# Connections


def test_hundreds_of_calls_are_in_flight_at_once(server: ModelServer, config: Config) -> None:
    async def all_of_them(providers: Providers) -> list[Reply]:
        asked = [prompt(f"{number} {told(latency=1)}", key=f"many-{number}") for number in range(300)]
        return await asyncio.gather(*(providers.reply(MODEL, one) for one in asked))

    replies = with_providers(config, all_of_them, deadline=20)
    assert [reply.content.split()[2] for reply in replies] == [str(number) for number in range(300)]
    calls = [call for call in server.calls() if (call.key or "").startswith("many-")]
    assert len(calls) == 300
    assert max(call.start for call in calls) < min(call.end or 0 for call in calls)


def test_a_connection_is_used_again(server: ModelServer, config: Config) -> None:
    async def three(providers: Providers) -> None:
        for _ in range(3):
            await providers.reply(MODEL, prompt("Hello", key="again"))

    with_providers(config, three)
    assert len({call.peer for call in calls_of(server, "again")}) == 1


def test_an_idle_connection_that_was_closed_is_replaced(server: ModelServer, config: Config) -> None:
    async def with_a_pause(providers: Providers) -> Reply:
        await providers.reply(MODEL, prompt(told(act="close_soon"), key="idle"))
        await asyncio.sleep(0.3)
        return await providers.reply(MODEL, prompt("Hello", key="idle"))

    assert with_providers(config, with_a_pause).content.startswith("reply to: Hello")
    assert len({call.peer for call in calls_of(server, "idle")}) == 2


def test_a_post_that_meets_a_closing_connection_is_not_sent_again(server: ModelServer, config: Config) -> None:
    async def twice(providers: Providers) -> ProviderError:
        await providers.reply(MODEL, prompt("Hello", key="closing-1"))
        with pytest.raises(ProviderError) as caught:
            await providers.reply(MODEL, prompt(told(act="close"), key="closing-2"))
        return caught.value

    error = with_providers(config, twice)
    assert (error.kind, error.error_type) == ("ambiguous", "disconnected")
    [first], [second] = calls_of(server, "closing-1"), calls_of(server, "closing-2")
    assert first.peer == second.peer


def test_a_cookie_is_neither_kept_nor_carried_on(server: ModelServer, config: Config) -> None:
    async def twice(providers: Providers) -> None:
        for _ in range(2):
            await providers.reply(MODEL, prompt(told(act="cookie"), key="cookie"))

    with_providers(config, twice)
    assert ["cookie" in call.headers for call in calls_of(server, "cookie")] == [False, False]


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
        ("ollama", "Add [providers.ollama] to the worker's inturn.toml"),
    ],
)
def test_a_provider_that_is_not_configured_is_named(config: Config, name: str, remedy: str) -> None:
    error = failure(config, prompt("Hello"), model=f"{name}/gpt")
    assert (error.kind, error.error_type) == ("permanent", "provider_not_configured")
    assert f"provider '{name}' is not configured: this worker has local. {remedy}" in error.message


def test_a_provider_of_an_unknown_type_is_named(config: Config) -> None:
    error = failure(Config(config.base_url, type="telepathy"), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "provider_not_configured")
    assert "its type 'telepathy' is none of echo, openai" in error.message


def test_a_missing_key_is_named(config: Config) -> None:
    error = failure(Config(config.base_url, key=""), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "no_key")
    assert "set KEY_OF_THE_TESTS" in error.message


@pytest.mark.parametrize("key", ["sk-zwölf", "sk-two\nlines", "sk-\x00"])
def test_a_key_that_cannot_be_one_is_not_shown(config: Config, key: str) -> None:
    error = failure(Config(config.base_url, key=key), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_key")
    assert "KEY_OF_THE_TESTS" in error.message
    assert "sk-" not in error.message


@pytest.mark.parametrize("headers", [{"X-Team": "a\r\nX-Evil: b"}, {"X Team": "blue"}, {"": "blue"}])
def test_a_header_that_cannot_be_sent_is_refused(config: Config, headers: dict[str, str]) -> None:
    error = failure(Config(config.base_url, headers=headers), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_header")


@pytest.mark.parametrize(
    "base_url", ["", "127.0.0.1:80", "ftp://host/v1", "http://", "http://me:secret@host", "http://host:port"]
)
def test_a_base_url_that_is_none_is_refused(base_url: str) -> None:
    error = failure(Config(base_url), prompt("Hello"))
    assert (error.kind, error.error_type) == ("permanent", "bad_base_url")
    assert "secret" not in error.message


@pytest.mark.parametrize("options", [{"model": "other"}, {"messages": []}, {"stream": True}, {"stop": {"a", "b"}}])
def test_options_that_cannot_be_sent_are_refused(server: ModelServer, config: Config, options: dict[str, Any]) -> None:
    error = failure(config, prompt("Hello", key="bad-options", **options))
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert not calls_of(server, "bad-options")


# Providers of any kind


class Oddity:
    """A provider of somebody else's."""

    def __init__(self, outcome: Exception | Reply) -> None:
        self._outcome = outcome
        self.closed = 0

    async def reply(self, asked: Prompt) -> Reply:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    async def aclose(self) -> None:
        self.closed += 1
        raise OSError("already gone")


def ask_oddity(outcome: Exception | Reply, *, is_broken: bool = False) -> tuple[Reply, Oddity]:
    built: list[Oddity] = []

    def build(name: str, config: provider.ProviderConfig) -> Oddity:
        if is_broken:
            raise RuntimeError(KEY)
        built.append(Oddity(outcome))
        return built[-1]

    async def twice() -> Reply:
        providers = Providers({"odd": Config("", type="odd")}, {**BUILDERS, "odd": build}, deadline_seconds=5)
        assert built == []
        try:
            await providers.reply("odd/m", prompt("Hello"))
            return await providers.reply("odd/m", prompt("Hello"))
        finally:
            await providers.aclose()

    reply = asyncio.run(twice())
    [oddity] = built
    return reply, oddity


def test_a_type_of_provider_can_be_added() -> None:
    reply, oddity = ask_oddity(Reply("Hello yourself"))
    assert reply.content == "Hello yourself"
    assert oddity.closed == 1


def test_a_mistake_in_a_provider_is_told_by_its_place() -> None:
    with pytest.raises(ProviderError) as caught:
        ask_oddity(KeyError(KEY))
    assert (caught.value.kind, caught.value.error_type) == ("ambiguous", "provider_bug")
    assert "KeyError in test_provider_openai.py, line " in caught.value.message
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_so_is_one_in_making_it() -> None:
    with pytest.raises(ProviderError) as caught:
        ask_oddity(Reply("Hello"), is_broken=True)
    assert caught.value.error_type == "provider_bug"
    assert KEY not in caught.value.message


@pytest.mark.parametrize("character", ["a", "東"])
def test_the_cap_holds_for_every_provider(character: str) -> None:
    fits = REPLY_LIMIT // len(character.encode())
    assert len(ask_oddity(Reply(character * fits))[0].content) == fits
    with pytest.raises(ProviderError) as caught:
        ask_oddity(Reply(character * (fits + 1)))
    assert caught.value.error_type == "reply_too_large"
