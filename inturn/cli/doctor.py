"""``inturn doctor``: a check-up. Every line says what is, and where it is not well, what mends it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import click

from inturn.cli import render
from inturn.cli.checkup.archives import check_archives
from inturn.cli.checkup.brokers import check_broker
from inturn.cli.checkup.collector import check_collector
from inturn.cli.checkup.disks import check_disks
from inturn.cli.checkup.finding import RUNBOOK, Finding
from inturn.cli.checkup.flower import check_flower
from inturn.cli.checkup.origins import check_origins
from inturn.cli.checkup.providers import LOOPBACK, check_providers
from inturn.cli.checkup.webhooks import check_deliveries, check_secrets
from inturn.cli.checkup.work import check_work
from inturn.cli.exits import Exit
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.models import failpoints
from inturn.models.errors import InturnError, SchemaError
from inturn.models.states import Lane, ProcessKind

if TYPE_CHECKING:
    from inturn.models.database import Database
    from inturn.settings import Settings

OTHER_VARIABLES = {"INTURN_DEBUG", failpoints.VARIABLE}


@click.command()
@click.option("--offline", is_flag=True, help="Ask no provider, no store of archives, and no collector.")
@click.option(
    "--send", "sends", is_flag=True, help="Then send a prompt to echo through the real queue, and time each step."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1, max=3600),
    metavar="SECONDS",
    help="Seconds until --send gives up, and says where it stuck [30].",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per finding; `check` names it.")
@pass_invocation
def doctor(invocation: Invocation, offline: bool, sends: bool, timeout: float | None, as_json: bool) -> int:
    """Say what works, what does not, and how to mend it.

    Looks at database and schema, connections, clocks, broker, workers, beat, lanes, leases, schedules, the providers and
    their keys, the modules of tools, webhooks, Flower, archives, traces, disks, and settings that are dangerous, with
    their origins.
    Each provider is asked, from here and for at most 5 seconds, for the list of its models, which costs nothing. Ends
    with 1 when something keeps inturn from working.
    """
    failed = False
    for finding in check_up(invocation.settings, offline=offline):
        failed = tell(finding, as_json=as_json) or failed
    if sends or timeout is not None:
        failed = self_test(invocation, timeout or 30.0, as_json=as_json) or failed
    return Exit.FAILURE if failed else Exit.OK


def tell(finding: Finding, *, as_json: bool) -> bool:
    """Returns: whether it keeps inturn from working."""
    if as_json:
        render.json_line(finding.record())
    else:
        render.verdict(finding.state, finding.subject, finding.sentence)
    return finding.state == "fail"


def self_test(invocation: Invocation, timeout: float, *, as_json: bool) -> bool:
    """``--send``. Returns: whether it failed."""
    from inturn.cli.checkup.selftest import check_send, waterfall

    finding = check_send(invocation, timeout)
    failed = tell(finding, as_json=as_json)
    if not as_json and (lines := waterfall(finding)):
        indent = " " * render.VERDICT_INDENT
        render.data("\n".join(f"{indent}{line}" for line in lines))
    return failed


def check_up(settings: "Settings", *, offline: bool = False) -> Iterator[Finding]:
    """All findings, in the order in which one thing needs the other."""
    yield from check_database(settings)
    yield from check_broker(settings)
    yield from check_providers(settings, offline=offline)
    yield from check_settings(settings)
    yield from check_origins(settings)
    yield from check_disks(settings)
    yield from check_secrets(settings)
    yield from check_flower(settings)
    yield from check_archives(settings, offline=offline)
    yield from check_collector(settings, offline=offline)


def check_database(settings: "Settings") -> Iterator[Finding]:
    """Whether it answers, with the right schema; then who has said there that it is alive."""
    from inturn.models import migrations
    from inturn.models.database import Database
    from inturn.urls import masked_url

    shown = masked_url(settings.effective_database_url)
    if not settings.database_url and not (settings.home / "inturn.db").exists():
        yield Finding("ok", "database", f"{shown} is not there yet: the first command that needs it makes it")
        return
    try:
        with closing(Database(settings.effective_database_url, connections=1)) as database:
            migrations.check(database)
            yield Finding("ok", "database", f"{shown}, schema {migrations.HEAD}")
            yield from check_server(settings, database)
            yield from check_processes(settings, database)
            yield from check_work(settings, database)
            yield from check_halted(database)
            yield from check_schedules(database)
            yield from check_deliveries(settings, database)
    except SchemaError as error:
        yield Finding("fail", "database", str(error), "database.schema")
    except InturnError as error:
        yield Finding("fail", "database", str(error), "database.reachable", f"{RUNBOOK}inturndatabasedown")


def check_server(settings: "Settings", database: "Database") -> Iterator[Finding]:
    """What is the server's own, where there is one: its connections, and its clock."""
    from inturn.cli.checkup.clocks import about_clock, database_offset
    from inturn.cli.checkup.connections import check_connections
    from inturn.models.store.presence import list_processes

    if database.dialect != "postgresql":
        return
    with database.reading() as db:
        alive = [one for one in list_processes(db, settings.silent_seconds) if one.alive]
    yield from check_connections(database, alive)
    yield about_clock("the database", *database_offset(database), "database.clock")


