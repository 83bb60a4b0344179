"""What all tables are made of: their base, and the kinds of columns that they have."""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    text,
)
from sqlalchemy.ext.mutable import MutableDict
from sqlmodel import Field, SQLModel

BIG = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite gives out row ids for INTEGER primary keys only."""

KEY = String(200).with_variant(String(200, collation="C"), "postgresql")
"""Compared byte by byte on both databases, so that a prefix is a range of the unique index."""


class Row(SQLModel):
    """Base of all tables; its metadata is ours alone, so that an application's own SQLModel tables do not mix with them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def serial() -> Any:
    """A surrogate key that is never reused (``sqlite_autoincrement`` on the table, identity on PostgreSQL)."""
    return Field(default=None, sa_column=Column(BIG, Identity(), primary_key=True))


def owned_by_session(**kw: Any) -> Any:
    """The session that owns the row: it goes with it."""
    return Field(sa_column=Column(BIG, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True, **kw))


def choice(default: StrEnum) -> Any:
    return Field(default=default, sa_type=String(20), nullable=False)


def json_object() -> Any:
    return Field(default_factory=dict, sa_column=Column(MutableDict.as_mutable(JSON()), nullable=False))


def json_value() -> Any:
    """A JSON value that is only ever replaced whole; None is NULL."""
    return Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=True))


def index_where(name: str, *columns: str, condition: str) -> Index:
    """An index of some of the rows."""
    return Index(name, *columns, postgresql_where=text(condition), sqlite_where=text(condition))


def count_from_zero() -> Any:
    return Field(default=0, sa_column_kwargs={"server_default": "0"})
