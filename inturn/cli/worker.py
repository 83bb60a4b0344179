"""``inturn worker``: Celery's worker, with the settings of inturn."""

from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, metrics_flag, pass_invocation
from inturn.models.states import Lane

if TYPE_CHECKING:
    from inturn.workers.app import InturnApp

LOG_LEVELS = ("debug", "info", "warning", "error")


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sessions served at once [concurrency of the settings].",
)
@click.option("--lanes", metavar="LANE,...", default=",".join(Lane), show_default=True, help="Which lanes to serve.")
@click.option("--loglevel", type=click.Choice(LOG_LEVELS), default="info", show_default=True, help="How much to log.")
@metrics_flag
@pass_invocation
def worker(invocation: Invocation, concurrency: int | None, lanes: str, loglevel: str) -> None:
    """Run a worker, which answers turns.

    Ctrl-C or SIGTERM stops it warmly: the replies in hand are finished, and nothing new is begun. Logs go to stderr.
    """
    if unknown := set(lanes.split(",")) - set(Lane):
        raise click.BadParameter(f"no lane {min(unknown)!r}: there are {', '.join(Lane)}", param_hint="--lanes")
    invocation.flags["concurrency"] = concurrency
    # Not by Celery's command line, whose plugins cost a fifth of the start: sessions of a dead worker wait for the next.
    # Workers find one another in the database: they need no gossip, and no second of mingling before they begin.
    celery = prepared_app(invocation).Worker(
        loglevel=loglevel, queues=lanes.split(","), without_gossip=True, without_mingle=True, quiet=True
    )
    celery.start()
    raise SystemExit(celery.exitcode)


def prepared_app(invocation: Invocation) -> "InturnApp":
    """Celery, on a database that is as it should be, with settings that can be kept to."""
    import warnings
    from contextlib import closing

    from celery.exceptions import SecurityWarning

    from inturn.models import migrations
    from inturn.models.database import Database
    from inturn.workers import tracing
    from inturn.workers.app import make_app
    from inturn.workers.embedded import broker_answers, broker_is_silent
    from inturn.workers.stack import about_silent_broker

    settings = invocation.settings
    tracing.check(settings)
    with closing(Database(settings.effective_database_url, connections=1)) as database:
        migrations.prepare(database)
    if settings.has_embedded_broker and broker_is_silent(settings.home):
        render.talk(about_silent_broker(settings.home))
    elif settings.has_embedded_broker and not broker_answers(settings.home):
        render.talk(
            "the embedded broker does not run, and is waited for: `inturn up` starts it, with a worker and beat"
        )
    # It warns root of pickled messages, and ours are JSON only.
    warnings.simplefilter("ignore", SecurityWarning)
    return make_app(settings)
