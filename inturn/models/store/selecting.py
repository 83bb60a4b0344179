"""Which sessions: conditions on their rows, for lists, for rules, for whatever is done to many of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    any_,
    cast,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
)

from inturn.models.states import UNFINISHED, SessionState
from inturn.models.tables import SESSIONS, TURNS

WILD = re.compile(r"[*?]")
AFTER_ALL = "\x7f"
"""Sorts behind everything that a session ID is made of: what begins alike is a range of the unique index."""


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions to list; what is None does not count."""

    key: str | None = None
    prefix: str | None = None
    labels: Mapping[str, str] | None = None
    model: str | None = None
    active_after: datetime | None = None
    active_before: datetime | None = None
    busy: bool | None = None

    def conditions(self, dialect: str) -> list[ColumnElement[bool]]:
        found = [SESSIONS.c.state == SessionState.ACTIVE]
        if self.key is not None:
            found.append(SESSIONS.c.key == self.key)
        if self.prefix:
            found += [SESSIONS.c.key >= self.prefix, SESSIONS.c.key < self.prefix + AFTER_ALL]
        found += [has_label(dialect, name, value) for name, value in (self.labels or {}).items()]
        if self.model is not None:
            found.append(SESSIONS.c.model == self.model)
        if self.active_after is not None:
            found.append(SESSIONS.c.last_activity_at >= self.active_after)
        if self.active_before is not None:
            found.append(SESSIONS.c.last_activity_at < self.active_before)
        if self.busy is not None:
            found.append(has_work() if self.busy else ~has_work())
        return found


def has_label(dialect: str, name: str, value: str) -> ColumnElement[bool]:
    """Not by ``->>``: SQLite compares its path with the name as JSON escapes it, so that ``é`` is never found."""
    each = func.json_each if dialect == "sqlite" else func.json_each_text
    label = each(SESSIONS.c.labels).table_valued("key", "value")
    return select(label.c.key).where(label.c.key == name, label.c.value == value).exists()


def has_work() -> ColumnElement[bool]:
    """Busy is derived from the turns, and stored nowhere. Each state has a partial index, used for a literal only."""
    mine = TURNS.c.session_id == SESSIONS.c.id
    return or_(*(exists().where(mine, TURNS.c.state == literal_column(f"'{state}'")) for state in UNFINISHED))


class Among:
    """Many surrogate ids, as one parameter of statements: these stay the same however many there are, and cost little to
    prepare.
    """

    def __init__(self, db: Connection, ids: Iterable[int]) -> None:
        listed = ",".join(map(str, ids))
        if db.dialect.name == "sqlite":
            self._in: Any = select(func.json_each(f"[{listed}]").table_valued("value").c.value)
        else:
            self._in = any_(cast(literal(f"{{{listed}}}"), ARRAY(BigInteger)))

    def has(self, column: ColumnElement[int]) -> ColumnElement[bool]:
        return column.in_(self._in) if isinstance(self._in, Select) else column == self._in


def is_like(dialect: str, column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    """Whether a text is of a pattern with ``*`` and ``?``; case counts."""
    if pattern == "*":
        return true()
    start, *rest = WILD.split(pattern, maxsplit=1)
    if not rest:
        return column == pattern
    if pattern == f"{start}*" and column is SESSIONS.c.key:  # a range of the index
        return and_(column >= start, column < start + AFTER_ALL)
    if dialect == "sqlite":
        return column.bool_op("GLOB")(pattern.replace("[", "[[]"))
    escaped = re.sub(r"([%_\\])", r"\\\1", pattern)
    return column.like(escaped.replace("*", "%").replace("?", "_"), escape="\\")
