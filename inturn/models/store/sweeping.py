"""Repair: leases of dead workers taken back, lost hints found, a process's own leases kept alive."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, null, or_, select, update
from sqlmodel import col

from inturn.models.clock import now
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store.sending import Ready, list_ready, make_ready
from inturn.models.tables import AttemptRow, LeaseRow, TurnRow

CHUNK = 200


@dataclass(frozen=True, slots=True)
class Caps:
    """How often a turn may be tried, and how often a worker may die over it."""

    attempts: int
    rescues: int


def rescue_expired(db: Connection, caps: Caps) -> list[Ready]:
    """Take over a chunk of leases that ran out."""
    return _rescue(db, col(LeaseRow.expires_at) < now(), caps)


def rescue_owned(db: Connection, owners: Collection[str], caps: Caps) -> list[Ready]:
    """Take over a chunk of the leases of processes that are known to be dead."""
    return _rescue(db, col(LeaseRow.owner).in_(owners), caps)


def rescue_orphans(db: Connection, owner: str, tokens: dict[int, int], caps: Caps) -> list[Ready]:
    """Take over leases that this process owns and none of its slots holds (by session and token)."""
    held = [(col(LeaseRow.session_id) == session) & (col(LeaseRow.token) == token) for session, token in tokens.items()]
    return _rescue(db, (col(LeaseRow.owner) == owner) & or_(*held), caps)


def _rescue(db: Connection, whose: ColumnElement[bool], caps: Caps) -> list[Ready]:
    """Token + 1, so that the former owner changes nothing any more; its running turn waits again, or fails at the cap."""
    found = select(LeaseRow.session_id).where(col(LeaseRow.owner).is_not(None), whose).limit(CHUNK)  # type: ignore[call-overload]
    sessions = [row.session_id for row in db.execute(found.with_for_update(skip_locked=True))]
    if not sessions:
        return []
    leases = col(LeaseRow.session_id).in_(sessions)
    db.execute(
        update(LeaseRow)
        .where(leases)
        .values(owner=null(), expires_at=null(), token=LeaseRow.token + 1, hinted_at=now())
    )
    db.execute(
        update(AttemptRow)
        .where(col(AttemptRow.session_id).in_(sessions), col(AttemptRow.outcome).is_(None))
        .values(outcome=AttemptOutcome.LOST, ended_at=now())
    )
    _requeue(db, sessions, caps)
    ready = [session for session in sessions if make_ready(db, session)]
    return list_ready(db, ready)


def _requeue(db: Connection, sessions: Sequence[int], caps: Caps) -> None:
    worn_out = or_(col(TurnRow.rescues) >= caps.rescues, col(TurnRow.attempts) >= caps.attempts)
    cancelled = col(TurnRow.cancel_requested_at).is_not(None)
    fails = worn_out & ~cancelled
    db.execute(
        update(TurnRow)
        .where(col(TurnRow.session_id).in_(sessions), col(TurnRow.state) == TurnState.RUNNING)
        .values(
            state=case((cancelled, TurnState.CANCELLED), (worn_out, TurnState.FAILED), else_=TurnState.QUEUED),
            finished_at=case((cancelled | worn_out, now()), else_=null()),
            rescues=TurnRow.rescues + 1,
            ready_at=now(),
            error_type=case((fails, "worker_lost"), else_=null()),
            error_message=case(
                (fails, "every worker that tried this turn died or lost its lease: it may be what stops them"),
                else_=null(),
            ),
            error_retryable=case((fails, True), else_=null()),
        )
    )


def unhinted(db: Connection, lane: Lane, stale_seconds: float, limit: int) -> list[Ready]:
    """Ready sessions that nobody was told about lately; from now on they count as told."""
    waiting = (
        select(LeaseRow.session_id)  # type: ignore[call-overload]
        .where(
            col(LeaseRow.lane) == lane,
            col(LeaseRow.owner).is_(None),
            col(LeaseRow.ready_at) <= now(),
            or_(
                col(LeaseRow.hinted_at).is_(None),
                col(LeaseRow.hinted_at) < now(-stale_seconds),
                col(LeaseRow.hinted_at) < col(LeaseRow.ready_at),
            ),
        )
        .order_by(LeaseRow.ready_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    sessions = [row.session_id for row in db.execute(waiting)]
    if sessions:
        db.execute(update(LeaseRow).where(col(LeaseRow.session_id).in_(sessions)).values(hinted_at=now()))
    return list_ready(db, sessions)


def cancel_abandoned(db: Connection) -> list[Ready]:
    """Turns that went back to waiting in the very moment when their user took them back."""
    flagged = select(TurnRow.session_id).where(  # type: ignore[call-overload]
        col(TurnRow.cancel_requested_at).is_not(None),
        col(TurnRow.finished_at).is_(None),
        col(TurnRow.state) == TurnState.QUEUED,
    )
    unowned = (
        select(LeaseRow.session_id)  # type: ignore[call-overload]
        .where(col(LeaseRow.session_id).in_(flagged), col(LeaseRow.owner).is_(None))
        .limit(CHUNK)
        .with_for_update(skip_locked=True)
    )
    sessions = [row.session_id for row in db.execute(unowned)]
    if not sessions:
        return []
    db.execute(
        update(TurnRow)
        .where(
            col(TurnRow.session_id).in_(sessions),
            col(TurnRow.state) == TurnState.QUEUED,
            col(TurnRow.cancel_requested_at).is_not(None),
        )
        .values(state=TurnState.CANCELLED, finished_at=now())
    )
    return list_ready(db, [session for session in sessions if make_ready(db, session)])


def extend(db: Connection, owner: str, lease_seconds: float, renew_below_seconds: float) -> dict[int, int]:
    """The heartbeat: leases of this process that run out within ``renew_below_seconds`` run ``lease_seconds`` again.

    Rows that another transaction works on are left for the next time: the ledger's own settle must not wait for it.

    Returns:
        Session and token of every lease that this process holds.
    """
    due = (
        select(LeaseRow.session_id)  # type: ignore[call-overload]
        .where(col(LeaseRow.owner) == owner, col(LeaseRow.expires_at) < now(renew_below_seconds))
        .with_for_update(skip_locked=True)
    )
    sessions = [row.session_id for row in db.execute(due)]
    if sessions:
        db.execute(update(LeaseRow).where(col(LeaseRow.session_id).in_(sessions)).values(expires_at=now(lease_seconds)))
    held = db.execute(select(LeaseRow.session_id, LeaseRow.token).where(col(LeaseRow.owner) == owner))  # type: ignore[call-overload]
    return {row.session_id: row.token for row in held}


def cancel_requests(db: Connection, owner: str) -> list[tuple[int, int]]:
    """Session and turn of this process's running turns that their users want back."""
    rows = db.execute(
        select(TurnRow.session_id, TurnRow.number)  # type: ignore[call-overload]
        .join(LeaseRow, col(LeaseRow.session_id) == col(TurnRow.session_id))
        .where(
            col(TurnRow.cancel_requested_at).is_not(None),
            col(TurnRow.finished_at).is_(None),
            col(TurnRow.state) == TurnState.RUNNING,
            col(LeaseRow.owner) == owner,
        )
    )
    return [(row.session_id, row.number) for row in rows]


def database_time(db: Connection) -> float:
    """The database's clock, in seconds since 1970."""
    moment: Any = db.execute(select(now())).scalar_one()
    return float(moment.timestamp())
