"""The runner of tools: rounds side by side, deadlines, and whatever other people's code does."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import BaseModel

from inturn.models.errors import SettingsError
from inturn.tools import TOOLS, ToolContext, ToolError, tool
from inturn.workers import toolbox as toolbox_module
from inturn.workers.provider import ToolCall, ToolSpec
from inturn.workers.toolbox import CUT_OFF, RESULT_LIMIT, Toolbox, UnknownToolError
from tests.distributions import install, write_metadata
from tests.stacks import ROOT

CONTEXT = ToolContext("user-123", "1.1", "round-key", "echo/echo")
SECRET = "sk-secret"
EXAMPLE = ROOT / "examples" / "own_tools"

PROGRAM = """
import asyncio, json, sys
from inturn.models.errors import SettingsError
from inturn.tools import TOOLS, ToolContext
from inturn.workers.provider import ToolCall
from inturn.workers.toolbox import Toolbox

modules, calls = json.loads(sys.argv[1]), [ToolCall(*call) for call in json.loads(sys.argv[2])]
toolbox = Toolbox(modules, deadline_seconds=20)
try:
    toolbox.load()
    toolbox.load()
except SettingsError as error:
    print(json.dumps(str(error)))
else:
    context = ToolContext("user-123", "1.1", "round-key", "echo/echo")
    results = asyncio.run(toolbox.run(calls, context, list(TOOLS)))
    print(json.dumps([sorted(TOOLS), results]))
"""

HANGING = """
import asyncio, threading
from inturn.tools import ToolContext, tool
from inturn.workers.provider import ToolCall
from inturn.workers.toolbox import Toolbox

@tool
def hang() -> None:
    threading.Event().wait()

context = ToolContext("user-123", "1.1", "round-key", "echo/echo")
print(asyncio.run(Toolbox([], 0.05).run([ToolCall("1", "hang", "{}")], context, ["hang"])))
"""


class Line(BaseModel):
    article: str


@pytest.fixture(autouse=True)
def no_tools(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO, logger=toolbox_module.__name__)
    with patch.dict(TOOLS, clear=True):
        yield


def call(name: str, arguments: str = "{}", id_: str = "call-1") -> ToolCall:
    return ToolCall(id_, name, arguments)


def run(*calls: ToolCall, deadline_seconds: float = 20, allowed: list[str] | None = None) -> list[str]:
    toolbox = Toolbox([], deadline_seconds)
    return asyncio.run(toolbox.run(calls, CONTEXT, list(TOOLS) if allowed is None else allowed))


def result(value: Any) -> str:
    """What the model is told of a tool that returns ``value``."""

    def give() -> object:
        return value

    TOOLS.clear()
    tool(give)
    return run(call("give"))[0]


def only(lines: list[str], action: str) -> list[str]:
    return [line for line in lines if line.startswith(f"action={action} ")]


@contextmanager
def gate() -> Iterator[threading.Event]:
    """What hanging tools wait for. It is opened at the end, whatever the test finds."""
    opened = threading.Event()
    try:
        yield opened
    finally:
        opened.set()


@asynccontextmanager
async def running(toolbox: Toolbox, *calls: ToolCall) -> AsyncIterator["asyncio.Task[list[str]]"]:
    task = asyncio.create_task(toolbox.run(calls, CONTEXT, list(TOOLS)))
    try:
        yield task
    finally:
        task.cancel()


async def in_the_end(condition: Any) -> None:
    """Wait for what another thread brings about; the test's own timeout is the limit."""
    while not condition():  # noqa: ASYNC110 (threads set it)
        await asyncio.sleep(0.005)


# Results


def test_a_rounds_calls_run_side_by_side_and_answer_in_order() -> None:
    together = threading.Barrier(3, timeout=20)

    @tool
    def meet(name: str) -> str:
        together.wait()
        return f"{name} {threading.current_thread() is threading.main_thread()}"

    @tool
    async def meet_later(name: str) -> str:
        together.wait()
        await asyncio.sleep(0.01)
        return name

    calls = [call("meet_later", '{"name": "Ann"}'), call("meet", '{"name": "Bob"}'), call("meet", '{"name": "Cid"}')]
    assert run(*calls) == ["Ann", "Bob False", "Cid False"]


def test_no_calls_are_no_results() -> None:
    assert run() == []


