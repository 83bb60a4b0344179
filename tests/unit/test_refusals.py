"""What is said of a database that refuses, by what its driver says; those that can be brought about are in integration/."""

import sqlite3
from pathlib import Path

import pytest
from psycopg import errors
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, ProgrammingError

from inturn.models.database import Database
from inturn.models.errors import SchemaError, StorageError
from inturn.models.refusals import explain


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'inturn.db'}")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("disk I/O error", "could not be read or written (disk I/O error): check the disk's space and health"),
        ("attempt to write a readonly database", "is read-only: give this user the right to write"),
        ("unable to open database file", "cannot be opened: check that its directory exists"),
        ("database or disk is full", "has no room left: free some space"),
        ("database is locked", "stayed locked by another process for too long"),
        ("database disk image is malformed", "is damaged: move the file away, and restore a backup"),
        ("locking protocol", "refused: locking protocol"),
    ],
)
def test_a_refusal_is_told_with_the_next_step(database: Database, said: str, told: str):
    error = explain(database, OperationalError("SELECT 1", {}, sqlite3.OperationalError(said)))
    assert isinstance(error, StorageError)
    assert f"inturn.db {told}" in str(error)


def test_damage_is_told_also_where_the_driver_calls_it_no_operational_error(database: Database):
    error = explain(database, DatabaseError("SELECT 1", {}, sqlite3.DatabaseError("file is not a database")))
    assert "is no SQLite database: set INTURN_DATABASE_URL" in str(error)


@pytest.mark.parametrize(
    "said", ["no such table: turns", "no such column: turns.lane", "table turns has no column named x"]
)
def test_a_missing_table_or_column_is_an_old_schema(database: Database, said: str):
    error = explain(database, OperationalError("SELECT 1", {}, sqlite3.OperationalError(said)))
    assert isinstance(error, SchemaError)
    assert "inturn db upgrade" in str(error)


def test_a_right_that_is_missing_is_no_bug(database: Database):
    said = errors.InsufficientPrivilege("permission denied for sequence sessions_id_seq")
    error = explain(database, ProgrammingError("SELECT nextval('sessions_id_seq')", {}, said))
    assert isinstance(error, StorageError)
    assert "(permission denied for sequence sessions_id_seq): use the role that owns the tables" in str(error)


def test_a_mistake_of_ours_stays_what_it_is(database: Database):
    mistake = IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE constraint failed: turns.number"))
    assert explain(database, mistake) is mistake
