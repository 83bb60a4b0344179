"""The tools that a worker has, and the threads in which it runs them.

A tool is somebody else's code, mostly code that waits: it gets a thread, and the loop goes on. An async function can be
cancelled, but nothing can end a thread. One whose deadline has passed is left to itself, and keeps its place among the
``THREADS`` until it ends; what hangs again and again is not begun any more, so that it leaves room for other tools.
"""

import asyncio
import hashlib
import importlib
import json
import logging
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath
from types import ModuleType
from typing import NamedTuple

from pydantic_core import to_json

from inturn.models.content import storable
from inturn.models.errors import InturnError, SettingsError
from inturn.tools import TOOLS, Tool, ToolContext, ToolError
from inturn.workers.provider import ProviderError, ToolCall, ToolSpec
from inturn.workers.providers.scrubbing import one_line
from inturn.workers.tracer import Span, Tracer

logger = logging.getLogger(__name__)

PLUG_INS = "inturn.tools"
"""The group of entry points by which another package brings tools: the value is a module, or a function in one."""
THREADS = 64
"""How many calls run at once in a worker. Others wait, and their deadlines run."""
HANGING = 16
"""Calls of one tool that nobody waits for any more, and that hold threads: with so many, no further one is begun."""
RESULT_LIMIT = 256 * 1024
"""Bytes of UTF-8, as for a prompt: the model is shown it again in every later round and turn."""
CUT_OFF = "\n[cut off here: the result of a tool has at most 256 KiB]"

_ERROR_LIMIT = 2000


