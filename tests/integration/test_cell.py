"""A cell with real processes: what it answers, and how it dies without taking anybody along.

Everything runs as in a worker: in uvloop, in a thread that is not the main one.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import uvloop

from inturn.settings import Settings
from inturn.workers import cell
from inturn.workers.cell import CellDiedError, Cells, NoPlaceError
from inturn.workers.provider import Prompt, ProviderError, Reply, ToolCall, ToolSpec
from tests.stacks import ROOT, wait_until

DEADLY = """
import asyncio, os, signal, sys, time
from inturn.workers import provider
from inturn.workers.providers import echo

def spend(prompt):
    hoard = []
    while True:
        hoard.append(bytearray(64 * 1024 * 1024))

def refuse(prompt):
    figures = {"retry_after": 1.5, "input_tokens": 7, "output_tokens": 3}
    raise provider.ProviderError("permanent", "refusal", "no", **figures)

ENDS = {
    "kill": lambda prompt: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda prompt: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda prompt: os._exit(3),
    "leave": lambda prompt: os._exit(0),
    "spend": spend,
    "flood": lambda prompt: os.write(1, bytes(8 * 1024 * 1024)),
    "spin": lambda prompt: time.sleep(60),
    "bug": lambda prompt: 1 // 0,
    "refuse": refuse,
}
harmless = echo.Echo.reply

async def reply(self, prompt, on_delta=None):
    word = prompt.messages[-1]["content"]
    if word == "breed":
        await asyncio.create_subprocess_exec("sleep", "61")
        await asyncio.sleep(60)
    if word in ENDS:
        ENDS[word](prompt)
    return await harmless(self, prompt, on_delta)

