"""Repair: leases of dead workers taken back, lost hints found, a process's own leases kept alive."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, exists, func, null, or_, select, tuple_, update

from inturn.models.clock import now
from inturn.models.content import storable
from inturn.models.states import FINAL, AttemptOutcome, Lane, TurnState
from inturn.models.store.waking import Ready, list_ready, make_ready
from inturn.models.store.webhooks import Hook, announce_turns, wanting_turns
from inturn.models.tables import ATTEMPTS, LANE_PAUSES, LEASES, SESSIONS, TURNS

CHUNK = 200
EXPIRED = LEASES.c.expires_at < now()


@dataclass(frozen=True, slots=True)
class Caps:
    """How often a turn may be tried, and how often a worker may die over it."""

    attempts: int
    rescues: int


@dataclass(frozen=True, slots=True)
class Rescued:
    """A chunk of leases that were taken over.

    Attributes:
        ready: the sessions that are ready now.
        leases: how many were taken over.
        ended: the turns that are final by it: their states, models and lanes.
    """

    ready: list[Ready]
    leases: int
    ended: list[tuple[TurnState, str, Lane]]


@dataclass(frozen=True, slots=True)
class CutOff:
    """A turn whose reply was being told when its worker died."""

    session_id: int
    number: int
    attempt: int


def long_expired(db: Connection, seconds: float) -> tuple[int, str, timedelta]:
    """Leases that ran out so long ago, and were taken over by nobody: how many, the first one's session, and since when."""
    old = (LEASES.c.owner.is_not(None), LEASES.c.expires_at < now(-seconds))
    many = db.execute(select(func.count()).select_from(LEASES).where(*old)).scalar_one()
    first = select(SESSIONS.c.key, LEASES.c.expires_at, now().label("present")).join(
        LEASES, LEASES.c.session_id == SESSIONS.c.id
    )
    row = db.execute(first.where(*old).order_by(LEASES.c.expires_at).limit(1)).one_or_none()
    return (0, "", timedelta(0)) if row is None else (many, row.key, row.present - row.expires_at)


def rescue_expired(db: Connection, caps: Caps, told: Sequence[Hook] = ()) -> Rescued | None:
    """Take over a chunk of leases that ran out.

    Args:
        told: who is to be told of turns that fail for good by it.

    Returns: None if there was nothing to take over.
    """
    return _rescue(db, EXPIRED, caps, told)


def rescue_owned(db: Connection, owners: Collection[str], caps: Caps, told: Sequence[Hook] = ()) -> Rescued | None:
    """Take over a chunk of the leases of processes that are known to be dead."""
    return _rescue(db, LEASES.c.owner.in_(owners), caps, told)


def rescue_orphans(
    db: Connection, owner: str, tokens: dict[int, int], caps: Caps, told: Sequence[Hook] = ()
) -> Rescued | None:
    """Take over leases that this process owns and none of its slots holds (by session and token)."""
    orphaned = tuple_(LEASES.c.session_id, LEASES.c.token).in_(list(tokens.items()))
    return _rescue(db, (LEASES.c.owner == owner) & orphaned, caps, told)


def cut_off(db: Connection, owners: Collection[str] | None = None) -> list[CutOff]:
    """Turns that are about to be taken from dead workers (of these names, or whose leases ran out), and were being told."""
    whose = EXPIRED if owners is None else LEASES.c.owner.in_(owners)
    rows = db.execute(
        select(TURNS.c.session_id, TURNS.c.number, TURNS.c.attempts)
        .join(LEASES, LEASES.c.session_id == TURNS.c.session_id)
        .where(LEASES.c.owner.is_not(None), whose, TURNS.c.state == TurnState.RUNNING, TURNS.c.streams)
    )
    return [CutOff(row.session_id, row.number, row.attempts) for row in rows]


def keep_partial(db: Connection, turn: CutOff, heard: str) -> None:
    """Before the turn is taken over, since the next attempt begins with a clean slate. If its worker lives, it knows
    better: what it settles replaces this.
    """
    mine = (TURNS.c.session_id == turn.session_id) & (TURNS.c.number == turn.number)
    db.execute(
        update(TURNS)
        .where(mine, TURNS.c.state == TurnState.RUNNING, TURNS.c.attempts == turn.attempt)
        .values(partial=storable(heard))
    )


def _rescue(db: Connection, whose: ColumnElement[bool], caps: Caps, told: Sequence[Hook]) -> Rescued | None:
    """Token + 1, so that the former owner changes nothing any more; its running turn waits again, or fails at the cap."""
    found = select(LEASES.c.session_id).where(LEASES.c.owner.is_not(None), whose).limit(CHUNK)
    sessions = [row.session_id for row in db.execute(found.with_for_update(skip_locked=True))]
    if not sessions:
        return None
    leases = LEASES.c.session_id.in_(sessions)
    db.execute(
        update(LEASES).where(leases).values(owner=null(), expires_at=null(), token=LEASES.c.token + 1, hinted_at=now())
    )
    db.execute(
        update(ATTEMPTS)
        .where(ATTEMPTS.c.session_id.in_(sessions), ATTEMPTS.c.outcome.is_(None))
        .values(outcome=AttemptOutcome.LOST, ended_at=now())
    )
    turns = _requeue(db, sessions, caps)
    if hooks := wanting_turns(told):
        announce_turns(db, hooks, [(turn.session_id, turn.number) for turn in turns if turn.state == TurnState.FAILED])
    ready = [session for session in sessions if make_ready(db, session)]
    ended = [(TurnState(turn.state), turn.model, Lane(turn.lane)) for turn in turns if turn.state in FINAL]
    return Rescued(list_ready(db, ready), len(sessions), ended)


