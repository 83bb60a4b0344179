"""Faults of workers: killed, stopped, and replaced by others, as machines, kernels and deploys do it."""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ops.chaos.fleet import Fleet, Process
from ops.chaos.nemesis import Attack, NothingToHitError

HASTE_SECONDS = (0.0, 1.0)
"""From SIGTERM to SIGKILL, where a deploy is in a hurry."""


def attacks(fleet: Fleet, lease_seconds: float) -> list[Attack]:
    short, long = (0.1 * lease_seconds, 0.6 * lease_seconds), (1.2 * lease_seconds, 2 * lease_seconds)
    return [
        Attack("workers.kill_busiest", "kill", partial(kill_busiest, fleet)),
        Attack("workers.kill_any", "kill", partial(kill_any, fleet)),
        Attack("workers.kill_everybody", "kill", partial(kill_everybody, fleet), (0, 1)),
        Attack("workers.pause_briefly", "pause", partial(pause, fleet), short, silences=True),
        Attack("workers.pause_beyond_lease", "pause", partial(pause, fleet), long, silences=True),
        Attack("workers.roll", "deploy", partial(roll, fleet)),
        Attack("workers.roll_without_grace", "deploy", partial(roll_without_grace, fleet)),
    ]


def busiest(fleet: Fleet) -> Process:
    if worker := fleet.busy_worker():
        return worker
    raise NothingToHitError


@contextmanager
def kill_busiest(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL for the one that holds most sessions; its successor is started at once."""
    yield kill(fleet, busiest(fleet))


@contextmanager
def kill_any(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL, perhaps for one that has only just been started."""
    yield kill(fleet, dice.choice(fleet.workers))


def kill(fleet: Fleet, victim: Process) -> dict[str, Any]:
    sessions = fleet.sessions_of(victim)
    seat = fleet.seat(victim)
    fleet.kill(victim)
    fleet.add_worker(seat)
    return {"pid": victim.pid, "sessions": sessions}


@contextmanager
def kill_everybody(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL for all workers, beat, and what they have started: the power has gone."""
    victims, beats = list(fleet.workers), list(fleet.beats)
    seats = [fleet.seat(victim) for victim in victims]
    detail = {"pids": [victim.pid for victim in victims], "sessions": fleet.sessions_of(*victims)}
    for process in (*victims, *beats):
        fleet.kill(process, group=True)
    try:
        yield detail
    finally:
        fleet.add_beat()
        for seat in seats:
            fleet.add_worker(seat)


@contextmanager
def pause(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGSTOP: as a virtual machine that is moved, or a process in a swamp of memory."""
    victim = busiest(fleet)
    sessions = fleet.sessions_of(victim)
    victim.send_signal(signal.SIGSTOP)
    try:
        yield {"pid": victim.pid, "sessions": sessions}
    finally:
        victim.send_signal(signal.SIGCONT)


@contextmanager
def roll(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGTERM for one after the other, when their successors are at work."""
    drains, leaving = [], list(fleet.workers)
    for worker in leaving:
        fleet.add_worker(fleet.seat(worker))
    fleet.await_workers()
    for worker in leaving:
        before = time.monotonic()
        fleet.retire(worker)
        drains.append(round(time.monotonic() - before, 2))
    yield {"drains": drains}


@contextmanager
def roll_without_grace(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGTERM, and SIGKILL soon after."""
    sessions = []
    for worker in list(fleet.workers):
        fleet.add_worker(fleet.seat(worker))
        sessions += fleet.sessions_of(worker)
        fleet.dismiss(worker, dice.uniform(*HASTE_SECONDS))
    yield {"sessions": sessions, "without_grace": True}
