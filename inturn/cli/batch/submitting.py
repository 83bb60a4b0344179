"""``inturn batch submit``, and submitting for ``inturn batch run``."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.batch.gauge import Reading, gauge
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.records import batch_record
from inturn.cli.values import json_pair, retention_rule, span
from inturn.models.states import BatchState, ProcessKind

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.client import Client

MEGABYTE = 1_000_000
Command = Callable[..., Any]


def submit_options(command: Command) -> Command:
    """What is said of a batch when it is submitted."""
    options = (
        click.option("--name", help="Tells two batches of the same content apart."),
        click.option("--model", help="provider/model, where a line names none of ours [the default model]."),
        click.option("--system", "system_message", help="What new sessions are told beforehand, where a line does not say."),
        click.option(
            "--option", "options", type=json_pair, multiple=True, metavar="KEY=JSON",
            help="For the provider, with every line; a line's own go ahead. May be repeated.",
        ),
        click.option("--window", type=span, metavar="24h", help="Lines that were not called by then expire."),
        click.option(
            "--keep", type=retention_rule, default="policy", metavar="7d|never|policy",
            help="When the sessions that it makes go.",
        ),
        click.option("--discard", is_flag=True, help="Remove the sessions that it makes once its results were written."),
        click.option("--skip-invalid", is_flag=True, help="Lines that are not valid become errors among the results."),
        click.option("--text", "plain_text", is_flag=True, help="A prompt a line, instead of JSON."),
        click.option("--again", is_flag=True, help="Run it once more, though it was submitted before."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("file", metavar="FILE|-")
@submit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as `inturn batch status` has it.")
@pass_invocation
def submit(invocation: Invocation, /, file: str, as_json: bool, **how: Any) -> None:
    """Store a file of prompts, to be answered by workers, and print the batch's ID.

    A line is a JSON object: {"prompt": ...}, with optional custom_id, session, model, system, options and labels, or a
    line of an OpenAI batch file. All of them are checked before the first one is stored. The same file under the same name
    is the same batch. FILE - reads stdin.
    """
    with invocation.client() as client:
        found, submitted = take(client, file, how)
        if as_json:
            render.json_line(batch_record(found, found.progress()))
        else:
            render.data(found.id)
        tell_submitted(client, found, submitted)
        tell_next(client, found)


@dataclass(slots=True)
class Submitted:
    """What a submission found, and did.

    Attributes:
        before: lines that were stored before; None: it has not come that far.
        stored: lines that are.
    """

    before: int | None = None
    stored: int = 0
    total: int = 0


def take(
    client: "Client", file: str, how: Mapping[str, Any], refuse: Callable[[Submitted], None] = lambda submitted: None
) -> "tuple[Batch, Submitted]":
    """Submit a file, and show how far that is.

    Args:
        refuse: asked before the first line is stored.
    """
    submitted = Submitted()
    lines = sys.stdin.buffer if file == "-" else file
    name = "stdin" if file == "-" else file
    with way_on(submitted, file), gauge(stays=False) as show:

        def told(phase: str, done: int, total: int | None) -> None:
            if phase == "storing":
                note(submitted, done, total or 0)
                refuse(submitted)
            show((checking if phase == "checking" else storing)(name, done, total))

        batch = client.submit_batch(lines, on_progress=told, **dict(how) | {"options": dict(how["options"])})
    return batch, submitted


def note(submitted: Submitted, stored: int, total: int) -> None:
    if submitted.before is None:
        submitted.before = stored
    submitted.stored, submitted.total = stored, total


def checking(name: str, done: int, total: int | None) -> Reading:
    of = "" if total is None else f" of {total / MEGABYTE:,.1f}"
    return Reading(f"checking {name}", f"{done / MEGABYTE:,.1f}{of} MB", done, total)


def storing(name: str, done: int, total: int | None) -> Reading:
    return Reading(f"storing {name}", f"{done:,} of {total or 0:,} lines", done, total)


@contextmanager
def way_on(submitted: Submitted, file: str) -> Iterator[None]:
    """Say what became of a submission that is broken off."""
    try:
        yield
    except KeyboardInterrupt as end:
        if submitted.before is None:
            end.add_note("nothing was stored")
        else:
            end.add_note(
                f"{submitted.stored:,} of {submitted.total:,} lines of {file} are stored, and they run: the same command "
                "(without --again) stores the others"
            )
        raise


def tell_submitted(client: "Client", batch: "Batch", submitted: Submitted, *, is_gone_on: bool = False) -> None:
    """Say whether it is new; ``is_gone_on``: this command goes on with one that is not."""
    if submitted.before == 0:
        stored, skipped = count_stored(client, batch)
        render.talk(f"{stored} as batch {batch.id}{skipped}")
    elif submitted.before != submitted.stored:
        stored, skipped = count_stored(client, batch)
        render.talk(f"batch {batch.id} was submitted before, up to line {submitted.before:,}: now {stored}{skipped}")
    elif is_gone_on:
        render.talk(f"this was submitted before: going on with batch {batch.id}, which is {batch.state}")
    else:
        render.talk(f"this was submitted before: batch {batch.id} is {batch.state}. --again runs it once more")


def count_stored(client: "Client", batch: "Batch") -> tuple[str, str]:
    """How many lines are to be answered, and how many only are errors."""
    from inturn.models.store.batches import count_invalid

    invalid = count_invalid(client.connections.database, batch.id)
    good = batch.total - invalid
    stored = "1 line is stored" if good == 1 else f"{good:,} lines are stored"
    them = "it is" if invalid == 1 else "they are"
    return stored, f", {invalid:,} not valid: {them} among the errors" if invalid else ""


def tell_next(client: "Client", batch: "Batch") -> None:
    """Say what can be done with it, and what is missing for it to run."""
    results = f"`inturn batch results {batch.id} -o OUT"
    if batch.is_final:
        render.talk(f"{results}` writes its results")
        return
    render.talk(f"`inturn batch watch {batch.id}` shows how far it is, {results} --follow` writes its results")
    if batch.state is not BatchState.CANCELLING and not has_worker(client):
        start = "inturn up" if client.settings.has_embedded_broker else "inturn worker"
        render.talk(f"no worker is alive: `{start}` will answer it")


def has_worker(client: "Client") -> bool:
    return any(one.alive and one.kind is ProcessKind.WORKER for one in client.list_workers())