class UnknownToolError(ProviderError):
    """A session names a tool that this worker does not have: asking again would not help (permanent)."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        here = ", ".join(sorted(known)) or "none"
        super().__init__(
            "permanent",
            "unknown_tool",
            f"this worker has no tool {name!r:.80}: there are {here:.200}. Name its module in tool_modules of the worker's "
            "inturn.toml, or install the package that brings it, and restart the worker",
        )
        self.name = name


class Outcome(NamedTuple):
    """What came of a call: the text for the model, and for the log, if it failed, by what, and where."""

    text: str
    error: str = ""
    place: str = ""


@dataclass(slots=True, eq=False)
class Errand:
    """A call that has a thread.

    Attributes:
        came_back: has the outcome once the thread has ended, if anybody still waits for it.
        is_over: the thread has ended.
    """

    tool: Tool
    context: ToolContext
    due: float
    came_back: "asyncio.Future[Outcome]"
    is_over: bool = False


class Toolbox:
    """The tools of one worker. Everything but ``load`` runs in the pool's loop.

    Args:
        modules: what to import, for the tools that are defined there.
        deadline_seconds: for one call, with its wait for a thread, where the tool itself names none.
        tracer: tells of each call.
    """

    def __init__(self, modules: Sequence[str], deadline_seconds: float, tracer: Tracer | None = None) -> None:
        self._modules, self._deadline_seconds, self._tracer = modules, deadline_seconds, tracer or Tracer()
        self._places = asyncio.Semaphore(THREADS)
        self._errands: set[Errand] = set()

    def load(self) -> None:
        """Import the modules, and what other packages bring. The working directory is looked at as well.

        Raises:
            SettingsError: one of them cannot be imported. Turns wait for a worker that can, and do not fail here.
        """
        if self._modules and (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # last: nothing that lies there takes the place of what is installed
        for module in self._modules:
            before = len(TOOLS)
            try:
                loaded = importlib.import_module(module)
            except (Exception, SystemExit) as error:  # noqa: BLE001 (somebody else's code)
                raise _not_loaded(f"tool_modules names {module!r}, which", error) from None
            if len(TOOLS) == before and not _has_tools(loaded):
                logger.warning(
                    "action=no_tools module=%s: tool_modules names it, and no function in it has @tool", module
                )
        for plug_in in entry_points(group=PLUG_INS):
            _plug_in(plug_in)

    def specs(self, names: Sequence[str]) -> tuple[ToolSpec, ...]:
        """What a model is told of these tools.

        Raises:
            UnknownToolError: one of them is not here.
        """
        for name in names:
            if name not in TOOLS:
                raise UnknownToolError(name, TOOLS)
        return tuple(ToolSpec(name, TOOLS[name].description, TOOLS[name].parameters) for name in names)

    async def run(self, calls: Sequence[ToolCall], context: ToolContext, allowed: Collection[str]) -> list[str]:
        """Run the calls of one round side by side. Whatever goes wrong is a result, which begins with ``error:``.

        When this is cancelled, it ends at once. Threads go on, and what they return is dropped.

        Args:
            context: of the round; its ``key`` is the same if the round is run again, and another one in every other round.
            allowed: the session's tools. A model may name any, and what it names beside them is not run.

        Returns:
            The results, in the order of the calls: texts that can be stored.

        Raises:
            asyncio.CancelledError: nothing else.
        """
        rounds = (replace(context, key=key, given_up=threading.Event()) for key in _keys(calls, context.key))
        answers = (self._answer(call, own, allowed) for call, own in zip(calls, rounds, strict=True))
        return list(await asyncio.gather(*answers))

    async def _answer(self, call: ToolCall, context: ToolContext, allowed: Collection[str]) -> str:
        tool = TOOLS.get(call.name) if call.name in allowed else None
        if tool is None:
            known = ", ".join(sorted(TOOLS.keys() & set(allowed))) or "none"
            outcome = Outcome(f"there is no tool of that name: there are {known}", "unknown_tool")
            with self._tracer.tool(call, is_known=False) as span:
                span.came_back(outcome.text, outcome.error)
        else:
            with self._tracer.tool(call, is_known=True) as span:
                outcome = await self._outcome(tool, call.arguments, context, span)
                span.came_back(outcome.text, outcome.error)
        if not outcome.error:
            return outcome.text
        logger.warning(
            "action=tool_failed session=%s turn=%s tool=%s error=%s place=%s",
            # A name that is none of ours is the model's text.
            context.session_id, context.turn_id, tool.name if tool else "?", outcome.error, outcome.place or "-",
        )  # fmt: skip
        return f"error: {storable(outcome.text)[:_ERROR_LIMIT]}"

    async def _outcome(self, tool: Tool, arguments: str, context: ToolContext, span: Span) -> Outcome:
        if (hanging := self._hanging(tool)) >= HANGING:
            return Outcome(f"{tool.name} was not run: {hanging} earlier calls of it have not come back", "hanging")
        seconds = tool.deadline.total_seconds() if tool.deadline else self._deadline_seconds
        errand = None
        try:
            async with asyncio.timeout(seconds) as deadline:
                await self._places.acquire()
                errand = self._begin(tool, arguments, context, deadline.when() or 0.0, span)
                return await errand.came_back
        except TimeoutError:
            if errand is None:
                return Outcome(f"{tool.name} was not run: the worker was busy for {seconds:g} s", "no_thread")
            return Outcome(f"{tool.name} did not return within {seconds:g} s, and may still be at work", "deadline")
        except RuntimeError:  # of this process, or of the machine
            return Outcome(f"{tool.name} was not run: the worker can start no thread", "cannot_start_thread")
        finally:
            context.given_up.set()
            if errand is not None and not errand.is_over:
                self._abandon(errand)

    def _hanging(self, tool: Tool) -> int:
        now = asyncio.get_running_loop().time()
        return sum(errand.tool is tool and errand.due <= now for errand in self._errands)

    def _begin(self, tool: Tool, arguments: str, context: ToolContext, due: float, span: Span) -> Errand:
        """Raises: RuntimeError: no thread can be started."""
        loop = asyncio.get_running_loop()
        errand = Errand(tool, context, due, loop.create_future())
        work = span.within(partial(_run, tool, arguments, context))

        def run() -> None:
            outcome = Outcome(f"{tool.name} failed", "unknown")
            try:
                outcome = work()
            finally:
                with suppress(RuntimeError):  # the loop is closed: the worker has gone without us
                    loop.call_soon_threadsafe(self._end, errand, outcome)

        try:
            # A daemon, and no executor's: the end of the worker waits for those.
            threading.Thread(target=run, name=f"tool {tool.name}", daemon=True).start()
        except RuntimeError:
            self._places.release()
            raise
        self._errands.add(errand)
        return errand

    def _end(self, errand: Errand, outcome: Outcome) -> None:
        errand.is_over = True
        self._errands.discard(errand)
        self._places.release()
        if not errand.came_back.done():
            errand.came_back.set_result(outcome)
        else:
            context = errand.context
            logger.info(
                "action=tool_came_back session=%s turn=%s tool=%s: nobody waited any more",
                context.session_id, context.turn_id, errand.tool.name,
            )  # fmt: skip

    def _abandon(self, errand: Errand) -> None:
        held = sum(other.came_back.done() for other in self._errands)
        is_late = errand.due <= asyncio.get_running_loop().time()
        logger.log(
            logging.WARNING if is_late else logging.INFO,
            "action=tool_abandoned session=%s turn=%s tool=%s: its thread goes on; %d of %d threads are held like that",
            errand.context.session_id, errand.context.turn_id, errand.tool.name, held, THREADS,
        )  # fmt: skip


def _run(tool: Tool, arguments: str, context: ToolContext) -> Outcome:
    """In the call's own thread. Whatever the tool does, this returns."""
    try:
        result = tool.call(arguments, context)
    except ToolError as error:
        return Outcome(_message(error), type(error).__name__)
    except BaseException as error:  # noqa: BLE001 (sys.exit() in a tool is not the worker's end)
        name = type(error).__name__
        return Outcome(f"{tool.name} failed with {name}", name, _place(error))
    try:
        return Outcome(_text(result))
    except Exception:  # noqa: BLE001 (somebody else's objects)
        kind = type(result).__name__
        return Outcome(f"{tool.name} returned what cannot be written as JSON", "bad_result", kind)


