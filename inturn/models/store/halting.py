"""Sessions that stand still behind a quarantined turn go on when somebody says so."""

from sqlalchemy import Connection, null, select, update

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import SessionState
from inturn.models.store.waking import Ready, list_ready, make_ready
from inturn.models.tables import LEASES, SESSIONS


def resume_halted(database: Database, key: str) -> tuple[int | None, Ready | None]:
    """Let a halted session go on behind the turn that halted it; harmless where it is not halted.

    Returns:
        The number of the turn that halted it (None: it was not halted), and the session, if it needs a hint now.

    Raises:
        SessionNotFoundError: nothing was changed.
    """

    def lift(db: Connection) -> tuple[int | None, Ready | None]:
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
        return lease.halted_by, next(iter(list_ready(db, [lease.session_id])), None) if waits else None

    return database.transact(lift)
