"""Servers for every test that asks for one: real, started at the first use, one of each per pytest process.

INTURN_TEST_DATABASE_URL and INTURN_TEST_BROKER_URL name running ones to use instead, say those of docker-compose.yml.
What a machine does not give is skipped at home, with the reason, and fails in CI.
"""

import os
import secrets
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from ops.server_process import ServerUnavailableError
from ops.servers import PostgresServer, RedisServer
from tests.spares import Spares

# A shell that starts the tests in the background makes them ignore SIGINT, and with them every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give the state machine a seed that is known: ``--hypothesis-seed`` replays it."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(secrets.randbelow(10**6))


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis seed: {config.option.hypothesis_seed}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    # What autovacuum finds out about a table, and when, decides how the planner reads it: statistics are what a test makes.
    server = PostgresServer(os.environ.get("INTURN_TEST_DATABASE_URL", ""), options=["--autovacuum=off"])
    yield server
    server.stop()


@pytest.fixture(scope="session")
def spares(postgres: PostgresServer) -> Spares:
    return Spares(postgres)


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    server = RedisServer(os.environ.get("INTURN_TEST_BROKER_URL", ""))
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once per kind of database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'inturn.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    try:
        return (yield)
    except ServerUnavailableError as reason:
        skip_at_home(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    try:
        return (yield)
    except ServerUnavailableError as reason:
        skip_at_home(reason)


def skip_at_home(reason: ServerUnavailableError) -> NoReturn:
    if os.environ.get("CI"):
        raise reason
    pytest.skip(str(reason))
