"""What becomes of one session by the rules of retention: which covers it, when it is due, and what keeps it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, func, select

from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import SessionState
from inturn.models.store.rules import Rule, covered, due
from inturn.models.store.selecting import has_work
from inturn.models.tables import SCHEDULES, SESSIONS

Moment = Literal["last_activity_at", "created_at", "imported_at"]
NAMES = ("held", "retention_seconds", "created_at", "imported_at", "last_activity_at")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What becomes of a session, if nobody uses it.

    Attributes:
        rule: which covers it; None: it was made to be kept for ever.
        due: whether the next cleanup removes it.
        due_at: when its time is over, whatever keeps it; None: time alone never removes it.
        counts_from: the moment of the session from which that is counted.
        held, busy: each keeps it, as long as it lasts.
        schedules: those that send to it, which keep it.
        paused_schedules: those that would, and keep nothing.
    """

    rule: Rule | None
    due: bool
    due_at: datetime | None
    counts_from: Moment | None
    held: bool
    busy: bool
    schedules: list[str]
    paused_schedules: list[str]


def outlook(database: Database, rules: Sequence[Rule], key: str) -> Outlook:
    """Raises: SessionNotFoundError."""
    mine = and_(SESSIONS.c.key == key, SESSIONS.c.state == SessionState.ACTIVE)
    with database.reading() as db:
        found = select(*(SESSIONS.c[name] for name in NAMES), has_work().label("busy")).where(mine)
        row = db.execute(found).one_or_none()
        if row is None:
            raise SessionNotFoundError(key)
        rule = next((each for each in rules if _is(db, mine, covered(database.dialect, rules, each))), None)
        which = None if rule is None else due(db, rules, rule)
        is_due = which is not None and _is(db, mine, which)
        sends, paused = _schedules(db, key)
    due_at, counts_from = min(_ends(rule, row), default=(None, None))
    return Outlook(rule, is_due, due_at, counts_from, row.held, row.busy, sends, paused)


def _is(db: Connection, mine: ColumnElement[bool], which: ColumnElement[bool]) -> bool:
    return db.execute(select(func.count()).select_from(SESSIONS).where(mine, which)).scalar_one() > 0


def _schedules(db: Connection, key: str) -> tuple[list[str], list[str]]:
    """The names of those that send to it, and of those that are paused."""
    mine = and_(SCHEDULES.c.session_key == key, SCHEDULES.c.new_session.is_(False))
    rows = db.execute(select(SCHEDULES.c.name, SCHEDULES.c.next_at).where(mine).order_by(SCHEDULES.c.name)).all()
    return [row.name for row in rows if row.next_at], [row.name for row in rows if not row.next_at]


def _ends(rule: Rule | None, row: Any) -> Iterator[tuple[datetime, Moment]]:
    """When each of the rule's times is over."""
    if rule is None:
        return
    idle = row.retention_seconds if rule.own and rule.idle_seconds is None else rule.idle_seconds
    if idle is not None:
        yield row.last_activity_at + timedelta(seconds=idle), "last_activity_at"
    if rule.age_seconds is not None:
        made: Moment = "imported_at" if row.imported_at else "created_at"
        yield getattr(row, made) + timedelta(seconds=rule.age_seconds), made
