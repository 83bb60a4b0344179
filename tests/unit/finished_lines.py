"""A batch whose lines have finished, for the tests of its result files: what they ask of the database, in memory."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from inturn.models.states import TurnState
from inturn.models.store.lines import LineResult
from inturn.results.stock import Standing

BATCH = "batch-0123456789abcdef"
START = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def completed(line: int, **changes: Any) -> LineResult:
    whole = LineResult(
        line=line,
        custom_id=f"request-{line}",
        state=TurnState.COMPLETED,
        session_id=f"{BATCH}:{line}",
        turn_id=f"{line}.1",
        model="openai/gpt-5",
        reply=f"reply {line}",
        finish_reason="stop",
        error_type=None,
        error_message=None,
        error_status=None,
        input_tokens=20,
        output_tokens=3,
        price=0.001,
        attempts=1,
        finished_at=START + timedelta(seconds=line),
    )
    return whole._replace(**changes)


def failed(line: int, error_type: str = "invalid_request", status: int | None = 400, **changes: Any) -> LineResult:
    return completed(
        line,
        **{
            "state": TurnState.FAILED,
            "reply": None,
            "finish_reason": None,
            "error_type": error_type,
            "error_message": f"line {line} is refused",
            "error_status": status,
            **changes,
        },
    )


def invalid(line: int, code: str = "missing_field", **changes: Any) -> LineResult:
    """A line that was kept although it was no prompt."""
    none = dict.fromkeys(("state", "session_id", "turn_id", "model", "input_tokens", "output_tokens", "price"))
    return failed(line, code, None, **{**none, "attempts": 0, **changes})


class FinishedLines:
    """The database's side: the results in the order of completion, the newest of each line."""

    def __init__(self, *results: LineResult) -> None:
        self.results = {result.line: result for result in results}
        self.asked: list[int] = []

    def finish(self, result: LineResult) -> None:
        """A line is retried, and ends again."""
        self.results.pop(result.line, None)
        self.results[result.line] = result

    def standing(self, lines: Sequence[int]) -> Mapping[int, Standing]:
        self.asked.append(len(lines))
        known = [self.results[line] for line in lines if line in self.results]
        return {result.line: Standing(result.custom_id, result.turn_id) for result in known}

    def numbers(self, custom_ids: Sequence[str]) -> Mapping[str, int]:
        self.asked.append(len(custom_ids))
        # Those with a turn last: they win.
        ordered = sorted(self.results.values(), key=lambda result: result.turn_id is not None)
        numbers = {result.custom_id: result.line for result in ordered}
        return {custom_id: numbers[custom_id] for custom_id in custom_ids if custom_id in numbers}

    def total_once_final(self) -> int | None:
        return len(self.results)

    def new(self, *, is_final: bool) -> Iterator[Sequence[LineResult]]:
        return self.all()

    def all(self) -> Iterator[Sequence[LineResult]]:
        results = list(self.results.values())
        for start in range(0, len(results), 3):
            yield results[start : start + 3]


def entries(path: Path) -> list[dict[str, Any]]:
    """What is in a file; none, where there is no file."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def custom_ids(path: Path) -> list[str]:
    return [entry["custom_id"] for entry in entries(path)]
