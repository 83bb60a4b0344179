"""A session's life in order: what was said, and which turns ended without a reply. Read back by pages, or followed as it
goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select

from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import FINAL, UNFINISHED, Role, SessionState, TurnState
from inturn.models.store.opening import PROMPT
from inturn.models.tables import MESSAGES, SESSIONS, SUMMARY, TURNS

END = 2**31 - 1
"""The place of a turn's end, behind all of its messages."""
BEHIND_THE_PROMPT = (MESSAGES.c.position > PROMPT) & (MESSAGES.c.position < SUMMARY)
WITHOUT_REPLY = (TurnState.FAILED, TurnState.CANCELLED)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A message, or the end of a turn that has no reply.

    Attributes:
        place: the message's position in its turn; ``END``.
        what: who said it; ``failed`` or ``cancelled``.
        text: what was said; why it failed.
    """

    session_id: int
    turn_number: int
    place: int
    what: Role | TurnState
    text: str
    happened_at: datetime
    error_type: str | None = None
    error_status: int | None = None
    merged_into: int | None = None
    data: dict[str, Any] | None = None
    """What of a message is no text."""

    @property
    def is_step(self) -> bool:
        """Whether the turn went on behind it: tools were called, or said something."""
        return self.what is Role.TOOL or "tool_calls" in (self.data or {})


Place = tuple[int, int]
"""A turn's number, and a place in it."""


def list_events(database: Database, session_id: int, after: Place, limit: int) -> list[EventRecord]:
    """A page of a session's life by turn, of ``limit`` messages and the ends between them; a shorter one is the last."""
    turn, place = after
    later = or_(MESSAGES.c.turn_number > turn, (MESSAGES.c.turn_number == turn) & (MESSAGES.c.position > place))
    with database.reading() as db:
        said = _messages(db, session_id, MESSAGES.c.turn_number >= turn, later, limit=limit)
        mine = TURNS.c.number >= turn if place < END else TURNS.c.number > turn
        if len(said) == limit:  # of its last turn there may be more on the next page
            mine &= TURNS.c.number < said[-1].turn_number
        ended = _ends(db, session_id, mine, TURNS.c.state.in_(WITHOUT_REPLY))
    return in_order([*said, *ended])


def in_order(events: Sequence[EventRecord]) -> list[EventRecord]:
    return sorted(events, key=lambda event: (event.turn_number, event.place))


def _messages(
    db: Connection, session_id: int, *which: ColumnElement[bool], limit: int | None = None, newest: bool = False
) -> list[EventRecord]:
    order: tuple[Any, ...] = (MESSAGES.c.turn_number, MESSAGES.c.position)
    if newest:
        order = tuple(column.desc() for column in order)
    page = select(MESSAGES).where(MESSAGES.c.session_id == session_id, *which).order_by(*order).limit(limit)
    return [
        EventRecord(
            session_id, row.turn_number, row.position, Role(row.role), row.content, row.created_at, data=row.data
        )
        for row in db.execute(page)
    ]


ENDS = (
    TURNS.c.number,
    TURNS.c.state,
    TURNS.c.error_type,
    TURNS.c.error_message,
    TURNS.c.error_status,
    TURNS.c.merged_into,
    TURNS.c.finished_at,
)


def _ends(db: Connection, session_id: int, *which: ColumnElement[bool]) -> list[EventRecord]:
    rows = db.execute(select(*ENDS).where(TURNS.c.session_id == session_id, *which))
    return [
        EventRecord(
            session_id, row.number, END, TurnState(row.state), row.error_message or "", row.finished_at,
            row.error_type, row.error_status, row.merged_into,
        )
        for row in rows
    ]  # fmt: skip


