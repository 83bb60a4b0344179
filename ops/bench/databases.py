"""Databases to run in: each run gets a fresh copy of one that was filled once."""

import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from sqlalchemy import make_url

from ops.servers import PostgresServer


class Databases(Protocol):
    """A place where databases are made, known by their URLs as inturn writes them.

    Attributes:
        kind: ``postgresql`` or ``sqlite``.
        parts: the process whose CPU, with that of its children, is the database's; empty when it is the worker's own.
    """

    kind: str
    parts: Mapping[str, int]

    def create(self, template: str = "") -> str:
        """Make a database, empty or as a copy of another that nobody is connected to."""
        ...

    def drop(self, url: str) -> None: ...

    def flush(self) -> None:
        """Write out what is dirty, so that no run pays for the one before."""
        ...

    def run_script(self, url: str, script: str) -> None:
        """Execute statements, separated by semicolons."""
        ...

    def times(self, url: str, query: str) -> list[float]:
        """The first column of a query."""
        ...


@contextmanager
def copy_of(databases: Databases, template: str) -> Iterator[str]:
    """A copy for one run, which is dropped afterwards."""
    url = databases.create(template)
    databases.flush()
    try:
        yield url
    finally:
        databases.drop(url)


class SQLiteFiles:
    """Files in a directory."""

    kind = "sqlite"
    parts: Mapping[str, int] = MappingProxyType({})

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def create(self, template: str = "") -> str:
        self._count += 1
        path = self._directory / f"{self._count}.db"
        if template:
            shutil.copy(path_of(template), path)
        return f"sqlite:///{path}"

    def drop(self, url: str) -> None:
        path = path_of(url)
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()

    def flush(self) -> None:
        os.sync()

    def run_script(self, url: str, script: str) -> None:
        connection = sqlite3.connect(path_of(url))
        connection.executescript(script)
        connection.close()

    def times(self, url: str, query: str) -> list[float]:
        connection = sqlite3.connect(path_of(url))
        rows = connection.execute(query).fetchall()
        connection.close()
        return [float(row[0]) for row in rows]


def path_of(url: str) -> Path:
    return Path(make_url(url).database or "")


class PostgreSQLDatabases:
    """Databases in a server of our own."""

    kind = "postgresql"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.parts: Mapping[str, int] = {"database": server.pid}

    def create(self, template: str = "") -> str:
        return self._server.create_database(name_of(template) if template else "template0")

    def drop(self, url: str) -> None:
        self._server.drop_database(url)

    def flush(self) -> None:
        with self._server.connect() as db:
            db.execute("CHECKPOINT")

    def run_script(self, url: str, script: str) -> None:
        with self._server.connect(name_of(url)) as db:
            db.execute(script.encode())

    def times(self, url: str, query: str) -> list[float]:
        with self._server.connect(name_of(url)) as db:
            return [float(row[0]) for row in db.execute(query.encode())]


def name_of(url: str) -> str:
    return make_url(url).database or ""


def with_driver(url: str) -> str:
    """The URL with the driver that a program without asyncio uses."""
    parts = make_url(url)
    driver = "sqlite" if parts.get_backend_name() == "sqlite" else "postgresql+psycopg"
    return parts.set(drivername=driver).render_as_string(hide_password=False)
