"""A cell: a process of its own for one call to a model.

A turn over which worker after worker died is tried there, as its reply may be what kills them. If so, it kills nobody
else any more, and how its cell ended is the reason for its quarantine.

The cell is told everything by its standard input, which stays open: its end says that the worker is gone. It writes a
line when the call begins, then a line of JSON, then the reply's texts: its content, and ID, name and arguments of each
tool call, whose lengths are in that line. The worker parses nothing that a model sent: what it gets are bounded texts, to
be stored.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import Process, SubprocessStreamProtocol
from dataclasses import asdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NoReturn

import orjson

from inturn.settings import ProviderSettings, Settings
from inturn.workers.children import ending
from inturn.workers.provider import (
    REPLY_LIMIT,
    FailureKind,
    OnDelta,
    Prompt,
    ProviderError,
    Providers,
    Reply,
    ToolCall,
    ToolSpec,
)

PLACES = 8
"""How many cells a worker has at once: each takes 50 MB and a third of a second to start."""
START_SECONDS = 20.0
"""What a cell may take on top of the call's deadline: to start on a busy machine, and to end."""
MEMORY_LIMIT = 1024**3
"""Bytes of a cell. Who wants more for a reply of 4 MiB has gone wild, and is to fail alone."""

KINDS: dict[str, FailureKind] = {"safe": "safe", "ambiguous": "ambiguous", "permanent": "permanent"}
BEGUN = b"begun\n"
OUT_OF_MEMORY = 77
_FIGURES = (
    "input_tokens", "output_tokens", "request_id", "cache_read_tokens", "cache_write_tokens", "finish_reason", "answered_by",
)  # fmt: skip
_FAILURE = ("kind", "error_type", "message", "status_code", "retry_after", "input_tokens", "output_tokens")
_MARGIN = 64 * 1024
_PR_SET_PDEATHSIG = 1


class NoPlaceError(Exception):
    """All cells are taken: no call was made."""


class CellDiedError(Exception):
    """The cell ended in the middle of the call, or said nothing that makes sense. The message tells how."""