def _message(error: ToolError) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (somebody else's code)
        return type(error).__name__


def _text(result: object) -> str:
    """A result for the model: a text as it is, and all else as JSON."""
    text = result if isinstance(result, str) else to_json(result, inf_nan_mode="strings").decode()
    text = storable(text[: RESULT_LIMIT + 1])
    encoded = text.encode()
    if len(encoded) <= RESULT_LIMIT:
        return text
    return encoded[: RESULT_LIMIT - len(CUT_OFF)].decode(errors="ignore") + CUT_OFF


def _keys(calls: Sequence[ToolCall], key: str) -> list[str]:
    """A key for each call. Not by the calls' IDs: asked again, the model makes new ones for the very same calls."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for call in calls:
        same = (call.name, _canonical(call.arguments))
        seen[same] += 1
        told = "\0".join((key, *same, str(seen[same])))
        keys.append(hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:32])
    return keys


def _canonical(arguments: str) -> str:
    """Arguments that do not depend on the order in which the model named them, nor on its blanks."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _has_tools(module: ModuleType) -> bool:
    """Of its own, of its submodules, or those that it imports: they may have been there before."""
    names, theirs = vars(module).values(), (module.__name__, f"{module.__name__}.")
    return any(
        tool.function.__module__ == theirs[0]
        or tool.function.__module__.startswith(theirs[1])
        or any(value is tool.function for value in names)
        for tool in TOOLS.values()
    )


def _plug_in(plug_in: EntryPoint) -> None:
    whose = f"{plug_in.dist.name} {plug_in.dist.version}" if plug_in.dist else "an unknown package"
    what = f"{whose} brings the tools {plug_in.name!r}, and {plug_in.value} in it"
    try:
        loaded = plug_in.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (somebody else's code)
        raise _not_loaded(what, error) from None
    if plug_in.attr and not any(tool.function is loaded for tool in TOOLS.values()):
        raise SettingsError(f"{what} is no tool: write @tool over it, or remove the package, and restart the worker")


def _not_loaded(what: str, error: BaseException) -> SettingsError:
    why = f"{type(error).__name__}{_detail(error)}"
    return SettingsError(f"{what} cannot be imported ({why}). Correct it where this worker runs, and start it again")


def _detail(error: BaseException) -> str:
    """What is missing or refused, or where it went wrong: other people's messages may hold secrets."""
    if isinstance(error, InturnError | ImportError | AttributeError | SyntaxError):
        return f": {one_line(str(error))[:500]}"
    return f" in {_place(error)}"


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{PurePath(frame.filename).name}:{frame.lineno}"
