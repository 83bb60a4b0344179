"""Logs for machines: an object a line, whose fields are those of the sentence."""

import json
import logging
import sys
from typing import Any

import pytest

from inturn.workers.children import sentence
from inturn.workers.logs import JsonLines, is_json
from inturn.workers.processes import ProcessIdentity


def logged(template: str, *args: object, level: int = logging.INFO, error: Any = None) -> dict[str, Any]:
    record = logging.LogRecord("inturn.workers.turns", level, __file__, 1, template, args, error)
    record.created = 1_796_000_000.25
    line = JsonLines("worker").format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_sentence_of_ours_is_an_object_with_its_fields() -> None:
    said = logged(
        "action=attempt_failed session=%s turn=%s attempt=%d seconds=%.1f again=%s reason=%s: 100 %% of it, %s",
        "ann", "1.2", 3, 2.5, True, "it said a=b and hung up", "so", level=logging.WARNING,
    )  # fmt: skip
    assert said == {
        "timestamp": "2026-11-30T00:53:20.250Z",
        "level": "WARNING",
        "logger": "inturn.workers.turns",
        "action": "attempt_failed",
        "message": "action=attempt_failed session=ann turn=1.2 attempt=3 seconds=2.5 again=True reason=it said a=b and "
        "hung up: 100 % of it, so",
        "session": "ann",
        "turn": "1.2",
        "attempt": 3,
        "seconds": 2.5,
        "again": True,
        "reason": "it said a=b and hung up",
        "role": "worker",
        "process": str(ProcessIdentity.mine()),
        "pid": ProcessIdentity.mine().pid,
    }


def test_an_action_that_is_a_value_is_one_and_a_field_takes_no_name_of_ours() -> None:
    said = logged("action=%s_failed level=%s message=%s", "sweep", "high", "none")
    assert (said["action"], said["level"]) == ("sweep_failed", "INFO")
    assert said["message"] == "action=sweep_failed level=high message=none"


def test_what_others_log_is_a_message() -> None:
    said = logged("Task %(name)s ended", {"name": "x=%s"})
    assert said["message"] == "Task x=%s ended"
    assert "action" not in said
    assert logged("plain a=%s", "b").keys().isdisjoint({"a"})


def test_an_error_comes_with_its_stack() -> None:
    try:
        raise LookupError("where\nis it?")
    except LookupError:
        said = logged("action=ledger_failed", level=logging.ERROR, error=sys.exc_info())
    assert said["exception"]["type"] == "LookupError"
    assert said["exception"]["message"] == "where\nis it?"
    assert "raise LookupError" in said["exception"]["stack"]


def test_half_a_character_is_logged_all_the_same() -> None:
    assert logged("action=odd what=%s", "\ud800")["what"] == "\ud800"
    assert logged("action=odd what=%d", 2**80)["what"] == 2**80


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "wanted"),
    [("auto", True, False), ("auto", False, True), ("json", True, True), ("text", False, False)],
)
def test_who_reads_decides(monkeypatch: pytest.MonkeyPatch, log_format: str, is_terminal: bool, wanted: bool) -> None:
    class Stderr:
        def isatty(self) -> bool:
            return is_terminal

    monkeypatch.setattr(sys, "__stderr__", Stderr())
    assert is_json(log_format) is wanted


@pytest.mark.parametrize(
    "line",
    [
        '{"message": "its sleeves are too long", "level": "critical"}',
        "[2026-11-29 03:42:34,275: CRITICAL/MainProcess] its sleeves are too long",
        "its sleeves are too long",
    ],
)
def test_the_supervisor_reads_both(line: str) -> None:
    assert sentence(line) == "its sleeves are too long"


def test_an_unfinished_object_is_read_as_it_is() -> None:
    assert sentence('{"mess') == '{"mess'
