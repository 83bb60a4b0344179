"""``inturn beat``: Celery's beat, with the timetable of inturn."""

import click

from inturn.cli.invocation import Invocation, metrics_flag, pass_invocation
from inturn.cli.worker import LOG_LEVELS, prepared_app


@click.command()
@click.option("--loglevel", type=click.Choice(LOG_LEVELS), default="info", show_default=True, help="How much to log.")
@metrics_flag
@pass_invocation
def beat(invocation: Invocation, loglevel: str) -> None:
    """Run the timetable: schedules, cleanup and sweep.

    Two of them do no harm: every run and every tick fires once.
    """
    prepared_app(invocation).start(["--quiet", "beat", f"--loglevel={loglevel}"])