def test_a_text_is_given_as_it_is_and_all_else_as_json() -> None:
    assert result('as "it" is') == 'as "it" is'
    assert result(None) == "null"
    assert result(True) == "true"
    assert json.loads(result({"line": Line(article="ink"), "at": datetime(2026, 11, 29, tzinfo=UTC)})) == {
        "line": {"article": "ink"},
        "at": "2026-11-29T00:00:00Z",
    }
    assert json.loads(result([float("nan")])) == ["NaN"]
    assert result("a\0b\ud800c") == "a\ufffdb\ufffdc"


def test_what_is_no_json_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert result(object()) == "error: give returned what cannot be written as JSON"
    assert caplog.messages == [
        "action=tool_failed session=user-123 turn=1.1 tool=give error=bad_result place=object",
    ]


@pytest.mark.parametrize("letter", ["x", "ü", "😀"])
def test_a_long_result_is_cut_with_a_remark(letter: str) -> None:
    fits = letter * (RESULT_LIMIT // len(letter.encode()))
    assert result(fits) == fits
    cut = result(fits + "x")
    assert len(cut.encode()) <= RESULT_LIMIT
    assert cut.removesuffix(CUT_OFF).strip(letter) == ""
    assert cut.endswith(CUT_OFF)


# Failures


@pytest.mark.parametrize(
    ("name", "arguments", "told", "error"),
    [
        ("nobody", "{}", "there is no tool of that name: there are fail", "unknown_tool"),
        (f"x {SECRET}\n", "{}", "there is no tool of that name: there are fail", "unknown_tool"),
        ("forbidden", "{}", "there is no tool of that name: there are fail", "unknown_tool"),
        ("fail", "nope", "the arguments do not fit the tool's schema, and nothing was run: Inv", "BadArgumentsError"),
        ("fail", "{}", "the arguments do not fit the tool's schema, and nothing was run: how", "BadArgumentsError"),
        ("fail", '{"how": "KeyError"}', "fail failed with KeyError", "KeyError"),
        ("fail", '{"how": "SystemExit"}', "fail failed with SystemExit", "SystemExit"),
        ("fail", '{"how": "KeyboardInterrupt"}', "fail failed with KeyboardInterrupt", "KeyboardInterrupt"),
        ("fail", '{"how": "CancelledError"}', "fail failed with CancelledError", "CancelledError"),
        ("fail", '{"how": "TimeoutError"}', "fail failed with TimeoutError", "TimeoutError"),
        ("fail", '{"how": "StopIteration"}', "fail failed with StopIteration", "StopIteration"),
    ],
)
def test_a_failure_is_a_result_and_a_line_without_texts(
    name: str, arguments: str, told: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {kind.__name__: kind for kind in (KeyError, SystemExit, KeyboardInterrupt, TimeoutError, StopIteration)}

    @tool
    def fail(how: str) -> None:
        raise (kinds | {"CancelledError": asyncio.CancelledError})[how](SECRET)

    @tool
    def forbidden() -> None:
        raise AssertionError("it was run")

    @tool
    def neighbour() -> str:
        return "fine"

    failed, fine = run(call(name, arguments), call("neighbour"), allowed=["fail", "neighbour", "gone"])
    assert failed.startswith(f"error: {told}")
    assert fine == "fine"
    (line,) = caplog.messages
    shown = "?" if error == "unknown_tool" else name
    assert line.startswith(f"action=tool_failed session=user-123 turn=1.1 tool={shown} error={error} place=")
    assert SECRET not in failed + line + caplog.text


def test_what_a_tool_says_on_purpose_is_told_to_the_model_alone(caplog: pytest.LogCaptureFixture) -> None:
    class NoSuchCityError(ToolError):
        pass

    @tool
    def get_weather() -> None:
        raise NoSuchCityError("no city\0 called Ulmm" + "!" * 5000)

    (told,) = run(call("get_weather"))
    assert told.startswith("error: no city\ufffd called Ulmm!")
    assert len(told) < 2100
    assert caplog.messages == [
        "action=tool_failed session=user-123 turn=1.1 tool=get_weather error=NoSuchCityError place=-"
    ]


def test_a_thread_that_cannot_be_started_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    @tool
    def now() -> str:
        return "noon"

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        toolbox = Toolbox([], 20)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            for _ in range(toolbox_module.THREADS + 1):
                (told,) = await toolbox.run([call("now")], CONTEXT, ["now"])
                assert told == "error: now was not run: the worker can start no thread"
        assert await toolbox.run([call("now")], CONTEXT, ["now"]) == ["noon"]

    asyncio.run(main())


# Deadlines, threads, cancelling


def test_a_deadline_ends_the_waiting_and_the_tool_can_see_it(caplog: pytest.LogCaptureFixture) -> None:
    seen = threading.Event()

    with gate() as opened:

        @tool
        def hang(context: ToolContext) -> str:
            assert not context.is_cancelled()
            opened.wait()
            if context.is_cancelled():
                seen.set()
            return "too late"

        @tool(name="short", deadline=timedelta(seconds=0.02))
        def short() -> None:
            opened.wait()

        @tool
        def neighbour() -> str:
            return "fine"

        assert run(call("hang"), call("short"), call("neighbour"), deadline_seconds=0.1) == [
            "error: hang did not return within 0.1 s, and may still be at work",
            "error: short did not return within 0.02 s, and may still be at work",
            "fine",
        ]
    assert seen.wait(20)
    assert only(caplog.messages, "tool_failed") == [
        "action=tool_failed session=user-123 turn=1.1 tool=short error=deadline place=-",
        "action=tool_failed session=user-123 turn=1.1 tool=hang error=deadline place=-",
    ]


def test_an_async_tool_is_cancelled_and_its_thread_is_free_again(caplog: pytest.LogCaptureFixture) -> None:
    ended = list[str]()

    @tool
    async def hang() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(threading.current_thread().name)

    async def main() -> None:
        told = await Toolbox([], 0.05).run([call("hang")], CONTEXT, ["hang"])
        assert told == ["error: hang did not return within 0.05 s, and may still be at work"]
        await in_the_end(lambda: only(caplog.messages, "tool_came_back"))

    asyncio.run(main())
    assert ended == ["tool hang"]


def test_no_more_calls_run_at_once_than_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox_module, "THREADS", 3)
    counting, now, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=20)

    @tool
    def count() -> int:
        nonlocal now, most
        with counting:
            now += 1
            most = max(most, now)
        together.wait()
        with counting:
            now -= 1
        return 1

    assert run(*[call("count")] * 12) == ["1"] * 12
    assert most == 3


