"""Where metrics are read: ports, and readers that misbehave."""

import logging
import socket
import threading
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from inturn.workers import exposition
from inturn.workers.exposition import Exposition
from ops.servers import free_port
from tests.stacks import wait_until


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("seen", "Seen.", registry=registry).inc(7)
    return registry


@pytest.fixture
def served(registry: CollectorRegistry) -> Iterator[Exposition]:
    served = Exposition(registry, "127.0.0.1", free_port())
    served.start()
    yield served
    served.stop()


def read(exposition: Exposition) -> str:
    assert exposition.url is not None
    with urlopen(exposition.url, timeout=5) as response:
        return str(response.read().decode())


def port_of(exposition: Exposition) -> int:
    assert exposition.url is not None
    return int(exposition.url.split(":")[2].split("/")[0])


def test_the_first_free_port_is_taken_and_said(
    served: Exposition, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = port_of(served)
    other = Exposition(registry, "127.0.0.1", first)
    other.start()
    try:
        assert port_of(other) > first
        assert f"action=metrics_served url={other.url}: {first}" in caplog.text
        assert "seen_total 7.0" in read(other)
    finally:
        other.stop()
    assert other.url is None
    again = Exposition(registry, "127.0.0.1", first)
    again.start()
    assert "seen_total 7.0" in read(again), "a port that was let go can be taken at once"
    again.stop()


def test_nobody_is_served_where_every_port_is_taken(
    served: Exposition, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "PORTS", 1)
    first = port_of(served)
    other = Exposition(registry, "127.0.0.1", first)
    other.start()
    assert other.url is None
    assert f"action=metrics_not_served: all ports of 127.0.0.1 from {first} to {first} are taken" in caplog.text
    other.stop()


def test_a_host_that_is_none_is_said(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    Exposition(registry, "nowhere.invalid", free_port()).start()
    assert "action=metrics_not_served: nowhere.invalid port" in caplog.text


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_address_of_the_sixth_version_is_served(registry: CollectorRegistry) -> None:
    served = Exposition(registry, "::1", free_port())
    served.start()
    if served.url is None:
        pytest.skip("no IPv6 loopback here")
    try:
        assert served.url.startswith("http://[::1]:")
        assert "seen_total 7.0" in read(served)
    finally:
        served.stop()


def test_readers_that_say_nothing_hold_up_nobody_and_are_hung_up_on(
    served: Exposition, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exposition.Scrape, "timeout", 0.5)
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", port_of(served))) for _ in range(20)]
    try:
        assert "seen_total 7.0" in read(served)
        for each in silent:
            each.settimeout(10)
            assert each.recv(1) == b"", "the other end has closed it"
    finally:
        for each in silent:
            each.close()
    wait_until(lambda: threading.active_count() <= before)
    assert "Traceback" not in capfd.readouterr().err
