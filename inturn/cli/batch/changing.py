"""``inturn batch cancel`` and ``retry``."""

from datetime import timedelta

import click

from inturn.cli import render
from inturn.cli.batch.submitting import tell_next
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.values import span


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--abort", is_flag=True, help="Break off the calls that are under way, too; else they finish.")
@pass_invocation
def cancel(invocation: Invocation, batch_id: str, abort: bool) -> None:
    """Take a batch back: no call is begun for it any more. What is done stays, and can be read."""
    with invocation.client() as client:
        found = client.get_batch(batch_id)
        in_time = found.cancel(abort=abort)
        progress = found.progress()
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    kept = (
        f"{progress.completed:,} of {progress.total:,} lines have a reply{failed}, {progress.cancelled:,} "
        f"{'was' if progress.cancelled == 1 else 'were'} cancelled"
    )
    if not in_time:
        render.talk(f"batch {found.id} is {progress.state} already: {kept}")
    elif progress.is_final:
        render.talk(f"batch {found.id} is {progress.state}: {kept}")
    else:
        calls = render.counted(progress.running, "call")
        asked = "is asked back" if progress.running == 1 else "are asked back"
        ends = asked if abort else "will be finished (--abort breaks off)"
        render.talk(f"batch {found.id} is {progress.state}: {kept}; {calls} under way {ends}")


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--window", type=span, metavar="24h", help="Lines that were not called by then expire. Default: none do.")
@pass_invocation
def retry(invocation: Invocation, batch_id: str, window: timedelta | None) -> None:
    """Send the lines of a batch that have no reply again: failed, expired and cancelled ones. It has to be over."""
    with invocation.client() as client:
        found = client.get_batch(batch_id)
        many = found.retry_failed(window)
        if not many:
            render.talk(f"batch {found.id} is {found.state}: there is no line to be sent again")
            return
        render.talk(f"{render.counted(many, 'line')} of batch {found.id} will be called again")
        tell_next(client, found)