@dataclass(slots=True)
class Bookmark:
    """How far somebody has followed a session. Every turn before ``open_from`` has ended, and from ``next_turn`` on none
    is known yet.
    """

    session_id: int
    key: str
    open_from: int
    next_turn: int
    ended: set[int] = field(default_factory=set)
    """Those that ended although an earlier one is open: they were taken back."""
    step: Place = (0, 0)
    """The last step that is known. Of the open turns only the first can have any."""

    def is_open(self, number: int) -> bool:
        return self.open_from <= number < self.next_turn and number not in self.ended

    def close(self, numbers: Sequence[int]) -> None:
        self.ended.update(numbers)
        while self.open_from in self.ended:
            self.ended.remove(self.open_from)
            self.open_from += 1


def bookmark(database: Database, session_id: int, key: str, last: int) -> tuple[Bookmark, list[EventRecord]]:
    """Where the session stands now, and its last messages until then.

    Raises:
        SessionNotFoundError: it was deleted.
    """
    with database.snapshot() as db:
        next_turn = _next_turn(db, session_id, key)
        mine, number = TURNS.c.session_id == session_id, TURNS.c.number
        lowest = select(number).where(mine, TURNS.c.state.in_(UNFINISHED)).order_by(number).limit(1)
        found = Bookmark(session_id, key, db.execute(lowest).scalar() or next_turn, next_turn)
        ended = select(number).where(mine, number > found.open_from, TURNS.c.state.in_(FINAL))
        found.close(db.execute(ended).scalars().all())
        found.step = max(
            ((row.turn_number, row.place) for row in steps(db, session_id, found.open_from)), default=(0, 0)
        )
        past = _messages(db, session_id, limit=last, newest=True) if last else []
    return found, past[::-1]


def news(database: Database, known: Bookmark) -> list[EventRecord]:
    """What has been stored since; moves the bookmark. In this order of looking nothing is seen before what it belongs to.

    Raises:
        SessionNotFoundError: the session was deleted.
    """
    session_id, prompts, ended, said = known.session_id, [], [], []
    with database.reading() as db:
        next_turn = _next_turn(db, session_id, known.key)
        if next_turn > known.next_turn:
            number = MESSAGES.c.turn_number
            new = (number >= known.next_turn) & (number < next_turn) & (MESSAGES.c.position <= PROMPT)
            prompts = _messages(db, session_id, new)
        if known.open_from < next_turn:
            said = steps(db, session_id, known.open_from, known.step)
            known.step = max([known.step, *((row.turn_number, row.place) for row in said)])
            candidates = (TURNS.c.number >= known.open_from) & (TURNS.c.number < next_turn)
            ended = _ends(db, session_id, candidates, TURNS.c.finished_at.is_not(None))
            ended = [end for end in ended if end.turn_number not in known.ended]
            replies = _with_replies(db, session_id, ended)
            said += [row for row in replies if (row.turn_number, row.place) > known.step]
    known.next_turn = next_turn
    known.close([end.turn_number for end in ended])
    return in_order([*prompts, *said])


def steps(db: Connection, session_id: int, number: int, after: Place = (0, 0)) -> list[EventRecord]:
    """A turn's steps, behind the one that is known: a round's are stored together, before the next call."""
    found = _messages(db, session_id, MESSAGES.c.turn_number == number, BEHIND_THE_PROMPT)
    return [row for row in found if row.is_step and (number, row.place) > after]


def _with_replies(db: Connection, session_id: int, ended: list[EventRecord]) -> list[EventRecord]:
    over = MESSAGES.c.turn_number.in_([end.turn_number for end in ended])
    said = _messages(db, session_id, over, BEHIND_THE_PROMPT) if ended else []
    return [*said, *(end for end in ended if end.what in WITHOUT_REPLY)]


def _next_turn(db: Connection, session_id: int, key: str) -> int:
    active = (SESSIONS.c.id == session_id) & (SESSIONS.c.state == SessionState.ACTIVE)
    found: int | None = db.execute(select(SESSIONS.c.next_turn).where(active)).scalar()
    if found is None:
        raise SessionNotFoundError(key)
    return found
