"""Repair and housekeeping: the heartbeat, the sweep, the reaping of dead processes, the cleanup.

Every worker and every beat runs them, each in threads of its own; they are idempotent, so that nobody is a single point
of failure.
"""

import logging
import platform
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from sqlalchemy import Connection

from inturn import __version__
from inturn.cleaning import Cleanup
from inturn.clearance import Clearance
from inturn.fingerprints import fingerprints
from inturn.models.database import Database
from inturn.models.errors import StorageError
from inturn.models.failpoints import reached
from inturn.models.states import Lane, ProcessKind
from inturn.models.store import moments, presence, retention, sweeping, tending, waking
from inturn.models.store.sweeping import Caps, CutOff, Rescued
from inturn.models.store.waking import Ready
from inturn.settings import Settings
from inturn.workers.app import broker_url
from inturn.workers.meter import Meter
from inturn.workers.processes import ProcessIdentity
from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS, forget_mailboxes

logger = logging.getLogger(__name__)

FORGET_SECONDS = 3600.0
HINTS_A_SWEEP = 500
BEAT = "beat"
"""Who asks for a cleanup by the timetable."""
LATE = "action=heartbeat_late seconds"
AGAIN_SECONDS = 1.0
"""After the database was away: what went wrong meanwhile is repaired as soon as it is back."""
LOOK_SECONDS = 1.0
"""Between two looks for turns that have become due."""
"""All workers know when a turn is due: the first of them tells its lane, and the others find that done."""


def describe_process(
    settings: Settings, kind: ProcessKind, lanes: Collection[str], concurrency: int
) -> presence.Process:
    """This process, as it shows itself in ``worker_processes``. Its id names the owner of its leases."""
    mine = ProcessIdentity.mine()
    return presence.Process(
        id=str(mine),
        kind=kind,
        host=platform.node()[:200],
        pid=mine.pid,
        lanes=",".join(lanes),
        concurrency=concurrency,
        version=__version__,
        settings=fingerprints(settings, kind, lanes),
    )


def caps(settings: Settings) -> Caps:
    return Caps(settings.max_attempts, settings.effective_max_rescues)


class Round(threading.Thread):
    """A member of the crew who does something at intervals, also when it went wrong the last time."""

    def __init__(self, name: str, seconds: Callable[[], float], do: Callable[[], None]) -> None:
        super().__init__(name=f"inturn-{name}", daemon=True)
        self._task = name
        self._seconds, self._do = seconds, do
        self._woken = threading.Event()
        self._over = False
        self._succeeded_at = time.monotonic()

    @property
    def age(self) -> float:
        """How many seconds ago it last went well, counted from when it was made until it first does."""
        return time.monotonic() - self._succeeded_at

    def wake(self) -> None:
        """Do it now."""
        self._woken.set()

    def end(self) -> None:
        self._over = True
        self._woken.set()
        if self.is_alive():
            self.join(timeout=5)

    def run(self) -> None:
        while not self._over:
            pause = self._seconds()
            try:
                self._do()
                self._succeeded_at = time.monotonic()
            except StorageError as error:
                logger.warning("action=%s_failed reason=%s", self._task, error)
                pause = min(pause, AGAIN_SECONDS)
            except Exception:
                logger.exception("action=%s_failed", self._task)
            self._woken.wait(pause)
            self._woken.clear()  # after the wait: who ends this round sets ``_over`` first, and that is looked at next