def test_abandoned_threads_keep_their_places_until_they_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(toolbox_module, "THREADS", 2)

    @tool
    def now() -> str:
        return "noon"

    async def main() -> None:
        toolbox = Toolbox([], 0.1)
        with gate() as opened:

            @tool
            def hang() -> None:
                opened.wait()

            await toolbox.run([call("hang"), call("hang")], CONTEXT, ["hang"])
            assert await toolbox.run([call("now")], CONTEXT, ["now"]) == [
                "error: now was not run: the worker was busy for 0.1 s"
            ]
        await in_the_end(lambda: len(only(caplog.messages, "tool_came_back")) == 2)
        assert await toolbox.run([call("now")], CONTEXT, ["now"]) == ["noon"]

    asyncio.run(main())
    abandoned = only(caplog.messages, "tool_abandoned")
    assert abandoned[-1] == (
        "action=tool_abandoned session=user-123 turn=1.1 tool=hang: its thread goes on; 2 of 2 threads are held like that"
    )
    assert [line for line in caplog.messages if "error=no_thread" in line] != []


def test_a_tool_that_hangs_again_and_again_leaves_room_for_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(toolbox_module, "HANGING", 2)

    @tool
    def now() -> str:
        return "noon"

    async def main() -> None:
        toolbox = Toolbox([], 0.05)
        with gate() as opened:

            @tool
            def hang() -> str:
                opened.wait()
                return "back"

            await toolbox.run([call("hang"), call("hang")], CONTEXT, ["hang"])
            assert await toolbox.run([call("hang"), call("now")], CONTEXT, ["hang", "now"]) == [
                "error: hang was not run: 2 earlier calls of it have not come back",
                "noon",
            ]
        await in_the_end(lambda: len(only(caplog.messages, "tool_came_back")) == 2)
        assert await toolbox.run([call("hang")], CONTEXT, ["hang"]) == ["back"]

    asyncio.run(main())
    assert "action=tool_failed session=user-123 turn=1.1 tool=hang error=hanging place=-" in caplog.messages


