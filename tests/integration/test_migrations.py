"""The migrations make what the tables say, in whole steps, and every other schema is refused in a sentence."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.errors import SchemaError, StorageError
from inturn.models.rows import Row
from ops.servers import PostgresServer

ROOT = Path(__file__).parents[2]
VERSIONS = Path(migrations.__file__).parent / "versions"
CATALOG = {
    "columns": """
        SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default, collation_name,
            is_identity, identity_generation FROM information_schema.columns WHERE table_schema = 'public'""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace""",
}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def made_from_tables(database: Database, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A second database, made without migrations."""
    if database.dialect == "sqlite":
        url = f"sqlite:///{tmp_path / 'made.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database()
    made = Database(url)
    with made.writing() as db:
        Row.metadata.create_all(db)
    yield made
    made.close()
    if database.dialect == "postgresql":
        server.drop_database(url)


def schema(database: Database) -> dict[str, list[Any]]:
    """All that the database knows of its schema, but Alembic's own table, without the order of columns."""
    with database.reading() as db:
        if database.dialect == "postgresql":
            found: dict[str, list[Any]] = {
                name: [tuple(row) for row in db.execute(text(query))] for name, query in CATALOG.items()
            }
        else:
            rows = db.execute(text("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))
            found = {f"{row.type} {row.name}": sorted(lines(row.sql)) for row in rows}
    return {
        name: sorted(row for row in rows if "alembic_version" not in str(row))
        for name, rows in found.items()
        if "alembic_version" not in name
    }


def lines(statement: str) -> list[str]:
    """A column that was added later stands behind another one, on its line, its CHECK behind it, or the table's end."""
    broken = re.sub(
        r", (?=\w+ (?:INTEGER|BIGINT|BOOLEAN|TEXT|JSON|FLOAT|VARCHAR|DATETIME))|(?<=NULL) (?=CONSTRAINT)",
        "\n",
        statement,
    )
    found = [re.sub(r"\s+", " ", line).strip(" ,") for line in re.sub(r"\)$", "\n)", broken).splitlines()]
    return list(filter(None, found))


def test_the_migrations_make_what_the_tables_say(database: Database, made_from_tables: Database):
    migrations.upgrade(database)
    with database.reading() as db:
        # Alembic does not know how SQLite counts surrogate keys; the comparison of schemas below does.
        defaults = database.dialect == "postgresql"
        context = MigrationContext.configure(db, opts={"compare_type": True, "compare_server_default": defaults})
        assert compare_metadata(context, Row.metadata) == []
    migrated, made = schema(database), schema(made_from_tables)
    assert migrated.keys() == made.keys()
    for name, expected in made.items():
        assert migrated[name] == expected
    assert "turns_final_is_final" in str(migrated)


def test_the_comparison_can_fail(database: Database, made_from_tables: Database):
    """One that overlooks a trigger, a CHECK or a partial index would be worth little."""
    migrations.upgrade(database)
    on = " ON turns" if database.dialect == "postgresql" else ""
    for statement in (f"DROP TRIGGER turns_final_is_final{on}", "DROP INDEX uq_turns_running"):
        before = schema(database)
        with database.writing() as db:
            db.execute(text(statement))
        assert schema(database) != before
        assert schema(database) != schema(made_from_tables)


def test_head_is_the_newest_version():
    newest = max(VERSIONS.glob("[0-9]*.py")).name
    assert newest.startswith(f"{migrations.HEAD}_")
    assert f'revision = "{migrations.HEAD}"' in (VERSIONS / newest).read_text()


def test_upgrading_twice_is_harmless(database: Database):
    assert migrations.current(database) is None
    assert migrations.upgrade(database) == (None, migrations.HEAD)
    before = schema(database)
    assert migrations.upgrade(database) == (migrations.HEAD, migrations.HEAD)
    assert schema(database) == before
    assert migrations.current(database) == migrations.HEAD
    migrations.check(database)


UPGRADE = """
import sys
from inturn.models import migrations
from inturn.models.database import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(migrations.upgrade(database)[0])
"""


def test_upgrades_at_once_wait_for_one_another(database: Database, database_url: str):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, database_url],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = [process.communicate("go\n", timeout=60) for process in processes]
    assert sorted(out.strip() for out, _ in said) == [migrations.HEAD, migrations.HEAD, "None"], said
    assert [process.returncode for process in processes] == [0, 0, 0]
    migrations.check(database)


def test_an_upgrade_that_fails_leaves_nothing(database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(migrations, "_walk", half_the_way)
    with pytest.raises(StorageError):
        migrations.upgrade(database)
    with database.reading() as db:
        assert inspect(db).get_table_names() == []
    monkeypatch.undo()
    migrations.upgrade(database)


def half_the_way(db: Connection) -> None:
    db.execute(text("CREATE TABLE sessions (id integer)"))
    db.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
    raise StorageError("the disk is full")


@pytest.fixture
def at_version(database: Database) -> Any:
    """Makes the database look as if another inturn had written it."""
    migrations.upgrade(database)

    def pretend(version: str) -> None:
        with database.writing() as db:
            db.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})

    return pretend


def test_a_database_without_tables_is_refused(database: Database):
    with pytest.raises(SchemaError, match=r"has no inturn tables yet: run `inturn db upgrade`"):
        migrations.check(database)
    if database.dialect == "postgresql":
        with pytest.raises(SchemaError, match=r"has no inturn tables yet: run `inturn db upgrade`"):
            migrations.prepare(database)
        assert migrations.current(database) is None, "only `db upgrade` changes a PostgreSQL database"
    else:
        migrations.prepare(database)
        migrations.check(database)


def test_an_old_schema_is_refused(database: Database, at_version: Any):
    at_version("0000")
    with pytest.raises(SchemaError, match=rf"old schema 0000, .* {migrations.HEAD}: run `inturn db upgrade`"):
        migrations.check(database)
    if database.dialect == "postgresql":
        with pytest.raises(SchemaError, match="run `inturn db upgrade`"):
            migrations.prepare(database)


def test_a_newer_schema_is_refused_and_never_touched(database: Database, at_version: Any):
    at_version("9999")
    before = schema(database)
    for door in migrations.check, migrations.prepare, migrations.upgrade:
        with pytest.raises(SchemaError, match=rf"schema 9999, newer than .*{migrations.HEAD}"):
            door(database)
    assert schema(database) == before
    assert migrations.current(database) == "9999"


def test_passwords_are_in_no_sentence(database: Database):
    with pytest.raises(SchemaError) as caught:
        migrations.check(database)
    if database.url.password:
        assert str(database.url.password) not in str(caught.value)


def test_a_table_that_is_missing_is_a_sentence(database: Database):
    with pytest.raises(SchemaError, match="run `inturn db upgrade`"), database.reading() as db:
        db.execute(text("SELECT * FROM sessions"))
    migrations.upgrade(database)
    with pytest.raises(SchemaError, match=r"older schema .*run `inturn db upgrade`"), database.reading() as db:
        db.execute(text("SELECT no_such_column FROM sessions"))
