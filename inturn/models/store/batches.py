"""Batches, looked at: how far each is, and what became of its lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, case, func, select, text, tuple_, type_coerce

from inturn.models.database import Database
from inturn.models.errors import BatchNotFoundError
from inturn.models.states import BATCH_FINAL, BatchState, TurnState
from inturn.models.store.lines import (
    CONTENT_REMOVED,
    CONTENT_REMOVED_SENTENCE,
    EXPIRED,
    SESSION_DELETED,
    LineResult,
)
from inturn.models.store.loading import written
from inturn.models.store.opening import REPLY
from inturn.models.tables import BATCH_LINES, BATCHES, TURNS

COUNTS = ("completed", "failed", "cancelled", "expired", "input_tokens", "output_tokens", "price")
"""What a batch knows of its lines once it is final."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch, without its lines.

    Attributes:
        key: its public ID.
        how: what it was submitted with.
        stored: how many of its ``total`` lines are stored.
        completed, failed, cancelled, expired, input_tokens, output_tokens, price: once it is final; see ``Progress``.
    """

    id: int
    key: str
    name: str | None
    how: dict[str, Any]
    state: BatchState
    total: int
    stored: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    input_tokens: int
    output_tokens: int
    price: float | None
    discards: bool
    created_at: datetime
    expires_at: datetime | None
    cancel_requested_at: datetime | None
    finished_at: datetime | None
    read_at: datetime | None
    retry_at: datetime | None

    @property
    def is_final(self) -> bool:
        return self.state in BATCH_FINAL


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is.

    Attributes:
        total: its lines.
        stored: how many of them are stored.
        completed: those that have a reply.
        failed: those that have none and are not tried again, but for those that are ``cancelled`` or ``expired``.
        queued: those that wait, for their first call or another.
        retrying: those of the queued ones that a call was made for.
        running: those that a model is asked for now.
        input_tokens, output_tokens, price: of all calls that ended; ``price`` in US dollars, None: nothing was priced.
    """

    state: BatchState
    total: int
    stored: int
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    queued: int = 0
    retrying: int = 0
    running: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    price: float | None = None

    @property
    def done(self) -> int:
        """The lines of which nothing more will come."""
        return self.completed + self.failed + self.cancelled + self.expired

    @property
    def is_final(self) -> bool:
        return self.state in BATCH_FINAL


SENT_AGAIN = "sent again"
"""Turns that were lines of the batch, until those were sent again: they count only as what they cost."""
COLUMNS = [BATCHES.c[name] for name in BatchRecord.__slots__]


def _record(row: Row[*tuple[Any, ...]]) -> BatchRecord:
    values = dict(row._mapping)
    return BatchRecord(**values | {"state": BatchState(values["state"]), "discards": bool(values["discards"])})


def get_batch(database: Database, key: str) -> BatchRecord:
    """Raises: BatchNotFoundError."""
    with database.reading() as db:
        return find_batch(db, key)


def find_batch(db: Connection, key: str) -> BatchRecord:
    """Raises: BatchNotFoundError."""
    row = db.execute(select(*COLUMNS).where(BATCHES.c.key == key)).one_or_none()
    if row is None:
        raise BatchNotFoundError(key)
    return _record(row)


def list_batches(
    database: Database, *, before: int | None = None, state: BatchState | None = None, limit: int = 100
) -> list[BatchRecord]:
    """A page of batches, newest first; ``before``: the surrogate id of the last one seen."""
    page = select(*COLUMNS).order_by(BATCHES.c.id.desc()).limit(limit)
    if before is not None:
        page = page.where(BATCHES.c.id < before)
    if state is not None:
        page = page.where(BATCHES.c.state == state)
    with database.reading() as db:
        return [_record(row) for row in db.execute(page)]


def progress(database: Database, key: str) -> Progress:
    """Count a batch's lines, unless that was done when it became final. Raises: BatchNotFoundError."""
    batch = get_batch(database, key)
    if batch.is_final:
        counts = {name: getattr(batch, name) for name in COUNTS}
        return Progress(batch.state, batch.total, batch.stored, **counts)
    with database.reading() as db:
        return count(db, batch)


def count(db: Connection, batch: BatchRecord) -> Progress:
    """What stands in the tables of its lines."""
    kind = case(
        (TURNS.c.line.is_(None), SENT_AGAIN),
        (TURNS.c.error_type == EXPIRED, EXPIRED),
        ((TURNS.c.state == TurnState.QUEUED) & (TURNS.c.attempts > 0), "retrying"),
        else_=TURNS.c.state,
    )
    sums = (func.sum(TURNS.c.input_tokens), func.sum(TURNS.c.output_tokens), func.sum(TURNS.c.price))
    mine = select(kind.label("kind"), func.count(), *sums).where(TURNS.c.batch_id == batch.id).group_by(kind)
    rows = {row[0]: row for row in db.execute(mine)}
    number = {name: int(row[1]) for name, row in rows.items()}
    without = select(func.count()).where(BATCH_LINES.c.batch_id == batch.id)
    priced = [float(row[4]) for row in rows.values() if row[4] is not None]
    retrying = number.get("retrying", 0)
    return Progress(
        batch.state,
        batch.total,
        batch.stored,
        completed=number.get(TurnState.COMPLETED, 0),
        failed=number.get(TurnState.FAILED, 0) + int(db.execute(without).scalar_one()),
        cancelled=number.get(TurnState.CANCELLED, 0),
        expired=number.get(EXPIRED, 0),
        queued=number.get(TurnState.QUEUED, 0) + retrying,
        retrying=retrying,
        running=number.get(TurnState.RUNNING, 0),
        input_tokens=int(sum(row[2] or 0 for row in rows.values())),
        output_tokens=int(sum(row[3] or 0 for row in rows.values())),
        price=sum(priced) if priced else None,
    )


