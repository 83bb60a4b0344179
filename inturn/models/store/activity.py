"""What a deployment does at this moment: lanes, processes, failures, who waits, what is spent. By indexes only.

One look is some ten statements, none of which reads more than a few thousand rows, however many there are: turns that
ended are counted by those who ended them, and told with their heartbeats.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, literal, select, union_all

from inturn.models.clock import now
from inturn.models.states import Lane, ProcessKind, TurnState
from inturn.models.store import overview
from inturn.models.store.presence import WorkerInfo, list_processes
from inturn.models.store.tally import sums
from inturn.models.tables import ATTEMPTS, LANE_PAUSES, LEASES, PAST_USAGE, SESSIONS, TURNS

FAILED_SECONDS = 300.0
"""What fails is told of the last five minutes."""
COUNTED = 10_000
"""Failures that are counted, at most, the latest first."""
LISTED = 10
"""Sessions of each lane that have waited longest, and turns that run longest."""


@dataclass(frozen=True, slots=True)
class LaneActivity:
    """A lane at this moment.

    Attributes:
        paused_at: since when it is paused; None: it is not.
        ready: sessions that nobody has taken yet, up to 10,000.
        oldest: since when the first of them has been ready.
        in_flight: sessions that workers hold.
        workers: how many serve it and are alive.
        turns_per_second: that ended lately, however; as are the next two.
        failed_per_second: those of them that failed.
    """

    lane: Lane
    paused_at: datetime | None
    ready: int
    oldest: timedelta
    in_flight: int
    workers: int
    turns_per_second: float
    failed_per_second: float


@dataclass(frozen=True, slots=True)
class WorkerActivity:
    """A process at this moment, worker or beat.

    Attributes:
        in_flight: sessions that it holds, and by lane.
        turns_per_second: that it brought to an end lately.
        uptime: since it appeared.
        silent: since its last heartbeat.
    """

    process: WorkerInfo
    in_flight: int
    lanes_in_flight: dict[str, int]
    turns_per_second: float
    uptime: timedelta
    silent: timedelta


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session that waits for a worker, or whose turn runs (``model``: who is asked): which, and since when."""

    session_id: str
    lane: Lane
    since: timedelta
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Activity:
    """A deployment at one moment.

    Attributes:
        at: when that was, by the database's clock, as are all times.
        failures: turns that failed within ``failed_seconds``, by error type, the most frequent first.
        waiting: sessions that are ready and have waited longest, longest first.
        running: turns that have run longest, longest first.
        usd_per_second: what attempts cost lately, as far as there are prices.
        last_tick: when a beat last asked for a cleanup; None: none ever did.
        next_cleanup: about when one is asked for next; None: no beat is alive.
        schedules_due: runs that a beat should have sent by now.
    """

    at: datetime
    lanes: list[LaneActivity]
    workers: list[WorkerActivity]
    failures: dict[str, int]
    failed_seconds: float
    waiting: list[Waiting]
    running: list[Waiting]
    usd_per_second: float
    last_tick: datetime | None
    next_cleanup: datetime | None
    schedules_due: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What attempts of a model have used since midnight (UTC). ``unpriced``: those that may have cost something besides."""

    model: str
    attempts: int
    tokens: int
    usd: float
    unpriced: int


def look(db: Connection, cleanup: str, silent_seconds: float, next_cleanup: datetime | None) -> Activity:
    """Look at all of it.

    Args:
        cleanup: the name of the cleanup's ticks.
        silent_seconds: a process is alive if it was heard of within them.
        next_cleanup: as ``moments.next_cleanup`` has it.
    """
    present = db.execute(select(now())).scalar_one()
    seen = overview.look(db, cleanup, silent_seconds)
    held = _held(db)
    workers = [_worker(one, held, present) for one in list_processes(db, silent_seconds)]
    alive = [one for one in workers if one.process.alive]
    pauses = {row.lane: row.paused_at for row in db.execute(select(LANE_PAUSES))}
    return Activity(
        at=present,
        lanes=[_lane(lane, pauses.get(lane), seen, held, alive) for lane in Lane],
        workers=workers,
        failures=_failures(db),
        failed_seconds=FAILED_SECONDS,
        waiting=_waiting(db, present),
        running=_running(db, present),
        usd_per_second=sum(_rate(one.process, one.process.recent.usd) for one in alive if one.process.recent),
        last_tick=seen.last_tick,
        next_cleanup=next_cleanup,
        schedules_due=seen.schedules_due,
    )


def spent_today(db: Connection) -> list[Spent]:
    """What is spent since midnight, by model, the dearest first. It reads all of today's attempts: not every second."""
    midnight = db.execute(select(now())).scalar_one().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    columns = ("attempts", "input_tokens", "output_tokens", "price", "unpriced")
    model = func.coalesce(ATTEMPTS.c.model, "(unknown)").label("model")
    counted = sums(ATTEMPTS.c.outcome.is_not(None))
    present = select(model, *counted).where(ATTEMPTS.c.started_at >= midnight).group_by(model)
    past = select(PAST_USAGE.c.model, *(PAST_USAGE.c[name] for name in columns))
    rows = [
        *db.execute(present).mappings(),
        *db.execute(past.where(PAST_USAGE.c.day == f"{midnight:%Y-%m-%d}")).mappings(),
    ]
    total: dict[str, Counter[str]] = {}
    for row in rows:
        total.setdefault(row["model"], Counter()).update({name: row[name] or 0 for name in columns})
    found = [
        Spent(
            model,
            each["attempts"],
            each["input_tokens"] + each["output_tokens"],
            float(each["price"]),
            each["unpriced"],
        )
        for model, each in total.items()
    ]
    return sorted(found, key=lambda one: (-one.usd, -one.tokens, one.model))


