"""Webhooks on their way to a real receiver: signed, tried again, kept from private addresses, never in each other's way."""

import asyncio
import logging
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from sqlalchemy import select
from standardwebhooks import WebhookVerificationError

from inturn import __version__
from inturn.models.clock import now
from inturn.models.states import DeliveryState
from inturn.models.store import webhooks
from inturn.models.store.webhooks import WebhookDelivery
from inturn.models.tables import WEBHOOK_DELIVERIES
from inturn.webhook_settings import WebhookSettings
from inturn.workers.webhooks import outcomes
from inturn.workers.webhooks.courier import AT_ONCE, Courier
from inturn.workers.webhooks.poster import Answer, Poster, certificates
from tests.integration.receiver import OTHER_SECRET, SECRET, Receiver, wait_for
from tests.integration.stores import Store

BODY = '{"type":"turn.failed"}'


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def hook(url: str, name: str = "jobs", **how: Any) -> WebhookSettings:
    loose = {"allow_http": True, "allow_private": True}
    return WebhookSettings(
        **{"name": name, "url": url, "secret_env": "HOOK_SECRET", "events": ("turn.failed",)} | loose | how
    )


def post(webhook: WebhookSettings, **how: Any) -> Answer:
    async def posted() -> Answer:
        async with Poster(webhook, certificates(), **how) as poster:
            return await poster.post("evt_1", BODY)

    return asyncio.run(posted())


