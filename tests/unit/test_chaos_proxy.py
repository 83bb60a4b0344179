"""The proxy does to connections what its mode says: over real sockets, to a server that sends back what it gets."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from ops.chaos.proxy import HOST, Mode, Network, Proxy

SOON_SECONDS = 5
"""Longer than anything here takes."""
MOMENT_SECONDS = 0.15


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A reset connection is what some of these tests are about."""


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    with Server((HOST, 0), Echo) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Network() as network:
        yield network.proxy(HOST, echo)


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=SOON_SECONDS)


def ask(connection: socket.socket, data: bytes = b"hello") -> bytes:
    connection.sendall(data)
    return hear(connection, len(data))


def hear(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer if the connection ends."""
    heard = b""
    while len(heard) < count and (data := connection.recv(count - len(heard))):
        heard += data
    return heard


def test_pass(proxy: Proxy):
    with dial(proxy) as one, dial(proxy) as other:
        assert ask(one) == b"hello"
        assert ask(other, b"x" * 300_000) == b"x" * 300_000
        assert proxy.connections == 2
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b"", "an end is passed on"


def test_refuse(proxy: Proxy):
    with dial(proxy) as connection:
        assert ask(connection) == b"hello"
        with proxy.turned(Mode.REFUSE):
            assert connection.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                dial(proxy)
    with dial(proxy) as connection:
        assert ask(connection) == b"hello"


def test_freeze(proxy: Proxy):
    with dial(proxy) as connection:
        assert ask(connection) == b"hello"
        with proxy.turned(Mode.FREEZE), dial(proxy) as new:
            for frozen in connection, new:
                frozen.sendall(b"later")
                frozen.settimeout(MOMENT_SECONDS)
                with pytest.raises(TimeoutError):
                    frozen.recv(1)
            new.settimeout(SOON_SECONDS)
            proxy.turn(Mode.PASS)
            assert hear(new, 5) == b"later"
        connection.settimeout(SOON_SECONDS)
        assert hear(connection, 5) == b"later"


def test_reset(proxy: Proxy):
    with dial(proxy) as connection:
        assert ask(connection) == b"hello"
        with proxy.turned(Mode.RESET):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
            with pytest.raises(ConnectionResetError), dial(proxy) as new:
                new.recv(1)
    with dial(proxy) as connection:
        assert ask(connection) == b"hello"


def test_slow(proxy: Proxy):
    with dial(proxy) as connection, proxy.turned(Mode.SLOW, delay=0.1):
        before = time.monotonic()
        assert ask(connection) == b"hello"
        assert time.monotonic() - before >= 0.2, "both ways"


def test_cut(proxy: Proxy):
    with dial(proxy) as early, dial(proxy) as connection:
        assert ask(early) == b"hello"
        with proxy.turned(Mode.CUT, left=13):
            assert ask(connection) == b"hello"
            connection.sendall(b"hello")
            assert hear(connection, 100) == b"", "the server got 3 of 5 bytes, and we none"
            assert ask(early) == b"hello", "each has bytes of its own"
        with dial(proxy) as new:
            assert ask(new) == b"hello"


def test_the_network_heals(echo: int):
    with Network() as network:
        proxies = [network.proxy(HOST, echo) for _ in range(3)]
        for proxy, mode in zip(proxies, (Mode.REFUSE, Mode.FREEZE, Mode.RESET), strict=True):
            proxy.turn(mode)
        network.heal()
        for proxy in proxies:
            with dial(proxy) as connection:
                assert ask(connection) == b"hello"


def test_a_server_that_is_gone_hangs_up(echo: int):
    with Network() as network, socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        with dial(network.proxy(HOST, port)) as connection:
            assert connection.recv(1) == b""
