"""Many prompts accepted at once: numbered, stored, and their sessions made ready, as ``sending`` does it for one.

Locks are taken in the order of all who take several: sessions before leases, each by their surrogate ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select, update

from inturn.models.clock import now
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import Lane, Overflow, Retention, Role, SessionState, TurnState
from inturn.models.store.lines import Line, Utterance
from inturn.models.store.loading import load, take_session_ids, written
from inturn.models.store.opening import PROMPT, SYSTEM
from inturn.models.store.waking import Ready
from inturn.models.tables import LEASES, MESSAGES, SESSIONS, TURNS

SESSION_COLUMNS = (
    "id", "key", "model", "system_turn", "options", "labels", "context_turns", "overflow", "held", "retention",
    "retention_seconds", "state", "next_turn", "batch_id", "created_at", "last_activity_at",
)  # fmt: skip
LEASE_COLUMNS = ("session_id", "token", "lane", "ready_at", "hinted_at")
TURN_COLUMNS = (
    "session_id", "number", "state", "lane", "model", "fallbacks", "system_turn", "options", "steps", "batch_id", "line",
    "custom_id", "ready_at", "not_after", "attempts", "ambiguous", "rescues", "created_at", "finished_at", "trace",
)  # fmt: skip
MESSAGE_COLUMNS = ("session_id", "turn_number", "position", "role", "content", "data", "created_at")

COUNT_UP = (
    update(SESSIONS)
    .where(SESSIONS.c.id == bindparam("session"))
    .values(next_turn=bindparam("next"), system_turn=bindparam("system"), last_activity_at=bindparam("present"))
)


@dataclass(frozen=True, slots=True)
class Admission:
    """How lines are taken in.

    Attributes:
        model, system, retention, retention_seconds: of sessions that are made.
        options: for the provider, with every line; a line's own go ahead.
        context_turns: how many turns a model is shown as configured: a line whose history is longer is shown it all.
        prefix: of the IDs of sessions that lines have for themselves.
        batch_id: of the batch that they are lines of; None: of none.
        not_after: no call is begun for them after this.
        trace: the link to where they are sent, for their workers.
    """

    model: str
    lane: Lane
    system: str | None = None
    retention: Retention = Retention.POLICY
    retention_seconds: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    context_turns: int = 0
    batch_id: int | None = None
    prefix: str = ""
    not_after: datetime | None = None
    trace: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """Prompts that are stored: session and number of each, in order; and who is to be told of them."""

    places: Sequence[tuple[int, int]]
    ready: Sequence[Ready]


@dataclass(slots=True)
class _Session:
    """A session that lines go into."""

    id: int
    key: str
    model: str
    fallbacks: str | None
    next_turn: int
    system_turn: int | None
    system: str | None
    labels: Mapping[str, str] | None = None
    context_turns: int | None = None
    is_new: bool = False


@dataclass(slots=True)
class _Rows:
    """What is to be stored."""

    present: Any
    trace: str | None = None
    turns: list[tuple[Any, ...]] = field(default_factory=list)
    messages: list[tuple[Any, ...]] = field(default_factory=list)


def admit(db: Connection, how: Admission, lines: Sequence[Line], hints: int, all_may_exist: bool = False) -> Admitted:
    """Store the lines, each as the next turn of its session, which is made if there is none.

    Args:
        hints: how many of the sessions that become ready count as told; these are what is returned.
        all_may_exist: look also for the sessions that the lines have for themselves: one of them was there.

    Raises:
        SessionNotFoundError: one of the sessions is being removed.
        IntegrityError: somebody made one of the sessions meanwhile.
    """
    keys = [line.session or f"{how.prefix}:{line.line}" for line in lines]
    looked_for = dict.fromkeys(keys if all_may_exist else (line.session for line in lines if line.session))
    there = _lock(db, list(looked_for), with_system=any(line.system is not None for line in lines))
    idle, moment = _lock_leases(db, there)
    new = [key for key in dict.fromkeys(keys) if key not in there]
    present, ids = written(db, moment), dict(zip(new, take_session_ids(db, len(new)), strict=True))
    rows, places = _Rows(present, orjson.dumps(dict(how.trace)).decode() if how.trace else None), []
    not_after = written(db, how.not_after)
    for line, key in zip(lines, keys, strict=True):
        if (session := there.get(key)) is None:
            session = there[key] = _make(rows, how, ids[key], key, line)
        places.append((session.id, _add(rows, how, session, line, not_after)))
    ready = [Ready(it.id, it.key, how.lane) for it in there.values() if it.is_new or it.id in idle]
    _write(db, how, list(there.values()), rows, ready, hints)
    return Admitted(places, ready[:hints])


def _lock(db: Connection, keys: Sequence[str], *, with_system: bool) -> dict[str, _Session]:
    if not keys:
        return {}
    columns = (SESSIONS.c[name] for name in ("id", "key", "state", "model", "fallbacks", "next_turn", "system_turn"))
    mine = select(*columns).where(SESSIONS.c.key.in_(keys)).order_by(SESSIONS.c.id).with_for_update(key_share=True)
    found = db.execute(mine).all()
    if gone := [row.key for row in found if row.state != SessionState.ACTIVE]:
        raise SessionNotFoundError(gone[0])
    said = _systems(db, [row.id for row in found if row.system_turn is not None]) if with_system else {}
    return {
        row.key: _Session(
            row.id, row.key, row.model, None if row.fallbacks is None else orjson.dumps(row.fallbacks).decode(),
            row.next_turn, row.system_turn, said.get(row.id),
        )
        for row in found
    }  # fmt: skip


def _systems(db: Connection, sessions: Sequence[int]) -> dict[int, str]:
    """The system messages that are in force."""
    in_force = (MESSAGES.c.turn_number == SESSIONS.c.system_turn) & (MESSAGES.c.position == SYSTEM)
    rows = db.execute(
        select(MESSAGES.c.session_id, MESSAGES.c.content)
        .join(SESSIONS, (SESSIONS.c.id == MESSAGES.c.session_id) & in_force)
        .where(SESSIONS.c.id.in_(sessions))
    )
    return {row.session_id: row.content for row in rows}


def _lock_leases(db: Connection, there: Mapping[str, _Session]) -> tuple[set[int], datetime]:
    """Under their locks nothing is claimed or settled until the new turns are stored.

    Returns: the sessions that have nothing to do and nobody who holds them, and the moment.
    """
    idle = set()
    if there:
        mine = LEASES.c.session_id.in_([session.id for session in there.values()])
        columns = (LEASES.c.session_id, LEASES.c.owner, LEASES.c.ready_at)
        locked = db.execute(select(*columns).where(mine).order_by(LEASES.c.session_id).with_for_update())
        idle = {row.session_id for row in locked if row.owner is None and row.ready_at is None}
    moment: datetime = db.execute(select(now())).scalar_one()
    return idle, moment


def _make(rows: _Rows, how: Admission, session_id: int, key: str, line: Line) -> _Session:
    session = _Session(session_id, key, line.model or how.model, None, 1, None, None, line.labels, is_new=True)
    system = how.system if line.system is None else line.system
    if system:
        session.system_turn, session.system = 1, system
        rows.messages.append((session_id, 1, SYSTEM, "system", system, None, rows.present))
    turns = _in_turns(line.history)
    for number, said in enumerate(turns, start=1):
        _remember(rows, how, session, number, said)
    session.next_turn = len(turns) + 1
    session.context_turns = len(turns) if len(turns) > how.context_turns else None
    return session


def _in_turns(history: Iterable[Utterance]) -> list[list[Utterance]]:
    """What was said before, by turns: each begins with what its user says."""
    turns: list[list[Utterance]] = []
    for said in history:
        if not turns or said.role is Role.USER:
            turns.append([])
        turns[-1].append(said)
    return turns


def _remember(rows: _Rows, how: Admission, session: _Session, number: int, said: Sequence[Utterance]) -> None:
    """A turn that was answered elsewhere."""
    _turn(rows, how, session, number, TurnState.COMPLETED, steps=max(0, len(said) - 2))
    for position, utterance in enumerate(said, start=PROMPT):
        _say(rows, session.id, number, position, utterance)


def _turn(rows: _Rows, how: Admission, session: _Session, number: int, state: TurnState, steps: int) -> None:
    done = rows.present if state is TurnState.COMPLETED else None
    rows.turns.append(
        (session.id, number, str(state), str(how.lane), session.model, session.fallbacks, session.system_turn, "{}", steps,
         None, None, None, rows.present, None, 0, 0, 0, rows.present, done, None)
    )  # fmt: skip


def _say(rows: _Rows, session_id: int, number: int, position: int, said: Utterance) -> None:
    data = None if said.data is None else orjson.dumps(said.data).decode()
    rows.messages.append((session_id, number, position, str(said.role), said.content, data, rows.present))


def _add(rows: _Rows, how: Admission, session: _Session, line: Line, not_after: Any) -> int:
    """The line itself, as the session's next turn. Returns its number."""
    number, session.next_turn = session.next_turn, session.next_turn + 1
    if line.system is not None and line.system != (session.system or ""):
        session.system_turn, session.system = (number if line.system else None), line.system or None
        if line.system:
            rows.messages.append((session.id, number, SYSTEM, "system", line.system, None, rows.present))
    model, fallbacks = (line.model, None) if line.model else (session.model, session.fallbacks)
    place = (None, None, None) if how.batch_id is None else (how.batch_id, line.line, line.custom_id)
    options = orjson.dumps({**how.options, **line.options}).decode() if how.options or line.options else "{}"
    rows.turns.append(
        (session.id, number, "queued", str(how.lane), model, fallbacks, session.system_turn, options, len(line.follows),
         *place, rows.present, not_after, 0, 0, 0, rows.present, None, rows.trace)
    )  # fmt: skip
    data = None if line.data is None else orjson.dumps(line.data).decode()
    rows.messages.append((session.id, number, PROMPT, "user", line.prompt, data, rows.present))
    for position, said in enumerate(line.follows, start=PROMPT + 1):
        _say(rows, session.id, number, position, said)
    return number


