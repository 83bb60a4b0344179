"""Sessions made, resumed and held, and what is said in them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from inturn.models.clock import now
from inturn.models.content import storable
from inturn.models.database import Database
from inturn.models.errors import SessionExistsError, SessionNotFoundError
from inturn.models.states import Lane, Overflow, Retention, Role, SessionState
from inturn.models.store import retention
from inturn.models.tables import LEASES, MESSAGES, SESSIONS

# Statements of every send are made once: to put one together costs more than to have it carried out.
SAY = insert(MESSAGES).values(created_at=now())
UPSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
SAY_AGAIN = {
    dialect: (said := upsert(MESSAGES).values(created_at=now())).on_conflict_do_update(
        index_elements=["session_id", "turn_number", "position"], set_={"content": said.excluded.content}
    )
    for dialect, upsert in UPSERT.items()
}
SYSTEM, PROMPT, REPLY = 0, 1, 2
"""Positions of messages within a turn; the reply stands behind as many more as the turn has steps."""


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a session is made from."""

    key: str
    model: str
    fallbacks: list[str] | None = None
    """Who is asked if the model fails; None: as its provider's settings say."""
    system_message: str | None = None
    options: dict[str, Any] | None = None
    labels: dict[str, Any] | None = None
    context_turns: int | None = None
    context_tokens: int | None = None
    overflow: Overflow = Overflow.TRUNCATE
    tools: list[str] | None = None
    retention: Retention = Retention.POLICY
    retention_seconds: float | None = None
    halts: bool = False


def create_session(database: Database, new: NewSession) -> int:
    """Make a session; returns its surrogate id.

    Raises:
        SessionExistsError: the ID is taken; nothing was changed.
    """
    created = database.transact(lambda db: create(db, new))
    if created is None and retention.finish_removal(database, new.key):
        created = database.transact(lambda db: create(db, new))
    if created is None:
        raise SessionExistsError(new.key)
    return created


def create(db: Connection, new: NewSession) -> int | None:
    """What ``create_session`` does, in a transaction that does more; None: the ID is taken."""
    insert_session = (
        UPSERT[db.dialect.name](SESSIONS)
        .values(
            key=new.key,
            model=new.model,
            fallbacks=new.fallbacks,
            system_turn=1 if new.system_message else None,
            options=new.options or {},
            labels=new.labels or {},
            context_turns=new.context_turns,
            context_tokens=new.context_tokens,
            overflow=new.overflow,
            tools=new.tools,
            held=False,
            retention=new.retention,
            retention_seconds=new.retention_seconds,
            halts=new.halts,
            state=SessionState.ACTIVE,
            next_turn=1,
            created_at=now(),
            last_activity_at=now(),
        )
        .on_conflict_do_nothing(index_elements=["key"])
        .returning(SESSIONS.c.id)
    )
    session_id: int | None = db.execute(insert_session).scalar()
    if session_id is None:
        return None
    db.execute(insert(LEASES).values(session_id=session_id, token=0, lane=Lane.CHAT))
    if new.system_message:
        say(db, session_id, 1, SYSTEM, Role.SYSTEM, new.system_message)
    return session_id


def say(
    db: Connection,
    session_id: int,
    turn: int,
    position: int,
    role: Role,
    content: str,
    data: dict[str, Any] | None = None,
) -> None:
    """Store a message at its place in a turn."""
    values = {
        "session_id": session_id,
        "turn_number": turn,
        "position": position,
        "role": role,
        "content": storable(content),
        "data": data,
    }
    # A system message that was changed twice before a send replaces itself: no model was ever shown the first.
    db.execute(SAY_AGAIN[db.dialect.name] if position == SYSTEM else SAY, values)


def _unsay(db: Connection, session_id: int, turn: int) -> None:
    """Take back a system message before anything was sent under it."""
    said = (MESSAGES.c.session_id == session_id) & (MESSAGES.c.turn_number == turn) & (MESSAGES.c.position == SYSTEM)
    db.execute(delete(MESSAGES).where(said))


Chain = tuple[str, list[str] | None]
"""A model, and its fallbacks; None: as its provider's settings say."""


def resume_session(database: Database, key: str, model: Chain | None = None, system_message: str | None = None) -> int:
    """Take a session up again, from now on with another model or system message if given; returns its surrogate id.

    Raises:
        SessionNotFoundError: there is none of that ID.
    """

    def resume(db: Connection) -> int:
        changes: dict[str, Any] = {"last_activity_at": now()}
        if model is not None:
            changes["model"], changes["fallbacks"] = model
        if system_message is not None:
            changes["system_turn"] = SESSIONS.c.next_turn if system_message else None
        row = db.execute(
            update(SESSIONS)
            .where(SESSIONS.c.key == key, SESSIONS.c.state == SessionState.ACTIVE)
            .values(changes)
            .returning(SESSIONS.c.id, SESSIONS.c.next_turn)
        ).one_or_none()
        if row is None:
            raise SessionNotFoundError(key)
        if system_message:
            say(db, row.id, row.next_turn, SYSTEM, Role.SYSTEM, system_message)
        elif system_message is not None:
            _unsay(db, row.id, row.next_turn)
        return int(row.id)

    return database.transact(resume)
