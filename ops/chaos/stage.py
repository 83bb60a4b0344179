"""What a run plays on: a deployment that we start and may do anything to, or one of the user's own."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import make_url, text

from inturn import Client, Settings
from inturn.models.database import Database
from inturn.workers.embedded import broker_url
from inturn.workers.queues import connect
from ops.chaos.faults import beat, cleanup, command, disk, network, postgresql, sqlite, workers
from ops.chaos.faults import redis as redis_faults
from ops.chaos.faults.network import Way
from ops.chaos.fleet import QUICK, Fleet
from ops.chaos.model import ModelServer
from ops.chaos.nemesis import Attack
from ops.chaos.proxy import HOST, Network
from ops.chaos.rules import retention
from ops.servers import PostgresServer, RedisServer

LATENCY_SECONDS = (0.02, 0.2)
LONGEST_SECONDS = 30.0
"""Of a fault, where nothing else says how long it takes."""
SHARE = 12
"""A fault takes no more than this part of a run."""
FULL_DISK_SECONDS = 5.0
CONNECTIONS = 60
"""PostgreSQL's: enough for inturn, and few enough to be used up at once."""

UNFINISHED = (
    "SELECT turns.* FROM turns JOIN sessions ON sessions.id = turns.session_id "
    "WHERE turns.finished_at IS NULL AND sessions.key LIKE :ours"
)
HELD = (
    "SELECT leases.* FROM leases JOIN sessions ON sessions.id = leases.session_id "
    "WHERE leases.owner IS NOT NULL AND sessions.key LIKE :ours"
)


@dataclass
class Stage:
    """A deployment with a model server of ours.

    Attributes:
        kind: of the database, ``sqlite`` or ``postgresql``.
        settings: those of who sends.
        database: straight to it, past all proxies.
        attacks: what may happen here.
        left_out: what may not, and why.
        fleet, network, redis, postgres: what is ours.
        logs: where our processes write what they say.
    tools: those that its workers have of ours.
    """

    kind: str
    settings: Settings
    database: Database
    model: ModelServer
    redis_url: str
    attacks: list[Attack] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    fleet: Fleet | None = None
    network: Network | None = None
    redis: RedisServer | None = None
    postgres: PostgresServer | None = None
    logs: Path | None = None
    tools: tuple[str, ...] = ()

    def client(self) -> Client:
        return Client(self.settings)

    def unfinished(self, run: str) -> int:
        """How many turns of this run's sessions are not final."""
        return len(self._rows(UNFINISHED, run))

    def held(self, run: str) -> int:
        """How many of its sessions somebody holds."""
        return len(self._rows(HELD, run))

    def left(self, run: str) -> list[str]:
        """What is not final or still held, as sentences."""
        turns = (
            f"turn {row.session_id}.{row.number} is {row.state}, ready at {row.ready_at}, {row.attempts} attempts"
            for row in self._rows(UNFINISHED, run)
        )
        leases = (f"session {row.session_id} is held by {row.owner}" for row in self._rows(HELD, run))
        return [*turns, *leases]

    def _rows(self, query: str, run: str) -> list[Any]:
        with self.database.reading() as db:
            return list(db.execute(text(query), {"ours": f"{run}-%"}))

    def rest(self) -> None:
        """Nothing of ours changes the database any more."""
        if self.fleet is not None:
            self.fleet.rest()

    def heal(self) -> None:
        """Everything is as it should be, whatever a fault has left."""
        if self.network is not None:
            self.network.heal()
        if self.redis is not None:
            self.redis.thaw()
            with suppress(redis.RedisError), connect(self.redis_url) as client:
                client.config_set("maxmemory", 0)
        if self.fleet is not None:
            self.fleet.heal()


def longest(seconds: float) -> float:
    """How long a fault may take in a run of so many seconds."""
    return max(2.0, min(LONGEST_SECONDS, seconds / SHARE))


