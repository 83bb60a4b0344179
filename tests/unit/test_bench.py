"""The bench: what it makes of samples and finish times, and how it tells it."""

import argparse

import pytest

from ops.bench.__main__ import counts, listed
from ops.bench.filling import copied
from ops.bench.limits import a_minute, busiest
from ops.bench.meter import Reading, Sample, TooFewTurnsError, read
from ops.bench.rows import Row, as_json, from_json, rows_of
from ops.bench.table import render
from ops.bench.workload import Load

MEBIBYTE = 1024 * 1024


def reading(turns_per_second: float, worker: float, database: float | None = None) -> Reading:
    cpu = {"worker": worker} if database is None else {"worker": worker, "database": database}
    return Reading(turns_per_second, cpu, memory_kib=40.0, turns=1000)


def steady(seconds: int, cores: float) -> list[Sample]:
    return [Sample(at, {"worker": at * cores}, (100 + at) * MEBIBYTE) for at in range(seconds + 1)]


def test_cost_per_turn_is_read_between_the_first_and_the_last_sample():
    finished = [at / 100 for at in range(-500, 2000)]
    result = read(steady(10, cores=0.5), finished, in_flight=100, idle_memory=60 * MEBIBYTE)
    assert result.turns == 1000
    assert result.turns_per_second == pytest.approx(100)
    assert result.cpu_ms["worker"] == pytest.approx(5)
    assert result.memory_kib == pytest.approx(50 * 1024 / 100)


def test_a_few_turns_say_nothing():
    with pytest.raises(TooFewTurnsError, match="3 turns"):
        read(steady(10, cores=1), [1.0, 2.0, 3.0], 100, 0)


def test_a_ratio_is_one_of_medians():
    ours = [reading(800, 1.0), reading(900, 9.0), reading(850, 1.2)]
    bare = [reading(400, 2.4), reading(300, 2.0), reading(350, 7.0)]
    speed, cpu = rows_of("sqlite", 1000, ours, {"bare loop": bare}, ["throughput", "cpu"])
    assert (speed.value, speed.baseline, speed.ratio) == (850, 350, 850 / 350)
    assert (cpu.name, cpu.value, cpu.baseline, cpu.ratio) == ("worker CPU per turn", 1.2, 2.4, 0.5)


def test_a_figure_that_the_baseline_lacks_has_no_ratio():
    rows = rows_of("postgresql", 200, [reading(200, 1.0, 0.3)], {"bare": [reading(200, 2.0)]}, ["cpu"])
    assert [(row.name, row.ratio) for row in rows] == [("worker CPU per turn", 0.5), ("database CPU per turn", None)]


def test_rows_against_a_second_baseline_are_named_after_it():
    baselines = {"ORM": [reading(200, 2.0)], "raw": [reading(200, 0.8)]}
    rows = rows_of("postgresql", 200, [reading(200, 1.0)], baselines, ["cpu"])
    assert [(row.name, row.against, row.ratio) for row in rows] == [
        ("worker CPU per turn", "ORM", 0.5),
        ("worker CPU per turn (raw)", "raw", 1.25),
    ]


def test_json_gives_the_rows_back():
    rows = [
        Row("worker CPU per turn", "postgresql", 1000, 0.9, "ms", 2.7, 1 / 3, "bare loop"),
        Row("broker CPU per turn", "sqlite", 200, 0.01, "ms"),
    ]
    assert from_json(as_json(rows, {"commit": "abc"})) == rows


def test_the_table_is_aligned():
    rows = [
        Row("turns per second", "postgresql", 1000, 853.4, "1/s", 350.2, 2.437, "bare loop"),
        Row("inturn --help", "", None, 0.1234, "s"),
    ]
    assert render(rows, {"commit": "abc"}).splitlines() == [
        "commit:    abc",
        "",
        "row               database    in flight  inturn  baseline  unit  ratio  against",
        "-------------------------------------------------------------------------------",
        "turns per second  postgresql       1000     853       350  1/s    2.44  bare loop",
        "inturn --help     -                   -   0.123         -  s         -  -",
    ]


def test_a_load_has_more_turns_than_can_be_worked_off():
    load = Load(in_flight=200, seconds=7)
    assert load.sessions * 4 > 200 * 7 + 200


def test_names_are_picked_out_of_a_list():
    assert listed("cpu, help", ("throughput", "cpu", "help")) == ["cpu", "help"]
    assert listed("", ("cpu", "help")) == ["cpu", "help"]
    with pytest.raises(argparse.ArgumentTypeError, match="'gpu' is none of cpu, help"):
        listed("gpu", ("cpu", "help"))


@pytest.mark.parametrize("text", ["0", "200,-1", "many", ""])
def test_in_flight_is_positive_numbers(text):
    with pytest.raises(argparse.ArgumentTypeError):
        counts(text)


def test_the_busiest_time_is_the_one_that_holds_most():
    moments = [0.0, 1.0, 30.0, 59.0, 60.0, 60.5, 100.0]
    assert [busiest(moments, seconds) for seconds in (0.4, 1.0, 60.0, 200.0)] == [1, 2, 5, 7]
    assert busiest([], 60.0) == 0
    assert a_minute([0.0, 10.0, 30.0]) == 4


def test_a_copied_row_belongs_to_the_other_session():
    assert copied("sessions", {"id": 1, "key": "bench-1"}, 7) == {"id": 7, "key": "bench-7"}
    assert copied("turns", {"session_id": 1, "number": 2}, 7) == {"session_id": 7, "number": 2}
