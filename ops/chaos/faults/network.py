"""Faults of the network: processes are cut off from the database, from Redis, from the model, or reach them slowly."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ops.chaos.nemesis import Attack, Hit
from ops.chaos.proxy import Mode, Proxy

GONE = (Mode.REFUSE, Mode.FREEZE, Mode.RESET)
DELAY_SECONDS = (0.005, 0.05)
CUT_BYTES = (1, 20_000)
KINDS = {"database": "partition", "redis": "partition", "model": "model"}


@dataclass(frozen=True)
class Way:
    """A process's way to its upstreams: proxies by the upstream's name."""

    user: str
    proxies: Mapping[str, Proxy]


def attacks(ways: Sequence[Way], longest: float, lease_seconds: float) -> list[Attack]:
    """What may happen on these ways, by upstream: to one worker, or to everybody."""
    workers = [way for way in ways if way.user.startswith("worker")]
    beyond_lease = (1.2 * lease_seconds, 2 * lease_seconds)
    found = []
    for upstream, kind in KINDS.items():
        if upstream not in ways[0].proxies:
            continue
        hits: dict[str, tuple[Hit, tuple[float, float]]] = {
            "cut_off_worker_from": (partial(cut_off_one, workers, upstream), beyond_lease),
            "cut_off_all_from": (partial(cut_off, ways, upstream), (0.2, longest)),
            "slow": (partial(slow, ways, upstream), (0.5, longest)),
            "cut_messages_of": (partial(cut, ways, upstream), (0.5, 2)),
        }
        found += [
            Attack(f"network.{name}_{upstream}", kind, hit, seconds, silences=upstream == "database")
            for name, (hit, seconds) in hits.items()
        ]
    return found


@contextmanager
def turned(ways: Sequence[Way], upstream: str, mode: Mode, **how: Any) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        for way in ways:
            stack.enter_context(way.proxies[upstream].turned(mode, **how))
        yield {"mode": str(mode), "users": [way.user for way in ways]} | how


@contextmanager
def cut_off(ways: Sequence[Way], upstream: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """Connections are refused, reset, or open and dead."""
    with turned(ways, upstream, dice.choice(GONE)) as detail:
        yield detail


@contextmanager
def cut_off_one(ways: Sequence[Way], upstream: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """One worker alone, for longer than a lease: the others go on, and take over what it held."""
    with cut_off([dice.choice(ways)], upstream, dice) as detail:
        yield detail


@contextmanager
def slow(ways: Sequence[Way], upstream: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """Each message takes its time."""
    with turned(ways, upstream, Mode.SLOW, delay=dice.uniform(*DELAY_SECONDS)) as detail:
        yield detail


@contextmanager
def cut(ways: Sequence[Way], upstream: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """Each connection ends in the middle of a message, sooner or later."""
    with turned(ways, upstream, Mode.CUT, left=dice.randint(*CUT_BYTES)) as detail:
        yield detail
