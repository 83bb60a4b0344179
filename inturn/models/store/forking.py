"""Sessions under another ID: renamed, and forked off."""

from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    case,
    exists,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import (
    InvalidInputError,
    SessionExistsError,
    SessionNotFoundError,
    UnfinishedTurnsError,
)
from inturn.models.states import UNFINISHED, Lane, SessionState
from inturn.models.store import retention
from inturn.models.store.opening import SYSTEM, UPSERT
from inturn.models.tables import LEASES, MESSAGES, PAST_HOLDS, SCHEDULES, SESSIONS, TURNS

LEFT_BEHIND = {
    "session_id", "idempotency_key", "batch_id", "line", "custom_id", "streams", "waits_for", "trace", "cancel_requested_at",
}  # fmt: skip
"""What is not copied of a turn: what its sender, its batch and its worker knew it by."""


def rename(database: Database, session_id: int, key: str, new_key: str) -> None:
    """Put a session under another ID. Its turns keep theirs, and its schedules follow.

    Raises:
        SessionNotFoundError: it was deleted.
        SessionExistsError: the ID is taken.
        UnfinishedTurnsError: a provider may know a call of it by the old ID, under which it would be made again.
    """

    def change(db: Connection) -> bool:
        mine = (SCHEDULES.c.session_key == key) & SCHEDULES.c.new_session.is_(false())
        db.execute(select(SCHEDULES.c.id).where(mine).order_by(SCHEDULES.c.id).with_for_update())
        locked(db, session_id, key)
        if (number := _first_unfinished(db, session_id)) is not None:
            raise UnfinishedTurnsError(key, number, "wait for it, or cancel it; then the session can be renamed")
        if db.execute(select(exists().where(SESSIONS.c.key == new_key))).scalar():
            return False
        db.execute(update(SESSIONS).where(SESSIONS.c.id == session_id).values(key=new_key, last_activity_at=now()))
        db.execute(update(SCHEDULES).where(mine).values(session_key=new_key))
        db.execute(update(PAST_HOLDS).where(PAST_HOLDS.c.session_id == session_id).values(session_key=new_key))
        return True

    try:
        under(database, new_key, change)
    except IntegrityError as error:
        raise SessionExistsError(new_key) from error  # taken since we looked


def fork(database: Database, session_id: int, key: str, new_key: str, to_turn: int | None) -> int:
    """Make a session that begins with the history of another one, and goes on by itself; returns its surrogate id.

    Calls are not copied: what they cost was spent once.

    Args:
        to_turn: the last turn that it shares; 0: none; None: the last one before which all are finished.

    Raises:
        SessionNotFoundError: the original was deleted.
        SessionExistsError: the ID is taken.
        InvalidInputError: there is no such turn.
        UnfinishedTurnsError: the turn, or one before it, has no end yet.
    """
    made: list[int] = []

    def copy(db: Connection) -> bool:
        original = locked(db, session_id, key)
        last = last_turn(db, original, key, to_turn)
        system = system_turn(db, original, last)
        new = _insert_like(db, session_id, new_key, last, system)
        if new is None:
            return False
        db.execute(insert(LEASES).values(session_id=new, token=0, lane=Lane.CHAT))
        ended_later = case((TURNS.c.merged_into <= last, TURNS.c.merged_into))
        _copy(db, TURNS, new, TURNS.c.number <= last, session_id, {"merged_into": ended_later}, LEFT_BEHIND)
        is_ahead = true() if system == last + 1 else false()  # it applies to what is sent next
        ahead = and_(MESSAGES.c.turn_number == last + 1, MESSAGES.c.position == SYSTEM, is_ahead)
        _copy(db, MESSAGES, new, or_(MESSAGES.c.turn_number <= last, ahead), session_id, {}, {"session_id"})
        made.append(new)
        return True

    under(database, new_key, copy)
    return made[-1]


def under(database: Database, new_key: str, work: Callable[[Connection], bool]) -> None:
    """Do what needs a free ID, and says whether it was; one whose session is half removed becomes free.

    Raises:
        SessionExistsError: it is not.
    """
    if not database.transact(work) and not (retention.finish_removal(database, new_key) and database.transact(work)):
        raise SessionExistsError(new_key)