Cursor = tuple[datetime, int]
"""Where a page of results ends: when the line became final, and its number."""
START: Cursor = (datetime(1970, 1, 1, tzinfo=UTC), 0)


def ended_after(batch: Any, after: tuple[Any, Any]) -> tuple[ColumnElement[bool], ...]:
    """The batch's lines behind a cursor: a range of the index."""
    place = (TURNS.c.finished_at, TURNS.c.line)
    typed = (type_coerce(value, column.type) for value, column in zip(after, place, strict=True))
    return TURNS.c.batch_id == batch, TURNS.c.line.is_not(None), tuple_(*place) > tuple_(*typed)


# As text, so that rows come as the driver gives them: the columns' own types take longer over a row than the databases do.
RESULTS = text(f"""
SELECT t.line, t.custom_id, t.state, s.key, t.session_id, t.number, t.model, m.content, t.finish_reason, t.error_type,
    t.error_message, t.error_status, t.input_tokens, t.output_tokens, t.price, t.attempts, t.finished_at, m.data,
    t.number <= s.content_removed_to AS is_gone
FROM turns AS t
JOIN sessions AS s ON s.id = t.session_id
LEFT JOIN messages AS m ON m.session_id = t.session_id AND m.turn_number = t.number AND m.position = {REPLY} + t.steps
    AND t.state = 'completed'
WHERE t.batch_id = :batch AND t.line IS NOT NULL AND (t.finished_at, t.line) > (:since, :line)
ORDER BY t.finished_at, t.line LIMIT :most
""")
STATES = {str(state): state for state in TurnState}
"""By their words: an enumeration takes longer to look into."""


def results(database: Database, batch_id: int, after: Cursor = START, limit: int = 1000) -> list[LineResult]:
    """A page of what became of the lines that are turns, in the order in which they became final.

    That is the order of their statements, not of their transactions: a moment later a line may stand before those that were
    seen already.
    """
    return [result_of(row) for row in result_rows(database, batch_id, after, limit)]


def result_rows(database: Database, batch_id: int, after: Cursor, limit: int) -> list[tuple[Any, ...]]:
    """The same as plain rows, for a thread that reads ahead: what ``result_of`` makes of them is other threads' work."""
    with database.reading() as db:
        asked = {"batch": batch_id, "since": written(db, after[0]), "line": after[1], "most": limit}
        found: Any = db.execute(RESULTS, asked).cursor
        return list(found.fetchall())


def result_of(row: tuple[Any, ...]) -> LineResult:
    """What stands in a row of ``result_rows``."""
    (line, custom_id, state, key, session, number, model, reply, reason, error, message, status, took, gave, price, attempts,
     ended, data, is_gone) = row  # fmt: skip
    if is_gone and state == TurnState.COMPLETED:
        state, error, message = TurnState.FAILED, CONTENT_REMOVED, CONTENT_REMOVED_SENTENCE
    if isinstance(ended, str):  # SQLite's
        ended = datetime.fromisoformat(ended + "+00:00")
    if data is not None:
        data = (orjson.loads(data) if isinstance(data, str) else data).get("tool_calls")
    return LineResult(
        line, custom_id, STATES[state], key, f"{session}.{number}", model, reply, reason, error, message, status, took, gave,
        price, attempts, ended, data,
    )  # fmt: skip


def results_without_turns(database: Database, batch_id: int, after: int = 0, limit: int = 1000) -> list[LineResult]:
    """A page of the lines that have no turn, by number."""
    page = (
        select(
            *(BATCH_LINES.c[name] for name in ("line", "custom_id", "error_type", "error_message")),
            BATCHES.c.created_at,
        )
        .join(BATCHES, BATCHES.c.id == BATCH_LINES.c.batch_id)
        .where(BATCH_LINES.c.batch_id == batch_id, BATCH_LINES.c.line > after)
        .order_by(BATCH_LINES.c.line)
        .limit(limit)
    )
    with database.reading() as db:
        return [_without_turn(*tuple(row)) for row in db.execute(page)]


def count_invalid(database: Database, key: str) -> int:
    """Its lines that were no prompts, and are kept only as errors. Raises: BatchNotFoundError."""
    with database.reading() as db:
        its = BATCH_LINES.c.batch_id == find_batch(db, key).id
        mine = select(func.count()).where(its, BATCH_LINES.c.error_type != SESSION_DELETED)
        return int(db.execute(mine).scalar_one())


def _without_turn(line: int, custom_id: str, code: str, message: str, moment: datetime) -> LineResult:
    nothing = (None,) * 3
    return LineResult(line, custom_id, None, *nothing, None, None, code, message, *nothing, None, 0, moment)


def current_turns(database: Database, batch_id: int, turns: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Those of the turns (session and number) that are lines of the batch still, by ID, with the line's number."""
    place = tuple_(TURNS.c.session_id, TURNS.c.number)
    mine = select(TURNS.c.session_id, TURNS.c.number, TURNS.c.line).where(
        place.in_(turns), TURNS.c.batch_id == batch_id, TURNS.c.line.is_not(None)
    )
    with database.reading() as db:
        return {f"{row.session_id}.{row.number}": row.line for row in db.execute(mine)} if turns else {}
