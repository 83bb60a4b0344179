"""What a deployment's state shows in: how much is ready and for how long, who is alive, what the clock should have done."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, func, literal, select, union_all

from inturn.models.clock import now
from inturn.models.states import Lane, ProcessKind
from inturn.models.tables import LEASES, SCHEDULES, TICKS, WORKER_PROCESSES

COUNTED = 10_000
"""Ready sessions that are counted per lane, at most: so many take some milliseconds, and every process asks."""


@dataclass(frozen=True, slots=True)
class Overview:
    """How it is at one moment.

    Attributes:
        ready: sessions per lane that are ready and that nobody has taken, up to ``COUNTED``.
        oldest: since when the first of them has been.
        alive: processes of each kind.
        last_tick: when a beat last asked for a cleanup; None: none ever did.
        schedules_due: runs that a beat should have sent by now.
    """

    ready: dict[Lane, int]
    oldest: dict[Lane, timedelta]
    alive: dict[ProcessKind, int]
    last_tick: datetime | None
    schedules_due: int


def look(db: Connection, cleanup: str, silent_seconds: float) -> Overview:
    """Look at all of it, by indexes only.

    Args:
        cleanup: the name of the cleanup's ticks.
        silent_seconds: a process is alive if it was heard of within them.
    """
    lanes = db.execute(union_all(*map(_ready, Lane))).all()
    is_alive = WORKER_PROCESSES.c.heartbeat_at > now(-silent_seconds)
    alive = select(WORKER_PROCESSES.c.kind, func.count()).where(is_alive).group_by(WORKER_PROCESSES.c.kind)
    known = {row[0]: row[1] for row in db.execute(alive)}
    tick = select(func.max(TICKS.c.fired_at)).where(TICKS.c.name == cleanup)
    due = select(func.count()).select_from(SCHEDULES).where(SCHEDULES.c.next_at <= now())
    clock = select(now().label("present"), tick.scalar_subquery().label("tick"), due.scalar_subquery().label("due"))
    row = db.execute(clock).one()
    return Overview(
        ready={Lane(lane): ready for lane, ready, _ in lanes},
        oldest={Lane(lane): _since(oldest, row.present) for lane, _, oldest in lanes},
        alive={kind: known.get(kind, 0) for kind in ProcessKind},
        last_tick=row.tick,
        schedules_due=row.due,
    )


def _ready(lane: Lane) -> Select[Any]:
    present = select(now()).scalar_subquery()  # to PostgreSQL's index a clock is no bound, and a subquery is one
    mine = (
        LEASES.c.lane == lane,
        LEASES.c.owner.is_(None),
        LEASES.c.ready_at <= present,
        LEASES.c.halted_by.is_(None),
    )
    by_age = select(LEASES.c.ready_at).where(*mine).order_by(LEASES.c.ready_at)
    counted = select(func.count()).select_from(by_age.limit(COUNTED).subquery())
    return select(literal(str(lane)), counted.scalar_subquery(), by_age.limit(1).scalar_subquery())


def _since(oldest: datetime | None, present: datetime) -> timedelta:
    return max(present - oldest, timedelta(0)) if oldest else timedelta(0)
