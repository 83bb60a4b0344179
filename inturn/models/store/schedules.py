"""Schedules: prompts that are sent by the clock.

Whoever is first to fire a run stores its turn and moves the schedule on, in one transaction: two beats send it once, and one
that dies has sent it, or leaves it to the next.

The database's clock says what is due. Locks go in one order: schedule, then what a send locks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, delete, func, null, select, update

from inturn.models.clock import now
from inturn.models.cron import Cron, plan
from inturn.models.database import Database
from inturn.models.errors import ScheduleExistsError, ScheduleNotFoundError, SessionNotFoundError
from inturn.models.states import Misfire, SessionState
from inturn.models.store import moments
from inturn.models.store.moments import Crons
from inturn.models.store.opening import UPSERT, NewSession, create
from inturn.models.store.sending import NewTurn, Sent, accept
from inturn.models.tables import SCHEDULES, SESSIONS, TICKS

RUN = "%Y-%m-%dT%H:%MZ"
"""What the ID of a run's own session ends with, in UTC."""
RUN_WIDTH = 18
"""With the ``-`` before it."""
LABEL = "schedule"
"""The label of sessions that a schedule makes: its name."""


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """What a schedule is made from.

    Attributes:
        key: the session's ID, or what the IDs of new ones begin with.
        model, fallbacks, system_message: of new sessions.
    """

    name: str
    key: str
    prompt: str
    cron: Cron
    new_session: bool = False
    misfire: Misfire = Misfire.ONCE
    model: str | None = None
    fallbacks: list[str] | None = None
    system_message: str | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A prompt that is sent by the clock.

    Attributes:
        session_id: the session's ID, or what the IDs of new ones begin with.
        new_session: whether each run is sent to a session of its own.
        misfire: what becomes of runs that nobody was there to fire.
        model, fallbacks, system_message: of new sessions.
        next_at: when it is fired next; None while it is paused.
        last_at, last_turn: the run that was fired last, and the ID of the turn that it became.
        paused_because: what kept it from being fired; None: it is not paused, or somebody paused it.
    """

    name: str
    session_id: str
    new_session: bool
    prompt: str
    cron: str
    timezone: str
    misfire: Misfire
    model: str | None
    fallbacks: list[str] | None
    system_message: str | None
    created_at: datetime
    next_at: datetime | None
    last_at: datetime | None
    last_turn: str | None
    paused_at: datetime | None
    paused_because: str | None

    @property
    def is_paused(self) -> bool:
        return self.paused_at is not None

    def next_runs(self, count: int = 5) -> list[datetime]:
        """The next runs, in UTC; none while it is paused."""
        return [] if self.next_at is None else list(islice(self._runs(self.next_at), count))

    def _runs(self, first: datetime) -> Iterator[datetime]:
        yield first
        yield from Cron(self.cron, self.timezone).runs(first)


@dataclass(frozen=True, slots=True)
class Fired:
    """A run that was due, and has been seen to.

    Attributes:
        sent: its turn, and whether a worker is to be told; None: the run was missed, and is left out.
        is_behind: whether the next run is due as well.
    """

    name: str
    run: datetime | None
    sent: Sent | None
    is_behind: bool


@dataclass(frozen=True, slots=True)
class BeatWork:
    """What waits for a beat: schedules that are not paused, and a cleanup that should have been."""

    schedules: int
    is_cleanup_due: bool


LISTED = select(
    *(SCHEDULES.c["session_key" if name == "session_id" else name].label(name) for name in Schedule.__slots__)
)


def _schedule(row: Any) -> Schedule:
    return Schedule(**{**row, "misfire": Misfire(row["misfire"])})


def add(database: Database, new: NewSchedule) -> Schedule:
    """Make a schedule, whose first run is the next one.

    Raises:
        ScheduleExistsError: the name is taken.
        SessionNotFoundError: there is no session of that ID.
    """

    def insert(db: Connection) -> None:
        if not new.new_session:
            mine = select(SESSIONS.c.id).where(SESSIONS.c.key == new.key, SESSIONS.c.state == SessionState.ACTIVE)
            if db.execute(mine).first() is None:
                raise SessionNotFoundError(new.key)
        present = db.execute(select(now())).scalar_one()
        values = {
            "name": new.name,
            "session_key": new.key,
            "new_session": new.new_session,
            "prompt": new.prompt,
            "cron": new.cron.expression,
            "timezone": new.cron.timezone,
            "misfire": new.misfire,
            "model": new.model,
            "fallbacks": new.fallbacks,
            "system_message": new.system_message,
            "created_at": present,
            "next_at": new.cron.next(present),
        }
        once = UPSERT[db.dialect.name](SCHEDULES).values(values).on_conflict_do_nothing(index_elements=["name"])
        if db.execute(once.returning(SCHEDULES.c.id)).first() is None:
            raise ScheduleExistsError(new.name)

    database.transact(insert)
    return get(database, new.name)


def get(database: Database, name: str) -> Schedule:
    """Raises: ScheduleNotFoundError."""
    with database.reading() as db:
        row = db.execute(LISTED.where(SCHEDULES.c.name == name)).mappings().one_or_none()
    if row is None:
        raise ScheduleNotFoundError(name)
    return _schedule(row)


def count_late(db: Connection, seconds: float) -> int:
    """Schedules whose run was due so long ago, and was not fired."""
    late = SCHEDULES.c.next_at < now(-seconds)
    return db.execute(select(func.count()).select_from(SCHEDULES).where(late)).scalar_one()


def list_schedules(database: Database) -> list[Schedule]:
    """All schedules, by name."""
    with database.reading() as db:
        return [_schedule(row) for row in db.execute(LISTED.order_by(SCHEDULES.c.name)).mappings()]


def pause(database: Database, name: str) -> bool:
    """Fire no more runs of it. Returns whether it was not paused already. Raises: ScheduleNotFoundError."""

    def stop(db: Connection) -> bool:
        return _locked(db, name).next_at is not None and _stop(db, SCHEDULES.c.name == name, None)

    return database.transact(stop)


def resume(database: Database, name: str) -> bool:
    """Fire its runs again, from the next one on: those of the meantime are not made up for.

    Returns: whether it was paused. Raises: ScheduleNotFoundError.
    """

    def go_on(db: Connection) -> bool:
        row = _locked(db, name)
        if row.next_at is not None:
            return False
        since = max(row.present, row.last_at or row.present)  # nothing is fired twice when the clock was put back
        due_at = Cron(row.cron, row.timezone).next(since)
        values = {"next_at": due_at, "paused_at": null(), "paused_because": null()}
        db.execute(update(SCHEDULES).where(SCHEDULES.c.name == name).values(values))
        return True

    return database.transact(go_on)


def remove(database: Database, name: str) -> None:
    """Take a schedule away; sessions and turns stay. Raises: ScheduleNotFoundError."""

    def take_away(db: Connection) -> int:
        return db.execute(delete(SCHEDULES).where(SCHEDULES.c.name == name)).rowcount

    if not database.transact(take_away):
        raise ScheduleNotFoundError(name)


def _locked(db: Connection, name: str) -> Any:
    """Its row, and the present. Raises: ScheduleNotFoundError."""
    mine = select(SCHEDULES, now().label("present")).where(SCHEDULES.c.name == name).with_for_update(of=SCHEDULES)
    row = db.execute(mine).one_or_none()
    if row is None:
        raise ScheduleNotFoundError(name)
    return row


def list_due(db: Connection, limit: int) -> list[int]:
    """Surrogate ids of schedules with a run that is due, the one that has waited longest first."""
    due = select(SCHEDULES.c.id).where(SCHEDULES.c.next_at <= select(now()).scalar_subquery())
    return list(db.execute(due.order_by(SCHEDULES.c.next_at).limit(limit)).scalars())


def fire(db: Connection, schedule_id: int, trace: Mapping[str, str] | None = None) -> Fired | None:
    """See to a run that is due: store its turn, or leave it out, and move the schedule on.

    Args:
        trace: what the turn's worker is to go on with.

    Returns:
        None: nothing of it is due any more, or somebody else is at it.

    Raises:
        SessionNotFoundError, IdempotencyConflictError, InvalidInputError: it cannot be fired; see ``give_up``.
    """
    due = select(SCHEDULES, now().label("present")).where(SCHEDULES.c.id == schedule_id, SCHEDULES.c.next_at <= now())
    row = db.execute(due.with_for_update(of=SCHEDULES, skip_locked=True)).one_or_none()
    if row is None:
        return None
    run, following = plan(Cron(row.cron, row.timezone), Misfire(row.misfire), row.next_at, row.present)
    sent = None if run is None else _send(db, row, run, trace)
    changes: dict[str, Any] = {"next_at": following}
    if sent is not None:
        changes |= {"last_at": run, "last_turn": f"{sent.session_id}.{sent.number}"}
    db.execute(update(SCHEDULES).where(SCHEDULES.c.id == schedule_id).values(changes))
    return Fired(row.name, run, sent, following <= row.present)


def _send(db: Connection, row: Any, run: datetime, trace: Mapping[str, str] | None) -> Sent:
    """The run's turn. Where it has been sent already, and the schedule was put back since, that is the turn."""
    key = row.session_key
    if row.new_session:
        key = f"{key}-{run:{RUN}}"
        create(db, NewSession(key, row.model, row.fallbacks, row.system_message, labels={LABEL: row.name}))
    return accept(db, NewTurn(key, row.prompt, idempotency_key=f"schedule:{row.id}:{run.isoformat()}", trace=trace))