def test_a_cancelled_round_ends_at_once_and_its_results_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    begun, contexts = threading.Event(), list[ToolContext]()

    async def main() -> None:
        toolbox = Toolbox([], 60)
        with gate() as opened:

            @tool
            def hang(context: ToolContext) -> str:
                contexts.append(context)
                begun.set()
                opened.wait()
                return SECRET

            async with running(toolbox, call("hang")) as task:
                await in_the_end(begun.is_set)
                assert not contexts[0].is_cancelled()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert contexts[0].is_cancelled()
                assert not opened.is_set()
        await in_the_end(lambda: only(caplog.messages, "tool_came_back"))

    asyncio.run(main())
    assert only(caplog.messages, "tool_abandoned") != []
    assert only(caplog.messages, "tool_failed") == []
    assert SECRET not in caplog.text


def test_who_waits_for_a_thread_and_is_cancelled_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox_module, "THREADS", 1)
    ran = list[str]()

    async def main() -> None:
        toolbox = Toolbox([], 20)
        with gate() as opened:

            @tool
            def wait(name: str) -> str:
                ran.append(name)
                opened.wait()
                return name

            async with running(toolbox, call("wait", '{"name": "first"}')) as first:
                await in_the_end(lambda: ran)
                async with running(toolbox, call("wait", '{"name": "second"}')) as second:
                    await asyncio.sleep(0.01)
                    second.cancel()
                opened.set()
                assert await first == ["first"]
            assert await toolbox.run([call("wait", '{"name": "third"}')], CONTEXT, ["wait"]) == ["third"]

    asyncio.run(main())
    assert ran == ["first", "third"]


def test_a_tool_that_hangs_does_not_keep_the_worker_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "hang did not return within 0.05 s" in done.stdout


# Keys


def test_the_very_same_call_has_the_same_key_whenever_its_round_is_run() -> None:
    keys = dict[str, str]()

    @tool
    def pay(to: str, euros: int, mark: str, context: ToolContext) -> None:
        keys[mark] = context.key
        assert (context.session_id, context.turn_id, context.model) == ("user-123", "1.1", "echo/echo")

    def keys_of(*arguments: str, key: str = "round-key") -> list[str]:
        keys.clear()
        calls = [call("pay", text, f"made-up-{os.urandom(4).hex()}") for text in arguments]
        context = ToolContext("user-123", "1.1", key, "echo/echo")
        assert asyncio.run(Toolbox([], 20).run(calls, context, ["pay"])) == ["null"] * len(calls)
        return [keys[mark] for mark in sorted(keys)]

    ann, bob = '{"to": "Ann", "euros": 5, "mark": "a"}', '{"to": "Bob", "euros": 5, "mark": "b"}'
    first = keys_of(ann, bob)
    assert len(set(first)) == 2
    assert keys_of(bob, '{"mark":"a","euros":5,"to":"Ann"}') == first
    assert not set(keys_of(ann, bob, key="next-round")) & set(first)
    assert all(len(key) == 32 for key in first)


def test_two_calls_that_are_equal_are_two() -> None:
    keys = list[str]()

    @tool
    def pay(context: ToolContext) -> None:
        keys.append(context.key)

    run(call("pay"), call("pay"))
    first = sorted(keys)
    assert len(set(first)) == 2
    keys.clear()
    run(call("pay"), call("pay"))
    assert sorted(keys) == first


def test_arguments_that_are_no_json_have_a_key_all_the_same() -> None:
    @tool
    def now() -> None: ...

    told = run(call("now", "\ud800"), call("now", "[" * 100_000), call("now", "{"), allowed=["now"])
    assert [text[:25] for text in told] == ["error: the arguments do no"[:25]] * 3


# Which tools there are


def test_a_model_is_told_of_the_sessions_tools_in_order() -> None:
    @tool
    def get_weather(city: str) -> None:
        """Tell the weather."""

    @tool
    def now() -> None:
        """Tell the time."""

    specs = Toolbox([], 20).specs(["now", "get_weather"])
    assert [spec.name for spec in specs] == ["now", "get_weather"]
    assert specs[1] == ToolSpec("get_weather", "Tell the weather.", TOOLS["get_weather"].parameters)
    assert Toolbox([], 20).specs([]) == ()


