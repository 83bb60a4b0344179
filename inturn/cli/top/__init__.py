"""``inturn top``: what the deployment does now, in a terminal that is drawn again and again, or as data."""

import os
import sys
import time

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.top.snapshot import Outlook


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2, max=3600),
    metavar="SECONDS",
    help="Between two looks [1]. With --json: one object each time, until Ctrl-C.",
)
@click.option("--once", is_flag=True, help="Look once, and print it. In a pipe it does so by itself.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per look.")
@pass_invocation
def top(invocation: Invocation, interval: float | None, once: bool, as_json: bool) -> None:
    """Watch lanes, workers, failures, spending, and who waits longest.

    In a terminal: q quits, p pauses, s sorts workers by something else, and Ctrl-C is as good as q. Rates are of the last 10
    seconds or so. Where the database or the broker is away, it says so and goes on trying.
    """
    from inturn.cli.top.live import watch
    from inturn.cli.top.picture import plain

    outlook = Outlook(invocation)
    if as_json:
        print_json(outlook, None if once else interval)
    elif once or not is_drawable():
        render.data("\n".join(plain(outlook.look())))
    else:
        watch(outlook, interval or 1.0)


def is_drawable() -> bool:
    """Whether somebody watches, in a terminal in which lines can be drawn over others."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def print_json(outlook: Outlook, interval: float | None) -> None:
    """Once, or at intervals; while the database is away, what is printed says so."""
    if interval is None:
        render.json_line(outlook.look().record())
        return
    while True:
        began = time.monotonic()
        render.json_line(outlook.look(patiently=True).record())
        time.sleep(max(0.0, began + interval - time.monotonic()))
