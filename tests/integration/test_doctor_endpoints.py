"""The check-up asks a server that lists its models, and one that does anything else."""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from inturn.cli.checkup import inquiry
from inturn.cli.checkup.finding import Finding
from inturn.cli.doctor import check_up, doctor
from inturn.settings import Settings
from inturn.workers.provider import Prompt
from ops.servers import free_port
from tests.integration.asking import Config, ask

KEY = "sk-of-the-doctor-0123456789"
HEADER = "value-of-a-header-nobody-may-see"
ALL = {f"claude-{number}": {"id": f"claude-{number}"} for number in range(5)}


class Desk(BaseHTTPRequestHandler):
    """One call, answered by the server's act."""

    protocol_version = "HTTP/1.1"
    server: "Office"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.server.act(self)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.reply({"choices": [{"message": {"content": "yes"}}], "content": [{"type": "text", "text": "yes"}]})

    def reply(self, said: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None: ...


class Office(ThreadingHTTPServer):
    """A real server, whose manners the test decides about."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.act: Callable[[Desk], None] = lists("small", "large")
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asks hangs up; that is what is tested."""

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def lists(*names: str) -> Callable[[Desk], None]:
    return lambda desk: desk.reply({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def says(said: Any, status: int = 200, kind: str = "application/json", **headers: str) -> Callable[[Desk], None]:
    return lambda desk: desk.reply(said, status, kind, **headers)


def writes(*blocks: bytes, pause: float = 0) -> Callable[[Desk], None]:
    """Past everything that would keep it correct HTTP, until the test is over or who asked is gone."""

    def write(desk: Desk) -> None:
        for block in blocks:
            desk.wfile.write(block)
            if desk.server.over.wait(pause):
                break
        desk.close_connection = True

    return write


@pytest.fixture
def office() -> Iterator[Office]:
    office = Office()
    yield office
    office.over.set()
    office.shutdown()
    office.server_close()


@dataclass
class Clinic:
    """A check-up of one provider, ``lab``, whose small model is the default one."""

    office: Office
    settings: dict[str, Any] = field(default_factory=dict)

    def find(self, default_model: str = "lab/small", **changes: Any) -> list[Finding]:
        lab = {"base_url": f"{self.office.root}/v1", "api_key_env": "LAB_KEY", "headers": {"x-team": HEADER}}
        return self.check({"lab": lab | self.settings | changes}, default_model)

    def check(self, providers: dict[str, Any], default_model: str) -> list[Finding]:
        found = list(check_up(Settings.load(providers=providers, default_model=default_model)))
        assert KEY not in str(found)
        assert HEADER not in str(found)
        return [one for one in found if one.subject == "provider"]

    def only(self, **changes: Any) -> tuple[str, str]:
        [found] = self.find(**changes)
        return found.state, found.sentence


@pytest.fixture
def clinic(office: Office, tmp_path, monkeypatch) -> Clinic:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "CELERY_BROKER_URL", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("INTURN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LAB_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    return Clinic(office)


@pytest.fixture
def soon(monkeypatch) -> None:
    monkeypatch.setattr(inquiry, "SECONDS", 0.5)


def test_a_provider_that_is_well_lists_what_is_used(clinic: Clinic, office: Office):
    assert clinic.only() == ("ok", "lab answers, and lists 2 models with the key in LAB_KEY, small among them")
    [(path, headers)] = office.asked
    assert path == "/v1/models"
    assert (headers["authorization"], headers["x-team"]) == (f"Bearer {KEY}", HEADER)
    sentence = clinic.only(models={"big": "large"})[1]
    assert sentence.endswith("with the key in LAB_KEY, small, large among them")


@pytest.mark.parametrize("type_", ["openai", "anthropic"])
@pytest.mark.parametrize("key_header", ["", "api-key"])
@pytest.mark.parametrize("below", ["", "/v1", "/gateway/v1/", "/deployments/one?api-version=2024-10-21"])
def test_it_asks_with_what_workers_ask_with(clinic: Clinic, office: Office, type_: str, key_header: str, below: str):
    base_url, headers = office.root + below, {"x-team": HEADER}
    clinic.find(type=type_, base_url=base_url, api_key_header=key_header)
    asked = office.asked[0]
    config = Config(base_url, type_, key=KEY, api_key_header=key_header, headers=headers)
    ask(config, Prompt("", [{"role": "user", "content": "Is it?"}], {}, "1.1"))
    posted = office.asked[-1]
    ours = ("content-type", "content-length", "idempotency-key", "accept-encoding", "connection", "accept")
    trimmed = [{name: value for name, value in one[1].items() if name not in ours} for one in (asked, posted)]
    assert trimmed[0] == trimmed[1]
    there = urlsplit(posted[0])
    place = there.path.replace("/chat/completions", "/models").replace("/messages", "/models")
    assert urlsplit(asked[0]).path == place
    assert parse_qs(there.query).items() <= parse_qs(urlsplit(asked[0]).query).items()


@pytest.mark.parametrize(
    ("act", "state", "sign"),
    [
        (says({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401), "fail",
         "refuses the key in LAB_KEY (401), as it is in this environment: check it"),
        (says({"error": {"message": "Missing scopes: api.model.read"}}, 401), "warn",
         "does not let the key in LAB_KEY list models (401)"),
        (says({}, 403), "warn", "does not let the key in LAB_KEY list models (403)"),
        (says({}, 404), "note", "is reached; it does not list its models (404)"),
        (says(b"", 405), "note", "does not list its models (405)"),
        (says({}, 429), "warn", "has no time (429)"),
        (says(b"<html>", 502, "text/html"), "fail", "answered 502"),
        (says({}, 418), "warn", "answered 418"),
        (says(b"", 308, location=f"https://{KEY}@elsewhere.example/v1?key={KEY}"), "fail",
         "redirects (308) to https://elsewhere.example, which inturn does not follow"),
        (says(b"", 302, location="http://[nowhere"), "fail", "redirects (302), which inturn does not follow"),
        (says(b"<html>Sign in</html>", kind="text/html"), "fail", "answered with a web page: check its base_url"),
        (says(b'{"data": [\xff'), "fail", "answered with no list of models (11 bytes of application/json)"),
        (says({"error": "no such place"}), "fail", "answered with no list of models"),
        (says(b"[" * 100_000), "fail", "answered with no list of models"),
        (says({"data": [1, None, {"name": "small"}]}), "fail", "answered with no list of models"),
        (says(b"", kind=KEY), "fail", "answered with no list of models (0 bytes of ***)"),
        (says(gzip.compress(bytes(64 * 1024**2)), content_encoding="gzip"), "fail", "no list of models"),
        (says(b" " * (5 * 1024**2)), "fail", "answered with more than 4 MiB, which is no list of models"),
        (writes(b"SSH-2.0-OpenSSH_9.9\r\n"), "fail", "no HTTP came back. Is the port right, or is it https://?"),
        (writes(), "fail", "and no HTTP came back"),
        (writes(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), "fail", "broke off its answer"),
    ],
    ids=[
        "bad_key", "no_scope", "forbidden", "no_such_place", "no_such_method", "busy",
        "gateway", "odd_status", "redirect", "odd_redirect", "page",
        "garbage", "error", "nested", "names_only", "empty", "bomb", "huge", "other_protocol", "hung_up", "broken_off",
    ],
)  # fmt: skip
def test_what_is_no_list_is_told_apart(clinic: Clinic, office: Office, act, state: str, sign: str):
    office.act = act
    found, sentence = clinic.only()
    assert sign in sentence
    assert sentence.startswith("lab ")
    assert found == state


def test_only_the_default_models_provider_keeps_inturn_from_working(clinic: Clinic, office: Office):
    office.act = says({}, 401)
    [found] = clinic.find("echo/echo")
    assert found.state == "warn"


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("act", "sign"),
    [
        (lambda desk: desk.server.over.wait(60), "took the connection at {place}, and did not answer within 0.5 s"),
        (writes(b"HTTP/1.1 200 OK\r\n", *[b"x: y\r\n"] * 99, pause=0.1), "and did not answer within 0.5 s"),
        (
            writes(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", *[b" "] * 99, pause=0.1),
            "began to answer at {place}, and was not done within 0.5 s",
        ),
    ],
    ids=["nothing", "headers", "body"],
)
def test_nobody_is_waited_for_beyond_the_deadline(clinic: Clinic, office: Office, act, sign: str):
    """A byte now and then does not put it off; and who is well beside it is heard."""
    office.act = act
    with_other = Office()
    well = {"base_url": f"{with_other.root}/v1"}
    ill = {"base_url": f"{office.root}/v1"}
    lab, other = clinic.check({"lab": ill, "other": well}, "lab/small")
    assert lab.state == "fail"
    assert sign.format(place=f"127.0.0.1:{office.server_port}") in lab.sentence
    assert other == Finding("ok", "provider", "other answers, and lists 2 models")
    with_other.shutdown()
    with_other.server_close()


def test_nobody_there(clinic: Clinic):
    port = free_port()
    state, sentence = clinic.only(base_url=f"http://127.0.0.1:{port}/v1")
    assert state == "fail"
    assert f"cannot be reached from here: 127.0.0.1:{port} refused the connection. Does the server run?" in sentence
    state, sentence = clinic.only(base_url="http://no-such-host.invalid/v1")
    assert state == "fail"
    assert "there is no address for no-such-host.invalid. Check its base_url, and the network here" in sentence
    assert "no address for" in clinic.only(base_url=f"http://{'x' * 70}.invalid/v1")[1]


def test_tls_that_is_none(clinic: Clinic, office: Office):
    state, sentence = clinic.only(base_url=f"https://127.0.0.1:{office.server_port}/v1")
    assert state == "fail"
    assert f"no TLS with 127.0.0.1:{office.server_port}" in sentence
    assert "connecterror" not in sentence
    assert sentence.endswith("Where no TLS is spoken, its base_url begins with http://")


@pytest.mark.usefixtures("soon")
def test_a_connection_that_never_comes_about(clinic: Clinic):
    """A queue of callers that is full takes no more of them, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        for _ in range(4):
            caller = waiting.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        state, sentence = clinic.only(base_url=f"http://127.0.0.1:{full.getsockname()[1]}/v1")
    assert state == "fail"
    assert "no connection to 127.0.0.1" in sentence
    assert "within 0.5 s. Is it up, and in reach?" in sentence


@pytest.mark.usefixtures("soon")
def test_tls_that_never_comes_about(clinic: Clinic):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sentence = clinic.only(base_url=f"https://127.0.0.1:{silent.getsockname()[1]}/v1")[1]
    assert "no TLS with 127.0.0.1" in sentence


def test_certificates_that_cannot_be_read(clinic: Clinic, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    sentence = clinic.only(base_url="https://127.0.0.1:9/v1")[1]
    assert "SSL_CERT_FILE names no certificates that can be read" in sentence


def test_a_model_that_is_not_there(clinic: Clinic):
    first, missing = clinic.find("lab/smal")
    assert first.state == "ok"
    assert missing == Finding("fail", "provider", "lab does not list smal (the default model). Did you mean small?")
    _, missing = clinic.find(models={"fast": "tiny-1"})
    assert missing.state == "warn"
    assert missing.sentence.startswith("lab does not list tiny-1 (fast in its models). It has small, large: ")


def test_an_alias_is_looked_up_by_what_it_stands_for(clinic: Clinic):
    assert clinic.find("lab/fast", models={"fast": "large"})[-1].sentence.endswith(", large among them")


@pytest.mark.parametrize(
    ("listed", "used"),
    [("llama3.2:latest", "llama3.2"), ("meta/llama", "meta/llama:nitro"), ("openai/*", "openai/gpt-5")],
)
def test_names_that_are_the_same_written_otherwise(clinic: Clinic, office: Office, listed: str, used: str):
    office.act = lists(listed)
    assert [one.state for one in clinic.find(f"lab/{used}")] == ["ok"]


def test_another_size_is_another_model(clinic: Clinic, office: Office):
    office.act = lists("llama3.2:1b")
    assert [one.state for one in clinic.find("lab/llama3.2:70b")] == ["ok", "fail"]


def test_a_server_without_models(clinic: Clinic, office: Office):
    for nothing in "[]", "null":
        office.act = says(f'{{"object": "list", "data": {nothing}}}'.encode())
        assert clinic.find()[-1].sentence == "lab does not list small (the default model). Load it there first"


def test_lists_that_say_nothing_about_names(clinic: Clinic, office: Office):
    azure = clinic.only(api_key_header="api-key", default_model="lab/my-deployment")
    assert azure[0] == "ok"
    assert "no deployments" in azure[1]
    office.act = says({"data": [{"id": "model.gguf", "owned_by": "llamacpp"}]})
    assert clinic.only()[0] == "ok"


def test_what_a_stranger_lists_does_not_steer_the_terminal(clinic: Clinic, office: Office):
    office.act = lists("\x1b]0;owned\x07smal", f"smalt\n{KEY}")
    sentence = clinic.find()[-1].sentence
    assert sentence.isprintable()
    assert "Did you mean smal" in sentence


def test_a_base_url_without_its_version_is_found_out(clinic: Clinic, office: Office):
    for otherwise in says(b"not found", 404), says({"error": "Unexpected endpoint"}), says(b"<html>"):
        acts = {"/models": otherwise, "/v1/models": lists("small")}
        office.act = partial(lambda acts, desk: acts[desk.path](desk), acts)
        state, sentence = clinic.only(base_url=office.root)
        assert state == "fail"
        assert sentence == f"lab is reached, and its base_url lacks the /v1: set it to {office.root}/v1"


def test_a_version_is_asked_after_where_there_is_none(clinic: Clinic, office: Office):
    office.act = says(b"<html>Sign in</html>", kind="text/html")
    assert clinic.only(base_url=office.root)[1].endswith("a web page: check its base_url; does it end with /v1?")
    assert clinic.only()[1].endswith("a web page: check its base_url")


def test_a_key_that_is_missing_here_is_told_once(clinic: Clinic, office: Office, monkeypatch):
    monkeypatch.delenv("LAB_KEY")
    office.act = says({}, 401)
    assert clinic.only() == ("note", "lab is reached, and wants its key (401)")
    assert "authorization" not in office.asked[0][1]
    assert "name the variable that holds it in its api_key_env" in clinic.only(api_key_env="", headers={})[1]
    assert "refuses what its headers say (401)" in clinic.only(api_key_env="")[1]


def test_what_cannot_be_sent_is_not_shown(clinic: Clinic, monkeypatch):
    assert "correct 'x-odd'" in clinic.only(headers={"x-odd": f"{HEADER}\n"})[1]
    monkeypatch.setenv("LAB_KEY", f"{KEY}é")
    assert "was LAB_KEY pasted whole?" in clinic.only()[1]


def paged(desk: Desk) -> None:
    """Two at a time, as Anthropic does it; it knows an alias, too."""
    url = urlsplit(desk.path)
    if name := url.path.removeprefix("/v1/models").strip("/"):
        desk.reply({"id": "claude-4"}, 200 if name == "claude-latest" else 404)
        return
    names, query = list(ALL), parse_qs(url.query)
    start = names.index(query["after_id"][0]) + 1 if "after_id" in query else 0
    page = names[start : start + 2]
    desk.reply({"data": [ALL[name] for name in page], "has_more": start + 2 < len(names), "last_id": page[-1]})


def test_anthropics_list_is_read_page_by_page(clinic: Clinic, office: Office):
    office.act = paged
    clinic.settings = {"type": "anthropic", "base_url": office.root}
    [found] = clinic.find("lab/claude-4", models={"newest": "claude-latest"})
    assert found.sentence == (
        "lab answers, and lists 5 models with the key in LAB_KEY, claude-4, claude-latest among them"
    )
    assert [urlsplit(path).path for path, _ in office.asked] == ["/v1/models"] * 3 + ["/v1/models/claude-latest"]
    assert all(headers["x-api-key"] == KEY and headers["anthropic-version"] for _, headers in office.asked)
    assert [one.state for one in clinic.find("lab/claude-9")] == ["ok", "fail"]


def test_a_list_without_end_is_left(clinic: Clinic, office: Office):
    office.act = says({"data": [{"id": "one"}], "has_more": True, "last_id": "one"})
    clinic.settings = {"type": "anthropic", "base_url": office.root}
    state, sentence = clinic.only()
    assert state == "ok"
    assert "there are more of them" in sentence
    assert len(office.asked) <= 11


def test_proxies_are_left_alone_and_named(clinic: Clinic, office: Office, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://user:{KEY}@127.0.0.1:{free_port()}")
    assert [one.state for one in clinic.find()] == ["ok"], "it is asked directly, and loopback would not need one"
    note, _ = clinic.find(base_url="http://no-such-host.invalid/v1")
    assert note == Finding("note", "provider", "http_proxy is set; inturn does not use it, and calls lab directly")


def test_offline_asks_nobody(clinic: Clinic, office: Office):
    providers = {"lab": {"base_url": f"{office.root}/v1"}}
    settings = Settings.load(providers=providers, default_model="lab/small")
    found = [one for one in check_up(settings, offline=True) if one.subject == "provider"]
    assert found == [Finding("note", "provider", "lab: not asked (--offline)")]
    assert office.asked == []


def test_the_command_ends_with_what_the_providers_say(clinic: Clinic, office: Office, monkeypatch):
    lab = {"lab": {"base_url": f"{office.root}/v1"}}
    monkeypatch.setenv("INTURN_PROVIDERS", json.dumps(lab))
    monkeypatch.setenv("INTURN_DEFAULT_MODEL", "lab/small")
    for act, code in (lists("small"), 0), (lists("large"), 1):
        office.act = act
        done = CliRunner().invoke(doctor, ["--json"], standalone_mode=False)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert ("fail" in [one["state"] for one in records if one["subject"] == "provider"]) == bool(code)
        assert done.return_value == code
