"""Faults of Redis. Those over its URL work on any, the others on a server of ours."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from inturn.workers.queues import connect
from ops.chaos.nemesis import Attack
from ops.servers import RedisServer

AGE_SECONDS = (0.5, 3.0)
"""Of the file that an old backup is."""


def attacks_over_url(url: str, longest: float, *, may_lose: bool) -> list[Attack]:
    """Those that need nothing but its URL.

    Args:
        may_lose: whether all that is in there may go. Out of memory, a Redis that evicts keys evicts them all.
    """
    found = [Attack("redis.hang_up", "redis_other", partial(hang_up, url))]
    if may_lose:
        found.append(Attack("redis.flush", "redis_wiped", partial(flush, url)))
        found.append(Attack("redis.full", "redis_other", partial(full, url), (0.2, longest)))
    return found


def attacks_on_server(server: RedisServer, longest: float) -> list[Attack]:
    return [
        Attack("redis.restart", "redis_restarted", partial(restart, server), (0.1, longest)),
        Attack("redis.restart_with_old_file", "redis_restarted", partial(restart_with_old_file, server), (0.1, 1)),
        Attack("redis.freeze", "redis_frozen", partial(freeze, server), (0.5, longest)),
    ]


@contextmanager
def flush(url: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """FLUSHALL: hints, and whatever else lies in that server, are gone."""
    with connect(url, socket_timeout=10) as client:
        client.flushall()
    yield {}


@contextmanager
def full(url: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """Out of memory: it reads, and takes nothing in."""
    with connect(url, socket_timeout=10) as client:
        known: Any = client.config_get("maxmemory")
        client.config_set("maxmemory", 1)
        try:
            yield {}
        finally:
            client.config_set("maxmemory", known["maxmemory"])


@contextmanager
def hang_up(url: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    """All clients' connections are closed at once."""
    with connect(url, socket_timeout=10) as client:
        closed = [client.client_kill_filter(_type=kind) for kind in ("normal", "pubsub")]
    yield {"connections": sum(map(int, closed))}


@contextmanager
def restart(server: RedisServer, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL; what the append-only file does not hold yet is lost."""
    server.kill()
    try:
        yield {}
    finally:
        server.start()


@contextmanager
def restart_with_old_file(server: RedisServer, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL, and it comes back with what it held some time ago: old hints, and none of the new ones."""
    age = dice.uniform(*AGE_SECONDS)
    server.keep_file()
    time.sleep(age)
    server.kill()
    try:
        server.bring_back_file()
        yield {"age": age}
    finally:
        server.start()


@contextmanager
def freeze(server: RedisServer, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGSTOP: connections stay open, and nothing answers."""
    server.freeze()
    try:
        yield {}
    finally:
        server.thaw()