echo.Echo.reply = reply
"""
"""What Python runs at the start of every cell here: a prompt says how its reply ends the process."""

Value = TypeVar("Value")


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")


def as_in_a_worker(coroutine: Coroutine[Any, Any, Value]) -> Value:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(uvloop.run, coroutine).result(timeout=60)


def prompt(text: str, **options: Any) -> Prompt:
    return Prompt("echo/echo", [{"role": "user", "content": text}], options, "key")


def ask(text: str, **options: Any) -> Reply:
    return as_in_a_worker(Cells(Settings()).reply("echo/echo", prompt(text, **options)))


def my_cells() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "inturn.workers.cell" in child.cmdline()]


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition, 30)


def test_it_answers_as_the_provider_does() -> None:
    reply = ask("hello \U0001f600\nwith two lines")
    assert (
        reply.content
        == 'You said: "hello \U0001f600\nwith two lines"\nI remember your first message. (echo, not a real model)'
    )
    assert (reply.input_tokens, reply.output_tokens, reply.request_id) == (5, 17, None)
    assert my_cells() == []


def test_tools_are_offered_and_called_through_it() -> None:
    tools = (ToolSpec("add", "Adds.", {"properties": {"a": {"type": "integer"}}}), ToolSpec("now", "", {}))
    call = [[{"name": "add", "arguments": '{"a": "\u20ac\n'}, {"name": "now"}]]
    told: list[str] = []
    asked = replace(prompt("hello", call=call), tools=tools)
    reply = as_in_a_worker(Cells(Settings()).reply("echo/echo", asked, told.append))
    assert reply.tool_calls == (ToolCall("call_0", "add", '{"a": "\u20ac\n'), ToolCall("call_1", "now", "{}"))
    assert (reply.content, told) == ("", [])


def test_models_by_other_names_are_known_in_it() -> None:
    configured = {"me": {"type": "echo", "models": {"m": {"context_tokens": 7}}, "fallbacks": ["echo/echo"]}}
    reply = as_in_a_worker(Cells(Settings.load(providers=configured)).reply("me/m", prompt("hello")))
    assert reply.content.startswith('You said: "hello"')


@pytest.mark.usefixtures("deadly")
def test_what_a_failed_call_cost_is_told() -> None:
    with pytest.raises(ProviderError) as caught:
        ask("refuse")
    error = caught.value
    assert (error.error_type, error.input_tokens, error.output_tokens, error.retry_after) == ("refusal", 7, 3, 1.5)


def test_who_reads_along_hears_the_whole_at_its_end() -> None:
    told: list[str] = []
    cells = Cells(Settings())
    reply = as_in_a_worker(cells.reply("echo/echo", prompt("hello", pace=0.01), told.append))
    assert told == [reply.content]
    with pytest.raises(ProviderError):
        as_in_a_worker(cells.reply("echo/echo", prompt("hello", fail="timeout"), told.append))
    assert len(told) == 1


def test_a_long_prompt_and_a_reply_as_long_as_may_be() -> None:
    text = "\x01\u20ac" * 1024**2  # four bytes a pair, and six times as long in JSON
    assert ask("x" * 3_000_000, reply=text).content == text
    with pytest.raises(ProviderError) as caught:
        ask("hello", reply=text + "!")
    assert (caught.value.kind, caught.value.error_type) == ("permanent", "reply_too_large")


def test_a_failure_is_told_in_full() -> None:
    with pytest.raises(ProviderError) as caught:
        ask("hello", fail="rate_limited")
    error = caught.value
    assert (error.kind, error.error_type, error.status_code, error.retry_after) == ("safe", "rate_limited", 429, None)
    assert error.message.startswith("echo/echo was asked to fail as if it were busy")
    with pytest.raises(ProviderError) as caught:
        as_in_a_worker(Cells(Settings()).reply("nobody/x", prompt("hello")))
    assert caught.value.error_type == "provider_not_configured"
    assert "this worker has echo" in caught.value.message


@pytest.mark.usefixtures("deadly")
@pytest.mark.parametrize(
    ("word", "how"),
    [
        ("kill", "was killed by SIGKILL, probably as the machine ran out of memory"),
        ("crash", "was killed by SIGSEGV"),
        ("exit", "ended with code 3"),
        ("leave", "ended without an answer that makes sense"),
        ("spend", "ran out of memory (1024 MiB)"),
        ("flood", "wrote more than any reply may hold"),
    ],
)
def test_a_reply_that_is_too_much_for_it(word: str, how: str) -> None:
    if word == "spend" and sys.platform != "linux":
        pytest.skip("its memory is bounded on Linux only")
    with pytest.raises(CellDiedError) as caught:
        ask(word)
    assert str(caught.value) == how
    assert my_cells() == []


@pytest.mark.usefixtures("deadly")
def test_a_mistake_in_a_provider_is_no_poison() -> None:
    with pytest.raises(ProviderError) as caught:
        ask("bug")
    assert (caught.value.kind, caught.value.error_type) == ("ambiguous", "provider_bug")


@pytest.mark.usefixtures("deadly")
def test_one_that_hangs_is_ended_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "START_SECONDS", 10.0)
    cells = Cells(Settings(attempt_deadline_seconds=0.5))
    with pytest.raises(ProviderError) as caught:
        as_in_a_worker(cells.reply("echo/echo", prompt("spin")))
    assert (caught.value.kind, caught.value.error_type) == ("ambiguous", "timeout")
    wait_until(lambda: my_cells() == [])


def test_the_deadline_holds_inside() -> None:
    with pytest.raises(ProviderError) as caught:
        as_in_a_worker(Cells(Settings(attempt_deadline_seconds=0.5)).reply("echo/echo", prompt("hi", latency=30)))
    assert caught.value.message.startswith("echo/echo gave no whole reply within 0.5 s. If it needs longer")


@pytest.mark.usefixtures("deadly")
def test_a_call_that_is_broken_off_leaves_nothing_behind() -> None:
    async def break_off() -> tuple[psutil.Process, list[psutil.Process]]:
        call = asyncio.create_task(Cells(Settings()).reply("echo/echo", prompt("breed")))
        await until(lambda: [one for one in my_cells() if one.children()])
        (mine,) = my_cells()
        bred = mine.children()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return mine, bred

    mine, bred = as_in_a_worker(break_off())
    wait_until(lambda: not any(process.is_running() and process.status() != "zombie" for process in (mine, *bred)))


@pytest.mark.parametrize("is_late", [False, True], ids=["before it is asked", "while it is asked"])
def test_one_that_cannot_be_started_has_made_no_call(is_late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = cell._start

    async def started_and_over() -> Any:
        transport, process = await start()
        await process.wait()
        return transport, process

    if not is_late:
        monkeypatch.setattr(cell, "_start", started_and_over)
    for program, reason in ("/no/such/python", "No such file or directory"), ("/bin/false", "ended with code 1"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(ProviderError) as caught:
            ask("x" * 3_000_000)  # more than a pipe holds
        assert (caught.value.kind, caught.value.error_type) == ("safe", "cell_not_started")
        assert caught.value.message.endswith(f"could not be started: {reason}")


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "PLACES", 2)

    async def crowd() -> list[Any]:
        cells = Cells(Settings())
        return await asyncio.gather(
            *(cells.reply("echo/echo", prompt(str(number), latency=0.2)) for number in range(3)), return_exceptions=True
        ) + [await cells.reply("echo/echo", prompt("later"))]

    *first, refused, later = as_in_a_worker(crowd())
    assert isinstance(refused, NoPlaceError)
    assert all(isinstance(reply, Reply) for reply in (*first, later))


def test_nobody_can_read_the_prompt_off_the_list_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look() -> str:
        call = asyncio.create_task(Cells(Settings()).reply("echo/echo", prompt("a secret", latency=1)))
        await until(my_cells)
        (mine,) = my_cells()
        shown = f"{mine.cmdline()} {mine.environ()}"
        await call
        return shown

    assert "secret" not in as_in_a_worker(look())


PARENT = """
import asyncio
from inturn.settings import Settings
from inturn.workers.cell import Cells
from inturn.workers.provider import Prompt

asyncio.run(Cells(Settings()).reply("echo/echo", Prompt("echo/echo", [{"role": "user", "content": "WORD"}], OPTIONS, "key")))
"""


@pytest.mark.usefixtures("deadly")
@pytest.mark.parametrize(("word", "options"), [("hello", {"latency": 60}), ("spin", {})])
def test_it_dies_with_its_worker(word: str, options: dict[str, Any]) -> None:
    program = PARENT.replace("WORD", word).replace("OPTIONS", repr(options))
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        wait_until(lambda: psutil.Process(worker.pid).children(), 30)
        (mine,) = psutil.Process(worker.pid).children()
        if sys.platform == "linux":
            wait_until(lambda: Path(f"/proc/{mine.pid}/oom_score_adj").read_text() == "1000\n")
            assert os.getpgid(mine.pid) == mine.pid
        time.sleep(0.5)
        worker.kill()
    finally:
        worker.kill()
        worker.wait()
    wait_until(lambda: not mine.is_running() or mine.status() == "zombie")


def test_children_are_noticed_in_threads_too() -> None:
    """Twice in one loop: the first one's end must not be taken for the second one's."""

    async def twice() -> list[str]:
        cells = Cells(Settings())
        return [(await cells.reply("echo/echo", prompt(text))).content[:14] for text in "ab"]

    assert as_in_a_worker(twice()) == ['You said: "a"\n', 'You said: "b"\n']
    assert threading.active_count() < 50
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
