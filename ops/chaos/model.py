"""A model server for tests and chaos runs: a real HTTP process that misbehaves on request.

It speaks chat completions (``/v1/chat/completions``) and Messages (``/v1/messages``), whole and streamed.

``python -m ops.chaos.model --port 0 --log FILE`` prints ``{"port": ..., "pid": ...}`` as its first line and writes a
JSON line to FILE when a call begins and when it ends. It answers ``reply to: <last user message> (seen N messages)``.

What it does instead is said in the last user message itself, so that it travels through the whole product:
``anything !{"status": 429, "retry_after": 1, "times": 2}``. Directives:

=================  ===================================================================================================
``latency``        ``[low, high]`` seconds, or a number; ``--latency`` sets it for every call
``times``          misbehave for the first so many calls of one idempotency key only (default: for all)
``status``         answer with this status, with ``retry_after`` (as written, or ``{"in": seconds}`` for an HTTP date)
                   or ``retry_after_ms``; ``say`` chooses the message, ``form`` its shape (``SAYINGS``, ``FORMS``)
``act``            one of ``ACTS`` in ``acts.py`` or ``streams.py``; some of them take more
``only``           misbehave as this model only
``summary``        what to do instead when asked for a summary of a history with this in it (default: nothing)
``words``          reply with so many words
``calls``          call tools, one item for each round: ``{"name", "arguments"}`` (an object, or the text as it is; with
                   ``id``: another ID, or null for none), or a list of such; then reply, and say what they said.
                   Calls and results that do not belong together are refused, as by the real ones
``gap``            seconds between the events of a stream (default: they leave together)
=================  ===================================================================================================
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import uvloop
from aiohttp import web

from inturn.workers.context import SUMMARISE
from ops.chaos import acts, overlong, rounds, streams
from ops.chaos.acts import Exchange, refusal, whole
from ops.chaos.wires import KEY_HEADERS, WIRES, Said, Wire, presented_key, text_of

STOP_SECONDS = 10
BACKLOG = 4096
ACTS = acts.ACTS | streams.ACTS | overlong.ACTS


class Model:
    """What runs in the process.

    Args:
        log: where calls are written to; None keeps no log.
        latency: low and high, in seconds, drawn from ``seed``.
        key: what callers must present; empty takes anybody.
        docile: answer, whatever prompts say.
    """

    def __init__(self, log: Path | None, latency: tuple[float, float], seed: int, key: str, docile: bool) -> None:
        self._docile = docile
        self._log = log.open("ab", buffering=0) if log else None
        self._latency = latency
        self._random = random.Random(seed)
        self._key = key
        self._calls = 0
        self._misbehaved: Counter[str] = Counter()

    async def handle(self, request: web.Request, wire: Wire) -> web.StreamResponse:
        self._calls += 1
        number, outcome = self._calls, "client gone"
        asked = orjson.loads(await request.read())
        self._note(number, request, asked)
        try:
            response = await self._respond(request, wire, asked)
            outcome = str(response.status)
            return response
        finally:
            self._write({"call": number, "end": time.time(), "outcome": outcome})

    async def _respond(self, request: web.Request, wire: Wire, asked: dict[str, Any]) -> web.StreamResponse:
        prompt = prompt_of(asked["messages"])
        directive = self._directive(request, asked, prompt)
        if wait := self._draw(directive.get("latency", self._latency)):
            await asyncio.sleep(wait)
        _, presented = presented_key(request.headers)
        if self._key and presented != self._key:
            directive = {"status": 401, "say": "key"}
        if "status" in directive:
            return refusal(directive, wire, presented, prompt)
        if fault := rounds.fault(asked):
            return web.json_response({"error": {"type": "invalid_request_error", "message": fault}}, status=400)
        total = wire.total(asked)
        content = f"reply to: {prompt} (seen {total} messages)"
        if "words" in directive:
            content = " ".join(f"word{number}" for number in range(directive["words"]))
        said = Said(content + "".join(f"; a tool said: {text}" for text in rounds.said(asked["messages"])), total)
        if calls := rounds.next_calls(directive.get("calls", []), asked["messages"]):
            said = Said(directive.get("text"), total, calls=calls)
        exchange = Exchange(request, wire, asked, directive, said)
        if "act" in directive:
            return await ACTS[directive["act"]](exchange)
        request_id = {wire.request_id: f"req-{self._calls}"}
        if exchange.is_stream:
            return await streams.pour(exchange, exchange.events, every=directive.get("gap", 0), headers=request_id)
        return whole(exchange.reply, **request_id)

    def _directive(self, request: web.Request, asked: dict[str, Any], prompt: str) -> dict[str, Any]:
        _, found, rest = prompt.partition("!{")
        if not found or self._docile:
            return {}
        directive: dict[str, Any] = json.JSONDecoder().raw_decode("{" + rest)[0]
        if asked["messages"][0]["content"] == SUMMARISE:
            directive = directive.get("summary", {})
        if directive.get("only", asked["model"]) != asked["model"]:
            return {}
        turn = request.headers.get("Idempotency-Key", prompt)
        self._misbehaved[turn] += 1
        if self._misbehaved[turn] > directive.get("times", float("inf")):
            return {"latency": directive.get("latency", self._latency)}
        return directive

    def _draw(self, latency: Any) -> float:
        low, high = latency if isinstance(latency, list | tuple) else (latency, latency)
        return self._random.uniform(low, high)

    def _note(self, number: int, request: web.Request, asked: dict[str, Any]) -> None:
        if self._log is None:
            return
        headers = {name.lower(): value for name, value in request.headers.items()}
        for name in KEY_HEADERS:
            headers.pop(name.lower(), None)
        peer = request.transport.get_extra_info("peername")[1] if request.transport else 0
        ours = {name: asked.get(name) for name in ("model", "messages")}
        options = {name: value for name, value in asked.items() if name not in ours}
        note = {"start": time.time(), "peer": peer, **ours, "options": options, "headers": headers}
        note |= {"path": request.path_qs, "key_header": presented_key(request.headers)[0]}
        self._write({"call": number, **note})

    def _write(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(orjson.dumps(line) + b"\n")


async def serve(arguments: argparse.Namespace) -> None:
    model = Model(arguments.log, tuple(arguments.latency), arguments.seed, arguments.key, arguments.docile)
    application = web.Application(client_max_size=1024**3)
    for wire in WIRES:
        application.router.add_post("/{under:.*}" + wire.place, functools.partial(model.handle, wire=wire))
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0)
    await runner.setup()
    plug = socket.create_server(("127.0.0.1", arguments.port), backlog=BACKLOG)
    plug.setblocking(False)
    assert runner.server is not None
    asyncio.get_running_loop().add_reader(plug, Door(plug, runner.server).open)
    print(json.dumps({"port": plug.getsockname()[1], "pid": os.getpid()}), flush=True)
    try:
        if arguments.with_parent:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()
    finally:
        plug.close()
        await runner.cleanup()


class Door:
    """Lets in everybody who waits. libuv lets in one a round (since 1.45): on a busy machine callers would give up, and be
    heard long after somebody else asked again for their turns.
    """

    def __init__(self, plug: socket.socket, server: web.Server) -> None:
        self._plug, self._server = plug, server
        self._entering = set[asyncio.Task[Any]]()

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._plug.accept()
                entering = loop.create_task(loop.connect_accepted_socket(self._server, connection))
                self._entering.add(entering)
                entering.add_done_callback(self._entering.discard)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.model")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--log", type=Path, help="file that calls are appended to")
    parser.add_argument("--latency", type=float, nargs=2, default=(0.0, 0.0), metavar=("LOW", "HIGH"), help="seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the latency")
    parser.add_argument("--key", default="", help="refuse callers who present another one")
    parser.add_argument("--docile", action="store_true", help="answer, whatever prompts say")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(parser.parse_args()))


def prompt_of(messages: list[dict[str, Any]]) -> str:
    """What somebody said last; what tools said since then is no prompt."""
    return next((text_of(message["content"]) for message in reversed(messages) if rounds.is_prompt(message)), "")


@dataclass
class Call:
    """One call, as the server's log tells it; ``end`` is None while it is under way.

    Attributes:
        start: Unix time in seconds, as is ``end``.
        peer: the caller's port: one for all calls on one connection.
        path: with its query.
        key_header: the one that the caller's key was in; keys are not in the log.
        outcome: the status it was answered with, or ``client gone``.
    """

    number: int
    start: float
    peer: int
    model: str
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    headers: dict[str, str]
    end: float | None = field(default=None)
    outcome: str | None = field(default=None)
    path: str = ""
    key_header: str = ""

    @property
    def prompt(self) -> str:
        return prompt_of(self.messages)

    @property
    def key(self) -> str | None:
        return self.headers.get("idempotency-key")


class ModelServer:
    """The server as a child process that ends with this one, however this one ends.

    Args:
        log: the file that calls are written to; None takes one that goes with the server.
        within: the command that puts it where it is to run, such as on a host of its own.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        latency: tuple[float, float] = (0, 0),
        seed: int = 0,
        key: str = "",
        docile: bool = False,
        log: Path | None = None,
        within: Sequence[str] = (),
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="inturn-model-")
        self._log = log or Path(self._directory.name) / "calls.jsonl"
        flags = [f"--port={port}", f"--log={self._log}", f"--seed={seed}", f"--key={key}", "--with-parent"]
        flags += ["--docile"] if docile else []
        self._child = subprocess.Popen(
            [*within, sys.executable, "-m", "ops.chaos.model", *flags, "--latency", *map(str, latency)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        self.port: int = json.loads(self._child.stdout.readline())["port"]

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def calls(self) -> list[Call]:
        """Every call so far, in the order of their beginning."""
        calls: dict[int, Call] = {}
        with contextlib.suppress(FileNotFoundError):
            # What follows the last line break is being written.
            for line in self._log.read_bytes().split(b"\n")[:-1]:
                noted = orjson.loads(line)
                number = noted.pop("call")
                if "start" in noted:
                    calls[number] = Call(number, **noted)
                else:
                    calls[number].end, calls[number].outcome = noted["end"], noted["outcome"]
        return list(calls.values())

    def stop(self) -> None:
        """Twice is harmless."""
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            pipe.close()
        self._child.wait(STOP_SECONDS)
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


if __name__ == "__main__":
    main()
