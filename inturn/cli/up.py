"""``inturn up``: the whole stack under one supervisor."""

from contextlib import closing
from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.models.states import ProcessKind

if TYPE_CHECKING:
    from inturn.models.database import Database
    from inturn.settings import Settings


@click.command()
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="How many worker processes.",
)
@click.option("--verbose", is_flag=True, help="Show what the processes log, instead of writing it to the home.")
@click.option("--linked", is_flag=True, hidden=True, help="Stop with the last user: for clients that start a stack.")
@pass_invocation
def up(invocation: Invocation, workers: int, verbose: bool, linked: bool) -> None:
    """Run broker, worker and beat together, with nothing set up.

    Ctrl-C stops all of them; replies in hand are finished first. What was accepted is kept, and the next up goes on.
    """
    supervise(invocation.settings, workers=workers, verbose=verbose, linked=linked)


def supervise(settings: "Settings", *, workers: int, verbose: bool, linked: bool) -> None:
    """Run the supervisor in this process until it is told to stop."""
    from inturn.models.database import Database
    from inturn.workers.supervisor import Supervisor

    with closing(Database(settings.effective_database_url, connections=2)) as database:
        arrivals = Arrivals(database, settings.lease_seconds)
        supervisor = Supervisor(
            settings,
            prepare=arrivals.prepare,
            is_ready=arrivals.has_worker,
            report=render.talk if linked else tell,
            workers=workers,
            verbose=verbose,
            linked=linked,
        )
        supervisor.run()


def tell(sentence: str) -> None:
    """Say what the supervisor says, and to whom sits there, what comes next."""
    more = (
        ": `inturn chat` in another terminal talks to it; Ctrl-C here stops everything" if sentence == "ready" else ""
    )
    render.talk(sentence + more)


class Arrivals:
    """Which workers have come since the stack began: one that was killed before it may still look alive."""

    def __init__(self, database: "Database", silent_seconds: float) -> None:
        self._database = database
        self._silent_seconds = silent_seconds
        self._before: set[str] = set()

    def prepare(self) -> None:
        """Bring the schema up to date, or refuse, and remember who is there already."""
        from inturn.models import migrations

        migrations.prepare(self._database)
        self._before = self._workers()

    def has_worker(self) -> bool:
        return bool(self._workers() - self._before)

    def _workers(self) -> set[str]:
        from inturn.models.store.presence import list_processes

        with self._database.reading() as db:
            processes = list_processes(db, self._silent_seconds)
        return {one.id for one in processes if one.alive and one.kind is ProcessKind.WORKER}