def _requeue(db: Connection, sessions: Sequence[int], caps: Caps) -> Sequence[Any]:
    """A turn that has been rescued so often that it is tried in a process of its own is not blamed for its worker's death;
    what it has spent counts all the same.

    Returns: the turns as they are now.
    """
    worn_out = TURNS.c.attempts - TURNS.c.rounds >= caps.attempts
    cancelled = TURNS.c.cancel_requested_at.is_not(None)
    fails = worn_out & ~cancelled
    requeued = db.execute(
        update(TURNS)
        .where(TURNS.c.session_id.in_(sessions), TURNS.c.state == TurnState.RUNNING)
        .values(
            state=case((cancelled, TurnState.CANCELLED), (worn_out, TurnState.FAILED), else_=TurnState.QUEUED),
            finished_at=case((cancelled | worn_out, now()), else_=null()),
            rescues=case((TURNS.c.rescues < caps.rescues, TURNS.c.rescues + 1), else_=TURNS.c.rescues),
            ready_at=now(),
            error_type=case((fails, "worker_lost"), else_=null()),
            error_message=case(
                (
                    fails,
                    f"all {caps.attempts} attempts are used up, and the worker of the last one died or lost its lease",
                ),
                else_=null(),
            ),
            error_retryable=case((fails, True), else_=null()),
        )
        .returning(TURNS.c.session_id, TURNS.c.number, TURNS.c.state, TURNS.c.model, TURNS.c.lane)
    ).all()
    for turn in requeued:
        if turn.state == TurnState.FAILED:
            _halt(db, turn.session_id, turn.number)
    return requeued


def _halt(db: Connection, session_id: int, number: int) -> None:
    """Stop a session that wants it behind its quarantined turn."""
    halting = select(SESSIONS.c.id).where(SESSIONS.c.id == session_id, SESSIONS.c.halts)
    db.execute(update(LEASES).where(LEASES.c.session_id.in_(halting)).values(halted_by=number))


def unhinted(db: Connection, lane: Lane, stale_seconds: float, limit: int) -> list[Ready]:
    """Ready sessions that nobody was told about lately; from now on they count as told."""
    waiting = (
        select(LEASES.c.session_id)
        .where(
            LEASES.c.lane == lane,
            LEASES.c.owner.is_(None),
            LEASES.c.ready_at <= now(),
            LEASES.c.halted_by.is_(None),
            ~exists().where(LANE_PAUSES.c.lane == lane),
            or_(
                LEASES.c.hinted_at.is_(None),
                LEASES.c.hinted_at < now(-stale_seconds),
                LEASES.c.hinted_at < LEASES.c.ready_at,
                LEASES.c.hinted_at > now(),  # the clock was set back since: it would be told for as long
            ),
        )
        .order_by(LEASES.c.ready_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    sessions = [row.session_id for row in db.execute(waiting)]
    if sessions:
        db.execute(update(LEASES).where(LEASES.c.session_id.in_(sessions)).values(hinted_at=now()))
    return list_ready(db, sessions)


def extend(db: Connection, owner: str, lease_seconds: float, renew_below_seconds: float) -> dict[int, int]:
    """The heartbeat: leases of this process that run out within ``renew_below_seconds`` run ``lease_seconds`` again.

    Rows that another transaction works on are left for the next time: the ledger's own settle must not wait for it.

    Returns:
        Session and token of every lease that this process holds.
    """
    due = (
        select(LEASES.c.session_id)
        .where(LEASES.c.owner == owner, LEASES.c.expires_at < now(renew_below_seconds))
        .with_for_update(skip_locked=True)
    )
    sessions = [row.session_id for row in db.execute(due)]
    if sessions:
        db.execute(update(LEASES).where(LEASES.c.session_id.in_(sessions)).values(expires_at=now(lease_seconds)))
    held = db.execute(select(LEASES.c.session_id, LEASES.c.token).where(LEASES.c.owner == owner))
    return {row.session_id: row.token for row in held}


def cancel_requests(db: Connection, owner: str) -> list[tuple[int, int]]:
    """Session and turn of this process's running turns that their users want back."""
    rows = db.execute(
        select(TURNS.c.session_id, TURNS.c.number)
        .join(LEASES, LEASES.c.session_id == TURNS.c.session_id)
        .where(
            TURNS.c.cancel_requested_at.is_not(None),
            TURNS.c.finished_at.is_(None),
            TURNS.c.state == TurnState.RUNNING,
            LEASES.c.owner == owner,
        )
    )
    return [(row.session_id, row.number) for row in rows]


def database_time(db: Connection) -> float:
    """The database's clock, in seconds since 1970."""
    moment: Any = db.execute(select(now())).scalar_one()
    return float(moment.timestamp())
