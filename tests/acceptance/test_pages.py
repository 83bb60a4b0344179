"""Flower's pages and ours in a real browser, on a desktop and on a phone: one stack for all of them."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from selenium.webdriver.common.keys import Keys
from sqlalchemy import make_url

from inturn import Client
from ops.chaos.model import ModelServer
from ops.servers import RedisServer, free_port
from tests.acceptance.browser import DESKTOP, PATIENCE_SECONDS, PHONE, Browser, browser
from tests.acceptance.failing import FAULT_SECONDS, REPAIR_SECONDS, Stage, wait_until

pytestmark = pytest.mark.timeout(240)

LOGIN = "ops:correct-horse"
SAID = f"what-was-said-{secrets.token_hex(4)}"
SCRIPT = '<script>window.broken = "script"</script><img src="x" onerror="window.broken = \'image\'"><b>bold</b>'
OURS = ("/sessions", "/session/talk", "/batches", "/retention")
FLOWERS = ("/workers", "/tasks", "/broker")
MANY = 60


@dataclass
class Site:
    """A stack, and its Flowers.

    Attributes:
        url: of the stack's own.
        telling: of one that shows what was said.
    """

    stage: Stage
    url: str
    telling: str

    @property
    def client(self) -> Client:
        return self.stage.client


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer, model: ModelServer) -> Iterator[Site]:
    home, port = tmp_path_factory.mktemp("pages") / "home", str(free_port())
    broker = make_url(redis.url).set(database="6").render_as_string(False)
    stage = Stage(
        home, f"sqlite:///{home / 'inturn.db'}", broker, model, flower_basic_auth=LOGIN, flower_port=port,
        concurrency=6, cleanup_interval_seconds=3600,
    )  # fmt: skip
    up = stage.command("up", "--flower")
    try:
        up.await_words("ready", FAULT_SECONDS)
        assert f"Flower: http://127.0.0.1:{port}" in up.said()
        telling = stage.command("flower", "--port", "0", "--show-content")
        telling.await_words("Flower: http://", FAULT_SECONDS)
        found = re.search(r'Flower: (http://[^\s"]+)', telling.said())
        assert found
        furnish(stage.client)
        yield Site(stage, f"http://127.0.0.1:{port}", found[1])
    finally:
        for batch in stage.client.list_batches():
            batch.cancel(abort=True)
        up.process.terminate()
        up.await_end()
        stage.stop()


def furnish(client: Client) -> None:
    """A house in which all is to be seen that a page shows."""
    talk = client.create_session("talk", labels={"team": "support", "html": SCRIPT}, system_message=SAID)
    for number in range(3):
        talk.send_and_wait(f"{SAID} {number} {SCRIPT}", timeout=REPAIR_SECONDS)
    refused = talk.send(f'{SAID} !{{"status": 400}}')
    wait_until(lambda: refused.refresh().finished_at, REPAIR_SECONDS)
    client.create_session("waits", labels={"team": "sales"}).send(SAID, not_before=timedelta(days=2))
    client.hold_session("waits", f"a lawsuit {SCRIPT}", by="legal@example.org")
    lines = [{"session": f"many-{number:03}", "prompt": SAID, "labels": {"of": "many"}} for number in range(MANY)]
    client.send_many(lines)
    client.create_session("gone", model="echo/echo").send_and_wait(SAID, timeout=REPAIR_SECONDS)
    client.delete_session("gone")
    client.hold_session("talk", "an audit", by="ann")
    client.release_session("talk", by="bob")
    done = client.submit_batch([{"prompt": f"{SAID} {number}"} for number in range(4)], name=f"done {SCRIPT}")
    assert done.wait(REPAIR_SECONDS).completed == 4
    wait_until(lambda: not any(one.busy for one in client.list_sessions(prefix="many-")), REPAIR_SECONDS)


@pytest.fixture(scope="module")
def window(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium"), LOGIN) as opened:
        yield opened


@pytest.fixture(autouse=True)
def desktop(window: Browser) -> None:
    window.resize(DESKTOP)
    window.prefer("light")
    window.complaints()


@pytest.mark.parametrize("path", [*OURS, *FLOWERS])
def test_a_page_fits_its_window_and_nothing_in_it_fails(site: Site, window: Browser, path: str) -> None:
    for size, name in ((DESKTOP, "desktop"), (PHONE, "phone")):
        for scheme in ("light", "dark"):
            window.resize(size)
            window.prefer(scheme)
            window.open(site.url + path)
            assert window.run("return document.documentElement.dataset.bsTheme") == scheme
            assert window.overflow() <= 0, f"{path} is too wide for a {name}"
            assert window.texts("nav .nav-link.active") != []
            window.shoot(f"{path} {name} {scheme}")
    tabs = [text.strip() for text in window.run(
        "return Array.from(document.querySelectorAll('#primary-navigation .app-nav:first-child a'), one => one.textContent)"
    )]  # fmt: skip
    assert tabs == ["Workers", "Tasks", "Broker", "Sessions", "Batches", "Retention"]
    assert SAID not in window.run("return document.documentElement.outerHTML")
    assert window.run("return window.broken") is None
    assert window.complaints() == []


def test_a_phone_has_each_cell_with_its_name_in_sight(site: Site, window: Browser) -> None:
    window.resize(PHONE)
    window.open(f"{site.url}/sessions?q=talk")
    name = "return getComputedStyle(document.querySelector('td[data-label^=Tokens]'), '::before').content"
    assert window.run(name) == '"Tokens in / out"'
    outside = """
        return Array.from(document.querySelectorAll('main td, main button, main input, main a')).filter(one => {
            const box = one.getBoundingClientRect();
            return box.width && !one.closest('.task-state-filters') && (box.left < 0 || box.right > window.innerWidth);
        }).length"""
    for path in OURS:
        window.open(site.url + path)
        assert window.run(outside) == 0, path
    window.one(".navbar-toggler").click()
    wait_until(lambda: "Retention" in window.texts("#primary-navigation a.active"), PATIENCE_SECONDS)


def keys(window: Browser) -> list[str]:
    return window.texts("tbody .inturn-key > a")


def test_sessions_are_searched(site: Site, window: Browser) -> None:
    window.open(f"{site.url}/sessions")
    window.one("input[name=q]").send_keys("many-00", Keys.ENTER)
    wait_until(lambda: sorted(keys(window)) == [f"many-00{number}" for number in range(10)], PATIENCE_SECONDS)
    for query, found in {
        "q=*-05%3F": {f"many-05{number}" for number in range(10)},
        "q=wai": {"waits"},
        "q=MANY-0": set(),
        "q=many_0": set(),
        "label=team%3Dsales": {"waits"},
        "label=team%3Dsupport&q=t": {"talk"},
        "label=team%3Dnobody": set(),
        "model=nobody%2Fmodel": set(),
        "show=busy": {"waits"},
        "show=held": {"waits"},
        "show=held&q=talk": set(),
        "show=conversations&q=t": {"talk"},
        "show=batch&q=t": set(),
    }.items():
        window.open(f"{site.url}/sessions?{query}")
        assert set(keys(window)) == found, query
        assert found or window.texts(".empty-table-message") == ["No session is like that."]
    window.open(f"{site.url}/sessions?q=%25")
    assert "can be no session's ID" in window.texts(".inturn-refusal")[0]
    window.open(f"{site.url}/batches")
    window.follow(".inturn-batch-head a")
    assert len(keys(window)) == 4, "those that the batch made"


def test_what_is_not_there_is_said_in_a_page(site: Site, window: Browser) -> None:
    window.open(f"{site.url}/session/nobody")
    assert "nobody" in window.texts("h1")[0]
    assert window.texts("nav .nav-link.active") == ["Sessions"]
    assert any("404" in one for one in window.complaints()), "and it has that status"


def test_pages_of_a_list_have_every_session_once(site: Site, window: Browser) -> None:
    window.open(f"{site.url}/sessions?q=many-&label=of%3Dmany")
    seen = keys(window)
    while window.all("a[rel=next]"):
        window.follow("a[rel=next]")
        assert "q=many-" in window.run("return location.search"), "what was searched for stays"
        seen += keys(window)
    assert sorted(seen) == [f"many-{number:03}" for number in range(MANY)]
    window.follow(".inturn-pager a")
    assert keys(window) == seen[:25], "back at the newest"


def test_a_session_says_what_it_cost_and_how_long_its_texts_are(site: Site, window: Browser) -> None:
    window.open(f"{site.url}/sessions?q=talk")
    row = dict(zip(window.texts("thead th"), window.texts("tbody tr td"), strict=True))
    turns = list(site.client.get_session("talk").get_turns())
    used = [sum(getattr(turn, name) or 0 for turn in turns) for name in ("input_tokens", "output_tokens")]
    assert row["TOKENS IN / OUT"] == f"{used[0]:,} / {used[1]:,}"
    assert row["TURNS"].split() == [str(len(turns)), "1", "failed"]
    assert (row["STATE"], row["MODEL"], row["WAITING"]) == ("Idle", "server/model", "—")
    assert str(window.one("time").get_attribute("title")).endswith("UTC")
    window.follow("tbody .inturn-key > a")
    assert window.texts("h1") == ["talk"]
    assert window.texts(".inturn-turn .inturn-number") == [str(turn.number) for turn in reversed(turns)]
    assert window.texts(".inturn-turn .badge")[:1] == ["Failed"]
    assert "invalid_request (400)" in window.texts(".inturn-turn")[0]
    prompt = turns[0].prompt or ""
    reply = turns[0].get_reply()
    assert reply is not None
    told = [line.split() for line in window.texts(".inturn-turn:last-of-type .inturn-message")]
    lengths = [("system", len(SAID)), ("user", len(prompt)), ("assistant", len(reply.data.content))]
    assert told == [[name, f"{length:,}", "characters"] for name, length in lengths]
    assert "rule default, due in" in window.text()
    window.open(f"{site.url}/session/waits")
    assert "held: rule default does not touch it" in window.text()
    assert "scheduled" in window.text(), "what it waits for"


def test_what_was_said_is_shown_only_where_it_was_asked_for_and_as_text(site: Site, window: Browser) -> None:
    window.open(f"{site.url}/session/talk")
    assert SAID not in window.run("return document.documentElement.outerHTML")
    window.open(f"{site.telling}/session/talk")
    assert f"{SAID} 0 {SCRIPT}" in window.texts(".inturn-content")
    assert any(text.startswith(f"reply to: {SAID} 2 {SCRIPT}") for text in window.texts(".inturn-content"))
    assert window.all("main b, main img") == []
    assert window.run("return window.broken") is None
    assert window.overflow() <= 0
    assert window.complaints() == []
    window.shoot("content desktop")


def test_a_page_follows_what_happens(site: Site, window: Browser) -> None:
    live = site.client.create_session("live")
    window.open(f"{site.url}/session/live")
    assert window.texts("article.inturn-turn") == []
    window.run("window.stays = true")
    live.send_and_wait("hello", timeout=REPAIR_SECONDS)
    wait_until(lambda: window.texts(".inturn-turn .badge") == ["Completed"], PATIENCE_SECONDS)
    assert window.run("return window.stays"), "it was not loaded anew"
    wait_until(lambda: window.texts("[data-live-text]")[0].startswith("Updated "), PATIENCE_SECONDS)


def test_batches_show_how_far_they_are(site: Site, window: Browser) -> None:
    slow = [{"prompt": f'{SAID} {number} !{{"latency": 8, "times": 1}}'} for number in range(40)]
    batch = site.client.submit_batch([{"prompt": "quick"}, *slow], name="Nightly summaries")
    window.open(f"{site.url}/batches")
    first = "article.inturn-batch:first-of-type"
    wait_until(lambda: window.all(f"{first} .inturn-bar-completed + .inturn-bar-running"), PATIENCE_SECONDS)
    # At one moment, as the page changes itself.
    told, *bars = window.run(
        f"const batch = document.querySelector('{first}');"
        "return [batch.innerText, ...Array.from(batch.querySelectorAll('rect'), one => one.getAttribute('width'))]"
    )
    found = re.search(r"(\d+) of 41 lines completed\s+(\d+) running\s+(\d+) waiting", told)
    assert found, told
    assert "In Progress" in told
    completed, running, waiting = map(int, found.groups())
    assert completed + running + waiting == 41
    assert bars == [f"{many * 100 / 41:.3f}%" for many in (completed, running)]
    window.shoot("batches in progress desktop")
    window.resize(PHONE)
    assert window.overflow() <= 0
    window.shoot("batches in progress phone")
    batch.cancel(abort=True)
    wait_until(lambda: "Cancelled" in window.texts(f"{first} .badge"), PATIENCE_SECONDS)
    window.open(f"{site.url}/batches?state=completed")
    assert f"done {SCRIPT}" in window.texts("h2")
    assert "Nightly summaries" not in window.texts("h2")
    assert "4 of 4 lines completed" in window.text()
    assert window.run("return window.broken") is None


def test_retention_says_what_goes_and_what_went(site: Site, window: Browser) -> None:
    window.open(f"{site.url}/retention")
    [rules, removed, holds, runs] = window.texts("main section.broker-table-card")
    assert re.search(r"default\s+all others\s+idle for 30 days\s+\d+\s+0\s+in \d+ minutes", rules)
    assert re.search(r"gone\s+.* ago\s+erasure\s+all\s+1\s+2\s+", removed)
    assert re.search(r"waits\s+.* ago\s+legal@example.org\s+a lawsuit", holds)
    assert SCRIPT in holds
    assert re.search(r"erasure\s+.* ago\s+\S+@\S+\s+1\s+1\s+2\s+", runs)
    window.one("input[name=session]").send_keys("talk", Keys.ENTER)
    wait_until(lambda: "No session talk was removed." in window.text(), PATIENCE_SECONDS)
    assert re.search(r"talk\s+.* ago\s+ann\s+an audit\s+.* ago by bob", window.text())
    window.open(f"{site.url}/retention?session=gone")
    assert re.search(r"gone\s+.* ago\s+erasure for \S+@\S+", window.text())


def test_flowers_own_pages_work_behind_the_door(site: Site, window: Browser) -> None:
    window.open(f"{site.url}/workers")
    wait_until(lambda: "Online" in window.text() and "celery@" in window.text(), PATIENCE_SECONDS)
    window.follow(".worker-name-link")
    assert "TaskPool" in window.text()
    window.open(f"{site.url}/tasks")

    def is_listed() -> bool:
        site.client.get_session("talk").send_and_wait("again", timeout=REPAIR_SECONDS)
        return "('talk',)" in window.text()

    wait_until(lambda: is_listed() or window.run("$('#tasks-table').DataTable().ajax.reload()"), PATIENCE_SECONDS)
    window.shoot("tasks desktop")
    window.one("#theme-toggle").click()
    window.one("[data-bs-theme-value=dark]").click()
    assert window.run("return document.documentElement.dataset.bsTheme") == "dark"
    window.one("#theme-toggle").click()
    window.one("[data-bs-theme-value=system]").click()
    assert window.complaints() == []


def test_a_check_up_knows_of_it(site: Site) -> None:
    doctor = site.stage.command("doctor", "--offline")
    doctor.await_end()
    assert f"with a login: {site.url}" in doctor.said()