class Sweep:
    """Takes back the leases of dead workers, and tells lanes about sessions whose hints were lost.

    Args:
        hint: told of each session that needs one.
        queued_hints: how many hints a lane's queue holds now; None if Redis does not say.
        heard: what was told of replies until their workers died, as far as Redis still knows.
        meter: counts what was taken back.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        hint: Callable[[Ready], object],
        queued_hints: Callable[[Lane], int | None],
        heard: Callable[[Sequence[CutOff]], Iterable[tuple[CutOff, str]]],
        meter: Meter | None = None,
    ) -> None:
        self.database, self.settings, self._meter = database, settings, meter or Meter()
        self._hint, self._queued_hints, self._heard = hint, queued_hints, heard
        self._looked: tuple[float, float] | None = None
        self._wait_until = 0.0

    def pause_seconds(self) -> float:
        """With jitter, so that many workers do not sweep in step."""
        return self.settings.sweep_seconds * random.uniform(0.8, 1.2)

    def look(self) -> None:
        """Tell lanes about turns that have just become due: what was put off until noon is not to wait for a pass."""
        with self.database.reading() as db:
            lanes = waking.newly_due(db, 3 * LOOK_SECONDS)
        for lane in lanes:
            self._top_up(lane)

    def run(self) -> None:
        """One pass over everything that may need repair."""
        self.reap()
        if self._may_take_over():
            self._keep_partials()
            self._in_chunks(lambda db: sweeping.rescue_expired(db, caps(self.settings), self.settings.hooks()))
        retention.finish_removal(self.database)
        for lane in Lane:
            self._top_up(lane)
        with self.database.writing() as db:
            presence.forget_silent(db, FORGET_SECONDS)

    def tend_batches(self) -> None:
        """Carry batches on. By itself: to cancel a large one may take longer than a lost lease should wait."""
        tending.tend(self.database, self.settings.hooks())

    def reap(self) -> None:
        """Take back, without waiting for them to run out, the leases of processes of this host that are dead."""
        with self.database.reading() as db:
            known = presence.list_processes(db, self.settings.silent_seconds)
        dead = [process.id for process in known if is_dead(process.id)]
        if dead:
            logger.warning("action=dead_workers_reaped count=%d", len(dead))
            self._keep_partials(dead)
            self._in_chunks(lambda db: sweeping.rescue_owned(db, dead, caps(self.settings), self.settings.hooks()))
            self.database.transact(lambda db: presence.disappear(db, dead))

    def _keep_partials(self, owners: Collection[str] | None = None) -> None:
        """Replies that were being told when their workers died stay readable, as far as they were heard."""
        with self.database.reading() as db:
            turns = sweeping.cut_off(db, owners)
        for turn, text in self._heard(turns):
            self.database.transact(partial(sweeping.keep_partial, turn=turn, heard=text))

    def _in_chunks(self, rescue: Callable[[Connection], Rescued | None]) -> None:
        while (rescued := self.database.transact(rescue)) is not None:
            logger.info("action=sessions_rescued count=%d", len(rescued.ready))
            self._meter.rescued(rescued)
            reached("sweep.after_mark")
            for session in rescued.ready:
                self._hint(session)

    def _top_up(self, lane: Lane) -> None:
        """Hint again, but never fill a queue with more than it holds for a moment: one hint drains many sessions."""
        queued = self._queued_hints(lane)
        if queued is None or queued >= HINTS_A_SWEEP:
            return
        stale = 0.0 if queued == 0 else self.settings.sweep_seconds
        room = HINTS_A_SWEEP - queued
        for session in self.database.transact(lambda db: sweeping.unhinted(db, lane, stale, room)):
            self._hint(session)

    def _may_take_over(self) -> bool:
        """Whether an expired lease means that its worker is gone.

        Not when the database's clock jumped: every lease looks expired then. Nor after this process itself was away from
        the database for long, as the others may have been too. Either way they get a lease time to renew.
        """
        with self.database.reading() as db:
            now = (sweeping.database_time(db), time.monotonic())
        before, self._looked = self._looked, now
        if before is not None:
            apart, jumped = now[1] - before[1], (now[0] - before[0]) - (now[1] - before[1])
            if abs(jumped) > self.settings.lease_seconds / 4 or apart > self.settings.lease_seconds / 2:
                self._wait_until = now[1] + self.settings.lease_seconds
                logger.warning("action=takeover_put_off seconds_away=%.1f clock_jumped=%+.1f", apart, jumped)
        return now[1] >= self._wait_until


def is_dead(process_id: str) -> bool:
    """Whether that process ran on this host, as far as PIDs tell, and is gone."""
    try:
        return ProcessIdentity.parse(process_id).is_alive() is False
    except ValueError:
        return False


class Pulse:
    """The heartbeat of one worker: keeps its leases, notices those it lost, and looks for cancelled turns.

    Args:
        held: session and token of each lease that a slot holds now.
        lost: told session and token of each lease that turned out to be somebody else's.
        cancelled: told of each session and turn whose user wants it back.
        meter: counts leases that no slot knew of, and knows what the process did lately.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        process: presence.Process,
        held: Callable[[], dict[int, int]],
        lost: Callable[[Collection[tuple[int, int]]], None],
        cancelled: Callable[[Collection[tuple[int, int]]], None],
        meter: Meter | None = None,
    ) -> None:
        self.database, self.settings, self.process, self._meter = database, settings, process, meter or Meter()
        self._held, self._lost, self._cancelled = held, lost, cancelled
        self._next_beat = 0.0
        self._beaten_at: float | None = None
        self._orphans: dict[int, int] = {}

    def run(self) -> None:
        """Look for cancelled turns; beat when it is time to."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self.settings.heartbeat_seconds
            self._beat()
        with self.database.reading() as db:
            requests = sweeping.cancel_requests(db, self.process.id)
        if requests:
            self._cancelled(requests)

    def _beat(self) -> None:
        reached("heartbeat.skip")
        before, recent = self._held(), self._meter.lately.recent()
        lease = self.settings.lease_seconds
        renew_below = lease - self.settings.heartbeat_seconds / 2

        def beat(db: Connection) -> dict[int, int]:
            presence.appear(db, self.process, recent)
            return sweeping.extend(db, self.process.id, lease, renew_below)

        mine = self.database.transact(beat)
        self._note_beat(lease - self.settings.heartbeat_seconds)
        now = self._held()
        # Some were settled a moment ago, and their slots do not know yet: the token tells whoever breaks off the call.
        lost = [held for held in before.items() if held in now.items() and held not in mine.items()]
        if lost:
            self._lost(lost)
        self._free_orphans({session: token for session, token in mine.items() if now.get(session) != token})

    def _note_beat(self, patience_seconds: float) -> None:
        """Say so, if leases may have run out meanwhile."""
        before, self._beaten_at = self._beaten_at, time.monotonic()
        if before is not None and (apart := self._beaten_at - before) > patience_seconds:
            logger.warning("%s=%.1f: this process, or its database, was too busy or stopped", LATE, apart)

    def _free_orphans(self, orphans: dict[int, int]) -> None:
        """Leases that no slot knows of, as their claim's answer never came: only if they are so twice in a row, since an
        answer may be on its way.
        """
        twice = {session: token for session, token in orphans.items() if self._orphans.get(session) == token}
        self._orphans = orphans
        if twice:
            logger.warning("action=orphans_freed count=%d", len(twice))
            rescued = self.database.transact(
                lambda db: sweeping.rescue_orphans(
                    db, self.process.id, twice, caps(self.settings), self.settings.hooks()
                )
            )
            if rescued is not None:
                self._meter.rescued(rescued)


def scheduled_cleanup(database: Database, settings: Settings, meter: Meter) -> None:
    """What beat asks for. The first who claims the period's tick does it."""
    with database.reading() as db:
        slot = int(sweeping.database_time(db) // settings.cleanup_interval_seconds)
    if database.transact(lambda db: presence.tick(db, REMOVE_EXPIRED_SESSIONS, slot)):
        crons = settings.crons()
        try:
            _clean_up(database, settings, [rule.name for rule in settings.rules() if rule.name not in crons], meter)
        finally:
            Clearance(database, settings.expiries(), BEAT, is_paced=True).run()
            forget_mailboxes(broker_url(settings))


def timed_cleanup(database: Database, settings: Settings, meter: Meter) -> None:
    """Carry out the rules whose moment has come, and has been claimed by nobody."""
    crons = settings.crons()
    if claimed := database.transact(lambda db: moments.claim(db, crons)):
        _clean_up(database, settings, claimed, meter)


def _clean_up(database: Database, settings: Settings, only: Collection[str], meter: Meter) -> None:
    share = settings.max_removal_share
    work = Cleanup(database, settings.rules(), BEAT, settings.cleanup_chunk, share, is_paced=True, only=only)
    removed, went_well = 0, False
    try:
        for removal in work.run():
            removed += 1
            meter.removed(removal)
        went_well = True
    finally:
        meter.cleaned_up(went_well=went_well)
    logger.info("action=cleaned_up removed=%d", removed)
