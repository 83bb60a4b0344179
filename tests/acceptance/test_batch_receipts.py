"""The checker of batches can fail: each lie in a result file, in the database or in the model's log is a violation."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ops.chaos.batch import sheet
from ops.chaos.batch.receipts import Receipts, lines_of
from ops.chaos.batch.sheet import SheetLine
from ops.chaos.model import Call

REFUSED = 'line 5 !{"status": 400}'


def honest_receipts() -> Receipts:
    """Two sessions whose lines alternate, a line without one, and one that the model refuses."""
    lines = [SheetLine(number, f"row-{number}", "ab"[number % 2], f"line {number}") for number in range(1, 5)]
    lines += [SheetLine(5, "row-5", None, REFUSED), SheetLine(6, "row-6", None, "line 6")]
    receipts = Receipts(lines)
    said: dict[int, list[str]] = {}
    for line in lines:
        session = {"a": 1, "b": 2}.get(line.session or "", 10 + line.number)
        history = said.setdefault(session, [])
        reply = f"reply to: {line.prompt} (seen {len(history) + 1} messages)"
        receipts.calls = [*receipts.calls, a_call(line.number, [*history, line.prompt])]
        said[session] += [line.prompt, reply]
        state = "failed" if line.prompt == REFUSED else "completed"
        (receipts.errors if state == "failed" else receipts.output).append(a_result(line.custom_id, reply))
        turn = SimpleNamespace(session_id=session, number=len(said[session]) // 2, line=line.number, state=state)
        receipts.turns[line.custom_id] = [turn]
        receipts.keys[session] = line.session or f"batch-0:{line.number}"
    receipts.batches = [a_batch()]
    return receipts


def a_batch(**changes: Any) -> SimpleNamespace:
    counts = {"total": 6, "stored": 6, "completed": 5, "failed": 1, "cancelled": 0, "expired": 0}
    return SimpleNamespace(**({"key": "batch-0", "state": "completed"} | counts | changes))


def a_call(number: int, texts: list[str]) -> Call:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return Call(number, number, 1, "model", messages, {}, {}, number + 0.5, "200")


def a_result(custom_id: str, reply: str) -> dict[str, Any]:
    body = {"choices": [{"message": {"content": reply}}]}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def test_honest_receipts_have_no_violations():
    assert honest_receipts().violations() == []


def doubled_line(receipts: Receipts) -> None:
    receipts.output.append(receipts.output[0])


def missing_line(receipts: Receipts) -> None:
    del receipts.output[2]


def line_in_both_files(receipts: Receipts) -> None:
    receipts.errors.append(receipts.output[3])


def line_of_another(receipts: Receipts) -> None:
    receipts.output.append(a_result("row-7", "reply"))


def refused_line_in_the_output(receipts: Receipts) -> None:
    receipts.output.append(receipts.errors.pop())


def reply_of_another(receipts: Receipts) -> None:
    receipts.output[0] = a_result("row-1", "reply to: line 2 (seen 1 messages)")


def two_batches(receipts: Receipts) -> None:
    receipts.batches.append(a_batch(key="batch-1"))


def wrong_count(receipts: Receipts) -> None:
    receipts.batches = [a_batch(completed=6, failed=0)]


def lost_count(receipts: Receipts) -> None:
    receipts.batches = [a_batch(total=5)]


def line_without_a_turn(receipts: Receipts) -> None:
    receipts.turns.pop("row-4")


def line_that_is_two_turns(receipts: Receipts) -> None:
    receipts.turns["row-4"] *= 2


def line_in_the_session_of_another(receipts: Receipts) -> None:
    receipts.keys[16] = "a"


def swapped_turns(receipts: Receipts) -> None:
    (first,), (second,) = receipts.turns["row-1"], receipts.turns["row-3"]
    first.number, second.number = second.number, first.number


def swapped_calls(receipts: Receipts) -> None:
    calls = list(receipts.calls)
    calls[0], calls[2] = replace(calls[0], start=calls[2].start), replace(calls[2], start=calls[0].start)
    receipts.calls = calls


def swapped_history(receipts: Receipts) -> None:
    """Line 3 was answered first, and line 1 shown what was said then."""
    receipts.calls = [a_call(1, ["line 3", "reply", "line 1"])]


def history_of_another_session(receipts: Receipts) -> None:
    receipts.calls = [a_call(1, ["line 1", "reply", "line 2"])]


def history_without_a_session(receipts: Receipts) -> None:
    receipts.calls = [a_call(1, [REFUSED, "reply", "line 6"])]


@pytest.mark.parametrize(
    ("lie", "wanted"),
    [
        (doubled_line, "unaccounted"),
        (missing_line, "unaccounted"),
        (line_in_both_files, "unaccounted"),
        (line_of_another, "unaccounted"),
        (refused_line_in_the_output, "unexpected"),
        (refused_line_in_the_output, "misreported"),
        (reply_of_another, "misreported"),
        (two_batches, "miscounted"),
        (wrong_count, "miscounted"),
        (lost_count, "miscounted"),
        (line_without_a_turn, "misplaced"),
        (line_that_is_two_turns, "misplaced"),
        (line_in_the_session_of_another, "misplaced"),
        (swapped_turns, "swapped"),
        (swapped_calls, "misshown"),
        (swapped_history, "misshown"),
        (history_of_another_session, "misshown"),
        (history_without_a_session, "misshown"),
    ],
)
def test_each_lie_is_a_violation(lie: Callable[[Receipts], None], wanted: str):
    receipts = copy.deepcopy(honest_receipts())
    lie(receipts)
    assert wanted in {sentence.partition(":")[0] for sentence in receipts.violations()}


def test_who_was_stopped_may_call_late_and_nobody_else():
    receipts = copy.deepcopy(honest_receipts())
    swapped_calls(receipts)
    late = receipts.calls[0].start
    receipts.strays = [(late - 0.1, late + 0.1)]
    assert receipts.violations() == []
    receipts.strays = [(late + 0.1, late + 1)]
    assert [sentence.partition(":")[0] for sentence in receipts.violations()] == ["misshown"]


def test_files_are_read_line_by_line_and_half_a_line_is_refused(tmp_path: Path):
    (tmp_path / "half").write_text('{"custom_id": "row-1"}\n{"custom_id"')
    with pytest.raises(ValueError, match="unexpected end"):
        lines_of(tmp_path / "half")


def test_a_sheet_has_what_a_batch_meets(tmp_path: Path):
    """Sessions that alternate, lines without one, custom IDs of all kinds and none, and prompts that upset the model."""
    lines = sheet.write(tmp_path / "sheet", "run", seed=1, lines=2000, sessions=100)
    written = [json.loads(line) for line in (tmp_path / "sheet").read_text().splitlines()]
    assert len({line.custom_id for line in lines}) == len(written) == 2000
    assert len({line.session for line in lines}) == 101
    assert {"body" in line for line in written} == {"custom_id" in line for line in written} == {True, False}
    assert any(line.is_refused for line in lines)
    assert any(line.is_hopeless and not line.is_refused for line in lines)
    assert any("!{" in line.prompt and not line.is_hopeless for line in lines)
    assert lines == sheet.write(tmp_path / "again", "run", seed=1, lines=2000, sessions=100)
