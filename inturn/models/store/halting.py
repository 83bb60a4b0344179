"""Sessions that stand still behind a quarantined turn go on when somebody says so."""

from sqlalchemy import Connection, func, null, select, update

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import SessionState
from inturn.models.store.waking import Ready, list_ready, make_ready
from inturn.models.tables import LEASES, SESSIONS


def resume_halted(database: Database, key: str) -> tuple[str | None, Ready | None]:
    """Let a halted session go on behind the turn that halted it; harmless where it is not halted.

    Returns:
        The ID of the turn that halted it (None: it was not halted), and the session, if it needs a hint now.

    Raises:
        SessionNotFoundError: nothing was changed.
    """

    def lift(db: Connection) -> tuple[str | None, Ready | None]:
        session = select(SESSIONS.c.id).where(SESSIONS.c.key == key, SESSIONS.c.state == SessionState.ACTIVE)
        mine = LEASES.c.session_id == session.scalar_subquery()
        lease = db.execute(select(LEASES).where(mine).with_for_update()).one_or_none()
        if lease is None:
            raise SessionNotFoundError(key)
        if lease.halted_by is None:
            return None, None
        db.execute(
            update(LEASES).where(LEASES.c.session_id == lease.session_id).values(halted_by=null(), hinted_at=now())
        )
        waits = lease.owner is None and make_ready(db, lease.session_id)
        halted_by = f"{lease.session_id}.{lease.halted_by}"
        return halted_by, next(iter(list_ready(db, [lease.session_id])), None) if waits else None

    return database.transact(lift)


def count_halted(database: Database) -> tuple[int, str | None]:
    """How many sessions stand still, and the ID of the first of them by name."""
    halted = (
        select(func.count(), func.min(SESSIONS.c.key))
        .join(LEASES, LEASES.c.session_id == SESSIONS.c.id)
        .where(LEASES.c.halted_by.is_not(None), SESSIONS.c.state == SessionState.ACTIVE)
    )
    with database.reading() as db:
        number, first = db.execute(halted).one()
    return number, first
