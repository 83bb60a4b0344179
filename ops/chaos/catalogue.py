"""The names of all faults, for those who choose among them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ops.chaos.faults import beat, cleanup, disk, network, postgresql, redis, sqlite, workers
from ops.chaos.nemesis import KINDS, Attack

NOBODY: Any = None
"""An attack that is only listed needs nothing to hit."""


def catalogue() -> list[Attack]:
    """Every fault that a run on a deployment of ours may deal out, on either database."""
    anywhere = network.Way("worker", dict.fromkeys(network.KINDS, NOBODY))
    return [
        *workers.attacks(NOBODY, 1),
        *beat.attacks(NOBODY, 1),
        *cleanup.attacks(NOBODY, 1),
        *redis.attacks_over_url("", 1, may_lose=True),
        *redis.attacks_on_server(NOBODY, 1),
        *postgresql.attacks_over_url("", 1),
        *postgresql.attacks_on_server(NOBODY),
        *sqlite.attacks(NOBODY, 1),
        *disk.attacks(NOBODY, 1),
        *network.attacks([anywhere], 1, 1),
    ]


def words() -> set[str]:
    """What ``--faults`` takes: names, their groups (what stands before the dot), and kinds."""
    known = catalogue()
    return {attack.name for attack in known} | {group_of(attack.name) for attack in known} | set(KINDS)


def chosen(attacks: Sequence[Attack], wanted: Sequence[str]) -> list[Attack]:
    """Those whose name, group or kind is wanted; all, where nothing is."""
    return [
        attack
        for attack in attacks
        if not wanted or {attack.name, group_of(attack.name), attack.kind}.intersection(wanted)
    ]


def group_of(name: str) -> str:
    return name.partition(".")[0]


def listing() -> Iterator[str]:
    """A line for each, and what its author says of it."""
    for attack in catalogue():
        function = attack.hit.func if isinstance(attack.hit, partial) else attack.hit
        said = (function.__doc__ or "").strip().partition("\n")[0]
        yield f"{attack.name:<36} {attack.kind:<21} {said}".rstrip()
