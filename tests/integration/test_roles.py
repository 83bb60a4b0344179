"""The grants of the guides are enough for who works, and give who reports no text. Nothing else tells when a table comes."""

import secrets
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from psycopg import Connection, errors, sql
from sqlalchemy import make_url

from inturn import Client, InturnError, Settings
from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.errors import StorageError
from ops.server_process import ServerUnavailableError
from ops.servers import PostgresServer
from tests.guides import GUIDES, blocks

SECRET = "a word that nobody who reports may read"
FIGURES = {("worker_processes", "recent"), ("worker_processes", "settings")}
"""Columns that could hold text, and hold counts and digests."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The guides' deployment under names of its own, so that it can be on a server that others use."""

    server: PostgresServer
    suffix: str

    def named(self, text: str) -> str:
        return textwrap.dedent(text).replace("inturn", f"inturn_{self.suffix}").replace("'...'", f"'{self.suffix}'")

    def url(self, role: str) -> str:
        database, role = f"inturn_{self.suffix}", f"inturn_{self.suffix}_{role}"
        there = make_url(self.server.url()).set(database=database, username=role, password=self.suffix)
        return there.render_as_string(hide_password=False)

    def connect(self, role: str) -> Connection:
        plain = make_url(self.url(role)).set(drivername="postgresql").render_as_string(hide_password=False)
        return Connection.connect(plain, autocommit=True)


@pytest.fixture(scope="module")
def roles(postgres: PostgresServer) -> Iterator[Roles]:
    made = Roles(postgres, secrets.token_hex(3))
    as_admin, as_owner = blocks(GUIDES / "postgresql.md", "sql")
    (reports,) = blocks(GUIDES / "security.md", "sql")
    with postgres.connect() as admin:
        try:
            for statement in made.named(as_admin).split(";\n"):
                admin.execute(statement.encode())
        except errors.InsufficientPrivilege as error:
            raise ServerUnavailableError(f"its user may make no roles ({error})") from error
        with made.connect("owner") as owner:
            owner.execute(made.named(as_owner).encode())
        database = Database(made.url("owner"))
        migrations.upgrade(database)
        database.close()
        with postgres.connect(f"inturn_{made.suffix}") as there:
            there.execute(made.named(reports).encode())
        yield made
        name = sql.Identifier(f"inturn_{made.suffix}")
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        for role in ("app", "report", "owner"):
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(f"inturn_{made.suffix}_{role}")))


@pytest.fixture
def client(roles: Roles) -> Iterator[Client]:
    settings = Settings.load(database_url=roles.url("app"), broker_url="redis://127.0.0.1:1/0")
    with Client(settings=settings) as client:
        yield client


def test_who_works_may_do_so_with_every_table(roles: Roles):
    with roles.connect("app") as app:
        relations = app.execute("""
            SELECT relname, relkind::text, has_table_privilege(oid, 'SELECT, INSERT, UPDATE, DELETE'),
                relkind = 'S' AND has_sequence_privilege(oid, 'USAGE')
            FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')""").fetchall()
    assert {kind for _, kind, _, _ in relations} == {"r", "S"}
    assert [name for name, kind, table, sequence in relations if not (sequence if kind == "S" else table)] == []


def test_who_works_sends_and_removes_and_changes_no_table(roles: Roles, client: Client):
    session = client.create_session("roles-1", system_message=SECRET)
    turn = session.send(SECRET)
    assert turn.cancel()
    batch = client.submit_batch([{"prompt": SECRET}])
    assert batch.progress().total == 1
    database = Database(roles.url("app"))
    refused = pytest.raises(StorageError, match=r"does not let its role do this .*use the role that owns")
    with refused, database.writing() as db:
        db.exec_driver_sql("ALTER TABLE turns DISABLE TRIGGER ALL")
    database.close()
    client.delete_session("roles-1")
    with pytest.raises(InturnError):
        client.get_session("roles-1")


def test_who_reports_reads_figures_and_no_text(roles: Roles, client: Client):
    client.create_session("roles-2", system_message=SECRET, labels={"said": SECRET}).send(SECRET)
    with roles.connect("report") as report:
        assert report.execute("SELECT state FROM turns").fetchall()
        assert report.execute("SELECT count(*) FROM attempts").fetchone() == (0,)
        columns = report.execute("""
            SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema = 'public' AND data_type IN ('text', 'json', 'jsonb')
                AND has_column_privilege(format('public.%I', table_name), column_name, 'SELECT')""").fetchall()
        assert set(columns) <= FIGURES
        with pytest.raises(errors.InsufficientPrivilege):
            report.execute("SELECT content FROM messages")
