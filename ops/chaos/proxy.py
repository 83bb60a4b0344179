"""A TCP proxy that does to connections what networks and dying servers do.

``with Network() as network:`` is a thread with an event loop; ``network.proxy("127.0.0.1", 6379)`` is a port in it whose
connections go on to that address. What happens to them is the proxy's ``mode``, which may change at any time:

=======  ==============================================================================================================
pass     nothing
refuse   nobody listens, and connections are closed: the server has gone
freeze   connections stay open, new ones too, and nothing passes: the network, or the server's host, has gone
reset    connections are reset, new ones as soon as they are there: a server, or a firewall, that has lost its memory
slow     each block of bytes waits for ``delay`` seconds first
cut      each connection is closed after ``left`` more bytes, in the middle of a message
=======  ==============================================================================================================
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, TypeVar

from ops.servers import free_port

T = TypeVar("T")

HOST = "127.0.0.1"
BLOCK_BYTES = 65536
BACKLOG = 1024
RESET = struct.pack("ii", 1, 0)
"""To linger for no time: closing then resets."""


class Mode(StrEnum):
    PASS = "pass"
    REFUSE = "refuse"
    FREEZE = "freeze"
    RESET = "reset"
    SLOW = "slow"
    CUT = "cut"


class CutError(Exception):
    """The connection has had its bytes."""


class Proxy:
    """One port. Made by ``Network.proxy``.

    Attributes:
        port: where it listens, on loopback.
        delay: seconds that a block waits in mode ``slow``.
        connections: how many there are now.
    """

    def __init__(self, network: "Network", host: str, port: int) -> None:
        self._network, self._upstream = network, (host, port)
        self._mode = Mode.PASS
        self._open = asyncio.Event()
        self._open.set()
        self._left = 0
        self._passed: Counter[asyncio.StreamWriter] = Counter()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.delay = 0.0
        self.port = free_port()

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def connections(self) -> int:
        return len(self._writers) // 2

    def turn(self, mode: Mode | str, *, delay: float = 0.05, left: int = 0) -> None:
        """Change the mode. Returns when it is in force."""
        self._network.do(self._turn(Mode(mode), delay, left))

    @contextlib.contextmanager
    def turned(self, mode: Mode | str, *, delay: float = 0.05, left: int = 0) -> Iterator[None]:
        """In this mode as long as the block lasts."""
        self.turn(mode, delay=delay, left=left)
        try:
            yield
        finally:
            self.turn(Mode.PASS)

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, limit=BLOCK_BYTES, backlog=BACKLOG)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None
        self._drop(reset=False)

    async def _turn(self, mode: Mode, delay: float, left: int) -> None:
        self._mode, self.delay, self._left = mode, delay, left
        self._passed.clear()
        if mode is Mode.FREEZE:
            self._open.clear()
        else:
            self._open.set()
        if mode in (Mode.REFUSE, Mode.RESET):
            self._drop(reset=mode is Mode.RESET)
        if mode is Mode.REFUSE:
            await self.close()
        elif self._server is None:
            await self.listen()

    def _drop(self, *, reset: bool) -> None:
        for writer in list(self._writers):
            hang_up(writer, reset=reset)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self._writers.add(writer)
        there = writer
        try:
            if self._mode is Mode.RESET:
                hang_up(writer, reset=True)
                return
            await self._open.wait()
            back, there = await asyncio.open_connection(*self._upstream, limit=BLOCK_BYTES)
            self._writers.add(there)
            await asyncio.gather(self._pump(reader, there, writer), self._pump(back, writer, writer))
        except (OSError, CutError, asyncio.CancelledError):
            pass  # the other side learns of it by the closing; streams make a fuss about a handler that was cancelled
        finally:
            self._passed.pop(writer, None)
            for end in {writer, there}:
                self._writers.discard(end)
                hang_up(end, reset=False)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: asyncio.StreamWriter
    ) -> None:
        """One direction of the connection that ``caller`` made."""
        while block := await reader.read(BLOCK_BYTES):
            await self._open.wait()
            if self._mode is Mode.SLOW:
                await asyncio.sleep(self.delay)
            if self._mode is Mode.CUT:
                await self._cut(block, writer, caller)
            writer.write(block)
            await writer.drain()
        if not writer.is_closing():
            writer.write_eof()

    async def _cut(self, block: bytes, writer: asyncio.StreamWriter, caller: asyncio.StreamWriter) -> None:
        left = self._left - self._passed[caller]
        self._passed[caller] += len(block)
        if len(block) > left:
            writer.write(block[: max(0, left)])
            await writer.drain()
            raise CutError


def hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):
            plug: socket.socket = writer.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    else:
        writer.close()


class Network:
    """The proxies of a run, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self.proxies: list[Proxy] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def proxy(self, host: str, port: int) -> Proxy:
        """A new port whose connections go to this address."""
        proxy = Proxy(self, host, port)
        self.do(proxy.listen())
        self.proxies.append(proxy)
        return proxy

    def heal(self) -> None:
        """Everything passes again."""
        for proxy in self.proxies:
            proxy.turn(Mode.PASS)

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        """Do something on the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _end(self) -> None:
        for proxy in self.proxies:
            await proxy.close()
        ours = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not ours]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