def check_processes(settings: "Settings", database: "Database") -> Iterator[Finding]:
    """Who is alive."""
    from inturn.models.store.lanes import list_lanes
    from inturn.models.store.presence import list_processes

    with database.reading() as db:
        processes = [one for one in list_processes(db, settings.silent_seconds) if one.alive]
    for info in list_lanes(database, settings.silent_seconds):
        if info.paused_at is not None:
            yield Finding(
                "warn",
                "lanes",
                f"{info.lane} is paused since {info.paused_at.astimezone():%Y-%m-%d %H:%M}, and nothing of it is "
                f"answered: `inturn lane resume {info.lane}` goes on",
            )
    state: Literal["warn", "fail"] = "warn" if settings.is_embedded else "fail"
    too = "; so does any command that waits for a reply" if settings.is_embedded else ""
    worker, beat = ("up", "up") if settings.has_embedded_broker else ("worker", "beat")
    workers = [one for one in processes if one.kind is ProcessKind.WORKER]
    if workers:
        who = ", ".join(f"{one.host}/{one.pid} ({one.lanes})" for one in workers)
        yield Finding("ok", "workers", f"{len(workers)} alive: {who}")
        for lane in sorted(set(Lane) - {lane for one in workers for lane in one.lanes.split(",")}):
            yield Finding("warn", "workers", f"nobody serves the lane {lane}: start `inturn worker --lanes {lane}`")
    else:
        yield Finding(state, "workers", f"none is alive, so nothing is answered: `inturn {worker}` starts one{too}")
    if any(one.kind is ProcessKind.BEAT for one in processes):
        yield Finding("ok", "beat", "alive")
    else:
        yield missing_beat(settings, database, f"`inturn {beat}` starts it{too}")


def missing_beat(settings: "Settings", database: "Database", mend: str) -> Finding:
    """What waits for it, and what mends that."""
    from inturn.models.store.schedules import beat_work
    from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS

    with database.reading() as db:
        work = beat_work(db, REMOVE_EXPIRED_SESSIONS, settings.cleanup_interval_seconds, settings.crons())
    nothing = "nothing is cleaned up" + ", which is due" * work.is_cleanup_due
    if not work.schedules:
        return Finding("warn", "beat", f"not alive, so {nothing}: {mend}")
    fire = f"{render.counted(work.schedules, 'schedule')} {'does' if work.schedules == 1 else 'do'} not fire"
    state: Literal["warn", "fail"] = "warn" if settings.is_embedded else "fail"
    return Finding(state, "beat", f"not alive, so {fire}, and {nothing}: {mend}")


def check_schedules(database: "Database") -> Iterator[Finding]:
    """Which of them cannot be fired."""
    from inturn.models.store.schedules import list_schedules

    for one in list_schedules(database):
        if one.paused_because is not None:
            yield Finding(
                "warn",
                "schedules",
                f"{one.name} could not be fired, and is paused: {one.paused_because}. When that is mended, "
                f"`inturn schedule resume {one.name}` goes on, and `inturn schedule remove {one.name}` takes it away",
            )


def check_halted(database: "Database") -> Iterator[Finding]:
    """Which sessions go on only when somebody says so."""
    from inturn.models.store.halting import count_halted

    number, first = count_halted(database)
    if number:
        yield Finding(
            "warn",
            "sessions",
            f"{render.counted(number, 'session')} halted behind a quarantined turn: `inturn why {first}` says why, and "
            f"`inturn session continue {first}` lets it go on",
        )


def check_settings(settings: "Settings") -> Iterator[Finding]:
    """What works and is still a danger, and modules that workers cannot have."""
    from inturn.workers.tool_modules import about_missing

    known = {f"INTURN_{name.upper()}" for name in settings.origins()} | OTHER_VARIABLES
    for name in sorted(name for name in os.environ if name.startswith("INTURN_") and name not in known):
        yield Finding(
            "warn", "settings", f"{name} is set and means nothing to inturn: `inturn config show` has the names"
        )
    if missing := about_missing(settings):
        yield Finding("fail", "tools", missing)
    if failpoints.ARMED is not None:
        yield Finding(
            "warn",
            "settings",
            f"{failpoints.VARIABLE} is set: processes fail on purpose. Unset it, unless you test that",
        )
    for name, provider in settings.available_providers.items():
        url = urlsplit(provider.base_url)
        if url.scheme == "http" and url.hostname not in LOOPBACK and provider.api_key_env:
            yield Finding(
                "warn", "settings", f"provider {name} gets its key over plain http ({url.hostname}): use https"
            )
    if settings.home.exists() and settings.home.stat().st_mode & 0o077:
        yield Finding("warn", "settings", f"other users can look into {settings.home}: chmod 700 {settings.home}")
    if settings.effective_database_url.startswith("sqlite"):
        yield from check_sqlite(settings)


def check_sqlite(settings: "Settings") -> Iterator[Finding]:
    from inturn.models.database import has_wal_reset_bug

    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        sentence = (
            f"SQLite {sqlite3.sqlite_version} may, very rarely, damage a database with several writers (WAL reset"
        )
        yield Finding(
            "note", "sqlite", f"{sentence} bug): a Python with SQLite 3.51.3 or later, or PostgreSQL, does not"
        )
    if settings.broker_url:
        yield Finding("warn", "settings", "a SQLite file with a broker of its own: all workers must be on this machine")