class Cells:
    """The cells of one worker process. Used in the pool's loop."""

    def __init__(self, settings: Settings) -> None:
        self._providers = settings.available_providers
        self._deadline_seconds = settings.attempt_deadline_seconds
        self._free = PLACES

    async def reply(self, model: str, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """Ask ``provider/model`` once, in a new process, which does not outlive this call.

        Args:
            on_delta: told the whole reply at its end: who may be killed by a piece of it is to read none.

        Raises:
            ProviderError: there is no reply; of kind "safe" also if the cell could not be started.
            NoPlaceError: nothing was done.
            CellDiedError: the call was too much for the cell.
        """
        if not self._free:
            raise NoPlaceError
        self._free -= 1
        try:
            reply = await self._reply(model, prompt)
        finally:
            self._free += 1
        if on_delta is not None and reply.content:
            on_delta(reply.content)
        return reply

    async def _reply(self, model: str, prompt: Prompt) -> Reply:
        config = self._providers.get(model.partition("/")[0])
        deadline = (config and config.deadline_seconds) or self._deadline_seconds
        request = {
            "model": model,
            "prompt": asdict(prompt),
            "providers": {name: one.model_dump(mode="json") for name, one in self._providers.items()},
            "deadline_seconds": self._deadline_seconds,
        }
        try:
            transport, process = await _start()
        except OSError as error:
            raise _not_started(os.strerror(error.errno) if error.errno else type(error).__name__) from None
        said = bytearray()
        try:
            async with asyncio.timeout(deadline + START_SECONDS):
                await _converse(process, orjson.dumps(request) + b"\n", said)
                code = await process.wait()
        except TimeoutError:
            if not said:
                raise _not_started("it did not begin in time") from None
            message = f"{model} gave no whole reply within {deadline:g} s, and its process had to be ended"
            raise ProviderError("ambiguous", "timeout", message) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
                await process.wait()
            transport.close()
        return _understood(bytes(said), code)


async def _start() -> tuple[asyncio.SubprocessTransport, Process]:
    """As ``create_subprocess_exec`` does, which keeps the transport to itself: what was not read keeps it open."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        lambda: SubprocessStreamProtocol(_MARGIN, loop),
        *(sys.executable, "-P", "-m", "inturn.workers.cell"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        start_new_session=True,  # whatever it starts is ended with it, and a terminal's Ctrl-C is not for it
    )
    return transport, Process(transport, protocol, loop)


async def _converse(cell: Process, request: bytes, said: bytearray) -> None:
    """Tell it what to do, and take down what it says until it has ended."""
    assert cell.stdin is not None
    assert cell.stdout is not None
    with contextlib.suppress(ConnectionError, RuntimeError):  # it has ended already; uvloop says the latter
        cell.stdin.write(request)
        await cell.stdin.drain()
    while chunk := await cell.stdout.read(_MARGIN):
        said += chunk
        if len(said) > REPLY_LIMIT + _MARGIN:
            raise CellDiedError("wrote more than any reply may hold")


def _understood(said: bytes, code: int) -> Reply:
    """What the cell said, taken for data from outside.

    Raises:
        ProviderError, CellDiedError: as ``Cells.reply``.
    """
    if not said.startswith(BEGUN):
        raise _not_started(ending(code))
    if code:
        raise CellDiedError(how(code))
    head, _, text = said.removeprefix(BEGUN).partition(b"\n")
    try:
        told = orjson.loads(head)
        if "kind" not in told:
            return _reply(told, text)
        failure = ProviderError(KINDS[told.pop("kind")], told.pop("error_type"), told.pop("message"), **told)
    except (ValueError, LookupError, TypeError):
        raise CellDiedError("ended without an answer that makes sense") from None
    raise failure


def _reply(told: dict[str, Any], text: bytes) -> Reply:
    """Raises: ValueError, LookupError, TypeError: it is none."""
    ends = list(accumulate(told["lengths"]))
    content, *calls = (text[start:end].decode() for start, end in pairwise([0, *ends]))
    tool_calls = tuple(ToolCall(*calls[start : start + 3]) for start in range(0, len(calls), 3))
    return Reply(content, **{name: told[name] for name in _FIGURES}, tool_calls=tool_calls)


def how(code: int) -> str:
    """How a cell ended, as a part of a sentence."""
    if code == OUT_OF_MEMORY:
        return f"ran out of memory ({MEMORY_LIMIT // 1024**2} MiB)"
    return ending(code) + (", probably as the machine ran out of memory" if code == -signal.SIGKILL else "")


def _not_started(reason: str) -> ProviderError:
    message = "after workers had died over this turn, the process of its own for its next call could not be started: "
    return ProviderError("safe", "cell_not_started", message + reason)


def main() -> None:
    """What runs in the cell."""
    _be_the_first_to_go()
    request = orjson.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    head, text = asyncio.run(_call(request))
    sys.stdout.buffer.write(orjson.dumps(head) + b"\n" + text)
    sys.stdout.buffer.flush()
    os._exit(0)


async def _call(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from inturn.workers.providers import BUILDERS

    configured = {name: ProviderSettings.model_validate(one) for name, one in request["providers"].items()}
    providers = Providers(configured, BUILDERS, deadline_seconds=request["deadline_seconds"])
    sys.stdout.buffer.write(BEGUN)
    sys.stdout.buffer.flush()
    try:
        reply = await providers.reply(request["model"], _prompt(request["prompt"]))
    except ProviderError as error:
        if isinstance(error.__context__, MemoryError):
            os._exit(OUT_OF_MEMORY)
        return {name: getattr(error, name) for name in _FAILURE}, b""
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    calls = (text for call in reply.tool_calls for text in (call.id, call.name, call.arguments))
    texts = [text.encode() for text in (reply.content, *calls)]
    head = {name: getattr(reply, name) for name in _FIGURES}
    return head | {"lengths": [len(text) for text in texts]}, b"".join(texts)


def _prompt(told: dict[str, Any]) -> Prompt:
    return Prompt(**told | {"tools": tuple(ToolSpec(**spec) for spec in told["tools"])})


def _be_the_first_to_go() -> None:
    """When memory runs out, when the worker dies, and without leaving a core with prompts in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))


def _end_with_the_worker() -> NoReturn:
    sys.stdin.buffer.read(1)
    os._exit(1)


if __name__ == "__main__":
    main()
