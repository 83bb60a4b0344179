"""The schema's versions, and the way from one to the next. Alembic does the walking; it is imported only when needed."""

import threading
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from inturn.models.database import Database, be_patient
from inturn.models.errors import SchemaError

HEAD = "0017"
"""The schema that this program works with (a test compares it with the newest file in ``versions``)."""

_alembic_is_global = threading.Lock()


def current(database: Database) -> str | None:
    """The version that the database's schema has; None where inturn has no tables yet."""
    with database.reading() as db:
        return _current(db)


def _current(db: Connection) -> str | None:
    if not inspect(db).has_table("alembic_version"):
        return None
    return db.execute(text("SELECT version_num FROM alembic_version")).scalar()


def check(database: Database) -> None:
    """Refuse to work on any schema but this program's own.

    Raises:
        SchemaError: the schema is missing, older, or newer; says which, and what to do.
    """
    found = current(database)
    if found == HEAD:
        return
    if found is None:
        raise SchemaError(f"the database {database.url!r} has no inturn tables yet: run `inturn db upgrade`")
    if found > HEAD:
        raise newer(database, found)
    raise SchemaError(
        f"the database {database.url!r} has the old schema {found}, and this inturn works with {HEAD}: "
        "run `inturn db upgrade`"
    )


def newer(database: Database, found: str) -> SchemaError:
    return SchemaError(
        f"the database {database.url!r} has schema {found}, newer than {HEAD}, which this inturn works with: "
        "install the inturn that wrote it"
    )


def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring the schema to ``HEAD``, in one transaction. Two at once wait for one another. Returns versions before and after.

    Raises:
        SchemaError: the schema is newer than this program.
    """
    with _alembic_is_global, database.writing() as db:
        if database.dialect == "postgresql":
            be_patient(db)
            db.execute(text("SELECT pg_advisory_xact_lock(hashtext('inturn schema'))"))
        before = _current(db)
        if before is not None and before > HEAD:
            raise newer(database, before)
        if before != HEAD:
            _walk(db)
    return before, HEAD


def make(database: Database, version: str) -> None:
    """Make the tables as they were at ``version``, in a database that has none: for backups of an older schema."""
    with _alembic_is_global, database.writing() as db:
        _walk(db, version)


def _walk(db: Connection, version: str = "head") -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = db
    try:
        command.upgrade(config, version)
    except CommandError as error:
        raise SchemaError(
            f"the database {db.engine.url!r} has a schema that inturn never had ({error}): "
            "set INTURN_DATABASE_URL to another one, or restore a backup"
        ) from error


def prepare(database: Database) -> None:
    """What every process does first: an embedded database upgrades itself, any other must have the right schema.

    Raises:
        SchemaError: see ``check``.
    """
    if database.dialect == "sqlite" and (current(database) or "") < HEAD:
        upgrade(database)
    check(database)
