"""What the asking side does to a session's turns: prompts accepted, turns cancelled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Boolean, Connection, Row, bindparam, case, func, insert, or_, select, update

from inturn.models.clock import now
from inturn.models.content import storable
from inturn.models.database import Database
from inturn.models.errors import (
    IdempotencyConflictError,
    SessionBusyError,
    SessionNotFoundError,
    TurnNotFoundError,
)
from inturn.models.states import UNFINISHED, Lane, Role, SessionState, TurnState
from inturn.models.store.opening import PROMPT, say
from inturn.models.store.overtaking import BLANK_LINE, Joined, Prompted, interrupt, join, with_joined
from inturn.models.store.reading import NOT_OF_TURNS, TurnRecord, columns, find_turn
from inturn.models.store.waking import Ready, list_ready, make_ready
from inturn.models.tables import LEASES, MESSAGES, SESSIONS, TURNS

HINT_STALE_SECONDS = 5.0
"""A ready session whose hint is older is hinted again by the next send: it may have been lost."""

WhenBusy = Literal["enqueue", "reject", "interrupt", "coalesce"]


# As in ``opening``: made once, as every send needs them.
MINE = (
    (SESSIONS.c.key == bindparam("of_key"))
    & (SESSIONS.c.state == SessionState.ACTIVE)
    & (SESSIONS.c.id == func.coalesce(bindparam("of_id", type_=SESSIONS.c.id.type), SESSIONS.c.id))
)
LOCK_SESSION = select(SESSIONS.c.id).where(MINE).with_for_update(key_share=True)
NUMBER = (
    update(SESSIONS)
    .where(MINE)
    .values(next_turn=SESSIONS.c.next_turn + 1, last_activity_at=now())
    .returning(SESSIONS.c.id, SESSIONS.c.next_turn, SESSIONS.c.model, SESSIONS.c.fallbacks, SESSIONS.c.system_turn)
)
IS_HINT_STALE = or_(
    LEASES.c.hinted_at.is_(None),
    LEASES.c.hinted_at < now(-HINT_STALE_SECONDS),
    LEASES.c.hinted_at < LEASES.c.ready_at,
)
LOCK_LEASE = (
    select(
        LEASES.c.owner,
        LEASES.c.ready_at,
        LEASES.c.lane,
        LEASES.c.halted_by,
        case((IS_HINT_STALE, True), else_=False).label("is_stale"),
        now().label("present"),
    )
    .where(LEASES.c.session_id == bindparam("session"))
    .with_for_update()
)
ACCEPT = insert(TURNS).values(created_at=now()).returning(*columns(TURNS, TurnRecord, but=NOT_OF_TURNS))
WAKE = (
    update(LEASES)
    .where(LEASES.c.session_id == bindparam("session"))
    .values(
        lane=bindparam("of_lane"),
        ready_at=bindparam("due_at"),
        hinted_at=case((bindparam("hint", type_=Boolean), now()), else_=LEASES.c.hinted_at),
    )
)


@dataclass(frozen=True, slots=True)
class Sent:
    """An accepted prompt, and who must be told.

    Attributes:
        turn: as it was stored.
        lane: the session's, for the hint: that of its lowest waiting turn.
        hint: whether a worker is to be told that the session has work.
        interrupted: whether the running turn's worker is to be told that it is wanted back.
    """

    turn: TurnRecord
    lane: Lane
    hint: bool
    interrupted: bool = False

    @property
    def session_id(self) -> int:
        return self.turn.session_id

    @property
    def number(self) -> int:
        return self.turn.number


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A prompt on its way in; see ``send``."""

    key: str
    prompt: str
    data: dict[str, Any] | None = None
    session_id: int | None = None
    idempotency_key: str | None = None
    when_busy: WhenBusy = "enqueue"
    not_before: datetime | timedelta | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    lane: Lane = Lane.CHAT
    retry_of: int | None = None
    streams: bool = False
    trace: Mapping[str, str] | None = None

    @property
    def session(self) -> dict[str, Any]:
        """What ``MINE`` asks for."""
        return {"of_key": self.key, "of_id": self.session_id}

    def earliest(self, present: datetime, joined: datetime | None) -> datetime:
        """When it may run: never in the past, or it would go ahead of other sessions' turns."""
        asked = present + self.not_before if isinstance(self.not_before, timedelta) else self.not_before
        return max(moment for moment in (present, asked, joined) if moment is not None)


