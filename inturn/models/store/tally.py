"""The sums over attempts, and those that stay when a session goes: by day and model, in ``past_usage``.

They are written in the very transaction that takes the attempts away, so that nothing is counted twice, nor missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Date, Text, and_, case, cast, func, or_, select, text, true
from sqlalchemy.dialects import postgresql, sqlite

from inturn.models.states import POISONED, AttemptOutcome
from inturn.models.tables import ATTEMPTS, PAST_USAGE, TURNS

COUNTS = ("attempts", "completed", "unpriced", "estimated", "uncounted", "input_tokens", "output_tokens", "price")
"""What is summed up, as ``past_usage`` names it."""

MODEL: ColumnElement[str] = func.coalesce(ATTEMPTS.c.model, TURNS.c.model)
"""Old rows do not say whom they asked: whom their turn asked last is as near as one gets."""
IS_FREE = ATTEMPTS.c.outcome.in_((AttemptOutcome.SAFE, AttemptOutcome.PERMANENT))
MAY_COST = or_(
    ~func.coalesce(IS_FREE, False), ATTEMPTS.c.error_type.in_(POISONED), ATTEMPTS.c.input_tokens.is_not(None)
)
"""Not what the provider refused, unless it counted tokens for it, or its reply came and could not be kept."""
OF_THEIR_TURNS = and_(TURNS.c.session_id == ATTEMPTS.c.session_id, TURNS.c.number == ATTEMPTS.c.turn_number)
INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def day_of(dialect: str, moment: ColumnElement[Any]) -> ColumnElement[str]:
    """``2026-11-29``, in UTC."""
    if dialect == "sqlite":
        return func.substr(moment, 1, len("2026-11-29"))  # as SQLAlchemy writes times there: in UTC, the day first
    return cast(cast(func.timezone("UTC", moment), Date), Text)


def sums(counted: ColumnElement[bool]) -> list[ColumnElement[Any]]:
    """The columns of ``COUNTS``, summed up over attempts; what may have cost something is looked at where ``counted``."""

    def number_of(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    costs = and_(counted, MAY_COST)
    columns = (
        func.count(),
        number_of(ATTEMPTS.c.outcome == AttemptOutcome.COMPLETED),
        number_of(and_(costs, ATTEMPTS.c.price.is_(None))),
        number_of(ATTEMPTS.c.estimated),
        number_of(and_(costs, or_(ATTEMPTS.c.input_tokens.is_(None), ATTEMPTS.c.output_tokens.is_(None)))),
        func.coalesce(func.sum(ATTEMPTS.c.input_tokens), 0),
        func.coalesce(func.sum(ATTEMPTS.c.output_tokens), 0),
        func.coalesce(func.sum(ATTEMPTS.c.price), 0.0),
    )
    return [column.label(name) for column, name in zip(columns, COUNTS, strict=True)]


def used_by(db: Connection, which: ColumnElement[bool]) -> Sequence[Mapping[str, Any]]:
    """What attempts used, by day and model, as rows of ``past_usage``, in one order for all who write some.

    Asked where nobody else can take the same attempts away: under the lock of their session. A call that is still under way
    is one of which nothing will ever be known.
    """
    first_two = text("1"), text("2")  # by their names, PostgreSQL would take the table's
    asked_last = select(TURNS.c.model).where(OF_THEIR_TURNS).scalar_subquery()
    day = day_of(db.dialect.name, ATTEMPTS.c.started_at).label("day")
    used = select(day, func.coalesce(ATTEMPTS.c.model, asked_last).label("model"), *sums(true())).where(which)
    return list(map(dict, db.execute(used.group_by(*first_two).order_by(*first_two)).mappings()))


def keep_usage(db: Connection, used: Sequence[Mapping[str, Any]]) -> None:
    """Add what attempts used that are taken away to what is known of removed sessions. Best at a transaction's end: all
    removers write the same few rows.
    """
    if used:
        adding = INSERT[db.dialect.name](PAST_USAGE)
        more = {name: PAST_USAGE.c[name] + adding.excluded[name] for name in COUNTS}
        db.execute(adding.on_conflict_do_update(index_elements=["day", "model"], set_=more), used)
