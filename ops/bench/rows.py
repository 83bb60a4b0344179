"""The bench's result: rows, each a figure of inturn and its ratio to a baseline of the same run."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from ops.bench.meter import Reading


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        database: ``postgresql``, ``sqlite``, or empty where there is none.
        in_flight: turns in flight; None where that means nothing.
        value: inturn's figure, a median.
        unit: of value and baseline.
        baseline: the baseline's figure, a median; None where nothing compares.
        ratio: value over baseline.
        against: which baseline.
    """

    name: str
    database: str
    in_flight: int | None
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    against: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of row: its name, unit, the ``--rows`` group it is in, and how it is read from a run."""

    group: str
    name: str
    unit: str
    of: Callable[[Reading], float | None]


def cpu_of(part: str) -> Callable[[Reading], float | None]:
    return lambda reading: reading.cpu_ms.get(part)


FIGURES = (
    Figure("throughput", "turns per second", "1/s", lambda reading: reading.turns_per_second),
    Figure("cpu", "worker CPU per turn", "ms", cpu_of("worker")),
    Figure("cpu", "database CPU per turn", "ms", cpu_of("database")),
    Figure("cpu", "broker CPU per turn", "ms", cpu_of("broker")),
    Figure("memory", "memory per turn in flight", "KiB", lambda reading: reading.memory_kib),
)
LOAD_GROUPS = tuple(dict.fromkeys(figure.group for figure in FIGURES))
GROUPS = (
    *LOAD_GROUPS,
    "workers",
    "latency",
    "history",
    "send",
    "lanes",
    "limits",
    "streams",
    "batches",
    "retention",
    "start",
    "help",
)


def middle(figure: Figure, readings: Iterable[Reading]) -> float | None:
    """The median of a figure; None if the runs do not have it."""
    values = [value for value in map(figure.of, readings) if value is not None]
    return median(values) if values else None


def compared(
    name: str, database: str, in_flight: int | None, value: float, unit: str, baseline: float | None, against: str
) -> Row:
    """A row with its ratio, or without one where the baseline has no such figure."""
    if not baseline:
        return Row(name, database, in_flight, value, unit)
    return Row(name, database, in_flight, value, unit, baseline, value / baseline, against)


def in_ms(
    name: str,
    database: str,
    seconds: float,
    in_flight: int | None = None,
    baseline: float | None = None,
    against: str = "",
) -> Row:
    """A row of a time; both are given in seconds."""
    return compared(name, database, in_flight, seconds * 1000, "ms", baseline and baseline * 1000, against)


def rows_of(
    database: str,
    in_flight: int,
    ours: Sequence[Reading],
    baselines: Mapping[str, Sequence[Reading]],
    groups: Iterable[str],
) -> list[Row]:
    """The rows of one load.

    Args:
        database: which one.
        in_flight: turns in flight.
        ours: inturn's runs.
        baselines: runs by the baseline's name; the first is the target, rows against others are named after them.
        groups: which figures.
    """
    rows = []
    for figure in FIGURES:
        value = middle(figure, ours)
        if figure.group not in groups or value is None:
            continue
        for place, (against, readings) in enumerate(baselines.items()):
            name = figure.name if place == 0 else f"{figure.name} ({against})"
            row = compared(name, database, in_flight, value, figure.unit, middle(figure, readings), against)
            if place == 0 or row.ratio is not None:
                rows.append(row)
    return rows


def as_json(rows: Iterable[Row], circumstances: Mapping[str, str]) -> str:
    return json.dumps({"circumstances": circumstances, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"


def from_json(text: str) -> list[Row]:
    """The rows of an earlier run.

    Raises:
        ValueError: this is no JSON.
        KeyError: it has no rows.
        TypeError: a row has other fields.
    """
    return [Row(**row) for row in json.loads(text)["rows"]]