def test_a_tool_that_is_not_here_is_a_permanent_failure_that_says_what_is() -> None:
    with pytest.raises(UnknownToolError) as caught:
        Toolbox([], 20).specs(["now"])
    assert "this worker has no tool 'now': there are none. Name its module in tool_modules" in caught.value.message

    @tool
    def get_weather() -> None: ...

    with pytest.raises(UnknownToolError) as caught:
        Toolbox([], 20).specs(["get_weather", "now"])
    assert (caught.value.kind, caught.value.error_type, caught.value.name) == ("permanent", "unknown_tool", "now")
    assert "there are get_weather. " in caught.value.message


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (None, "which cannot be imported (ModuleNotFoundError: No module named 'broken_tools')"),
        ("import nowhere_at_all", "(ModuleNotFoundError: No module named 'nowhere_at_all')"),
        (f"raise KeyError({SECRET!r})", "(KeyError in broken_tools.py:1)"),
        ("raise SystemExit", "(SystemExit in broken_tools.py:1)"),
        ("def (", "(SyntaxError: "),
        (
            "from inturn.tools import tool\n@tool\ndef f(city): ...",
            "(InvalidInputError: 'f' cannot be a tool: its parameter 'city' has no annotation.",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(
    code: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if code is not None:
        (tmp_path / "broken_tools.py").write_text(code)
    with pytest.raises(SettingsError) as caught:
        Toolbox(["broken_tools"], 20).load()
    sentence = str(caught.value)
    assert sentence.startswith("tool_modules names 'broken_tools', which cannot be imported (")
    assert why in sentence
    assert sentence.endswith(". Correct it where this worker runs, and start it again")
    assert SECRET not in sentence


def test_a_module_without_tools_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "forgetful_tools.py").write_text("def now() -> str: return 'noon'\n")
    (tmp_path / "one_tool.py").write_text("from inturn import tool\n@tool\ndef at_noon() -> str: return 'noon'\n")
    (tmp_path / "lent_tools.py").write_text("from one_tool import at_noon\n")
    with patch.dict(TOOLS):
        Toolbox(["one_tool", "forgetful_tools", "lent_tools"], 20).load()
        Toolbox(["one_tool"], 20).load()
    [told] = [one.getMessage() for one in caplog.records if "action=no_tools" in one.getMessage()]
    assert told == "action=no_tools module=forgetful_tools: tool_modules names it, and no function in it has @tool"


def use(target: Path, modules: list[str], *calls: tuple[str, str, str]) -> Any:
    """What a process says in which the packages in ``target`` are installed."""
    work = target / "work"
    work.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, json.dumps(modules), json.dumps(calls)],
        env=os.environ | {"PYTHONPATH": f"{target}:{ROOT}"},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_example_is_found_where_it_is_installed(tmp_path: Path) -> None:
    install(EXAMPLE, tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "shop_tools.py").write_text(
        "from inturn.tools import tool\n@tool\ndef now() -> str: return 'noon'\n"
    )
    names, results = use(
        tmp_path,
        ["shop_tools"],
        ("1", "get_weather", '{"city": "Ulm", "unit": "fahrenheit"}'),
        ("2", "get_weather", '{"city": "Atlantis"}'),
        ("3", "order_umbrella", '{"color": "red"}'),
        ("4", "now", "{}"),
    )
    assert names == ["get_weather", "now", "order_umbrella"]
    assert json.loads(results[0]) == {"city": "Ulm", "degrees": 40.1, "unit": "fahrenheit"}
    assert results[1] == "error: no weather is known for Atlantis: there are Ulm, Lisbon"
    assert results[2:] == ["order 0001: one red umbrella", "noon"]


@pytest.mark.parametrize(
    ("value", "code", "why"),
    [
        ("nowhere", None, "and nowhere in it cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        ("odd:now", "", "and odd:now in it cannot be imported (AttributeError: module 'odd' has no attribute 'now')"),
        ("odd", "1 / 0", "and odd in it cannot be imported (ZeroDivisionError in odd.py:1)"),
        ("odd:now", "def now() -> str: return 'x'", "and odd:now in it is no tool: write @tool over it"),
        ("odd:now", "from inturn.tools import tool\n@tool\ndef now() -> str: return 'x'", None),
    ],
)
def test_a_package_brings_a_module_or_one_tool(tmp_path: Path, value: str, code: str | None, why: str | None) -> None:
    if code is not None:
        (tmp_path / "odd.py").write_text(code)
    write_metadata(tmp_path, "Odd-Tools", "1.2", {"inturn.tools": {"odd": value}})
    said = use(tmp_path, [], ("1", "now", "{}"))
    if why is None:
        assert said == [["now"], ["x"]]
    else:
        assert said.startswith("Odd-Tools 1.2 brings the tools 'odd', ")
        assert why in said
