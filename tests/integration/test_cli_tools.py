"""Sessions with tools on the command line: what they were created with, and what was asked of tools and said by them."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from tests.integration.rounds import answered, go_round, settle
from tests.integration.stores import Store
from tests.integration.test_cli_commands import Shell, shell

__all__ = ["shell"]

SETTLED = (
    ("--tool", "note", "--tool", "get_weather", "--model", "echo/echo", "--model", "echo/other"),
    ("--context-tokens", "4000", "--context-turns", "7", "--overflow", "summarise"),
)
RESULT = '{"degrees":\x1b[31m 4}'


@pytest.fixture
def talked(shell: Shell) -> Iterator[str]:
    """A session with a round in its first turn, and its second turn in the middle of one."""
    shell.ok("session", "create", "ann-1", "--tool", "note")
    with closing(Store(f"sqlite:///{shell.home / 'inturn.db'}")) as store:
        store.send("ann-1", "is it cold?")
        last = replace(answered(go_round(store, store.start(), RESULT, "windy")), reply="it is")
        settle(store, last)
        store.send("ann-1", "and now?")
        go_round(store, store.start(), "still")
        yield "ann-1"


def test_what_a_session_was_created_with_is_read_back(shell: Shell) -> None:
    shell.ok("session", "create", "ann-1", *SETTLED[0], *SETTLED[1])
    [record] = shell.records("session", "show", "ann-1")
    wanted: dict[str, object] = {"model": "echo/echo", "fallbacks": ["echo/other"], "tools": ["note", "get_weather"]}
    wanted |= {"context_tokens": 4000, "context_turns": 7, "overflow": "summarise"}
    assert record | wanted == record
    shown = shell.ok("session", "show", "ann-1")
    assert "note" in shown
    assert "echo/other" in shown
    assert shell.records("session", "list")[0] | wanted == shell.records("session", "list")[0]


@pytest.mark.parametrize(
    ("choice", "why"),
    [(("--tool", "no tool"), "names of 1 to 64 letters"), (("--overflow", "forget"), "is not one of"),
     (("--context-tokens", "0"), "range"), (("--tool", "x" * 65), "names of 1 to 64 letters")],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_makes_no_session(shell: Shell, choice: tuple[str, ...], why: str) -> None:
    done = shell.run("session", "create", "ann-1", *choice)
    assert done.returncode != 0
    assert why in done.stderr
    assert shell.run("session", "show", "ann-1").returncode != 0


def test_show_tells_calls_and_results_in_their_order(shell: Shell, talked: str) -> None:
    lines = shell.ok("session", "show", talked).splitlines()
    assert lines[-11:] == [
        "you: is it cold?",
        "assistant: round 0",
        "calls note({})",
        "calls note({})",
        'tool note: {"degrees": 4}',
        "tool note: windy",
        "assistant: it is",
        "you: and now?",
        "assistant: round 0",
        "calls note({})",
        "tool note: still",
    ]
    [record] = shell.records("session", "show", talked)
    kinds = [message["type"] for message in record["history"]]
    assert kinds[:5] == ["user.message", "assistant.message", *["tool.message"] * 2, "assistant.message"]
    called, told = record["history"][1:3]
    assert told["data"]["content"] == RESULT
    assert (told["data"]["name"], told["data"]["tool_call_id"]) == ("note", called["data"]["tool_calls"][0]["id"])
    assert "tool_calls" not in record["history"][4]["data"]


def test_tail_tells_them_too(shell: Shell, talked: str) -> None:
    told = ["you: and now?", "assistant: round 0", "calls note({})", "tool note: still"]
    assert shell.ok("session", "tail", talked, "-n", "3").splitlines() == told
    events = shell.records("session", "tail", talked, "-n", "9")
    assert [event["type"] for event in events].count("tool.message") == 3
    assert json.dumps(events).count("tool_calls") == 2


def test_a_turns_reply_is_told_apart_from_what_stands_before_it(shell: Shell, talked: str) -> None:
    first, second = (turn["id"] for turn in shell.records("turn", "list", talked))
    shown = shell.ok("turn", "show", first).splitlines()
    assert shown[-2:] == ["you: is it cold?", "assistant: it is"]
    assert sum(line.split("\t")[0].strip().isdecimal() for line in shown) == 2, "two calls were made for it"
    [record] = shell.records("turn", "show", first)
    assert (record["reply"], record["attempts"]) == ("it is", 2)
    assert [attempt["outcome"] for attempt in record["attempt_records"]] == ["completed", "completed"]
    [record] = shell.records("turn", "show", second)
    assert (record["state"], record["reply"]) == ("running", None)
    assert shell.ok("turn", "show", second).splitlines()[-1] == "you: and now?"
