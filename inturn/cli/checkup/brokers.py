"""What a check-up finds of the broker: whether it answers, takes what it is given, and keeps it."""

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import redis

from inturn.cli.checkup.clocks import about_clock, offset
from inturn.cli.checkup.finding import RUNBOOK, Finding
from inturn.cli.words import size
from inturn.models.errors import BrokerUnreachableError, InturnError

if TYPE_CHECKING:
    from inturn.settings import Settings

NEARLY_FULL = 0.9
HINTS = f"{RUNBOOK}inturnhintsfail"


def check_broker(settings: "Settings") -> Iterator[Finding]:
    """The embedded one, or a Redis of one's own."""
    if settings.has_embedded_broker:
        yield embedded_broker(settings)
        return
    from inturn.urls import masked_url
    from inturn.workers.queues import about as ask
    from inturn.workers.queues import connect

    shown = masked_url(settings.broker_url)
    try:
        about = ask(settings.broker_url)
        if about.get("cluster_enabled"):
            cluster = f"{shown} is a Redis Cluster, which Celery cannot use: name a single server"
            yield Finding("fail", "broker", cluster, "broker.cluster")
            return
        with closing(connect(settings.broker_url)) as client:
            found = [
                *check_writes(client, shown),
                *check_memory(about, shown),
                *check_persistence(client, about, shown),
            ]
            if all(one.state in ("ok", "note") for one in found):
                version = about.get("valkey_version") or about.get("redis_version")
                yield Finding("ok", "broker", f"{shown}, version {version}")
            yield from found
            yield about_clock("the broker", *offset(lambda: _time(client)), "broker.clock")
    except BrokerUnreachableError as error:
        yield Finding("fail", "broker", str(error), "broker.reachable", HINTS)
    except (redis.RedisError, OSError) as error:
        yield Finding("fail", "broker", f"{shown} stopped answering ({error})", "broker.reachable", HINTS)


def _time(client: redis.Redis) -> float:
    told: Any = client.time()
    return float(told[0]) + float(told[1]) / 1e6


def check_writes(client: redis.Redis, shown: str) -> Iterator[Finding]:
    """To try is the only way to know."""
    from inturn.workers.queues import CHECKUP

    try:
        client.set(CHECKUP, 1, px=1)
    except redis.ResponseError as error:
        reason = str(error)
        mend = "see what its log says"
        if "READONLY" in reason or "read only" in reason:
            mend = "it is a replica: name the primary in INTURN_BROKER_URL"
        elif "OOM" in reason or "maxmemory" in reason:
            mend = "raise maxmemory: hints take little, so look at what else is in it (`redis-cli --bigkeys`)"
        elif "MISCONF" in reason or "bgsave" in reason.lower():
            mend = "it cannot save to its disk: free space there, or mend its permissions"
        elif "NOPERM" in reason:
            mend = "give this user the right to all commands on all keys of this database"
        refusal = f"{shown} takes no writes ({reason.rstrip('.')}), so no hint gets through: {mend}"
        yield Finding("fail", "broker", refusal, "broker.writes", HINTS)


def check_memory(about: dict[str, Any], shown: str) -> Iterator[Finding]:
    """Whether it throws away hints to make room, or will soon have none."""
    policy, most, used = about.get("maxmemory_policy"), about.get("maxmemory") or 0, about.get("used_memory") or 0
    if policy != "noeviction":
        set_it = "set maxmemory-policy noeviction"
        if most:
            evicts = f"{shown} evicts ({policy}), which delays turns: {set_it}"
            yield Finding("warn", "broker", evicts, "broker.eviction", HINTS)
        else:
            would = f"{shown} has no maxmemory, and would evict ({policy}) once it gets one: {set_it}"
            yield Finding("note", "broker", would, "broker.eviction", HINTS)
    if most and used > most * NEARLY_FULL:
        full = f"{shown} uses {size(used)} of {size(most)}, and takes no hints when that is full: raise maxmemory"
        yield Finding("warn", "broker", full, "broker.memory", HINTS)


def check_persistence(client: redis.Redis, about: dict[str, Any], shown: str) -> Iterator[Finding]:
    """Nothing that was accepted is in it alone: without a disk it loses some seconds, and no turn."""
    for name, what in ("rdb_last_bgsave_status", "snapshot"), ("aof_last_write_status", "append-only file"):
        if about.get(name, "ok") != "ok":
            broken = (
                f"{shown} could not write its {what} the last time: free space on its disk, or mend its permissions"
            )
            yield Finding("warn", "broker", broken, "broker.persistence", HINTS)
            return
    if about.get("aof_enabled") or _saves(client) is not False:
        return
    yield Finding(
        "note",
        "broker",
        f"{shown} keeps nothing on disk (no appendonly, no save). Turns are in the database, and the sweep sends lost hints "
        "again; a restart costs some seconds, and what limits of providers had counted. `appendonly yes` spares that",
        "broker.persistence",
    )


def _saves(client: redis.Redis) -> bool | None:
    """Whether it makes snapshots; None: it does not say (managed ones forbid CONFIG)."""
    try:
        told: Any = client.config_get("save")
    except redis.ResponseError:
        return None
    return bool(told.get("save"))


def embedded_broker(settings: "Settings") -> Finding:
    from inturn.workers import embedded
    from inturn.workers.stack import about_silent_broker

    try:
        if embedded.broker_is_silent(settings.home):
            return Finding("fail", "broker", about_silent_broker(settings.home), "broker.reachable")
        if embedded.broker_answers(settings.home):
            return Finding("ok", "broker", f"the embedded one answers on {embedded.broker_socket(settings.home)}")
        binary = embedded.server_binary()
    except InturnError as error:
        return Finding("fail", "broker", str(error), "broker.program")
    return Finding("warn", "broker", f"the embedded one ({binary.name}) does not run: `inturn up` starts it")
