"""The nemesis: deals out faults, one after the other, in an order that its seed decides.

What a fault does, and how it is undone, is an ``Attack``; they live in ``faults/``, in files named after what they hit.
What has happened is a ``Fault``: the checker needs to know, since some of them excuse what nothing else does.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from inturn.workers.maintenance import LATE

PAUSE_SECONDS = (0.3, 3.0)
"""Between two faults."""
MEASURED = {"kill", "redis_wiped", "redis_restarted", "postgresql_restarted"}
"""Kinds after which it matters how soon work goes on."""
ALONE_SECONDS = 5.0
"""How long every other one of those is followed by nothing, so that this is seen."""
IMPATIENCE = 0.3
"""How often the next fault does not wait until everybody is at work again."""

LATE_BEAT = re.compile(rf"^\[(\S+ [\d:]+),\d+: .*{re.escape(LATE)}=([\d.]+)", re.MULTILINE)

Hit = Callable[[random.Random], AbstractContextManager[dict[str, Any]]]
"""Begins a fault, yields what is worth knowing about it, and undoes it at the end, whatever happens in between."""


class NothingToHitError(Exception):
    """The fault finds nothing that it could hit now."""


@dataclass(frozen=True)
class Fault:
    """One that has happened.

    Attributes:
        name: of the attack, such as ``workers.kill_busiest``.
        kind: what it comes down to for those who look at the figures, one of ``KINDS``.
        began, ended: Unix time in seconds. Undoing it is over at ``ended``: who was killed has a successor, say.
        detail: such as ``sessions``, the surrogate IDs that a killed worker held; ``drains``, how many seconds each
            worker of a rolling restart took to leave; ``outlasts_lease``; ``after_recovery``, whether everybody was at
            work again when it began; ``left_alone``, whether nothing else happened for a while afterwards.
    """

    name: str
    kind: str
    began: float
    ended: float
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def may_overlap(self) -> bool:
        """Whether somebody alive may have lost leases over it: calls of one session may then overlap."""
        return bool(self.detail.get("outlasts_lease"))


KINDS = {
    "kill": "workers ended by SIGKILL",
    "pause": "workers stopped by SIGSTOP",
    "deploy": "workers ended by SIGTERM, one by one",
    "beat": "no beat, or two",
    "cleanup": "cleanups ended by SIGKILL, or stopped by SIGSTOP",
    "partition": "workers cut off from Redis or from the database",
    "model": "workers cut off from the model",
    "redis_wiped": "Redis emptied",
    "redis_restarted": "Redis ended by SIGKILL, and started again",
    "redis_frozen": "Redis stopped by SIGSTOP",
    "redis_other": "Redis out of memory, or hanging up",
    "postgresql_restarted": "PostgreSQL ended as by a crash, and started again",
    "postgresql_other": "locks held, connections ended or used up",
    "sqlite": "the file locked by a stranger, the disk full",
    "command": "a command of the user's own",
    "stall": "workers that said themselves that their heartbeat was late (nobody's doing: the machine is that busy)",
}


@dataclass(frozen=True)
class Attack:
    """A fault that may happen.

    Attributes:
        seconds: how long it lasts, at least and at most.
        silences: whether workers that live cannot renew their leases meanwhile.
    """

    name: str
    kind: str
    hit: Hit
    seconds: tuple[float, float] = (0, 0)
    silences: bool = False


class Nemesis:
    """Deals out attacks.

    Args:
        patience: how many seconds a worker may be silent before it can lose its leases.
        settle: waits until everybody is at work again.
        alone: for how many seconds every other fault of those that are measured is followed by nothing.
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        seed: int,
        patience: float,
        pause: tuple[float, float] = PAUSE_SECONDS,
        settle: Callable[[], object] = lambda: None,
        alone: float = ALONE_SECONDS,
    ) -> None:
        self.current = ""
        self._settle, self._alone = settle, alone
        self._attacks, self._patience, self._pause = list(attacks), patience, pause
        self._dice = random.Random(seed)
        self._deck: list[Attack] = []

    def run(self, goes_on: Callable[[], bool]) -> Iterator[Fault]:
        """Deal out faults while somebody wants them. Each is undone before the next one begins, and before we leave."""
        while goes_on():
            if waits := self._dice.random() > IMPATIENCE:
                self._settle()
            time.sleep(self._dice.uniform(*self._pause))
            if self._attacks and goes_on() and (fault := self._deal(self._draw())):
                fault.detail["after_recovery"] = waits
                fault.detail["left_alone"] = fault.kind in MEASURED and self._dice.random() < 0.5
                if fault.detail["left_alone"]:
                    time.sleep(self._alone)
                yield fault

    def _draw(self) -> Attack:
        """Each once before any comes again: a short run should see many."""
        if not self._deck:
            self._deck = self._dice.sample(self._attacks, len(self._attacks))
        return self._deck.pop()

    def _deal(self, attack: Attack) -> Fault | None:
        seconds = self._dice.uniform(*attack.seconds)
        self.current = attack.name
        began = time.time()
        try:
            with attack.hit(self._dice) as detail:
                time.sleep(seconds)
        except NothingToHitError:
            return None
        finally:
            self.current = ""
        ended = time.time()
        if attack.silences and ended - began > self._patience:
            detail["outlasts_lease"] = True
        return Fault(attack.name, attack.kind, began, ended, detail)


def stalls(logs: Path, faults: Sequence[Fault], patience: float) -> list[Fault]:
    """Faults that nobody dealt out: for how long workers were without a heartbeat, by their own words.

    Args:
        logs: the directory in which processes wrote what they had to say.
        faults: those that were dealt out: who was stopped by one of them was stalled by that.
        patience: how many seconds a worker may be silent before it can lose its leases.
    """
    silenced = [fault for fault in faults if fault.may_overlap]
    found = []
    for log in sorted(logs.glob("said.*")):
        for at, seconds in LATE_BEAT.findall(log.read_text(errors="replace")):
            ended = datetime.fromisoformat(at).timestamp()
            began = ended - float(seconds)
            if not any(fault.began - 1 <= ended and began <= fault.ended + 1 for fault in silenced):
                detail = {"outlasts_lease": float(seconds) > patience}
                found.append(Fault("machine.stall", "stall", began, ended, detail))
    return found
