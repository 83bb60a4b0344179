"""The store's verbs in the short form that tests need, on a database that was made by the migrations."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, Row, event, select, text, update

from inturn.models import migrations
from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store import holding, opening, reading, retention, sending, sweeping, working
from inturn.models.store.holding import Hold
from inturn.models.store.opening import NewSession
from inturn.models.store.reading import TurnRecord
from inturn.models.store.receipts import Removal
from inturn.models.store.rules import OWN, Rule, default_rule
from inturn.models.store.sending import Sent
from inturn.models.store.sweeping import Caps
from inturn.models.store.working import Claim, Settlement, Started
from inturn.models.tables import ATTEMPTS, LEASES, MESSAGES, SESSIONS, TURNS

T = TypeVar("T")

only_postgresql = pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
"""For what is about row locks: SQLite has one writer at a time."""
only_sqlite = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)

WORKER = "worker-1"
CAPS = Caps(attempts=5, rescues=3)
OUTCOMES = {
    TurnState.COMPLETED: AttemptOutcome.COMPLETED,
    TurnState.FAILED: AttemptOutcome.PERMANENT,
    TurnState.CANCELLED: AttemptOutcome.CANCELLED,
    TurnState.QUEUED: AttemptOutcome.SAFE,
}


class Store:
    """One process's way to the database. A second one on the same URL stands for another process."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        migrations.upgrade(self.database)

    @property
    def is_sqlite(self) -> bool:
        return self.database.dialect == "sqlite"

    def session(self, key: str = "s", **how: Any) -> int:
        return opening.create_session(self.database, NewSession(key=key, model="echo/echo", **how))

    def hold(self, key: str = "s", reason: str | None = None, by: str = "somebody") -> None:
        holding.hold(self.database, key, Hold(reason, by))

    def release(self, key: str = "s") -> None:
        holding.release(self.database, key, "somebody else")

    def list_expired(self, idle_seconds: float, **how: Any) -> list[Removal]:
        """By the default rule, and by sessions' own idle times."""
        rules = [OWN, default_rule(idle_seconds)]
        return [removal for rule in rules for removal in retention.list_due(self.database, rules, rule, **how)]

    def remove_expired(self, idle_seconds: float, **how: Any) -> list[Removal]:
        """A chunk of each."""
        rules = [OWN, default_rule(idle_seconds)]
        return [removal for rule in rules for removal in self.remove_due(rule, rules, **how)]

    def remove_due(self, rule: Rule, rules: Sequence[Rule] = (), **how: Any) -> list[Removal]:
        """A chunk of what a rule removes."""
        which = retention.due_now(self.database, rules or [rule], rule)
        assert which is not None
        return retention.remove_due(self.database, rule, which, 0, **how)

    def send(self, key: str = "s", prompt: str = "hello", **how: Any) -> Sent:
        return sending.send(self.database, key, prompt, **how)

    def claims(self, claims: Sequence[Claim], owner: str = WORKER, lease: float = 30, context: int = 20) -> Any:
        with self.database.writing() as db:
            return working.claim(db, owner, lease, context, claims)

    def claim(self, session_id: int | None = None, lane: Lane = Lane.CHAT, **how: Any) -> Started | None:
        """One slot asks; None if nothing was ready."""
        found: Started | None = self.claims([Claim(lane, session_id)], **how)[0]
        return found

    def start(self, session_id: int | None = None, **how: Any) -> Started:
        """Claim what must be ready."""
        started = self.claim(session_id, **how)
        assert started is not None
        return started

    def settle(self, started: Started, state: TurnState = TurnState.COMPLETED, owner: str = WORKER, **how: Any) -> bool:
        """Returns whether the session was still held."""
        settled = settlement(started, state, **how)
        with self.database.writing() as db:
            return working.settle(db, owner, 30, [settled])[0] == {settled.held}

    def answer(self, key: str = "s", prompt: str = "hello", state: TurnState = TurnState.COMPLETED) -> Started:
        """A whole turn; the session must have no other work."""
        sent = self.send(key, prompt)
        started = self.start(sent.session_id)
        assert self.settle(started, state, reply=f"reply to: {prompt}")
        return started

    def rescue_expired(self, caps: Caps = CAPS) -> list[int]:
        rescued = self.write(sweeping.rescue_expired, caps)
        return [ready.session_id for ready in rescued.ready] if rescued else []

    def expire(self, session_id: int) -> None:
        self.change(LEASES, LEASES.c.session_id == session_id, expires_at=now(-1))

    def change(self, table: Any, where: Any, **values: Any) -> None:
        """What no verb does."""
        self.write(lambda db: db.execute(update(table).where(where).values(**values)))

    def write(self, work: Callable[..., T], *args: Any) -> T:
        """Call a verb that takes a connection."""
        return self.database.transact(lambda db: work(db, *args))

    def turn(self, session_id: int, number: int = 1) -> TurnRecord:
        return reading.get_turn(self.database, session_id, number)

    def lease(self, session_id: int) -> Row[Any]:
        """The lease, with ``wait``: in how many seconds it is ready (None: not at all)."""
        with self.database.reading() as db:
            return db.execute(
                select(LEASES, (LEASES.c.ready_at <= now()).label("is_ready"), (LEASES.c.ready_at > now(20)).label("later"))
                .where(LEASES.c.session_id == session_id)
            ).one()  # fmt: skip

    def history(self, session_id: int) -> list[tuple[int, str, str]]:
        messages = reading.list_messages(self.database, session_id)
        return [(message.turn_number, str(message.role), message.content) for message in messages]

    def outcomes(self, session_id: int) -> list[tuple[int, int, str | None]]:
        """Turn, attempt and outcome of every attempt."""
        with self.database.reading() as db:
            ordered = (ATTEMPTS.c.turn_number, ATTEMPTS.c.number)
            rows = db.execute(
                select(*ordered, ATTEMPTS.c.outcome).where(ATTEMPTS.c.session_id == session_id).order_by(*ordered)
            )
            return [(row.turn_number, row.number, row.outcome) for row in rows]

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all tables that belong to sessions."""
        tables = (SESSIONS, LEASES, TURNS, MESSAGES, ATTEMPTS)
        with self.database.reading() as db:
            return {table.name: sorted(tuple(map(repr, row)) for row in db.execute(select(table))) for table in tables}

    def count(self, statement: str) -> int:
        with self.database.reading() as db:
            return int(db.execute(text(statement)).scalar_one())

    def close(self) -> None:
        self.database.close()


def settlement(started: Started, state: TurnState = TurnState.COMPLETED, **how: Any) -> Settlement:
    error = {"error_type": "http_500", "error_message": "broken"} if state is TurnState.FAILED else {}
    reply = {"reply": f"reply to turn {started.number}"} if state is TurnState.COMPLETED else {}
    return Settlement(
        session_id=started.session_id,
        token=started.token,
        number=started.number,
        attempt=started.attempts,
        state=state,
        **({"outcome": OUTCOMES[state]} | error | reply | how),
    )


class Gate:
    """Where a transaction stands still just before its commit."""

    def __init__(self) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()

    def pass_through(self, _connection: Connection) -> None:
        self._reached.set()
        assert self._opened.wait(20), "nobody opened the gate"

    def wait_until_reached(self) -> None:
        assert self._reached.wait(20), "nobody came to the gate"

    def open(self) -> None:
        self._opened.set()


@contextmanager
def gate_at_commit(store: Store) -> Iterator[Gate]:
    """The transactions of this store wait before their commit until the gate is opened."""
    gate = Gate()
    event.listen(store.database.engine, "commit", gate.pass_through)
    try:
        yield gate
    finally:
        gate.open()
        event.remove(store.database.engine, "commit", gate.pass_through)


def meet(first: Callable[[], Any], first_store: Store, second: Callable[[], T]) -> T:
    """Let ``second`` run into the locks that ``first``, all done but its commit, still holds."""
    with ThreadPoolExecutor(2) as threads, gate_at_commit(first_store) as gate:
        ahead = threads.submit(first)
        gate.wait_until_reached()
        behind: Future[T] = threads.submit(second)
        stuck = not threading.Event().wait(0.2) and not behind.done()
        gate.open()
        ahead.result(20)
        assert stuck, "the second did not wait for the first: nothing was tested"
        return behind.result(20)
