"""Faults of beat: none, or two at once."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ops.chaos.fleet import Fleet
from ops.chaos.nemesis import Attack


def attacks(fleet: Fleet, longest: float) -> list[Attack]:
    length = (min(2.0, longest), longest)
    return [
        Attack("beat.dead", "beat", partial(dead, fleet), length),
        Attack("beat.twice", "beat", partial(twice, fleet), length),
    ]


@contextmanager
def dead(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL: the workers sweep without it."""
    for beat in list(fleet.beats):
        fleet.kill(beat)
    try:
        yield {}
    finally:
        fleet.add_beat()


@contextmanager
def twice(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """A second one, as after a deploy that forgot the first."""
    second = fleet.add_beat()
    try:
        yield {"pid": second.pid}
    finally:
        if second in fleet.beats:
            fleet.kill(second)
