"""What was used: attempts, tokens and dollars, by session, model, provider, day, lane or batch.

Every attempt is counted that a worker recorded, whatever came of it, those of removed sessions among them (``tally``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, case, func, select

from inturn.models.database import Database
from inturn.models.store.selecting import SessionFilter
from inturn.models.store.tally import COUNTS, MODEL, OF_THEIR_TURNS, day_of, sums
from inturn.models.tables import ATTEMPTS, BATCHES, PAST_USAGE, SESSIONS, TURNS

UsageBy = Literal["session", "model", "provider", "day", "lane", "batch"]

REMOVED = "(removed sessions)"
"""The key of what is known only by day and model."""
NO_BATCH, GONE_BATCH = "(no batch)", "(removed batches)"


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What was used by whom.

    Attributes:
        key: a session's ID, a model, a provider, a day (UTC), a lane, a batch, ``(no batch)``, ``(removed batches)``,
            or ``(removed sessions)``.
        attempts: calls to models, those under way among them.
        completed: those that were answered.
        failed: those that ended without an answer, whoever or whatever ended them.
        estimated: those whose tokens are our guess, since the provider did not count them.
        uncounted: those that may have cost something, of whose tokens nothing is known.
        unpriced: those that may have cost something, and nobody knows what.
        price: in US dollars, of all that have one; None: none has.
    """

    key: str
    attempts: int
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    estimated: int
    uncounted: int
    unpriced: int
    price: float | None


def usage(
    database: Database,
    by: UsageBy = "model",
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    session_id: str | None = None,
    prefix: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[UsageRecord]:
    """What attempts used that began from ``since`` on and before ``until``: days in order, all others by what they cost.

    Removed sessions are in it unless it is asked for some sessions only. Of those the day is all that is known, so the days
    in which ``since`` and ``until`` lie count whole.

    Args:
        session_id, prefix, labels: of these sessions only.
    """
    wanted = SessionFilter(key=session_id, prefix=prefix, labels=labels)
    with database.reading() as db:
        rows = [dict(row._mapping) for row in db.execute(_present(database.dialect, by, since, until, wanted))]
        if not (session_id or prefix or labels):
            rows += [dict(row._mapping) for row in db.execute(_past(by, since, until))]
    return _in_order(by, _merged(by, rows))


def _present(
    dialect: str, by: UsageBy, since: datetime | None, until: datetime | None, wanted: SessionFilter
) -> Select[Any]:
    keys: dict[str, ColumnElement[str]] = {
        "session": SESSIONS.c.key,
        "day": day_of(dialect, ATTEMPTS.c.started_at),
        "lane": TURNS.c.lane,
        "batch": func.coalesce(BATCHES.c.key, case((TURNS.c.batch_id.is_(None), NO_BATCH), else_=GONE_BATCH)),
    }
    key = keys.get(by, MODEL).label("key")
    under_way = func.coalesce(func.sum(case((ATTEMPTS.c.outcome.is_(None), 1), else_=0)), 0).label("under_way")
    found = (
        select(key, under_way, *sums(ATTEMPTS.c.outcome.is_not(None)))
        .select_from(ATTEMPTS)
        .join(TURNS, OF_THEIR_TURNS)
        .join(SESSIONS, SESSIONS.c.id == ATTEMPTS.c.session_id)
        .outerjoin(BATCHES, BATCHES.c.id == TURNS.c.batch_id)
        .group_by(key)
    )
    if wanted != SessionFilter():
        found = found.where(*wanted.conditions(dialect))
    if since is not None:
        found = found.where(ATTEMPTS.c.started_at >= since)
    return found if until is None else found.where(ATTEMPTS.c.started_at < until)


def _past(by: UsageBy, since: datetime | None, until: datetime | None) -> Select[Any]:
    summed = [func.sum(PAST_USAGE.c[name]).label(name) for name in COUNTS]
    if by in ("model", "provider", "day"):
        key = PAST_USAGE.c["day" if by == "day" else "model"].label("key")
        found = select(key, *summed).group_by(key)
    else:
        found = select(*summed).having(func.count() > 0)
    if since is not None:
        found = found.where(PAST_USAGE.c.day >= f"{since.astimezone(UTC):%Y-%m-%d}")
    if until is not None:
        last = until.astimezone(UTC) - timedelta(microseconds=1)
        found = found.where(PAST_USAGE.c.day <= f"{last:%Y-%m-%d}")
    return found


def _merged(by: UsageBy, rows: Iterable[dict[str, Any]]) -> list[UsageRecord]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = row.get("key", REMOVED)
        total = found.setdefault(key.partition("/")[0] if by == "provider" else key, {})
        for name in (*COUNTS, "under_way"):
            total[name] = total.get(name, 0) + (row.get(name) or 0)
    return [_record(key, total) for key, total in found.items()]


def _record(key: str, total: Mapping[str, Any]) -> UsageRecord:
    whole = {name: int(total[name]) for name in COUNTS if name != "price"}
    failed = whole["attempts"] - whole["completed"] - int(total["under_way"])
    price = float(total["price"])
    return UsageRecord(key=key, failed=failed, price=None if not price and whole["unpriced"] else price, **whole)


def total_of(records: Sequence[UsageRecord], key: str = "total") -> UsageRecord:
    """All of them together."""
    total: dict[str, Any] = dict.fromkeys((*COUNTS, "under_way"), 0)
    for record in records:
        for name in COUNTS:
            total[name] += getattr(record, name) or 0
        total["under_way"] += record.attempts - record.completed - record.failed
    # Some of it is priced, if only at nothing: then its sum is known, and ``unpriced`` says what is not in it.
    priced = [record.price for record in records if record.price is not None]
    return replace(_record(key, total), price=sum(priced) if priced or not total["unpriced"] else None)


def _in_order(by: UsageBy, records: list[UsageRecord]) -> list[UsageRecord]:
    def rank(record: UsageRecord) -> tuple[Any, ...]:
        tokens = record.input_tokens + record.output_tokens
        return (record.key == REMOVED, -(record.price or 0.0), -tokens, record.key)

    return sorted(records, key=(lambda record: record.key) if by == "day" else rank)
