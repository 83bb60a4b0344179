"""The outbox of webhooks. What is to be told is stored in the transaction in which it happens, and sent afterwards by any
process that runs the crew: at least once, under one ID.

Who takes a delivery holds it by moving its ``ready_at`` ahead: a sender that dies leaves it to the next one when that has
come. Each attempt is counted when it begins, and only the last one may settle its delivery.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    func,
    insert,
    literal_column,
    null,
    select,
    tuple_,
    update,
)

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import DeliveryNotFoundError
from inturn.models.states import DeliveryState, TurnState
from inturn.models.tables import BATCHES, SESSIONS, TURNS, WEBHOOK_DELIVERIES


def in_state(state: DeliveryState) -> ColumnElement[bool]:
    """Written out, not a parameter: only so are the indexes used that hold one state."""
    return WEBHOOK_DELIVERIES.c.state == literal_column(f"'{state}'")


PENDING, FAILED = in_state(DeliveryState.PENDING), in_state(DeliveryState.FAILED)
COUNTS = ("total", "completed", "failed", "cancelled", "expired")
USED = ("input_tokens", "output_tokens", "price")
OF_TURNS = {TurnState.COMPLETED: "turn.completed", TurnState.FAILED: "turn.failed"}
"""What is told of a turn that ends. That one is cancelled is told to nobody: its user did it."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook, as far as the store has to know it: which events it wants."""

    name: str
    events: frozenset[str]


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One event on its way to one webhook.

    Attributes:
        event_id: the header ``webhook-id``, the same for every attempt and for every webhook.
        event: ``turn.completed``, ``batch.failed``, ...
        subject: the ID of the turn or the batch.
        webhook: its name in the settings.
        body: what is sent: JSON.
        attempts: those that have begun.
        ready_at: when the next one may begin.
        status_code, error_message: of the last one; None: it was not answered, or all is well.
    """

    id: int
    event_id: str
    event: str
    subject: str
    webhook: str
    body: str
    state: DeliveryState
    attempts: int
    ready_at: datetime
    status_code: int | None
    error_message: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: the delivery is over, or ``pending`` again, for ``delay_seconds``."""

    state: DeliveryState
    status_code: int | None = None
    error_message: str | None = None
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What somebody should look at: how many failed, and how many are late, of webhooks that ``late`` names."""

    failed: int
    late: Mapping[str, int]


def new_event_id() -> str:
    return f"evt_{secrets.token_hex(12)}"


def body_of(event: str, happened_at: datetime, data: Mapping[str, Any]) -> str:
    """An event as it is sent: IDs and counts, never a word that was said."""
    return orjson.dumps({"type": event, "timestamp": happened_at, "data": data}, option=orjson.OPT_UTC_Z).decode()


def announce(db: Connection, hooks: Iterable[Hook], event: str, subject: str, body: str) -> None:
    """Store an event for every webhook that wants it, in the transaction in which it happens."""
    _store(db, hooks, [(event, subject, body)])


def announce_batch(db: Connection, hooks: Sequence[Hook], batch_id: int) -> None:
    """That a batch is over, by its surrogate id: in the transaction that makes it final, after that."""
    if not any(event.startswith("batch.") for hook in hooks for event in hook.events):
        return
    row = db.execute(select(BATCHES).where(BATCHES.c.id == batch_id)).one()
    event = f"batch.{row.state}"
    data = {"batch_id": row.key, "name": row.name, "state": row.state, **{each: getattr(row, each) for each in COUNTS}}
    announce(db, hooks, event, row.key, body_of(event, row.finished_at, data))


def announce_turns(db: Connection, hooks: Sequence[Hook], ended: Collection[tuple[int, int]]) -> None:
    """That turns have completed or failed, by session and number: in the transaction that makes them final, after that.
    Lines of a batch are not told by themselves.
    """
    if not ended:
        return
    columns = ("session_id", "number", "state", "model", "error_type", *USED, "finished_at")
    found = db.execute(
        select(SESSIONS.c.key, *(TURNS.c[name] for name in columns))
        .join(SESSIONS, SESSIONS.c.id == TURNS.c.session_id)
        .where(
            tuple_(TURNS.c.session_id, TURNS.c.number).in_(list(ended)),
            TURNS.c.state.in_(list(OF_TURNS)),
            TURNS.c.batch_id.is_(None),
        )
        .order_by(TURNS.c.finished_at)
    )
    _store(db, hooks, [_of_turn(row) for row in found])


def wanting_turns(hooks: Iterable[Hook]) -> list[Hook]:
    """Those that are to be told of turns; without any, nobody has to look."""
    return [hook for hook in hooks if not hook.events.isdisjoint(OF_TURNS.values())]


def _of_turn(row: Row[Any]) -> tuple[str, str, str]:
    event, subject = OF_TURNS[TurnState(row.state)], f"{row.session_id}.{row.number}"
    data = {"turn_id": subject, "session_id": row.key, "state": row.state, "model": row.model}
    data |= {"error_type": row.error_type, **{name: getattr(row, name) for name in USED}}
    return event, subject, body_of(event, row.finished_at, data)


def _store(db: Connection, hooks: Iterable[Hook], events: Iterable[tuple[str, str, str]]) -> None:
    rows = []
    known = list(hooks)
    for event, subject, body in events:
        same = {"event_id": new_event_id(), "event": event, "subject": subject, "body": body}
        rows += [same | {"hook": hook.name} for hook in known if event in hook.events]
    if rows:
        stored = insert(WEBHOOK_DELIVERIES).values(state=DeliveryState.PENDING, ready_at=now(), created_at=now())
        db.execute(stored, rows)


def is_due(db: Connection, hook: str) -> bool:
    """Whether there is anything to take: a look, which keeps nobody from writing."""
    return db.execute(select(WEBHOOK_DELIVERIES.c.id).where(*_due(hook)).limit(1)).first() is not None


def take(db: Connection, hook: str, hold_seconds: float, limit: int) -> list[WebhookDelivery]:
    """Begin an attempt at deliveries that are due, oldest first. No other process takes them while the hold lasts.

    Args:
        hold_seconds: longer than an attempt can take: after it, another one begins.
    """
    due = (
        select(WEBHOOK_DELIVERIES.c.id)
        .where(*_due(hook))
        .order_by(WEBHOOK_DELIVERIES.c.ready_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    found = db.execute(due).scalars().all()
    taken = db.execute(
        update(WEBHOOK_DELIVERIES)
        .where(WEBHOOK_DELIVERIES.c.id.in_(found))
        .values(ready_at=now(hold_seconds), attempts=WEBHOOK_DELIVERIES.c.attempts + 1)
        .returning(WEBHOOK_DELIVERIES)
    )
    return sorted((_delivery(row) for row in taken), key=lambda delivery: delivery.id)


def _due(hook: str) -> tuple[ColumnElement[bool], ...]:
    present = select(now()).scalar_subquery()  # only so is it an index condition on PostgreSQL
    return PENDING, WEBHOOK_DELIVERIES.c.hook == hook, WEBHOOK_DELIVERIES.c.ready_at <= present


def settle(db: Connection, taken: WebhookDelivery, outcome: Outcome) -> bool:
    """Store what came of an attempt. Returns False where a later attempt has begun, or it was asked for anew."""
    is_over = outcome.state is not DeliveryState.PENDING
    settled = db.execute(
        update(WEBHOOK_DELIVERIES)
        .where(WEBHOOK_DELIVERIES.c.id == taken.id, PENDING, WEBHOOK_DELIVERIES.c.attempts == taken.attempts)
        .values(
            state=outcome.state,
            status_code=outcome.status_code,
            error_message=outcome.error_message,
            ready_at=now(outcome.delay_seconds),
            finished_at=now() if is_over else null(),
        )
    )
    return settled.rowcount == 1


def list_deliveries(
    database: Database,
    *,
    state: DeliveryState | None = None,
    event: str | None = None,
    subject: str | None = None,
    before: int | None = None,
    limit: int,
) -> list[WebhookDelivery]:
    """A page of the delivery log, newest first, of IDs below ``before``."""
    columns, named = WEBHOOK_DELIVERIES.c, {"event": event, "subject": subject}
    conditions = [columns[name] == value for name, value in named.items() if value is not None]
    conditions += [in_state(state)] if state is not None else []
    conditions += [columns.id < before] if before is not None else []
    with database.reading() as db:
        page = db.execute(select(WEBHOOK_DELIVERIES).where(*conditions).order_by(columns.id.desc()).limit(limit))
        return [_delivery(row) for row in page]


def redeliver(database: Database, delivery_id: int) -> None:
    """Send a delivery anew, whatever came of it, under the ID that its event has.

    Raises:
        DeliveryNotFoundError: there is none of that ID.
    """
    if not database.transact(lambda db: _again(db, WEBHOOK_DELIVERIES.c.id == delivery_id)):
        raise DeliveryNotFoundError(delivery_id)


def redeliver_failed(database: Database) -> int:
    """Send all anew that failed. Returns how many."""
    return database.transact(lambda db: _again(db, FAILED))


def _again(db: Connection, which: ColumnElement[bool]) -> int:
    anew = {"state": DeliveryState.PENDING, "attempts": 0, "ready_at": now(), "finished_at": null()}
    return db.execute(update(WEBHOOK_DELIVERIES).where(which).values(anew)).rowcount


def backlog(database: Database, late_seconds: float) -> Backlog:
    """What failed, and what has waited for longer than ``late_seconds`` although its time has come, or it was never sent."""
    late = PENDING & (WEBHOOK_DELIVERIES.c.created_at < now(-late_seconds))
    hook = WEBHOOK_DELIVERIES.c.hook
    with database.reading() as db:
        failed = db.execute(select(func.count()).select_from(WEBHOOK_DELIVERIES).where(FAILED)).scalar_one()
        waiting = db.execute(select(hook, func.count().label("late")).where(late).group_by(hook).order_by(hook))
        return Backlog(failed, {row.hook: row.late for row in waiting})


def _delivery(row: Row[Any]) -> WebhookDelivery:
    return WebhookDelivery(
        id=row.id,
        event_id=row.event_id,
        event=row.event,
        subject=row.subject,
        webhook=row.hook,
        body=row.body,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        ready_at=row.ready_at,
        status_code=row.status_code,
        error_message=row.error_message,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
