"""How far a batch is, in words and in a terminal."""

import io
import sys

import pytest
from rich.console import Console

from inturn.cli.batch import gauge
from inturn.cli.batch.gauge import Pace, Reading, counts, drawn, figures, roughly, short
from inturn.models.states import BatchState
from inturn.models.store.batches import Progress

RUNNING = Progress(
    BatchState.IN_PROGRESS, 1_000_000, 1_000_000, completed=812_345, failed=1_234, queued=181_421, retrying=56,
    running=5_000, input_tokens=123_456_789, output_tokens=45_678_901, price=1234.56,
)  # fmt: skip


def paced(*seen: tuple[float, int]) -> Pace:
    times = iter([when for when, _ in seen])
    pace = Pace(lambda: next(times))
    for _, done in seen:
        pace.note(done)
    return pace


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (42.4, "42s"), (60, "1m"), (725, "12m 5s"), (12_000, "3h 20m"), (442_800, "5d 3h"), (-3, "0s")],
)
def test_a_while_is_told_in_two_units(seconds: float, said: str) -> None:
    assert roughly(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (8_400, "8,400"), (12_345, "12.3k"), (999_999, "1000.0k"), (4_560_000, "4.6M"), (2 * 10**9, "2,000.0M")],
)
def test_many_tokens_are_told_shortly(number: int, said: str) -> None:
    assert short(number) == said


def test_a_pace_is_that_of_late() -> None:
    assert paced().per_second is None
    assert paced((0, 0), (0.5, 100)).per_second is None, "too short a while to tell"
    assert paced((0, 0), (10, 100)).per_second == 10
    # A fast beginning is forgotten: 100 in the last half minute.
    assert paced((0, 0), (10, 5_000), (40, 5_100)).per_second == pytest.approx(100 / 30)
    assert paced((0, 900), (10, 1_000), (20, 200), (30, 300)).per_second == 10, "lines were sent again"
    assert paced((0, 0), (10, 100)).seconds_left(50) == 5
    assert paced((0, 7), (10, 7)).seconds_left(50) is None


def test_a_million_lines_fit_into_a_terminal() -> None:
    reading = Reading(
        "batch-0123456789abcdef  reviews  in_progress", "813,579 of 1,000,000  81 %", 813_579, 1_000_000,
        [counts(RUNNING), figures(RUNNING, paced((0, 0), (30, 37_000)))],
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    console.print(drawn(reading))
    assert isinstance(console.file, io.StringIO)
    title, bar, states, used = console.file.getvalue().splitlines()
    assert title.rstrip() == "batch-0123456789abcdef  reviews  in_progress"
    assert bar.endswith("  813,579 of 1,000,000  81 %")
    assert states.rstrip() == "812,345 done   1,234 failed   56 retrying   5,000 in flight   181,365 waiting"
    assert used.rstrip() == "1,233 turns/s   123.5M tokens in, 45.7M out, 1,234.56 US dollars   2m 31s left"
    assert max(map(len, (title, bar, states, used))) <= 80


def test_what_is_shown_is_clean() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(drawn(Reading("red\x1b[31m [bold]x", "0", 0, None)))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().startswith("red [bold]x")


def test_where_there_is_no_terminal_a_line_comes_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not sys.stderr.isatty()
    now = 0.0
    monkeypatch.setattr("inturn.cli.batch.gauge.time.monotonic", lambda: now)
    with gauge.gauge(stays=True) as show:
        for now in (0.0, 4.9, 5.1, 6.0, 10.0, 10.2):
            show(Reading("storing x", f"{now:g} lines", 0, 1, [["1 done", "2 failed"], ["3 out"]]))
    assert capsys.readouterr().err.splitlines() == [
        "storing x: 5.1 lines, 1 done, 2 failed, 3 out",
        "storing x: 10.2 lines, 1 done, 2 failed, 3 out",
    ]
