"""Each door that could stand open, tried on running processes: Flower's pages and API, control, Redis, the terminal.

Every route that Flower or inturn registers is tried, whichever there will be.
"""

import io
import os
import pty
import re
import secrets
import stat
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
import redis
from flower.urls import handlers
from sqlalchemy import make_url

from inturn import Client, Settings, TurnFailedError
from inturn.cli import run
from inturn.cli.exits import Exit
from inturn.flower.application import ROUTES
from inturn.flower.door import NO_API, NO_SENDING, READ_ONLY, SENDING, guarded
from inturn.models.states import ProcessKind
from inturn.workers import embedded
from inturn.workers.stack import StackInfo, inturn_command
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer
from tests import warm
from tests.acceptance.deployment import clean_environment
from tests.acceptance.failing import FAULT_SECONDS, REPAIR_SECONDS, Actor, Stage, wait_until
from tests.overhearing import overheard

pytestmark = pytest.mark.timeout(240)

CANARY = f"c4n4ry{secrets.token_hex(6)}"
HTML = f'<script>alert("{CANARY}")</script><img src=x onerror=alert(1)>'
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\x1bP1$r\x1b\\\x07\x08"
OPS, VIEWER = "ops:correct-horse", "viewer:battéry-staple"
EACH_YEAR = "0 0 1 1 *"
OPEN = {"/healthcheck"}


@dataclass
class House:
    """A deployment with passwords everywhere, one Flower with logins and control, and one without either.

    Attributes:
        free: where the one without a login is.
    """

    stage: Stage
    guarded: str
    free: str
    password: str
    client: httpx.Client

    def ask(self, path: str, method: str = "GET", login: str = OPS, **headers: str) -> httpx.Response:
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        self.client.cookies.clear()
        return self.client.request(method, self.guarded + path, headers=headers)

    def ask_free(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(self.free + path, headers=headers)

    def worker(self) -> str:
        """By Celery's name, once Flower knows it."""
        wait_until(lambda: self.ask("/api/workers?refresh=1").json(), FAULT_SECONDS)
        return str(next(iter(self.ask("/api/workers").json())))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, model: ModelServer) -> Iterator[House]:
    server = RedisServer(password=secrets.token_hex(12))
    home = tmp_path_factory.mktemp("doors") / "home"
    stage = Stage(home, postgres.create_database(), server.url, model)
    try:
        assert stage.command("db", "upgrade").await_end() == 0
        stage.worker()
        stage._environment["FLOWER_UNAUTHENTICATED_API"] = "true"  # what opens Flower's API to every page, without ours
        flower = ("flower", "--port", "0")
        doors = stage.command(*flower, "--control", "--basic-auth", f"{OPS},{VIEWER}"), stage.command(*flower)
        behind_the_door, free = map(url_of, doors)
        with httpx.Client(timeout=30) as client:
            yield House(stage, behind_the_door, free, make_url(server.url).password or "", client)
    finally:
        stage.stop()
        server.stop()


def url_of(flower: Actor) -> str:
    flower.await_words("Flower: http://", FAULT_SECONDS)
    found = re.search(r'Flower: (http://[^\s"]+)', flower.said())
    assert found
    return found[1]


def paths() -> list[str]:
    """Everything that is served, but for files of the pages, which are the same for everybody."""
    patterns = [route.regex.pattern.removesuffix("$") for route in [*ROUTES, *guarded(handlers)]]
    named = {re.sub(r"\([^)]*\)", "x", pattern) for pattern in patterns if not re.search("static|/inturn/", pattern)}
    return sorted(named - {".*"} | {"/nothing-of-that-name"})


def closed_paths() -> list[str]:
    return [path for path in paths() if path not in OPEN]


def changing_paths() -> list[str]:
    """What Flower changes something by."""
    return [path for path in paths() if re.search(r"/api/(worker/|task/(?!info|result|types))", path)]


