"""The database's clock, the only one that SQL compares with: processes disagree about the time, and their clocks jump.

PostgreSQL: ``clock_timestamp()``, since ``now()`` stands still for the length of a transaction, lock waits included.
SQLite: ``strftime`` with the format in which SQLAlchemy stores times, so that they compare as text and use indexes
(``unixepoch('now', 'subsec')`` is NULL before SQLite 3.42).
"""

from typing import Any

from sqlalchemy import ColumnElement, Float, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlmodel.sql.sqltypes import UTCDateTime

SQLITE_FORMAT = "%Y-%m-%d %H:%M:%f000"

NOW = {"postgresql": "clock_timestamp()", "sqlite": f"strftime('{SQLITE_FORMAT}', 'now')"}
"""The present as a piece of SQL text, per dialect."""


def after(dialect: str, seconds: str, clock: str = NOW["postgresql"]) -> str:
    """The present plus ``seconds`` (a piece of SQL: a column or a parameter) as a piece of SQL text.

    Args:
        clock: PostgreSQL's that is meant.
    """
    if dialect == "sqlite":
        return f"strftime('{SQLITE_FORMAT}', 'now', ({seconds}) || ' seconds')"
    return f"({clock} + make_interval(secs => CAST({seconds} AS double precision)))"


class now(FunctionElement[Any]):
    """The present in SQLAlchemy expressions; ``now(-30)`` is half a minute ago, ``now(column)`` that many seconds ahead."""

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, seconds: float | ColumnElement[Any] = 0.0) -> None:
        if isinstance(seconds, int | float):
            seconds = bindparam("seconds", float(seconds), Float(), unique=True)
        super().__init__(seconds)


class ago(now):
    """So many seconds before the statement began: one moment for all its rows, at which a range of an index may end.

    PostgreSQL's planner works it out beforehand, too. A third of all rows would be before a moment that it does not know.
    """

    inherit_cache = True

    def __init__(self, seconds: float) -> None:
        super().__init__(-seconds)


@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return after("postgresql", compiler.process(element.clauses, **kw))


@compiles(ago, "postgresql")
def _postgresql_ago(element: ago, compiler: SQLCompiler, **kw: Any) -> str:
    return after("postgresql", compiler.process(element.clauses, **kw), "statement_timestamp()")


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return after("sqlite", compiler.process(element.clauses, **kw))
