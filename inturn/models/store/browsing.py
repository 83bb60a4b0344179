"""What who looks through sessions sees: the latest first, with what waits and what was used. No text unless it is asked for:
lengths are counted where the text is.

Pages go by keys, so that the thousandth costs what the first does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, literal, select, tuple_

from inturn.models.database import Database
from inturn.models.states import Lane, Role, TurnState
from inturn.models.store.selecting import Among, SessionFilter, is_like
from inturn.models.tables import LEASES, MESSAGES, REMOVALS, SESSIONS, TURNS

Place = tuple[datetime, int]
"""Where a page of sessions ends: the last activity of its last one, and its surrogate id."""
LONGEST_SHOWN = 20_000
"""Characters of a message that are shown at most."""


@dataclass(frozen=True, slots=True)
class SessionGlance:
    """A session in a list.

    Attributes:
        turns: how many were sent; ``waiting``, ``running``, ``failed`` of them are just that.
        halted_by: the number of the turn behind which it stands still.
        price: in US dollars; None: nothing was priced.
    """

    id: int
    key: str
    model: str
    labels: dict[str, Any]
    held: bool
    hold_reason: str | None
    held_by: str | None
    held_at: datetime | None
    created_at: datetime
    last_activity_at: datetime
    turns: int
    halted_by: int | None
    waiting: int = 0
    running: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    price: float | None = None

    @property
    def place(self) -> Place:
        return self.last_activity_at, self.id


@dataclass(frozen=True, slots=True)
class TurnGlance:
    """A turn without what was said in it."""

    number: int
    state: TurnState
    lane: Lane
    model: str
    attempts: int
    rescues: int
    retry_of: int | None
    merged_into: int | None
    error_type: str | None
    error_status: int | None
    error_message: str | None
    input_tokens: int | None
    output_tokens: int | None
    price: float | None
    ready_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class MessageGlance:
    """A message, and how long it is.

    Attributes:
        characters: of its text.
        content: at most ``LONGEST_SHOWN`` of them; None: not asked for.
    """

    turn_number: int
    position: int
    role: Role
    created_at: datetime
    characters: int
    content: str | None


@dataclass(frozen=True, slots=True)
class RemovalGlance:
    """A receipt in a list."""

    id: int
    session_key: str
    rule: str
    turns: int
    messages: int
    bytes: int
    kept: str
    removed_at: datetime


FACTS = ("id", "key", "model", "labels", "held", "hold_reason", "held_by", "held_at", "created_at", "last_activity_at")


def list_recent(
    database: Database,
    wanted: SessionFilter,
    *,
    pattern: str | None = None,
    held: bool | None = None,
    of_batch: bool | None = None,
    before: Place | None = None,
    limit: int = 25,
) -> list[SessionGlance]:
    """A page of sessions, those used last first.

    Args:
        pattern: of which IDs: ``*`` is any characters, ``?`` any one.
        held: only those that are exempt from retention, or that are not.
        of_batch: only those that a batch made, or that none did.
        before: the place of the last one seen.
    """
    halted_by = select(LEASES.c.halted_by).where(LEASES.c.session_id == SESSIONS.c.id).scalar_subquery()
    turns = (SESSIONS.c.next_turn - 1).label("turns")
    latest_first = (SESSIONS.c.last_activity_at, SESSIONS.c.id)
    page = (
        select(*(SESSIONS.c[name] for name in FACTS), turns, halted_by.label("halted_by"))
        .where(*wanted.conditions(database.dialect))
        .order_by(*(column.desc() for column in latest_first))
        .limit(limit)
    )
    if pattern is not None:
        page = page.where(is_like(database.dialect, SESSIONS.c.key, pattern))
    if held is not None:
        page = page.where(SESSIONS.c.held.is_(held))
    if of_batch is not None:
        page = page.where(SESSIONS.c.batch_id.is_not(None) if of_batch else SESSIONS.c.batch_id.is_(None))
    if before is not None:
        last = (literal(value, column.type) for value, column in zip(before, latest_first, strict=True))
        page = page.where(SESSIONS.c.last_activity_at <= before[0], tuple_(*latest_first) < tuple_(*last))
    with database.reading() as db:
        rows = db.execute(page).all()
        sums = _sums(db, [row.id for row in rows])
    return [_session(row, sums.get(row.id, {})) for row in rows]


def get_glance(database: Database, key: str) -> SessionGlance | None:
    """One session; None: there is none of that ID."""
    return next(iter(list_recent(database, SessionFilter(key=key), limit=1)), None)


def _session(row: Row[*tuple[Any, ...]], sums: dict[str, Any]) -> SessionGlance:
    return SessionGlance(**dict(row._mapping) | {"held": bool(row.held)} | sums)


def _sums(db: Connection, sessions: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the turns of each session come to."""

    def of(state: TurnState) -> ColumnElement[int]:
        return func.sum(case((TURNS.c.state == state, 1), else_=0))

    added_up = select(
        TURNS.c.session_id,
        of(TurnState.QUEUED).label("waiting"),
        of(TurnState.RUNNING).label("running"),
        of(TurnState.FAILED).label("failed"),
        *(func.coalesce(func.sum(TURNS.c[name]), 0).label(name) for name in ("input_tokens", "output_tokens")),
        func.sum(TURNS.c.price).label("price"),
    ).where(Among(db, sessions).has(TURNS.c.session_id))
    rows = [dict(row._mapping) for row in db.execute(added_up.group_by(TURNS.c.session_id))] if sessions else []
    return {row.pop("session_id"): row for row in rows}


def list_turns(database: Database, session_id: int, before: int | None = None, limit: int = 25) -> list[TurnGlance]:
    """A page of a session's turns, the latest first; ``before``: the number of the last one seen."""
    page = select(*(TURNS.c[name] for name in TurnGlance.__slots__)).where(TURNS.c.session_id == session_id)
    if before is not None:
        page = page.where(TURNS.c.number < before)
    with database.reading() as db:
        rows = db.execute(page.order_by(TURNS.c.number.desc()).limit(limit))
        return [
            TurnGlance(**dict(row._mapping) | {"state": TurnState(row.state), "lane": Lane(row.lane)}) for row in rows
        ]


def list_messages(
    database: Database, session_id: int, turns: Iterable[int], *, with_content: bool = False
) -> list[MessageGlance]:
    """The messages of some of a session's turns, in order."""
    shown: Any = func.substr(MESSAGES.c.content, 1, LONGEST_SHOWN) if with_content else literal(None)
    mine = (
        select(
            *(MESSAGES.c[name] for name in ("turn_number", "position", "role", "created_at")),
            func.length(MESSAGES.c.content).label("characters"),
            shown.label("content"),
        )
        .where(MESSAGES.c.session_id == session_id, MESSAGES.c.turn_number.in_(list(turns)))
        .order_by(MESSAGES.c.turn_number, MESSAGES.c.position)
    )
    with database.reading() as db:
        return [MessageGlance(**dict(row._mapping) | {"role": Role(row.role)}) for row in db.execute(mine)]


def list_removals(database: Database, before: int | None = None, limit: int = 25) -> list[RemovalGlance]:
    """A page of receipts, whatever they are of, newest first; ``before``: the id of the last one seen."""
    page = select(*(REMOVALS.c[name] for name in RemovalGlance.__slots__)).order_by(REMOVALS.c.id.desc()).limit(limit)
    with database.reading() as db:
        rows = db.execute(page if before is None else page.where(REMOVALS.c.id < before))
        return [RemovalGlance(**dict(row._mapping)) for row in rows]
