"""What the database itself must refuse, tried out; and what it says of its own health."""

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, insert, text, update
from sqlalchemy.exc import IntegrityError

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.states import Lane, Retention, Role, SessionState, TurnState
from inturn.models.store.opening import REPLY
from inturn.models.tables import LEASES, MESSAGES, SESSIONS, TURNS

IDLE = "state LIKE 'idle in transaction%' AND clock_timestamp() - state_change > interval '1 s'"


class UndoneError(Exception):
    """Everything was accepted, and is rolled back."""


def missing_guards(database: Database) -> Iterator[str]:
    """Try what no bug of inturn may get into the database, each in a transaction that is rolled back."""
    for deed in (second_running_turn, second_reply, leaving_a_final_state):
        if is_accepted(database, deed):
            yield f"the database accepts a {deed.__name__.replace('_', ' ')}"


def is_accepted(database: Database, deed: Callable[[Connection, int], None]) -> bool:
    try:
        with database.writing() as db:
            deed(db, a_session(db))
            raise UndoneError
    except IntegrityError:
        return False
    except UndoneError:
        return True


def a_session(db: Connection) -> int:
    new = insert(SESSIONS).values(
        key="probe-that-is-rolled-back", model="none/none", options={}, labels={}, held=False, next_turn=1,
        retention=Retention.POLICY, state=SessionState.ACTIVE, created_at=now(), last_activity_at=now(),
    )  # fmt: skip
    session_id = int(db.execute(new.returning(SESSIONS.c.id)).scalar_one())
    db.execute(insert(LEASES).values(session_id=session_id, token=0, lane=Lane.CHAT))
    return session_id


def a_turn(db: Connection, session_id: int, number: int, state: TurnState, **values: Any) -> None:
    db.execute(
        insert(TURNS).values(
            session_id=session_id, number=number, state=state, lane=Lane.CHAT, model="none/none", options={},
            ready_at=now(), attempts=0, ambiguous=0, rescues=0, created_at=now(), **values,
        )
    )  # fmt: skip


def second_running_turn(db: Connection, session_id: int) -> None:
    for number in (1, 2):
        a_turn(db, session_id, number, TurnState.RUNNING)


def second_reply(db: Connection, session_id: int) -> None:
    a_turn(db, session_id, 1, TurnState.COMPLETED, finished_at=now())
    for content in ("one", "another"):
        said = {"position": REPLY, "role": Role.ASSISTANT, "content": content, "created_at": now()}
        db.execute(insert(MESSAGES).values(session_id=session_id, turn_number=1, **said))


def leaving_a_final_state(db: Connection, session_id: int) -> None:
    a_turn(db, session_id, 1, TurnState.COMPLETED, finished_at=now())
    db.execute(update(TURNS).where(TURNS.c.session_id == session_id).values(state=TurnState.QUEUED, finished_at=None))


def ailments(database: Database) -> Iterator[str]:
    """11. What the database says of itself."""
    with database.reading() as db:
        if database.dialect == "sqlite":
            checked = [str(row[0]) for row in db.execute(text("PRAGMA integrity_check"))]
            yield from (f"integrity_check says: {line}" for line in checked if line != "ok")
            for row in db.execute(text("PRAGMA foreign_key_check")):
                yield f"foreign_key_check finds a row of {row[0]} without its {row[2]}"
        else:
            idle = db.execute(text(f"SELECT pid, query FROM pg_stat_activity WHERE {IDLE}"))
            yield from (f"connection {row.pid} is idle in a transaction after: {row.query:.80}" for row in idle)
