"""What a check-up finds of the work itself: processes that fell silent, lanes in which nothing moves, leases that nobody
takes back, and what a beat should have done.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from inturn import __version__
from inturn.cli import render
from inturn.cli.checkup.finding import RUNBOOK, Finding
from inturn.cli.top.units import amount, lasting
from inturn.fingerprints import started_otherwise
from inturn.models.states import Lane, ProcessKind, slots_of

if TYPE_CHECKING:
    from inturn.models.database import Database
    from inturn.models.store.activity import Activity, LaneActivity, WorkerActivity
    from inturn.models.store.presence import WorkerInfo
    from inturn.settings import Settings

SWEEPS = 3
"""So many sweeps late, something is not just on its way."""
STALLED_SECONDS = 15.0
"""The least for which sessions are ready before anything is said: a hint that was lost is sent again in less."""
OVERDUE = 3
"""Cleanups that were missed before anything is said."""
LATE_SECONDS = 60.0
"""Of a schedule."""
SHOWN = 5


def check_work(settings: "Settings", database: "Database") -> Iterator[Finding]:
    from inturn.models.store import activity
    from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS

    with database.reading() as db:
        seen = activity.look(db, REMOVE_EXPIRED_SESSIONS, settings.silent_seconds, None)
    yield from check_silent(seen)
    yield from check_versions(seen)
    yield from check_settings(settings, seen)
    for lane in seen.lanes:
        if lane.lane is not Lane.MAINTENANCE:
            yield from check_lane(settings, lane, seen.workers)
    yield from check_leases(settings, database, seen)
    yield from check_timetable(settings, database, seen)


def check_silent(seen: "Activity") -> Iterator[Finding]:
    silent = [one for one in seen.workers if not one.process.alive]
    for one in silent[:SHOWN]:
        process = one.process
        held = f" Sessions that it holds: {one.in_flight}; the sweep hands them to others." if one.in_flight else ""
        command = "beat" if process.kind is ProcessKind.BEAT else "worker"
        yield Finding(
            "warn",
            "processes",
            f"{process.kind} {process.host}/{process.pid} was last heard of {lasting(one.silent)} ago: it is frozen, cut "
            f"off from the database, or was killed.{held} Look there whether it runs; if it does, end it, and start another "
            f"(`inturn {command}`)",
            "processes.silent",
            f"{RUNBOOK}inturnprocessdown",
        )
    if more := len(silent[SHOWN:]):
        yield Finding("warn", "processes", f"{more} more were not heard of lately", "processes.silent")


def check_versions(seen: "Activity") -> Iterator[Finding]:
    others = [one.process for one in seen.workers if one.process.alive and one.process.version != __version__]
    if others:
        who = ", ".join(f"{one.host}/{one.pid} ({one.version})" for one in others[:SHOWN])
        yield Finding(
            "warn",
            "processes",
            f"not of this version ({__version__}): {who}. Restart what is older",
            "processes.version",
        )


def check_settings(settings: "Settings", seen: "Activity") -> Iterator[Finding]:
    """Whether those that run were started with these."""
    found: dict[tuple[str, ...], list[str]] = {}
    for process, apart in started_otherwise(settings, [one.process for one in seen.workers]):
        found.setdefault(tuple(apart), []).append(named(process))
    for about, who in found.items():
        sentence = f"{started(who)} with other settings than there are here ({', '.join(about)}). {restart(settings)}"
        more = {"about": list(about), "processes": who}
        yield Finding("warn", "processes", sentence, "processes.settings", more=more)


def named(process: "WorkerInfo") -> str:
    return f"{process.kind} {process.host}/{process.pid}"


def started(who: list[str]) -> str:
    """``worker a/1, beat a/2 were started``."""
    more = f" and {len(who) - SHOWN} more" if len(who) > SHOWN else ""
    return f"{', '.join(who[:SHOWN])}{more} {'was' if len(who) == 1 else 'were'} started"


def restart(settings: "Settings") -> str:
    """How processes come by settings that they do not have."""
    how = "stop `inturn up` and start it again" if settings.has_embedded_broker else "restart workers and beat"
    return (
        f"If these were changed since, {how}; if not, look for another inturn.toml or INTURN_... where it was started"
    )


def check_lane(settings: "Settings", lane: "LaneActivity", workers: "list[WorkerActivity]") -> Iterator[Finding]:
    """A lane in which sessions are ready, and nobody takes them, though nothing keeps them from it."""
    patience = timedelta(seconds=max(STALLED_SECONDS, SWEEPS * settings.sweep_seconds))
    if lane.paused_at is not None or not lane.ready or lane.oldest < patience:
        return
    servers = [
        one
        for one in workers
        if one.process.alive and one.process.kind is ProcessKind.WORKER and lane.lane in one.process.lanes.split(",")
    ]
    wait = f"{amount(lane.ready)} ready in the lane {lane.lane}, the first for {lasting(lane.oldest)}"
    see = f"{RUNBOOK}inturnchatwaits"
    state: Literal["warn", "fail"] = "warn" if settings.is_embedded else "fail"
    if not servers:
        start = "inturn up" if settings.has_embedded_broker else f"inturn worker --lanes {lane.lane}"
        yield Finding(state, "queue", f"{wait}, and nobody serves it: start `{start}`", "queue.unserved", see)
        return
    free = sum(free_slots(lane.lane, one, settings.batch_share) for one in servers)
    if free <= 0:
        if lane.lane is Lane.CHAT:
            yield Finding("warn", "queue", f"{wait}: all slots are taken. Start another worker", "queue.full", see)
        return  # batches wait for slots by the hour, as they should
    if lane.turns_per_second or (lane.lane is Lane.BATCH and lane.in_flight):
        return
    who = ", ".join(f"{one.process.host}/{one.process.pid}" for one in servers[:SHOWN])
    yield Finding(
        "fail",
        "queue",
        f"{wait}, and {who} with {free} free slots in all take nothing: stalled. Look in their logs for `_failed` and for "
        "what Redis answers them (do they have the same INTURN_BROKER_URL?); then restart them, which loses nothing",
        "queue.stalled",
        see,
        {"lane": lane.lane, "ready": lane.ready, "free_slots": free},
    )


def free_slots(lane: Lane, worker: "WorkerActivity", batch_share: float) -> int:
    """As far as the lane may take them: batch leaves some to chat."""
    process = worker.process
    most = slots_of(lane, process.lanes.split(","), process.concurrency, batch_share)
    return min(most - worker.lanes_in_flight.get(lane, 0), process.concurrency - worker.in_flight)


def check_leases(settings: "Settings", database: "Database", seen: "Activity") -> Iterator[Finding]:
    """Those that ran out long ago: a sweep takes them back within seconds."""
    from inturn.models.store.sweeping import long_expired

    patience = SWEEPS * settings.sweep_seconds + settings.lease_seconds
    with database.reading() as db:
        many, first, since = long_expired(db, patience)
    if not many:
        return
    if any(one.process.alive for one in seen.workers):
        mend = "those who are alive do not sweep: their logs say why (`action=sweep_failed`, `action=takeover_put_off`)"
    else:
        mend = (
            "nobody is alive to sweep: start `inturn up`" if settings.has_embedded_broker else "start `inturn worker`"
        )
    yield Finding(
        "fail" if not settings.is_embedded else "warn",
        "leases",
        f"{render.counted(many, 'session')} held by workers whose leases ran out long ago ({first} for {lasting(since)}), "
        f"so nobody else answers: {mend}",
        "leases.stuck",
        f"{RUNBOOK}inturnworkersdie",
        {"sessions": many},
    )


def check_timetable(settings: "Settings", database: "Database", seen: "Activity") -> Iterator[Finding]:
    """A beat that is alive, and does not do what it is there for."""
    from inturn.models.store.schedules import count_late

    beats = [one for one in seen.workers if one.process.kind is ProcessKind.BEAT and one.process.alive]
    if not beats:
        return
    overdue = timedelta(seconds=OVERDUE * settings.cleanup_interval_seconds)
    since = min(max(one.uptime for one in beats), seen.at - seen.last_tick if seen.last_tick else timedelta.max)
    if since > overdue:
        yield Finding(
            "warn",
            "beat",
            f"it is alive, and no cleanup has begun for {lasting(since)} (one is due every "
            f"{lasting(settings.cleanup_interval_seconds)}): see that a worker serves the lane maintenance, and its log",
            "beat.overdue",
            f"{RUNBOOK}inturncleanupoverdue",
        )
    with database.reading() as db:
        late = count_late(db, LATE_SECONDS)
    if late:
        yield Finding(
            "warn",
            "beat",
            f"it is alive, and {render.counted(late, 'schedule')} should have been fired over a minute ago: its log says "
            "why (`action=schedules_failed`)",
            "beat.schedules",
            f"{RUNBOOK}inturnscheduleslate",
        )