@contextmanager
def our_stage(
    kind: str,
    directory: Path,
    *,
    workers: int = 2,
    seconds: float = 60,
    seed: int = 0,
    pace: Mapping[str, Any] = QUICK,
    is_calm: bool = False,
    are_apart: bool = False,
) -> Iterator[Stage]:
    """Start servers, proxies, a model, workers and a beat, and end them afterwards.

    Args:
        directory: for all that the run leaves: ``home``, ``logs``.
        seconds: how long it is to be played on.
        is_calm: nothing is to happen to it: without proxies, and on an ordinary disk.
        are_apart: each process is on a host of its own, as far as it can tell.
    """
    with ExitStack() as stack:
        home, logs = directory / "home", directory / "logs"
        home.mkdir(mode=0o700)
        logs.mkdir(mode=0o700)
        no_disk = "only a SQLite file has a disk of its own"
        if kind == "sqlite" and not is_calm:
            no_disk = stack.enter_context(disk.small_disk(home))
        stack.enter_context(logged(logs / "said.senders"))
        model = stack.enter_context(ModelServer(latency=LATENCY_SECONDS, seed=seed, log=directory / "calls.jsonl"))
        network = stack.enter_context(Network())
        broker, postgres = RedisServer(), None
        stack.callback(broker.stop)
        url = f"sqlite:///{home / 'inturn.db'}"
        if kind == "postgresql":
            postgres = PostgresServer(connections=CONNECTIONS)
            stack.callback(postgres.stop)
            url = postgres.create_database()
        users = [f"worker {number}" for number in range(1, workers + 1)]
        ways = [
            Way(user, proxies_to(network, url, broker.url, model))
            for user in (*users, "beat", "senders")
            if not is_calm
        ]
        settings = [settings_on(way, url, broker.url) for way in ways]
        fleet = Fleet(
            home, url, broker, {"server": provider(model.base_url)}, ways=settings[:-1], logs=logs, pace=pace,
            are_apart=are_apart, default_model="server/model", tool_modules=["ops.chaos.workbench"],
            **retention(archives_in(home)),
        )  # fmt: skip
        stack.callback(fleet.stop)
        sender = Settings.load(**fleet.values | (settings[-1] if settings else {}))
        stage = Stage(
            kind, sender, fleet.database, model, broker.url,
            fleet=fleet, network=network, redis=broker, postgres=postgres, logs=logs, tools=("note",),
        )  # fmt: skip
        stage.attacks = attacks_on(stage, fleet, ways, longest(seconds))
        if no_disk:
            stage.left_out["disk.full"] = no_disk
        else:
            stage.attacks += disk.attacks(home, min(FULL_DISK_SECONDS, longest(seconds)))
        stack.enter_context(fleet.supervised())
        fleet.start(workers)
        yield stage


def archives_in(home: Path) -> Path:
    """Where archives go: on the disk that may be full."""
    directory = home / "archives"
    directory.mkdir(mode=0o700)
    return directory


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """What inturn logs in this process goes to a file, rather than to the terminal."""
    logger, handler = logging.getLogger("inturn"), logging.FileHandler(path)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def attacks_on(stage: Stage, fleet: Fleet, ways: Sequence[Way], most: float) -> list[Attack]:
    lease = stage.settings.lease_seconds
    assert stage.redis is not None
    found = [
        *workers.attacks(fleet, lease),
        *beat.attacks(fleet, most),
        *cleanup.attacks(fleet, most),
        *redis_faults.attacks_over_url(stage.redis_url, most, may_lose=True),
        *redis_faults.attacks_on_server(stage.redis, most),
        *attacks_on_database(stage.kind, stage.settings, fleet.settings.effective_database_url, most),
    ]
    if stage.postgres is not None:
        found += postgresql.attacks_on_server(stage.postgres)
    if ways:
        found += network.attacks(ways, most, lease)
    return found


def attacks_on_database(kind: str, settings: Settings, url: str, most: float) -> list[Attack]:
    """Those that need nothing but its URL."""
    if kind == "postgresql":
        return postgresql.attacks_over_url(url, most)
    return sqlite.attacks(Path(make_url(url).database or ""), most)


def proxies_to(network: Network, database_url: str, redis_url: str, model: ModelServer) -> dict[str, Any]:
    """A process's own proxies, by upstream. SQLite has no network."""
    addresses = {"redis": make_url(redis_url).port, "model": model.port}
    if not database_url.startswith("sqlite"):
        addresses["database"] = make_url(database_url).port
    return {name: network.proxy(HOST, port or 0) for name, port in addresses.items()}


def settings_on(way: Way, database_url: str, redis_url: str) -> dict[str, Any]:
    """The settings of who goes this way."""
    redis_port = way.proxies["redis"].port
    found: dict[str, Any] = {
        "broker_url": make_url(redis_url).set(port=redis_port).render_as_string(hide_password=False),
        "providers": {"server": provider(f"http://{HOST}:{way.proxies['model'].port}/v1")},
    }
    if "database" in way.proxies:
        address = make_url(database_url).set(port=way.proxies["database"].port)
        found["database_url"] = address.render_as_string(hide_password=False)
    return found


def provider(base_url: str) -> dict[str, Any]:
    return {"type": "openai", "base_url": base_url}


@contextmanager
def own_stage(
    *,
    model_port: int = 0,
    default_model: str = "",
    seconds: float = 60,
    seed: int = 0,
    may_flush: bool = False,
    commands: Mapping[str, str] | None = None,
) -> Iterator[Stage]:
    """The user's deployment, as INTURN_* settings and ``inturn.toml`` name it. Nothing of it is started or stopped."""
    settings = Settings.load(default_model=default_model or None)
    with ModelServer(port=model_port, latency=LATENCY_SECONDS, seed=seed) as model:
        database = Database(settings.effective_database_url)
        url = broker_url(settings.home) if settings.has_embedded_broker else settings.broker_url
        stage = Stage(database.dialect, settings, database, model, url)
        most = longest(seconds)
        stage.attacks += redis_faults.attacks_over_url(url, most, may_lose=may_flush)
        if not may_flush:
            stage.left_out["redis.flush, redis.full"] = "all that is in that Redis may go: say --allow-flush"
        stage.attacks += attacks_on_database(stage.kind, settings, settings.effective_database_url, most)
        stage.attacks += [command.attack(name, words) for name, words in (commands or {}).items()]
        try:
            yield stage
        finally:
            database.close()
