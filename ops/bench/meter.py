"""Reads what processes cost while a subject is under load, and turns it into cost per turn.

The subject is not asked anything while it runs: CPU and memory are sampled from outside, and the database says
afterwards when each turn was finished. Both are wall clock times of one machine, so one can be laid over the other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

SAMPLE_SECONDS = 0.5
FEWEST_TURNS = 100


class TooFewTurnsError(Exception):
    """The subject finished too little to say anything about it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was used up so far: CPU in seconds by part, memory in bytes."""

    at: float
    cpu: dict[str, float]
    memory: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What one run showed in its steady state.

    Attributes:
        turns_per_second: finished turns.
        cpu_ms: CPU milliseconds per turn, by part (``worker``, ``database``, ``broker``).
        memory_kib: growth of the resident memory over the idle worker, for each turn in flight.
        turns: how many turns this was read from.
    """

    turns_per_second: float
    cpu_ms: dict[str, float]
    memory_kib: float
    turns: int


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, those that ended included."""
    total = 0.0
    for process in family(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # its parent carries its time from now on
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(pid: int) -> int:
    return sum(process.memory_info().rss for process in family(pid))


def sample(parts: dict[str, int]) -> Sample:
    """One sample; ``parts`` maps the names of parts to process IDs and has a ``worker``.

    Raises:
        psutil.NoSuchProcess: a part died.
    """
    cpu = {part: cpu_seconds(pid) for part, pid in parts.items()}
    return Sample(time.time(), cpu, memory_bytes(parts["worker"]))


def watch(parts: dict[str, int], seconds: float) -> list[Sample]:
    """Sample for so long.

    Raises:
        psutil.NoSuchProcess: a part died.
    """
    samples, end = [sample(parts)], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(SAMPLE_SECONDS)
        samples.append(sample(parts))
    return samples


def read(samples: Sequence[Sample], finished: Sequence[float], in_flight: int, idle_memory: int) -> Reading:
    """Cost per turn between the first and the last sample.

    Args:
        samples: in order; the first one taken when every slot was at work.
        finished: when each turn was finished, in seconds since the epoch.
        in_flight: turns in flight at once.
        idle_memory: bytes of the worker before the load.

    Raises:
        TooFewTurnsError: fewer than 100 turns were finished in that time.
    """
    first, last = samples[0], samples[-1]
    turns = sum(first.at < at <= last.at for at in finished)
    if turns < FEWEST_TURNS:
        raise TooFewTurnsError(f"{turns} turns were finished, and {FEWEST_TURNS} are the least to read from")
    return Reading(
        turns_per_second=turns / (last.at - first.at),
        cpu_ms={part: 1000 * (seconds - first.cpu[part]) / turns for part, seconds in last.cpu.items()},
        memory_kib=(max(each.memory for each in samples) - idle_memory) / 1024 / in_flight,
        turns=turns,
    )


def part(values: Sequence[float], hundredths: int) -> float:
    """The value that so many hundredths of them lie below."""
    return sorted(values)[len(values) * hundredths // 100]
