"""``inturn db``: the schema of the database."""

from contextlib import closing
from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, global_flags, pass_invocation

if TYPE_CHECKING:
    from inturn.models.database import Database


def database_of(invocation: Invocation) -> "closing[Database]":
    """The database of the settings, closed at the end of a ``with``."""
    from inturn.models.database import Database

    return closing(Database(invocation.settings.effective_database_url))


@click.group()
@global_flags()
def db() -> None:
    """Upgrade and check the database's schema."""


@db.command()
@pass_invocation
def upgrade(invocation: Invocation) -> None:
    """Bring the schema to the version that this inturn works with. Workers may go on."""
    from inturn.models import migrations

    with database_of(invocation) as database:
        before, after = migrations.upgrade(database)
    render.talk(f"the schema is {after}" + (" already" if before == after else f" now; it was {before or 'not there'}"))


@db.command()
@pass_invocation
def current(invocation: Invocation) -> None:
    """Print the schema's version ("none" where there are no tables yet)."""
    from inturn.models import migrations

    with database_of(invocation) as database:
        render.data(migrations.current(database) or "none")


@db.command()
@pass_invocation
def check(invocation: Invocation) -> None:
    """Fail unless the schema is the one that this inturn works with."""
    from inturn.models import migrations

    with database_of(invocation) as database:
        migrations.check(database)
    render.talk(f"the schema is {migrations.HEAD}, as it should be")