def _write(
    db: Connection, how: Admission, sessions: Sequence[_Session], rows: _Rows, ready: Sequence[Ready], hints: int
) -> None:
    new, counted = [it for it in sessions if it.is_new], [it for it in sessions if not it.is_new]
    told = {each.session_id for each in ready[:hints]}
    load(db, SESSIONS, SESSION_COLUMNS, [_row(it, how, rows.present) for it in new])
    leases = [(it.id, 0, str(how.lane), rows.present, rows.present if it.id in told else None) for it in new]
    load(db, LEASES, LEASE_COLUMNS, leases)
    if counted:
        _count_up(db, how, counted, ready, told)
    load(db, TURNS, TURN_COLUMNS, rows.turns)
    load(db, MESSAGES, MESSAGE_COLUMNS, rows.messages)


def _row(session: _Session, how: Admission, present: Any) -> tuple[Any, ...]:
    labels = orjson.dumps(dict(session.labels)).decode() if session.labels else "{}"
    return (
        session.id, session.key, session.model, session.system_turn, "{}", labels, session.context_turns,
        str(Overflow.TRUNCATE), False, str(how.retention), how.retention_seconds, str(SessionState.ACTIVE),
        session.next_turn, how.batch_id, present, present,
    )  # fmt: skip


def _count_up(
    db: Connection, how: Admission, sessions: Sequence[_Session], ready: Sequence[Ready], told: set[int]
) -> None:
    present = db.execute(select(now())).scalar_one()
    counted = [{"session": it.id, "next": it.next_turn, "system": it.system_turn} for it in sessions]
    db.execute(COUNT_UP, [each | {"present": present} for each in counted])
    idle = {each.session_id for each in ready} & {session.id for session in sessions}
    for which, hinted in ((idle & told, now()), (idle - told, LEASES.c.hinted_at)):
        if which:
            due = {"ready_at": now(), "lane": how.lane, "hinted_at": hinted}
            db.execute(update(LEASES).where(LEASES.c.session_id.in_(which)).values(due))
