"""Holds: what exempts a session from retention, for whom and why, and those that are over."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, null, select, update

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionHeldError, SessionNotFoundError
from inturn.models.states import SessionState
from inturn.models.tables import PAST_HOLDS, SESSIONS

HOLD = (SESSIONS.c.hold_reason, SESSIONS.c.held_by, SESSIONS.c.held_at)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a session is exempt from retention, and who wants that."""

    reason: str | None
    by: str


@dataclass(frozen=True, slots=True)
class PastHold:
    """A hold that is over.

    Attributes:
        reason: None also once its session is removed.
        released_by: who released the session, or put another hold in the place of this one.
    """

    session_id: str
    reason: str | None
    held_by: str | None
    held_at: datetime | None
    released_by: str
    released_at: datetime


NAMES = PastHold.__slots__[1:]


def hold(database: Database, key: str, why: Hold, *, replaces: bool = False) -> None:
    """Exempt a session from retention. The same hold once more changes nothing.

    Args:
        replaces: instead of another hold, which is over then.

    Raises:
        SessionNotFoundError: there is none of that ID.
        SessionHeldError: somebody holds it already, and is not to be replaced.
    """

    def change(db: Connection) -> None:
        row = _locked(db, key)
        if row.held:
            if (row.hold_reason, row.held_by) == (why.reason, why.by):
                return
            if not replaces:
                raise SessionHeldError(key, row.held_by, row.held_at, row.hold_reason)
            _note_end(db, row, why.by)
        _set(db, row.id, held=True, hold_reason=why.reason, held_by=why.by, held_at=now())

    database.transact(change)


def release(database: Database, key: str, by: str) -> bool:
    """Let retention apply to a session again. Returns: False, if it was not held. Raises: SessionNotFoundError."""

    def change(db: Connection) -> bool:
        row = _locked(db, key)
        if row.held:
            _note_end(db, row, by)
            _set(db, row.id, held=False, hold_reason=None, held_by=None, held_at=null())
        return bool(row.held)

    return database.transact(change)


def _locked(db: Connection, key: str) -> Any:
    mine = (SESSIONS.c.key == key) & (SESSIONS.c.state == SessionState.ACTIVE)
    wanted = select(SESSIONS.c.id, SESSIONS.c.key, SESSIONS.c.held, *HOLD).where(mine)
    row = db.execute(wanted.with_for_update(key_share=True)).one_or_none()
    if row is None:
        raise SessionNotFoundError(key)
    return row


def _set(db: Connection, session_id: int, **values: Any) -> None:
    db.execute(update(SESSIONS).where(SESSIONS.c.id == session_id).values(values))


def _note_end(db: Connection, row: Any, by: str) -> None:
    over = {"reason": row.hold_reason, "held_by": row.held_by, "held_at": row.held_at, "released_by": by}
    db.execute(insert(PAST_HOLDS).values(session_id=row.id, session_key=row.key, released_at=now(), **over))


def list_past(database: Database, key: str) -> list[PastHold]:
    """The holds that are over of the sessions that have or had this ID, newest first."""
    found = select(PAST_HOLDS.c.session_key, *(PAST_HOLDS.c[name] for name in NAMES))
    with database.reading() as db:
        rows = db.execute(found.where(PAST_HOLDS.c.session_key == key).order_by(PAST_HOLDS.c.id.desc()))
        return [PastHold(*row) for row in rows]
