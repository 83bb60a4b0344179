"""When a session is ready: its unowned lease says what its lowest waiting turn says, and workers are told."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, null, or_, select, update

from inturn.models.clock import now
from inturn.models.states import Lane, TurnState
from inturn.models.tables import LANE_PAUSES, LEASES, SESSIONS, TURNS


@dataclass(frozen=True, slots=True)
class Ready:
    """A session with work that waits for a hint."""

    session_id: int
    key: str
    lane: Lane


def list_ready(db: Connection, sessions: Sequence[int]) -> list[Ready]:
    """The sessions, as their hints name them."""
    rows = db.execute(
        select(LEASES.c.session_id, SESSIONS.c.key, LEASES.c.lane)
        .join(SESSIONS, SESSIONS.c.id == LEASES.c.session_id)
        .where(LEASES.c.session_id.in_(sessions))
    )
    return [Ready(row.session_id, row.key, Lane(row.lane)) for row in rows]


def make_ready(db: Connection, session_id: int) -> bool:
    """Set an unowned lease by the session's lowest waiting turn; the caller holds its lock.

    Returns: whether that turn may run now.
    """
    waiting = db.execute(
        select(TURNS.c.ready_at, TURNS.c.lane, (TURNS.c.ready_at <= now()).label("is_due"))
        .where(TURNS.c.session_id == session_id, TURNS.c.state == TurnState.QUEUED)
        .order_by(TURNS.c.number)
        .limit(1)
    ).one_or_none()
    changes: dict[str, Any] = (
        {"ready_at": null()} if waiting is None else {"ready_at": waiting.ready_at, "lane": waiting.lane}
    )
    db.execute(update(LEASES).where(LEASES.c.session_id == session_id).values(changes))
    return waiting is not None and bool(waiting.is_due)


def make_all_ready(db: Connection, sessions: Collection[int]) -> None:
    """Set unowned leases by their sessions' lowest waiting turns, where nobody needs to be told at once; the caller holds
    their locks.
    """
    mine = (TURNS.c.session_id == LEASES.c.session_id) & (TURNS.c.state == TurnState.QUEUED)

    def lowest(column: ColumnElement[Any]) -> Any:
        return select(column).where(mine).order_by(TURNS.c.number).limit(1).scalar_subquery()

    db.execute(
        update(LEASES)
        .where(LEASES.c.session_id.in_(sessions), LEASES.c.owner.is_(None))
        .values(ready_at=lowest(TURNS.c.ready_at), lane=func.coalesce(lowest(TURNS.c.lane), LEASES.c.lane))
    )


def newly_due(db: Connection, within_seconds: float) -> list[Lane]:
    """Lanes in which a session became ready within the last seconds, and nobody was told: a scheduled turn, a retry whose
    worker has gone.
    """
    # As subqueries: only so is the present an index condition on PostgreSQL.
    present, since = select(now()).scalar_subquery(), select(now(-within_seconds)).scalar_subquery()
    found = [
        exists()
        .where(
            LEASES.c.lane == lane,
            LEASES.c.owner.is_(None),
            LEASES.c.halted_by.is_(None),
            LEASES.c.ready_at <= present,
            LEASES.c.ready_at > since,
            or_(LEASES.c.hinted_at.is_(None), LEASES.c.hinted_at < LEASES.c.ready_at),
            ~exists().where(LANE_PAUSES.c.lane == lane),
        )
        .label(lane)
        for lane in Lane
    ]
    row = db.execute(select(*found)).one()
    return [lane for lane, is_due in zip(Lane, row, strict=True) if is_due]