def test_every_path_is_tried() -> None:
    assert {"/", "/sessions", "/session/x", "/batches", "/retention", "/workers", "/metrics", "/api/tasks"} <= set(
        paths()
    )
    assert len(changing_paths()) == 14
    assert len(SENDING) == 3


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Basic",
        "Basic !!!",
        "Bearer " + b64encode(OPS.encode()).decode(),
        OPS,
        *(
            f"Basic {b64encode(login.encode()).decode()}"
            for login in (
                "ops:wrong-password",
                "ops:",
                ":",
                "ops",
                "nobody:correct-horse",
                "ops:correct-horse ",
                "é:ü",
            )
        ),
        "Basic " + b64encode(b"ops:\xff\xfe").decode(),
    ],
)
def test_nobody_comes_in_without_a_login(house: House, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with httpx.Client(base_url=house.guarded, headers=headers, timeout=30) as client:
        answers = [
            client.request(method, path) for path in closed_paths() for method in ("GET", "POST", "HEAD", "OPTIONS")
        ]
    assert {answer.status_code for answer in answers} == {401}
    assert all(answer.headers["WWW-Authenticate"].startswith("Basic ") for answer in answers)
    assert {answer.text for answer in answers} == {"Access denied", ""}
    assert httpx.get(f"{house.guarded}/healthcheck").text == "OK", "for whoever looks whether it is up"


def test_each_login_comes_in(house: House) -> None:
    for login in (OPS, VIEWER):
        assert house.ask("/sessions", login=login).status_code == 200


def test_it_listens_to_the_world_only_with_a_login(house: House) -> None:
    refusals = {
        ("--address", "0.0.0.0"): "Flower is to listen on 0.0.0.0 without a login",
        ("--address", ""): "Flower is to listen on all addresses without a login",
        ("--address", "::"): "Flower is to listen on :: without a login",
        ("--address", "0.0.0.0", "--basic-auth", "inturn:change-me"): "with the password of ops/env.example",
        ("--control",): "--control lets whoever reaches Flower stop workers, so it needs a login",
        ("--basic-auth", "ops:short"): "the password of it is too weak",
        ("--basic-auth", "correct-horse"): "it is not written USER:PASSWORD",
    }
    tried = {words: house.stage.command("flower", "--port", "0", *words) for words in refusals}
    for words, sentence in refusals.items():
        refused = tried[words]
        assert refused.await_end() == Exit.USAGE
        assert sentence in refused.said()
        assert "short" not in refused.said()
        assert "correct-horse" not in refused.said()


def test_a_stack_does_not_begin_with_a_flower_that_cannot_be(house: House) -> None:
    """And takes nobody else's for its own."""
    taken = str(make_url(house.free).port)
    for variables, sentence in (
        ({"INTURN_FLOWER_PORT": taken}, f"Flower cannot listen on 127.0.0.1 port {taken} (Address already in use)"),
        ({"INTURN_FLOWER_ADDRESS": "0.0.0.0"}, "Flower is to listen on 0.0.0.0 without a login"),
    ):
        environment = clean_environment(house.stage.home) | variables
        environment |= {"INTURN_HOME": str(house.stage.home.with_name("other"))}
        refused = warm.run(("up", "--flower"), environment, house.stage.home, timeout=FAULT_SECONDS)
        assert refused.returncode == Exit.USAGE, refused.stderr
        [said] = refused.stderr.splitlines()
        assert said.startswith(f"inturn: {sentence}"), "and neither that it is ready, nor that it stopped"


def test_without_a_login_it_is_for_this_machine_by_name(house: House) -> None:
    """A page elsewhere may have its own name lead here, and would read all that is shown."""
    assert house.ask_free("/sessions").status_code == 200
    for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""):
        for path in closed_paths():
            answer = house.ask_free(path, Host=name)
            assert answer.status_code in (400, 403), (name, path)
            assert "celery@" not in answer.text
    port = make_url(house.free).port
    assert house.ask_free("/sessions", Host=f"localhost:{port}").status_code == 200