def send(
    database: Database,
    key: str,
    prompt: str,
    *,
    data: dict[str, Any] | None = None,
    session_id: int | None = None,
    idempotency_key: str | None = None,
    when_busy: WhenBusy = "enqueue",
    not_before: datetime | timedelta | None = None,
    options: Mapping[str, Any] | None = None,
    lane: Lane = Lane.CHAT,
    retry_of: int | None = None,
    streams: bool = False,
    trace: Mapping[str, str] | None = None,
) -> Sent:
    """Accept a prompt: number it, store it, and make the session ready. Returned means stored.

    Args:
        key: the session's ID.
        data: the prompt's parts, if it is more than text.
        session_id: the surrogate id that the caller's handle stands for; a session that was deleted and made again
            under the same key is another one.
        idempotency_key: the same key and prompt again is the same turn.
        when_busy: what becomes of the unfinished turns before it, and of the prompt.
        not_before: a moment, or a time from now by the database's clock. Later turns wait behind it.
        streams: whether the reply is told while it arrives; a turn does, too, that others were joined into which do.
        trace: what its worker is to go on with.

    Raises:
        SessionNotFoundError, SessionBusyError, IdempotencyConflictError: nothing was stored.
        InvalidPromptError: joined with those that wait, it is too large; nothing was stored.
    """
    new = NewTurn(
        key,
        prompt,
        data,
        session_id,
        idempotency_key,
        when_busy,
        not_before,
        options or {},
        lane,
        retry_of,
        streams,
        trace,
    )
    return database.transact(lambda db: accept(db, new))


def accept(db: Connection, new: NewTurn) -> Sent:
    """What ``send`` does, in a transaction that does more. Raises: as ``send``; the transaction is to be undone."""
    return _sent_before(db, new) or _store(db, new)


def _sent_before(db: Connection, new: NewTurn) -> Sent | None:
    """The turn that the idempotency key stands for already. Takes the session's lock, so that two of a kind wait."""
    if new.idempotency_key is None:
        return None
    locked = db.execute(LOCK_SESSION, new.session).scalar()
    if locked is None:
        raise SessionNotFoundError(new.key)
    its_own = (MESSAGES.c.session_id == TURNS.c.session_id) & (MESSAGES.c.turn_number == TURNS.c.number)
    row = db.execute(
        select(TURNS.c.number, MESSAGES.c.content, MESSAGES.c.data)
        .outerjoin(MESSAGES, its_own & (MESSAGES.c.position == PROMPT))
        .where(TURNS.c.session_id == locked, TURNS.c.idempotency_key == new.idempotency_key)
    ).one_or_none()
    if row is None:
        return None
    # Where the prompt was removed, nobody can tell any more whether this is another one; sending it twice would be worse.
    if row.content is not None and not _is_said(
        db, locked, row.number, (row.content, row.data), (storable(new.prompt), new.data)
    ):
        raise IdempotencyConflictError(new.key, new.idempotency_key)
    turn = find_turn(db, locked, row.number)
    return Sent(turn, turn.lane, hint=False)


def _is_said(db: Connection, session_id: int, number: int, stored: Prompted, new: Prompted) -> bool:
    """Whether the turn holds this prompt, by itself or behind others that were joined into it."""
    if stored == new:
        return True
    (text, data), (prompt, parts) = stored, new
    if not text.endswith(BLANK_LINE + prompt) or text != with_joined(db, session_id, number, prompt):
        return False
    return parts is None or (data is not None and data["parts"][-len(parts["parts"]) :] == parts["parts"])


