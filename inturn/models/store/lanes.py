"""Lanes, and their pauses: a paused one takes prompts as ever, what runs ends as ever, and nothing more is claimed."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.states import Lane, ProcessKind
from inturn.models.store.opening import UPSERT
from inturn.models.store.presence import list_processes
from inturn.models.store.sweeping import unhinted
from inturn.models.store.waking import Ready
from inturn.models.tables import LANE_PAUSES, LEASES

HINTS_AT_ONCE = 100
"""One hint drains many sessions, and the sweep sends more: a resumed lane needs a start only."""


@dataclass(frozen=True, slots=True)
class LaneInfo:
    """A lane, and how much is in it.

    Attributes:
        paused_at: since when it is paused; None: it is not.
        waiting: sessions that are ready and that nobody has taken yet.
        running: sessions that a worker holds.
        workers: how many serve it and are alive.
    """

    lane: Lane
    paused_at: datetime | None
    waiting: int
    running: int
    workers: int


def pause(database: Database, lane: Lane) -> bool:
    """Stop claims of the lane. Returns whether it was not paused already."""

    def add(db: Connection) -> bool:
        once = UPSERT[db.dialect.name](LANE_PAUSES).values(lane=lane, paused_at=now())
        added = once.on_conflict_do_nothing(index_elements=["lane"]).returning(LANE_PAUSES.c.lane)
        return db.execute(added).first() is not None

    return database.transact(add)


def resume(database: Database, lane: Lane) -> tuple[bool, list[Ready]]:
    """Let claims of the lane go on.

    Returns:
        Whether it was paused, and sessions that workers must be told about now.
    """

    def take_away(db: Connection) -> tuple[bool, list[Ready]]:
        if not db.execute(delete(LANE_PAUSES).where(LANE_PAUSES.c.lane == lane)).rowcount:
            return False, []
        return True, unhinted(db, lane, 0.0, HINTS_AT_ONCE)

    return database.transact(take_away)


def list_lanes(database: Database, silent_seconds: float) -> list[LaneInfo]:
    """All lanes, in the order of ``Lane``."""
    with database.reading() as db:
        pauses = {row.lane: row.paused_at for row in db.execute(select(LANE_PAUSES))}
        waiting = _counted(db, LEASES.c.owner.is_(None), LEASES.c.ready_at <= now(), LEASES.c.halted_by.is_(None))
        running = _counted(db, LEASES.c.owner.is_not(None))
        processes = list_processes(db, silent_seconds)
    workers = [one for one in processes if one.alive and one.kind is ProcessKind.WORKER]
    served = Counter(lane for one in workers for lane in one.lanes.split(","))
    return [LaneInfo(lane, pauses.get(lane), waiting[lane], running[lane], served[lane]) for lane in Lane]


def _counted(db: Connection, *which: Any) -> Counter[str]:
    rows = db.execute(select(LEASES.c.lane, func.count().label("sessions")).where(*which).group_by(LEASES.c.lane))
    return Counter({row.lane: row.sessions for row in rows})
