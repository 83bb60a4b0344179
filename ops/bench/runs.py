"""The order of things: all subjects are prepared, then run in turns, so that a busy minute hits all alike."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ops.bench.inturn_subject import Inturn
from ops.bench.meter import Reading, TooFewTurnsError
from ops.bench.processes import ChildFailedError
from ops.bench.rows import Row, compared, rows_of
from ops.bench.subject import Subject
from ops.bench.workload import Load

SATURATED = 2500
"""In flight: more than one worker answers in a second, which is what a call takes."""


@dataclass(frozen=True, slots=True)
class Contest:
    """Inturn and the baselines that it is compared with, on one database; the first baseline is the target."""

    ours: Subject
    baselines: Sequence[Subject]

    @property
    def subjects(self) -> list[Subject]:
        return [*self.baselines, self.ours]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def summary(reading: Reading) -> str:
    cpu = ", ".join(f"{part} {ms:.2f} ms" for part, ms in reading.cpu_ms.items())
    return f"{reading.turns_per_second:.0f} turns/s, {cpu}, {reading.memory_kib:.0f} KiB per turn in flight"


def saturation_of(ours: Inturn, seconds: float, repeat: int) -> float:
    """Turns per second that one worker is able to do, the median of some runs."""
    load = Load(SATURATED, seconds)
    ours.prepare(load)
    return median(ours.run(load).turns_per_second for _ in range(repeat))


def scale(ours: Inturn, load: Load, repeat: int) -> Row:
    """What two workers carry beside one, with as much in flight together."""
    ours.prepare(load)
    readings: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeat):
        for workers, found in readings.items():
            found.append(ours.run(load, workers).turns_per_second)
            say(f"{ours.database}, {load.in_flight} in flight, {workers} worker(s): {found[-1]:.0f} turns/s")
    one, two = (median(found) for found in readings.values())
    return compared("turns per second, two workers", ours.database, load.in_flight, two, "1/s", one, "one worker")


def contend(contest: Contest, load: Load, repeat: int, groups: Sequence[str], failures: list[str]) -> list[Row]:
    """Run every subject ``repeat`` times under one load. What fails is added to ``failures``, and left out."""
    database = contest.ours.database
    say(f"{database}, {load.in_flight} in flight: preparing {load.sessions} sessions")
    for subject in contest.subjects:
        subject.prepare(load)
    readings: dict[str, list[Reading]] = {subject.name: [] for subject in contest.subjects}
    for turn in range(1, repeat + 1):
        for subject in contest.subjects:
            where = f"{database}, {load.in_flight} in flight, run {turn}/{repeat}, {subject.name}"
            try:
                reading = subject.run(load)
            except (ChildFailedError, TooFewTurnsError) as error:
                failures.append(f"{where}: {error}")
                say(failures[-1])
            else:
                readings[subject.name].append(reading)
                say(f"{where}: {summary(reading)}")
    ours = readings.pop(contest.ours.name)
    return rows_of(database, load.in_flight, ours, readings, groups)
