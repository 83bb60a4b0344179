"""``inturn up``: the whole stack under one supervisor."""

import socket
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, metrics_flag, pass_invocation
from inturn.flower_settings import about_port, check_door, logins, url_of
from inturn.models.errors import BrokerUnreachableError, SettingsError
from inturn.models.states import ProcessKind

if TYPE_CHECKING:
    from inturn.models.database import Database
    from inturn.settings import Settings

FLOWER_SECONDS = 0.5
"""How long a look at Flower's port waits."""


@click.command()
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="How many worker processes.",
)
@click.option("--flower", is_flag=True, help="Run Flower as well, where the settings flower_... say.")
@click.option("--verbose", is_flag=True, help="Show what the processes log, instead of writing it to the home.")
@click.option("--linked", is_flag=True, hidden=True, help="Stop with the last user: for clients that start a stack.")
@metrics_flag
@pass_invocation
def up(invocation: Invocation, workers: int, flower: bool, verbose: bool, linked: bool) -> None:
    """Run broker, worker and beat together, with nothing set up.

    Ctrl-C stops all of them; replies in hand are finished first. What was accepted is kept, and the next up goes on.
    """
    supervise(invocation.settings, workers=workers, flower=flower, verbose=verbose, linked=linked)


def supervise(settings: "Settings", *, workers: int, flower: bool, verbose: bool, linked: bool) -> None:
    """Run the supervisor in this process until it is told to stop.

    Raises:
        SettingsError: Flower would refuse to run like this.
    """
    from inturn.models.database import Database
    from inturn.workers.supervisor import Supervisor

    if flower:
        check_door(settings.flower_address, logins(settings.flower_basic_auth))
    with closing(Database(settings.effective_database_url, connections=2)) as database:
        said = partial(tell, settings, workers, flower, spoken(settings, verbose=verbose))
        report = render.talk if linked else said
        arrivals = Arrivals(database, settings, report, flower=flower)
        supervisor = Supervisor(
            settings,
            prepare=arrivals.prepare,
            is_ready=arrivals.are_complete,
            report=report,
            workers=workers,
            flower=flower,
            verbose=verbose,
            linked=linked,
        )
        supervisor.run()


def spoken(settings: "Settings", *, verbose: bool) -> Callable[[str], None]:
    """How the supervisor speaks: in sentences, unless they would stand between the lines of JSON that its processes log."""
    from inturn.workers.logs import JsonLines, is_json

    if settings.log_format != "json" and not (verbose and is_json(settings.log_format)):
        return render.talk
    lines = JsonLines("up")
    return lambda sentence: render.talk(lines.of(__name__, sentence))


def tell(settings: "Settings", workers: int, flower: bool, talk: Callable[[str], None], sentence: str) -> None:
    """Say what the supervisor says, and to whom sits there, what comes next."""
    if sentence != "ready":
        return talk(sentence)
    talk("ready: `inturn chat` in another terminal talks to it; Ctrl-C here stops everything")
    if flower and settings.flower_port:
        talk(f"Flower: {url_of(settings.flower_address, settings.flower_port)}")
    if settings.metrics_port:
        url = f"http://{settings.metrics_host}:{settings.metrics_port}/metrics"
        talk(f"metrics: {url} and the next free ports, one for each of {workers + 1} processes: their logs say which")
    return None


class Arrivals:
    """Who has come since the stack began: a worker that was killed before it may still look alive, and a broker that is
    not ours may be away.
    """

    def __init__(
        self, database: "Database", settings: "Settings", report: Callable[[str], None], *, flower: bool = False
    ) -> None:
        self._database = database
        self._settings = settings
        self._report = report
        self._awaits_flower = flower and settings.flower_port > 0
        self._before: set[str] = set()
        self._missed = False

    def prepare(self) -> None:
        """Bring the schema up to date, or refuse, and remember who is there already.

        Raises:
            SettingsError: somebody else listens where Flower is to: it would look as if it did.
        """
        from inturn.models import migrations

        migrations.prepare(self._database)
        if self._awaits_flower:
            check_port(self._settings.flower_address, self._settings.flower_port)
        self._before = self._workers()

    def are_complete(self) -> bool:
        """Whether a worker is at work, the broker brings it hints, and Flower is to be seen. Says once that the broker does
        not.
        """
        return (
            bool(self._workers() - self._before)
            and (self._settings.has_embedded_broker or self._has_broker())
            and (not self._awaits_flower or self._has_flower())
        )

    def _has_flower(self) -> bool:
        at = urlsplit(url_of(self._settings.flower_address, self._settings.flower_port))
        try:
            socket.create_connection((at.hostname or "", at.port or 0), timeout=FLOWER_SECONDS).close()
        except OSError:
            return False
        return True

    def _has_broker(self) -> bool:
        from inturn.workers.queues import about

        try:
            about(self._settings.broker_url)
        except BrokerUnreachableError as error:
            if not self._missed:
                self._report(f"waiting for the broker: {error}")
            self._missed = True
            return False
        return True

    def _workers(self) -> set[str]:
        from inturn.models.store.presence import list_processes

        with self._database.reading() as db:
            processes = list_processes(db, self._settings.silent_seconds)
        return {one.id for one in processes if one.alive and one.kind is ProcessKind.WORKER}


def check_port(address: str, port: int) -> None:
    """Raises: SettingsError: nobody can listen there now."""
    from tornado.netutil import bind_sockets

    try:
        for each in bind_sockets(port, address=address):
            each.close()
    except OSError as error:
        raise SettingsError(about_port(address, port, error.strerror)) from None
