"""``inturn db``: the schema of the database, its backups, and the way into another one."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.models.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from inturn.models.database import Database
    from inturn.models.store.presence import WorkerInfo
    from inturn.models.store.sweeping import Caps
    from inturn.models.transfer import Moved, Progress
    from inturn.settings import Settings

BAR_FROM_ROWS = 10_000
"""Fewer are done before anybody has read that they are being done."""


def database_of(invocation: Invocation) -> "closing[Database]":
    """The database of the settings, closed at the end of a ``with``."""
    from inturn.models.database import Database

    return closing(Database(invocation.settings.effective_database_url))


def refuse_stream(_context: click.Context, _argument: click.Parameter, path: Path) -> Path:
    """Raises: click.BadParameter: ``-``, which elsewhere is stdin, would be a file of that name."""
    if path == Path("-"):
        raise click.BadParameter("a backup is a file, and no stream: name one")
    return path


@click.group()
@global_flags()
def db() -> None:
    """Upgrade, check, back up, restore and copy the database."""


@db.command()
@pass_invocation
def upgrade(invocation: Invocation) -> None:
    """Bring the schema to the version that this inturn works with. Workers may go on."""
    from inturn.models import migrations

    with database_of(invocation) as database:
        before, after = migrations.upgrade(database)
    render.talk(f"the schema is {after}" + (" already" if before == after else f" now; it was {before or 'not there'}"))


@db.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def current(invocation: Invocation, as_json: bool) -> None:
    """Print the schema's version ("none" where there are no tables yet)."""
    from inturn.models import migrations

    with database_of(invocation) as database:
        found = migrations.current(database)
    if as_json:
        render.json_line({"schema": found})
    else:
        render.data(found or "none")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object; none if it fails.")
@pass_invocation
def check(invocation: Invocation, as_json: bool) -> None:
    """Fail unless the schema is the one that this inturn works with."""
    from inturn.models import migrations

    with database_of(invocation) as database:
        migrations.check(database)
    if as_json:
        render.json_line({"schema": migrations.HEAD})
    render.talk(f"the schema is {migrations.HEAD}, as it should be")