def _held(db: Connection) -> Counter[tuple[str, str]]:
    """Leases by owner and lane."""
    held = select(LEASES.c.owner, LEASES.c.lane, func.count().label("many")).where(LEASES.c.owner.is_not(None))
    return Counter(
        {(row.owner, row.lane): row.many for row in db.execute(held.group_by(LEASES.c.owner, LEASES.c.lane))}
    )


def _worker(process: WorkerInfo, held: Counter[tuple[str, str]], present: datetime) -> WorkerActivity:
    recent = process.recent if process.alive else None
    lanes = {lane: held[process.id, lane] for lane in Lane if held[process.id, lane]}
    return WorkerActivity(
        process=process,
        in_flight=sum(lanes.values()),
        lanes_in_flight={str(lane): many for lane, many in lanes.items()},
        turns_per_second=0.0 if recent is None else _rate(process, recent.ended()),
        uptime=present - process.started_at,
        silent=max(present - process.heartbeat_at, timedelta(0)),
    )


def _lane(
    lane: Lane,
    paused_at: datetime | None,
    seen: overview.Overview,
    held: Counter[tuple[str, str]],
    alive: Sequence[WorkerActivity],
) -> LaneActivity:
    told = [(one.process, one.process.recent) for one in alive if one.process.recent is not None]
    return LaneActivity(
        lane=lane,
        paused_at=paused_at,
        ready=seen.ready[lane],
        oldest=seen.oldest[lane],
        in_flight=sum(many for (_, theirs), many in held.items() if theirs == lane),
        workers=sum(one.process.kind is ProcessKind.WORKER and lane in one.process.lanes.split(",") for one in alive),
        turns_per_second=sum(_rate(process, recent.ended(lane)) for process, recent in told),
        failed_per_second=sum(_rate(process, recent.ended(lane, TurnState.FAILED)) for process, recent in told),
    )


def _rate(process: WorkerInfo, many: float) -> float:
    recent = process.recent
    return many / recent.seconds if recent is not None and recent.seconds > 0 else 0.0


def _failures(db: Connection) -> dict[str, int]:
    present = select(now(-FAILED_SECONDS)).scalar_subquery()  # as a subquery it is a bound to PostgreSQL's index
    failed = TURNS.c.state == TurnState.FAILED
    latest = select(TURNS.c.error_type).where(failed, TURNS.c.finished_at > present)
    few = latest.order_by(TURNS.c.finished_at.desc()).limit(COUNTED).subquery()
    many = func.count().label("many")
    rows = db.execute(select(few.c.error_type, many).group_by(few.c.error_type).order_by(many.desc(), few.c.error_type))
    return {row.error_type: row.many for row in rows}


def _waiting(db: Connection, present: datetime) -> list[Waiting]:
    def of(lane: Lane) -> Any:
        moment = select(now()).scalar_subquery()
        mine = (
            LEASES.c.lane == lane,
            LEASES.c.owner.is_(None),
            LEASES.c.ready_at <= moment,
            LEASES.c.halted_by.is_(None),
        )
        first = select(LEASES.c.session_id, LEASES.c.ready_at).where(*mine).order_by(LEASES.c.ready_at).limit(LISTED)
        few = first.subquery()
        return select(few.c.session_id, few.c.ready_at, literal(str(lane)).label("lane"))

    each = union_all(*map(of, Lane)).subquery()
    named = select(SESSIONS.c.key, each.c.lane, each.c.ready_at).join(SESSIONS, SESSIONS.c.id == each.c.session_id)
    rows = db.execute(named.order_by(each.c.ready_at).limit(LISTED))
    return [Waiting(row.key, Lane(row.lane), max(present - row.ready_at, timedelta(0))) for row in rows]


def _running(db: Connection, present: datetime) -> list[Waiting]:
    """Counted from their first attempt: a worker may have died over it, or the model asked for tools."""
    running = (
        select(TURNS.c.session_id, TURNS.c.lane, TURNS.c.model, TURNS.c.started_at)
        .where(TURNS.c.state == TurnState.RUNNING)
        .order_by(TURNS.c.started_at)
        .limit(LISTED)
        .subquery()
    )
    named = select(SESSIONS.c.key, running).join(SESSIONS, SESSIONS.c.id == running.c.session_id)
    rows = db.execute(named.order_by(running.c.started_at))
    return [Waiting(row.key, Lane(row.lane), max(present - row.started_at, timedelta(0)), row.model) for row in rows]