def give_up(db: Connection, schedule_id: int, because: str) -> bool:
    """Pause a schedule that cannot be fired. Returns whether it was not paused already."""
    return _stop(db, SCHEDULES.c.id == schedule_id, because)


def _stop(db: Connection, which: Any, because: str | None) -> bool:
    values = {"next_at": null(), "paused_at": now(), "paused_because": because}
    return bool(db.execute(update(SCHEDULES).where(which, SCHEDULES.c.next_at.is_not(None)).values(values)).rowcount)


def beat_work(db: Connection, cleanup: str, cleanup_seconds: float, crons: Crons) -> BeatWork:
    """What waits for a beat.

    Args:
        cleanup: the name of the cleanup's ticks.
        cleanup_seconds: between two of them.
        crons: of rules that have moments of their own.
    """
    active = select(func.count()).select_from(SCHEDULES).where(SCHEDULES.c.next_at.is_not(None))
    last = select(func.max(TICKS.c.fired_at)).where(TICKS.c.name == cleanup).scalar_subquery()
    oldest = select(SESSIONS.c.created_at).order_by(SESSIONS.c.id).limit(1).scalar_subquery()
    is_due = func.coalesce(last, oldest) < now(-2 * cleanup_seconds)
    columns = (active.scalar_subquery().label("schedules"), is_due.label("is_due"), oldest.label("oldest"))
    row = db.execute(select(*columns)).one()
    return BeatWork(row.schedules, bool(row.is_due or moments.due(db, crons, row.oldest)))