def test_without_a_login_there_is_no_api(house: House) -> None:
    for path in (path for path in paths() if path.startswith("/api/")):
        answer = house.ask_free(path)
        assert (answer.status_code, answer.text) == (403, NO_API)
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_without_control_nothing_can_be_changed(house: House) -> None:
    readonly = house.stage.command("flower", "--port", "0", "--basic-auth", OPS)
    login = {"Authorization": f"Basic {b64encode(OPS.encode()).decode()}"}
    with httpx.Client(base_url=url_of(readonly), headers=login, timeout=30) as client:
        for path in changing_paths():
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                answer = client.request(method, path, json={"args": [1]})
                assert (answer.status_code, answer.text) == (403, READ_ONLY), (method, path)
        name = house.worker()
        wait_until(lambda: client.get(f"/worker/{name}").status_code == 200, FAULT_SECONDS)
        page = client.get(f"/worker/{name}").text
    readonly.kill()
    assert "worker-shutdown" not in page
    assert "worker-pool-grow" not in page
    assert "worker-shutdown" in house.ask(f"/worker/{name}").text, "with control they are there"
    assert any(one.alive and one.kind is ProcessKind.WORKER for one in house.stage.client.list_workers())


def test_no_task_is_ever_sent(house: House) -> None:
    sent = [path for path in changing_paths() if re.search("apply|send-task", path)]
    assert len(sent) == len(SENDING)
    for path in sent:
        answer = house.ask(path.replace("x", "inturn.remove_expired_sessions"), "POST")
        assert (answer.status_code, answer.text) == (403, NO_SENDING)