@db.command()
@click.argument("path", type=click.Path(path_type=Path), callback=refuse_stream)
@click.option("--force", is_flag=True, help="Replace a file that is there, once the new one is whole.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def backup(invocation: Invocation, path: Path, force: bool, as_json: bool) -> None:
    """Write everything, as it is at this moment, into the new file PATH.

    Workers, beat and senders may go on. It is a SQLite file, whatever the database is, and holds prompts and replies: only
    you can read it. `inturn db restore` brings it back, into either kind of database.
    """
    from inturn.models import backup as backups

    with database_of(invocation) as database, bar("rows backed up") as progress:
        made = backups.write(database, path, replace=force, progress=progress)
    if as_json:
        render.json_line({"path": path, "bytes": made.size, "schema": made.schema, **told(made.rows)})
    render.talk(f"{path} is whole: {made.size / 1e6:,.1f} MB with {counted(made.rows)}")


@db.command()
@click.argument("path", type=click.Path(path_type=Path), callback=refuse_stream)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def restore(invocation: Invocation, path: Path, as_json: bool) -> None:
    """Fill the database, which must be empty, from the backup PATH.

    All of it arrives, or nothing. Turns that were running when the backup was made wait for a worker again.
    """
    from inturn.models import backup as backups
    from inturn.models import migrations, transfer

    settings = invocation.settings
    with backups.read(path) as source, database_of(invocation) as target, bar("rows restored") as progress:
        if migrations.current(target) is not None:
            migrations.prepare(target)
            refuse_company(target, settings, "a backup is restored where nobody is at work")
        moved = transfer.move(source, target, caps(settings), progress=progress)
    if as_json:
        render.json_line({"path": path, **told(moved.rows), "waiting": moved.waiting, "paused": moved.paused})
    render.talk(f"restored {counted(moved.rows)} from {path}{waiting(moved, settings)}")
    tell_paused(moved)


@db.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def copy(invocation: Invocation, url: str, as_json: bool) -> None:
    """Copy everything into the empty database URL, to work there from then on.

    It may be of the other kind: so a home moves from SQLite to PostgreSQL, or back. Stop workers, beat and senders before.
    All of it arrives, or nothing; the old database stays as it is.
    """
    from inturn.models import migrations, transfer
    from inturn.models.database import Database
    from inturn.urls import masked_url

    settings, there = invocation.settings, elsewhere(invocation, url)
    goal = Database(there.effective_database_url, instead="name another one to copy into")
    with database_of(invocation) as source, closing(goal) as target:
        if source.url == target.url:
            raise InvalidInputError(f"{source.url!r} is the database that is copied: name another one to copy it into")
        transfer.refuse_missing(source)
        migrations.prepare(source)

        def nobody_works() -> None:
            refuse_company(source, settings, "they would answer in the old database what waits in the new one, too")

        nobody_works()
        with bar("rows copied") as progress:
            moved = transfer.move(source, target, caps(settings), progress=progress, recheck=nobody_works)
    shown = masked_url(there.database_url)
    if as_json:
        render.json_line(
            {
                "from": masked_url(settings.effective_database_url),
                "to": shown,
                **told(moved.rows),
                "waiting": moved.waiting,
                "paused": moved.paused,
            }
        )
    render.talk(f"copied {counted(moved.rows)} into {shown}, every row counted")
    password = ", with its password" if shown != there.database_url else ""
    render.talk(
        f"from now on set INTURN_DATABASE_URL={shown} (or database_url in inturn.toml{password}) for workers, beat and "
        f"whatever sends{waiting(moved, there)}"
    )
    tell_paused(moved)
    render.talk(
        f"{masked_url(settings.effective_database_url)} is as it was. Let nobody work there again: what waits would be "
        "answered twice"
    )


def elsewhere(invocation: Invocation, url: str) -> "Settings":
    """The same settings with another database. Raises: InvalidInputError."""
    from inturn.models.errors import SettingsError
    from inturn.settings import Settings
    from inturn.urls import masked_url

    try:
        settings = Settings.load(**invocation.flags | {"database_url": url})
    except SettingsError:
        settings = None
    if settings is None or not settings.database_url:
        raise InvalidInputError(
            f"{masked_url(url)!r} names no database: write postgresql://USER@HOST/NAME or sqlite:///FILE"
        )
    return settings


@contextmanager
def bar(label: str, least: int = BAR_FROM_ROWS) -> "Iterator[Progress]":
    """A progress bar that appears once it is known how many there are, if they are many."""
    with ExitStack() as shown:
        bars: list[render.Progress] = []

        def update(done: int, total: int) -> None:
            if not bars and total >= least:
                bars.append(shown.enter_context(render.progress(label, total)))
            for one in bars:
                one.update(done)

        yield update


def caps(settings: "Settings") -> "Caps":
    from inturn.models.store.sweeping import Caps

    return Caps(settings.max_attempts, settings.effective_max_rescues)


def refuse_company(database: "Database", settings: "Settings", reason: str) -> None:
    """Raises: StorageError: workers or beat are alive."""
    alive = company(database, settings)
    if alive:
        who = ", ".join(f"{one.kind} {one.host}/{one.pid}" for one in alive)
        raise StorageError(
            f"at work on {database.url!r}: {who}; {reason}. Stop them first: Ctrl-C or SIGTERM, and `inturn up` stops all "
            "of its own. (What a waiting command had started goes by itself within seconds.) Nothing was changed"
        )


def company(database: "Database", settings: "Settings") -> "list[WorkerInfo]":
    """Workers and beats that are alive. Who was killed on this host a moment ago is not, whatever its heartbeat says."""
    from inturn.models.store import presence

    with database.reading() as db:
        known = presence.list_processes(db, settings.silent_seconds)
    return [one for one in known if one.alive and may_run(one.id)]


def may_run(process_id: str) -> bool:
    from inturn.workers.processes import ProcessIdentity

    try:
        return ProcessIdentity.parse(process_id).is_alive() is not False
    except ValueError:
        return True


def told(rows: dict[str, int]) -> dict[str, int]:
    """What people count in, out of all tables."""
    return {name: rows[name] for name in ("sessions", "turns", "messages")}


def counted(rows: dict[str, int]) -> str:
    sessions, turns, messages = (render.counted(count, name[:-1]) for name, count in told(rows).items())
    return f"{sessions}, {turns} and {messages}"


def waiting(moved: "Moved", settings: "Settings") -> str:
    """The end of a sentence on who answers what waits."""
    who = "`inturn up`" if settings.has_embedded_broker else "`inturn worker`"
    return f"; {render.counted(moved.waiting, 'turn')} waiting: start {who}" if moved.waiting else ""


def tell_paused(moved: "Moved") -> None:
    """A pause goes along, and nothing else would show it where the lane is looked at next."""
    for lane in moved.paused:
        render.talk(f"lane {lane} is paused there: what waits in it waits until `inturn lane resume {lane}`")
