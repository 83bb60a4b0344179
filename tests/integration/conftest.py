"""A store on both databases, and a second one: two processes in one test. Migrated once, and copied for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from ops.chaos.model import ModelServer
from tests.integration.asking import WAYS, Config
from tests.integration.stores import Store
from tests.spares import Spares


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "inturn.db"
    Store(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with tables and no rows, once per kind of database."""
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(request.getfixturevalue('sqlite_template'), tmp_path)}"
        return
    spares: Spares = request.getfixturevalue("spares")
    url = spares.take()
    yield url
    spares.give_back(url)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = Store(migrated_url)
    yield store
    store.close()


@pytest.fixture
def other(store: Store, migrated_url: str) -> Iterator[Store]:
    """Another process on the same database."""
    other = Store(migrated_url)
    yield other
    other.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    """Who is asked by the tests of providers."""
    with ModelServer() as server:
        yield server


@pytest.fixture(params=WAYS)
def config(server: ModelServer, request: pytest.FixtureRequest) -> Config:
    """Each type of provider, asked whole and streamed."""
    return Config(server.base_url, *request.param)


@pytest.fixture
def key() -> str:
    """Of one test's calls: all tests ask the same server."""
    return uuid4().hex
