"""What a recorded run leaves, and what counts as drift."""

from pathlib import Path
from typing import Any

import pytest

from ops.chaos.results import COUNTS, PREAMBLE, TIMES, record
from ops.chaos.soak import drift_of, drifts

NONE = {"count": 0}


def row(**changes: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "date": "2026-01-01 12:00", "commit": "abc1234*", "database": "sqlite", "seconds": 60, "seed": 7,
        "accepted": 3000, "lost": 1, "duplicate_replies": 2, "order_violations": 0,
        "violations": {"lost": 1, "doubled": 2, "left": 4}, "faults": {"kill": 3, "pause": 1},
        "extra_calls": {"pause": 1, "kill": 5}, "overlaps": {}, "drain": {"count": 2, "p50_s": 0.5, "p99_s": 1.25},
        "recovery": {
            "kill": {"count": 9, "p50_s": 1.5, "p99_s": 2.75}, "redis_wiped": NONE, "redis_restarted": NONE,
            "postgresql_restarted": NONE,
        },
        "send": {"healthy": {"count": 9, "p50_ms": 3.5, "p99_ms": 12.0}, "redis_frozen": NONE, "redis_down": NONE},
    }  # fmt: skip
    return figures | changes


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_run_adds_a_row_to_each_table(tmp_path: Path):
    path = tmp_path / "RESULTS.md"
    record(row(), path)
    once = path.read_text()
    record(row(seed=8), path)
    text = path.read_text()
    assert text.startswith(PREAMBLE)
    assert len(text.splitlines()) == len(once.splitlines()) + 2
    rows = [cells(line) for line in text.splitlines() if line.startswith("| 2026")]
    known_by = ["2026-01-01 12:00", "abc1234*", "sqlite", "60"]
    assert rows[0] == [*known_by, "7", "3000", "1", "2", "0", "4", "4", "kill 5, pause 1", "0"]
    assert rows[1] == [*known_by, "8", *rows[0][5:]]
    assert rows[2] == [*known_by, "7", "1.5 / 2.75", "-", "-", "-", "3.5 / 12", "-", "-", "0.5 / 1.25"]
    assert [len(each) for each in rows] == [len(COUNTS)] * 2 + [len(TIMES)] * 2


def test_what_somebody_else_wrote_is_no_place_for_rows(tmp_path: Path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Notes\n")
    with pytest.raises(ValueError, match="has no part"):
        record(row(), path)


def series(*values: float) -> list[tuple[float, float]]:
    return [(5.0 * number, value) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "values", "is_drift"),
    [
        ("beat memory", [100 + number for number in range(100)], True),
        ("beat memory", [60 + 2 * number if number < 20 else 100 for number in range(100)], False),
        ("beat memory", [100 + number % 7 for number in range(100)], False),
        ("beat memory", [10 + number / 10 for number in range(100)], False),
        ("beat descriptors", [20 + number / 5 for number in range(100)], True),
        ("redis connections", [10 + number % 2 for number in range(100)], False),
        ("redis connections", [200 - number for number in range(100)], False),
    ],
    ids=["grows", "warms up", "swings", "little", "descriptors", "one more or less", "falls"],
)
def test_drift_is_growth_that_goes_on(name: str, values: list[float], is_drift: bool):
    assert drift_of(name, series(*values)).is_drift is is_drift


def test_a_short_series_says_nothing():
    assert drifts({"beat memory": series(1, 2, 3)}) == []