class Names(AbstractResolver):
    """Says one list of addresses after the other; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        self.asked += 1
        found = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        return [
            {"hostname": host, "host": each, "port": port, "family": 10 if ":" in each else 2, "proto": 0, "flags": 0}
            for each in found
        ]

    async def close(self) -> None:
        return


def test_what_is_sent_is_signed_as_the_library_verifies_it() -> None:
    with Receiver(204) as receiver:
        assert post(hook(receiver.url)) == Answer(204)
        (told,) = receiver.told
    assert told.verified() == {"type": "turn.failed"}
    with pytest.raises(WebhookVerificationError):
        told.verified(OTHER_SECRET)
    with pytest.raises(WebhookVerificationError):
        told._replace(body=told.body + b" ").verified()
    assert (told.path, told.event_id, told.body.decode()) == ("/hook", "evt_1", BODY)
    assert abs(int(told.headers["webhook-timestamp"]) - time.time()) < 60
    assert told.headers["user-agent"] == f"inturn/{__version__}"
    assert told.headers["content-type"] == "application/json"


def test_a_missing_secret_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK_SECRET")
    with Receiver() as receiver:
        answer = post(hook(receiver.url))
        assert receiver.told == []
    assert answer.status_code is None
    assert "HOOK_SECRET is not set" in str(answer.error_message)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A receiver's certificate for localhost, which the sender is told to trust."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            raise RuntimeError("no openssl on the PATH, which makes the certificate")
        pytest.skip("no openssl on the PATH, which makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    named = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words.split(), *named], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_https(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver(tls=tls) as receiver:
        assert post(hook(receiver.url, allow_http=False)) == Answer(200)
        assert receiver.told[0].verified()
        other = receiver.url.replace("localhost", "127.0.0.1")
        assert "certificate is refused" in str(post(hook(other)).error_message), "the name is the URL's"
        named = hook(receiver.url.replace("localhost", "hooks.example.com"))
        answer = post(named, resolver=Names(["127.0.0.1"]))
        assert "certificate is refused" in str(answer.error_message), "and not the address's"
        monkeypatch.delenv("SSL_CERT_FILE")
        assert "certificate is refused" in str(post(hook(receiver.url)).error_message)
        assert len(receiver.told) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "127.1"])
def test_private_addresses_are_refused_however_they_are_written(host: str) -> None:
    with Receiver() as receiver:
        url = receiver.url.replace("localhost", host)
        answer = post(hook(url, allow_private=False), deadline_seconds=5)
        assert receiver.told == []
    assert answer.status_code is None
    if host in ("127.0.0.1", "localhost"):
        assert "is not a public address, and allow_private is not set" in str(answer.error_message)


def test_a_name_that_turns_out_to_be_private_is_refused() -> None:
    """The first answer is public (and nobody is there), the second is not; and what was asked is what is connected to."""
    with Receiver() as receiver:
        webhook = hook(receiver.url.replace("localhost", "hooks.example.com"), allow_private=False)
        names = Names(["192.88.99.77"], ["127.0.0.1"])
        first = post(webhook, resolver=names, deadline_seconds=0.5)
        assert "public" not in str(first.error_message)
        assert names.asked == 1
        second = post(webhook, resolver=names, deadline_seconds=5)
        assert names.asked == 2
        assert "127.0.0.1 is not a public address" in str(second.error_message)
        mixed = post(webhook, resolver=Names(["169.254.169.254", "127.0.0.1", "::1"]), deadline_seconds=5)
        assert "is not a public address" in str(mixed.error_message)
        assert receiver.told == []


def test_a_redirect_is_not_followed() -> None:
    with Receiver() as inner, Receiver((307, {"Location": inner.url})) as receiver:
        answer = post(hook(receiver.url))
        assert (answer.status_code, inner.told) == (307, [])
        assert "redirect, which is not followed" in str(answer.error_message)


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert post(hook(receiver.url)) == Answer(200)
        assert (len(receiver.told), proxy.told) == (1, [])


@contextmanager
def silent() -> Iterator[tuple[Receiver, threading.Event]]:
    """A receiver that never answers, until the end."""
    released = threading.Event()

    def wait() -> int:
        released.wait(60)
        return 200

    with Receiver(wait) as receiver:
        yield receiver, released
        released.set()


def test_the_deadline_is_the_whole_attempts() -> None:
    with silent() as (receiver, _):
        began = time.monotonic()
        assert post(hook(receiver.url), deadline_seconds=0.5) == Answer(error_message="no answer within 0.5 s")
        assert time.monotonic() - began < 10


def test_nobody_is_there() -> None:
    with Receiver() as receiver:
        url = receiver.url
    answer = post(hook(url))
    assert answer.status_code is None
    assert "no connection" in str(answer.error_message)


@contextmanager
def sending(store: Store, *hooks: WebhookSettings, **how: Any) -> Iterator[Courier]:
    courier = Courier(store.database, hooks, **how)
    courier.start()
    yield courier
    courier.end()
    assert not courier.is_alive()


def announce(store: Store, *names: str, number: int = 1) -> None:
    for each in range(number):
        store.write(webhooks.announce, [webhooks.Hook(name, frozenset({"turn.failed"})) for name in names],
                    "turn.failed", f"1.{each}", BODY)  # fmt: skip


def log(store: Store) -> list[WebhookDelivery]:
    return webhooks.list_deliveries(store.database, limit=1000)


def all_are(store: Store, state: DeliveryState) -> bool:
    return {one.state for one in log(store)} == {state}


def test_what_is_refused_twice_is_delivered_at_the_third_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "WAITS", (0.1,) * 8)
    announce(store, "jobs")
    with Receiver(500, 500, 200) as receiver, sending(store, hook(receiver.url)):
        wait_for(lambda: all_are(store, DeliveryState.DELIVERED))
        assert len({told.event_id for told in receiver.told}) == 1
        assert [told.verified()["type"] for told in receiver.told] == ["turn.failed"] * 3
    (one,) = log(store)
    assert (one.attempts, one.status_code, one.error_message) == (3, 200, None)
    assert one.event_id == receiver.told[0].event_id


def test_who_never_takes_it_is_given_up_and_told_again_when_somebody_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "WAITS", (0.1, 0.1))
    announce(store, "jobs")
    with Receiver(404, 503, 500, 200) as receiver, sending(store, hook(receiver.url)):
        wait_for(lambda: all_are(store, DeliveryState.FAILED))
        (one,) = log(store)
        assert (one.attempts, one.status_code, one.error_message) == (3, 500, "it answered 500")
        webhooks.redeliver(store.database, one.id)
        wait_for(lambda: all_are(store, DeliveryState.DELIVERED))
        assert {told.event_id for told in receiver.told} == {one.event_id}


def test_who_is_gone_is_told_once(store: Store) -> None:
    announce(store, "jobs")
    with Receiver(410) as receiver, sending(store, hook(receiver.url)):
        wait_for(lambda: all_are(store, DeliveryState.FAILED))
        assert len(receiver.told) == 1


def test_who_never_answers_holds_up_nobody_else(store: Store) -> None:
    announce(store, "dead", number=3 * AT_ONCE)
    announce(store, "alive", number=3 * AT_ONCE)
    with (
        silent() as (dead, released),
        Receiver() as alive,
        sending(store, hook(dead.url, "dead"), hook(alive.url, "alive")),
    ):
        wait_for(lambda: len(alive.told) == 3 * AT_ONCE)
        assert len(dead.told) <= AT_ONCE
        released.set()
        wait_for(lambda: all_are(store, DeliveryState.DELIVERED))
    assert sorted(told.event_id for told in alive.told) == sorted(
        one.event_id for one in log(store) if one.webhook == "alive"
    )


def test_two_processes_send_everything_once(store: Store, other: Store) -> None:
    announce(store, "jobs", number=60)
    with Receiver() as receiver:
        with sending(store, hook(receiver.url)), sending(other, hook(receiver.url)):
            wait_for(lambda: all_are(store, DeliveryState.DELIVERED))
        assert sorted(told.event_id for told in receiver.told) == sorted(one.event_id for one in log(store))


def test_what_was_taken_by_who_died_is_sent_when_its_hold_ends(store: Store, other: Store) -> None:
    announce(store, "jobs")
    (taken,) = other.write(webhooks.take, "jobs", 60.0, 1)
    with Receiver() as receiver, sending(store, hook(receiver.url)):
        time.sleep(1.5)
        assert receiver.told == []
        store.change(WEBHOOK_DELIVERIES, WEBHOOK_DELIVERIES.c.id == taken.id, ready_at=now(-1))
        wait_for(lambda: all_are(store, DeliveryState.DELIVERED))
        assert receiver.told[0].event_id == taken.event_id


def test_the_secret_is_in_no_row_and_no_log(store: Store, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    announce(store, "jobs", "gone", number=2)
    with Receiver(500, 200) as receiver:
        gone = hook("http://localhost:1/hook", "gone")
        with sending(store, hook(receiver.url), gone):
            wait_for(lambda: all(one.attempts for one in log(store)) and len(receiver.told) >= 2)
            wait_for(lambda: sum(one.error_message is not None for one in log(store)) >= 2)
    with store.database.reading() as db:
        shown = [str(value) for row in db.execute(select(WEBHOOK_DELIVERIES)) for value in row]
    shown += [record.getMessage() for record in caplog.records]
    assert any("action=webhook_put_off webhook=gone" in line for line in shown)
    key = SECRET.removeprefix("whsec_")
    assert not [line for line in shown if key in line or ("action=" in line and BODY in line)]