def locked(db: Connection, session_id: int, key: str) -> Any:
    """The session, to which nobody sends until this transaction ends. Raises: SessionNotFoundError."""
    return _the_one(db, _session(session_id).with_for_update(key_share=True), key)


def found(db: Connection, session_id: int, key: str) -> Any:
    """The session as it is at this moment. Raises: SessionNotFoundError."""
    return _the_one(db, _session(session_id), key)


def _session(session_id: int) -> Select[Any]:
    columns = (SESSIONS.c.id, SESSIONS.c.next_turn, SESSIONS.c.system_turn, SESSIONS.c.content_removed_to)
    return select(*columns).where(SESSIONS.c.id == session_id, SESSIONS.c.state == SessionState.ACTIVE)


def _the_one(db: Connection, wanted: Select[Any], key: str) -> Any:
    row = db.execute(wanted).one_or_none()
    if row is None:
        raise SessionNotFoundError(key)
    return row


def _first_unfinished(db: Connection, session_id: int) -> int | None:
    waiting = select(func.min(TURNS.c.number)).where(TURNS.c.session_id == session_id, TURNS.c.state.in_(UNFINISHED))
    return db.execute(waiting).scalar()


def last_turn(db: Connection, original: Any, key: str, wanted: int | None) -> int:
    """Raises: InvalidInputError, UnfinishedTurnsError."""
    most, unfinished = original.next_turn - 1, _first_unfinished(db, original.id)
    if wanted is None:
        return most if unfinished is None else unfinished - 1
    if wanted > most:
        raise InvalidInputError(f"to_turn is {wanted}: the last turn of session {key!r} is {most}")
    if unfinished is not None and unfinished <= wanted:
        raise UnfinishedTurnsError(key, unfinished, f"wait for it, or fork up to turn {unfinished - 1}")
    return wanted


def system_turn(db: Connection, original: Any, last: int) -> int | None:
    """Where the system message stands that is in force behind a turn."""
    if last == original.next_turn - 1:
        return cast("int | None", original.system_turn)
    sent = max(last, 1)
    its = and_(TURNS.c.session_id == original.id, TURNS.c.number == sent)
    then = select(TURNS.c.system_turn).where(its, TURNS.c.system_turn > original.content_removed_to)
    return db.execute(then).scalar()


def _insert_like(db: Connection, original: int, new_key: str, last: int, system: int | None) -> int | None:
    """The new session's row. Returns: its id; None: the ID is taken."""
    gone = SESSIONS.c.content_removed_to
    ours: dict[str, Any] = {
        "key": literal(new_key), "system_turn": null() if system is None else literal(system), "held": false(),
        "hold_reason": null(), "held_by": null(), "held_at": null(), "imported_at": null(), "batch_id": null(),
        "next_turn": literal(last + 1), "created_at": now(), "last_activity_at": now(),
        "content_removed_to": case((gone < last, gone), else_=literal(last)),
        "content_removed_at": SESSIONS.c.content_removed_at if last else null(),
    }  # fmt: skip
    names = [column.name for column in SESSIONS.c if column.name != "id"]
    values = select(*(ours.get(name, SESSIONS.c[name]) for name in names)).where(SESSIONS.c.id == original)
    taking = UPSERT[db.dialect.name](SESSIONS).from_select(names, values)
    made: int | None = db.execute(
        taking.on_conflict_do_nothing(index_elements=["key"]).returning(SESSIONS.c.id)
    ).scalar()
    return made


def _copy(
    db: Connection, table: Table, new: int, which: ColumnElement[bool], original: int, instead: dict[str, Any],
    without: set[str],
) -> None:  # fmt: skip
    names = [column.name for column in table.c if column.name not in without]
    values = (instead.get(name, table.c[name]) for name in names)
    rows = select(literal(new), *values).where(table.c.session_id == original, which)
    db.execute(insert(table).from_select(["session_id", *names], rows))
