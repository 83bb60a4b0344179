"""The lines of a batch that have no reply, sent again: each as a new turn at the end of its session, which takes the line's
place in the batch over, so that a line is one turn at any time.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, exists, literal, null, select, update

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import BatchNotFoundError, InvalidInputError
from inturn.models.states import BATCH_FINAL, BatchState, Lane, SessionState, TurnState
from inturn.models.store.opening import PROMPT
from inturn.models.store.waking import make_all_ready
from inturn.models.tables import BATCHES, LEASES, MESSAGES, SESSIONS, TURNS

CHUNK = 500
IS_TOLD = exists().where(SESSIONS.c.id == TURNS.c.session_id, SESSIONS.c.content_removed_to < TURNS.c.number)
UNANSWERED = TURNS.c.state.in_((TurnState.FAILED, TurnState.CANCELLED)) & TURNS.c.line.is_not(None) & IS_TOLD
"""Those whose prompt is there still: retention may have removed what was said."""
KEPT = ("model", "fallbacks", "options", "batch_id", "line", "custom_id", "rescues", "streams", "trace")
"""What a turn has of the one whose prompt it sends again."""

LEAVE = (
    update(TURNS)
    .where(TURNS.c.session_id == bindparam("session"), TURNS.c.number == bindparam("old"))
    .values(line=null(), custom_id=null())  # of the batch it stays: what it cost counts
)
COUNT_UP = (
    update(SESSIONS)
    .where(SESSIONS.c.id == bindparam("session"))
    .values(next_turn=bindparam("next"), last_activity_at=now())
)


def retry(database: Database, key: str, window: timedelta | None = None) -> int:
    """Put a final batch back to work on its lines without a reply. They are sent by ``send_again``.

    Args:
        window: the new completion window; None: there is none.

    Returns: how many there are; at none of them nothing was changed.

    Raises:
        BatchNotFoundError: there is none of that ID.
        InvalidInputError: it is not final.
    """

    def begin(db: Connection) -> int:
        row = db.execute(
            select(BATCHES.c.id, BATCHES.c.state).where(BATCHES.c.key == key).with_for_update()
        ).one_or_none()
        if row is None:
            raise BatchNotFoundError(key)
        if row.state not in BATCH_FINAL:
            raise InvalidInputError(f"batch {key} is {row.state}: its failed lines are sent again once it is final")
        lines = select(TURNS.c.line).where(TURNS.c.batch_id == row.id, TURNS.c.finished_at.is_not(None), UNANSWERED)
        if many := len(db.execute(lines).all()):
            expires_at = null() if window is None else now(window.total_seconds())
            anew = {"finished_at": null(), "cancel_requested_at": null(), "read_at": null(), "aborts": False}
            back = update(BATCHES).where(BATCHES.c.id == row.id)
            db.execute(back.values(state=BatchState.IN_PROGRESS, retry_at=now(), expires_at=expires_at, **anew))
        return many

    return database.transact(begin, is_patient=True)


def send_again(database: Database, batch_id: int) -> bool:
    """Send a chunk of the lines that are to be sent again. Returns: whether there was any."""

    def chunk(db: Connection) -> bool:
        batch = db.execute(
            select(BATCHES.c.retry_at, BATCHES.c.expires_at)
            .where(BATCHES.c.id == batch_id, BATCHES.c.retry_at.is_not(None))
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if batch is None:
            return False
        found = db.execute(
            select(TURNS.c.session_id)
            .where(TURNS.c.batch_id == batch_id, TURNS.c.finished_at <= batch.retry_at, UNANSWERED)
            .order_by(TURNS.c.finished_at, TURNS.c.line)
            .limit(CHUNK)
        ).scalars()
        if sessions := sorted(set(found)):
            return _again(db, batch_id, batch, sessions)
        db.execute(update(BATCHES).where(BATCHES.c.id == batch_id).values(retry_at=null()))
        return False

    return database.transact(chunk, is_patient=True)


def _again(db: Connection, batch_id: int, batch: Row[*tuple[Any, ...]], sessions: Sequence[int]) -> bool:
    """All lines of these sessions, in the order of the file; those of a session that is being removed go with it."""
    columns = (SESSIONS.c.id, SESSIONS.c.next_turn, SESSIONS.c.system_turn, SESSIONS.c.tools)
    mine = (SESSIONS.c.id.in_(sessions)) & (SESSIONS.c.state == SessionState.ACTIVE)
    locked = db.execute(select(*columns).where(mine).order_by(SESSIONS.c.id).with_for_update(key_share=True))
    known = {row.id: row for row in locked}
    leases = select(LEASES.c.session_id).where(LEASES.c.session_id.in_(known)).order_by(LEASES.c.session_id)
    db.execute(leases.with_for_update()).all()
    lines = db.execute(
        select(TURNS)
        .where(
            TURNS.c.session_id.in_(known),
            TURNS.c.batch_id == batch_id,
            TURNS.c.finished_at <= batch.retry_at,
            UNANSWERED,
        )
        .order_by(TURNS.c.session_id, TURNS.c.line)
    ).all()
    following = {row.id: row.next_turn for row in known.values()}
    for line in lines:
        number, following[line.session_id] = following[line.session_id], following[line.session_id] + 1
        _send(db, line, number, batch.expires_at, known[line.session_id])
    if known:
        db.execute(COUNT_UP, [{"session": session, "next": following[session]} for session in following])
        make_all_ready(db, list(known))
    return bool(lines)


def _send(db: Connection, line: Row[*tuple[Any, ...]], number: int, not_after: Any, session: Any) -> None:
    db.execute(LEAVE, {"session": line.session_id, "old": line.number})
    steps = 0 if session.tools else line.steps  # what followed the prompt in its file; tools are asked anew
    kept = {name: getattr(line, name) for name in KEPT}
    place = {
        "session_id": line.session_id,
        "number": number,
        "retry_of": line.number,
        "system_turn": session.system_turn,
    }
    anew = {"state": TurnState.QUEUED, "lane": Lane.BATCH, "steps": steps, "ready_at": now(), "created_at": now()}
    counts = {"attempts": 0, "ambiguous": 0, "not_after": not_after}
    db.execute(TURNS.insert().values(**kept, **place, **anew, **counts))
    said = ("session_id", "position", "role", "content", "data", "created_at")
    copied = select(*(MESSAGES.c[name] for name in said), literal(number)).where(
        MESSAGES.c.session_id == line.session_id,
        MESSAGES.c.turn_number == line.number,
        MESSAGES.c.position.between(PROMPT, PROMPT + steps),
    )
    db.execute(MESSAGES.insert().from_select([*said, "turn_number"], copied))