def _store(db: Connection, new: NewTurn) -> Sent:
    row = db.execute(NUMBER, new.session).one_or_none()
    if row is None:
        raise SessionNotFoundError(new.key)
    # Under the lease's lock nothing is claimed or settled until the new turn is stored.
    number, lease = row.next_turn - 1, db.execute(LOCK_LEASE, {"session": row.id}).one()
    if new.when_busy == "reject" and _is_busy(db, row.id):
        raise SessionBusyError(new.key)
    interrupted = new.when_busy == "interrupt" and interrupt(db, row.id)
    text = storable(new.prompt)
    alone = Joined(text, None, streams=False, data=new.data, is_next=new.when_busy == "interrupt")
    joined = join(db, row.id, number, alone) if new.when_busy == "coalesce" else alone
    ready_at = new.earliest(lease.present, joined.not_before)
    accepted = db.execute(
        ACCEPT,
        {
            "session_id": row.id,
            "number": number,
            "state": TurnState.QUEUED,
            "lane": new.lane,
            "model": row.model,
            "fallbacks": row.fallbacks,
            "system_turn": row.system_turn,
            "options": new.options,
            "idempotency_key": new.idempotency_key,
            "ready_at": ready_at,
            "attempts": 0,
            "ambiguous": 0,
            "rescues": _rescues_of(db, row.id, new.retry_of),
            "retry_of": new.retry_of,
            "streams": new.streams or joined.streams,
            "trace": new.trace,
        },
    ).one()
    say(db, row.id, number, PROMPT, Role.USER, joined.prompt, joined.data)
    is_lowest = lease.ready_at is None or joined.is_next
    lane, hint = _wake(db, row.id, lease, new.lane, ready_at, is_lowest=is_lowest)
    not_before = ready_at if ready_at > lease.present else None
    turn = TurnRecord(
        **accepted._mapping, key=new.key, prompt=joined.prompt, prompt_data=joined.data, not_before=not_before,
        content_removed_at=None,
    )  # fmt: skip
    return Sent(turn, lane, hint, interrupted)


def _rescues_of(db: Connection, session_id: int, number: int | None) -> int:
    """How often workers died over the turn that is retried: what killed them must not begin anew with their neighbours."""
    if number is None:
        return 0
    before = select(TURNS.c.rescues).where(TURNS.c.session_id == session_id, TURNS.c.number == number)
    return db.execute(before).scalar() or 0


def _is_busy(db: Connection, session_id: int) -> bool:
    unfinished = select(TURNS.c.number).where(
        TURNS.c.session_id == session_id,
        TURNS.c.state.in_(UNFINISHED),
    )
    return db.execute(unfinished.limit(1)).first() is not None


def _wake(
    db: Connection, session_id: int, lease: Row[*tuple[Any, ...]], of: Lane, ready_at: datetime, *, is_lowest: bool
) -> tuple[Lane, bool]:
    """Make the session ready, if the new turn is its lowest. While it is owned its owner sees to that, when it settles.

    Returns: the session's lane, and whether a worker must be told.
    """
    if lease.owner is not None:
        return Lane(lease.lane), False
    lane, due_at, is_told = Lane(lease.lane), lease.ready_at, not lease.is_stale
    if is_lowest:
        lane, due_at, is_told = of, ready_at, False
    hint = not is_told and due_at <= lease.present and lease.halted_by is None
    if is_lowest or hint:
        db.execute(WAKE, {"session": session_id, "of_lane": lane, "due_at": due_at, "hint": hint})
    return lane, hint


def cancel(database: Database, session_id: int, number: int) -> tuple[TurnState, Ready | None]:
    """Take a turn back: a waiting one at once, a running one by a flag that its worker looks for. Final ones stay.

    Returns:
        The state in which the turn was found, and the session if its next turn needs a hint now.

    Raises:
        TurnNotFoundError: there is no such turn.
    """

    def take_back(db: Connection) -> tuple[TurnState, Ready | None]:
        owner = db.execute(select(LEASES.c.owner).where(LEASES.c.session_id == session_id).with_for_update()).scalar()
        turn = (TURNS.c.session_id == session_id) & (TURNS.c.number == number)
        state = db.execute(select(TURNS.c.state).where(turn)).scalar()
        if state is None:
            raise TurnNotFoundError(f"{session_id}.{number}")
        if state == TurnState.QUEUED:
            db.execute(
                update(TURNS)
                .where(turn)
                .values(state=TurnState.CANCELLED, finished_at=now(), cancel_requested_at=now())
            )
            ready = list_ready(db, [session_id]) if owner is None and make_ready(db, session_id) else []
            return TurnState.QUEUED, next(iter(ready), None)
        if state == TurnState.RUNNING:
            db.execute(
                update(TURNS).where(turn, TURNS.c.cancel_requested_at.is_(None)).values(cancel_requested_at=now())
            )
        return TurnState(state), None

    return database.transact(take_back)