def test_another_site_cannot_control_with_somebodys_login(house: House) -> None:
    task = "00000000-0000-4000-8000-000000000000"
    path, here = f"/api/task/revoke/{task}", house.guarded
    token = str(house.ask("/sessions").cookies["_xsrf"])
    cookie = {"Cookie": f"_xsrf={token}"}
    with_token = cookie | {"X-XSRFToken": token}
    from_elsewhere = [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": here.replace("http://", "http://evil.")},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ]
    without_token: list[dict[str, str]] = [{"Origin": here}, {"Sec-Fetch-Site": "same-origin"}, cookie]
    wrong_token = [{"Origin": here} | cookie | {"X-XSRFToken": "2|0|0|0"}, {"Origin": here, "X-XSRFToken": token}]
    refused = [*from_elsewhere, *({**each, **with_token} for each in from_elsewhere), *without_token, *wrong_token]
    for headers in refused:
        assert house.ask(path, "POST", **headers).status_code == 403, headers
    name = house.worker()

    def revoked() -> list[str]:
        return list(house.ask(f"/api/workers?refresh=1&workername={name}").json()[name].get("revoked") or [])

    assert task not in revoked()
    for headers in ({"Origin": here, "Sec-Fetch-Site": "same-origin"} | with_token, {}):
        assert house.ask(path, "POST", **headers).status_code == 200, "a page of its own, and a program"
    wait_until(lambda: task in revoked(), FAULT_SECONDS)


def test_what_was_said_is_nowhere(house: House) -> None:
    """Pages, API, metrics, and whatever goes through Redis, events among it."""
    client = house.stage.client
    with overheard(house.stage.settings.broker_url) as told:
        shown = say_everywhere(client, house)
        tasks = house.ask("/api/tasks").json()
    assert "canary-session" in "".join(task["args"] for task in tasks.values()), "the hints' arguments are IDs"
    each = [f"/task/{task}" for task in tasks] + [f"/api/task/info/{task}" for task in tasks]
    listed = "/tasks/datatable?draw=1&start=0&length=99&columns[0][data]=name&order[0][column]=0&order[0][dir]=asc"
    ours = ["/session/canary-session", "/sessions?q=canary*", "/retention?session=canary-session"]
    names = [f"/worker/{house.worker()}", f"/api/workers?refresh=1&workername={house.worker()}"]
    for path in [*(path for path in paths() if "x" not in path), listed, "/workers?json=1", *each, *ours, *names]:
        answer = house.ask(path)
        assert answer.status_code < 500 or path.startswith("/api/task/result"), path
        assert CANARY not in answer.text, path
        for secret in (house.password, make_url(house.stage.settings.database_url).password or ""):
            assert len(secret) > 8
            assert secret not in answer.text, f"{path} shows a password"
    for actor in house.stage._actors:
        assert CANARY not in actor.said(), "nor in a log"
        assert house.password not in actor.said()
    assert "canary-session" in house.ask("/sessions").text
    assert shown
    assert not [one.command for one in told if CANARY in one.command]


def say_everywhere(client: Client, house: House) -> bool:
    session = client.create_session("canary-session", system_message=f"{CANARY} system", options={"user": CANARY})
    session.send_and_wait(f"{CANARY} {HTML}", timeout=REPAIR_SECONDS, idempotency_key=f"{CANARY}-key")
    with pytest.raises(TurnFailedError):
        session.send(f'{CANARY} !{{"status": 400}}').wait(REPAIR_SECONDS)
    client.add_schedule("canary-session", f"{CANARY} by the clock", cron=EACH_YEAR, name="yearly")
    batch = client.submit_batch([{"prompt": f"{CANARY} line"}, {"prompt": f"{CANARY} other"}], name="canary-batch")
    assert batch.wait(REPAIR_SECONDS).completed == 2
    numbers = iter(range(1000))

    def is_seen() -> bool:  # its workers send events from when Flower has asked them to
        session.send_and_wait(f"{CANARY} {next(numbers)}", timeout=REPAIR_SECONDS)
        return "canary-session" in house.ask("/api/tasks").text

    wait_until(is_seen, FAULT_SECONDS)
    return True


def test_pages_say_what_a_browser_may_do(house: House) -> None:
    for path in ("/", "/sessions", "/batches", "/retention", "/tasks", "/nothing-of-that-name", "/session/nobody"):
        headers = house.ask(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Server" not in headers


def test_html_is_text(house: House) -> None:
    client = house.stage.client
    client.create_session("html", labels={"<b>": HTML}, model=f"server/{'<i>'}")
    client.hold_session("html", HTML, by=HTML)
    client.submit_batch([{"prompt": "x"}], name=HTML[:90]).wait(REPAIR_SECONDS)
    for path in (
        "/sessions?q=html",
        "/session/html",
        "/batches",
        "/retention",
        f"/sessions?q={HTML}&label={HTML}=1&model={HTML}",
    ):
        page = house.ask(path).text
        assert "&lt;script&gt;alert" in page, path
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "<b>=" not in page


def test_what_cannot_be_is_refused_and_nothing_breaks(house: House) -> None:
    for path, status in {
        "/sessions?q=%27%20OR%201%3D1%20--": 400,
        "/sessions?label=nothing": 400,
        "/sessions?before=yesterday": 400,
        "/sessions?before=2026-01-01T00:00:00~1": 400,
        "/session/nobody": 404,
        "/session/%27%3B%20DROP%20TABLE%20sessions": 404,
        "/session/html?before=-1": 400,
        "/session/html?before=99999999999999999999": 400,
        "/batches?state=lost": 400,
        "/retention?session=%27": 400,
        "/inturn/../application.py": 404,
        "/inturn/..%2Fapplication.py": 403,
        "/static/..%2F..%2Furls.py": 403,
    }.items():
        answer = house.ask(path)
        assert answer.status_code == status, path
        assert "Traceback" not in answer.text


def test_redis_wants_its_password(house: House) -> None:
    url = house.stage.settings.broker_url
    for wrong in (url.replace(f":{house.password}@", ""), url.replace(house.password, "guess")):
        assert house.password not in wrong
        with (
            redis.Redis.from_url(wrong) as client,
            pytest.raises((redis.AuthenticationError, redis.ResponseError)),
        ):
            client.ping()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of an embedded stack, which a client has started."""
    home = tmp_path_factory.mktemp("embedded") / "home"
    with Client(Settings.load(home=home, default_model="echo/echo")) as client:
        client.create_session("first").send_and_wait("hello", timeout=REPAIR_SECONDS)
        yield home


def test_the_embedded_broker_is_reached_by_its_user_only(home: Path) -> None:
    socket, stack = embedded.broker_socket(home), StackInfo.read(home)
    assert stack is not None
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert psutil.Process(stack.children["broker"].pid).net_connections("inet") == [], "no port"


RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Everything that a terminal may act on, but for ends of lines and tabs."""
OWNED = re.compile(rb"\x1b\][^8]|\x1b\[2J|\x1bP|\x9b|\x07|\x08")
"""What of the above inturn itself never writes to a terminal."""


def test_no_escape_is_printed(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INTURN_HOME", str(home))
    turn = say_escapes(home)
    commands = [
        ("session", "show", "escapes"), ("session", "list"), ("session", "tail", "escapes"),
        ("session", "export", "escapes", "--format", "md"), ("turn", "list", "escapes"), ("turn", "show", turn),
        ("batch", "list"), ("why", "escapes"), ("retention", "test", "escapes"), ("retention", "history"),
        ("chat", "escapes"), ("send", "escapes", ESCAPES, "--wait"), ("send", "escapes", ESCAPES, "--stream"),
        ("usage", "--by", "session"), ("session", "show", ESCAPES),
    ]  # fmt: skip
    for words in commands:
        for more in ([], ["--json"]) if words[0] not in ("chat", "send") and "export" not in words else ([],):
            monkeypatch.setattr("sys.stdin", io.StringIO(f"{ESCAPES}\n"))
            code = run([*words, *more])
            assert code == (Exit.USAGE if ESCAPES in words[:3] and words[0] == "session" else Exit.OK)
            printed = "".join(capsys.readouterr())
            assert not RAW.search(printed), (words, printed)
            assert "red" in printed or words[0] in ("batch", "usage", "why", "retention") or ESCAPES in words, words


def say_escapes(home: Path) -> str:
    """Wherever text is taken. Returns: a turn's ID."""
    with Client(Settings.load(home=home, default_model="echo/echo")) as client:
        session = client.create_session("escapes", labels={"who": ESCAPES}, system_message=ESCAPES)
        turn = session.send(f"{ESCAPES} prompt", stream=True)
        turn.wait(REPAIR_SECONDS)
        client.hold_session("escapes", ESCAPES, by=ESCAPES)
        client.submit_batch([{"prompt": ESCAPES}], name=ESCAPES).wait(REPAIR_SECONDS)
    return turn.id


def test_no_escape_reaches_a_terminal(home: Path) -> None:
    with Client(Settings.load(home=home, default_model="echo/echo")) as client:
        session = client.get_or_create_session("in-terminal", labels={"who": ESCAPES})
        session.send_and_wait(ESCAPES, timeout=REPAIR_SECONDS)
    environment = clean_environment(home) | {"INTURN_HOME": str(home), "TERM": "xterm-256color"}
    for words in (
        ("session", "show", "in-terminal"),
        ("session", "list"),
        ("send", "in-terminal", ESCAPES, "--stream"),
    ):
        master, terminal = pty.openpty()
        with subprocess.Popen(
            inturn_command(*words), env=environment, stdin=terminal, stdout=terminal, stderr=terminal
        ) as process:
            os.close(terminal)
            seen = b"".join(iter(partial(read_from, master), b""))
            assert process.wait(REPAIR_SECONDS) == Exit.OK, seen
        os.close(master)
        assert b"in-terminal" in seen or b"red" in seen
        assert not OWNED.search(seen), (words, seen)


def read_from(terminal: int) -> bytes:
    """What a program has written; nothing, once it is gone."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""
