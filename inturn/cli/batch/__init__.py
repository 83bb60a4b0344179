"""``inturn batch``: submit, run, list, status, watch, results, cancel and retry."""

import click

from inturn.cli.batch import changing, looking, running, submitting, writing
from inturn.cli.invocation import global_flags


@click.group()
@global_flags()
def batch() -> None:
    """Submit, run, list, watch, cancel and retry batches, and get their results."""


for command in (
    submitting.submit,
    running.run,
    looking.list_,
    looking.status,
    looking.watch,
    writing.results,
    changing.cancel,
    changing.retry,
):
    batch.add_command(command)
