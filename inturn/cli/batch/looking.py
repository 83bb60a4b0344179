"""``inturn batch list``, ``status`` and ``watch``."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.batch.coming_back import way_back_to_batch
from inturn.cli.batch.gauge import Pace, cost_of, roughly, speed
from inturn.cli.batch.writing import ending, shown, tell_failed
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.records import batch_record
from inturn.models.states import BatchState

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.models.store.batches import Progress


@click.command("list")
@click.option("--state", type=click.Choice([state.value for state in BatchState]), help="Only in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=20, metavar="N", help="How many at most [20].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per batch.")
@pass_invocation
def list_(invocation: Invocation, state: str | None, limit: int, as_json: bool) -> None:
    """List batches, newest first.

    One without a name goes by its file's.

    Failed are all lines without a reply of which nothing more will come: those that were cancelled or expired, too.
    """
    with invocation.client() as client:
        found = [(one, one.progress()) for one in client.list_batches(state=state, limit=limit)]
    if as_json:
        for one, progress in found:
            render.json_line(batch_record(one, progress))
        return
    columns = ["batch", "name", "state", "lines", "completed", "failed", "age", "US dollars"]
    nothing = "no batches" + (f" are {state}" if state else ". `inturn batch submit FILE` stores one")
    render.table(columns, [row(*one) for one in found], empty=nothing, gives_way=["name", "US dollars", "age"])


def row(batch: "Batch", progress: "Progress") -> tuple[object, ...]:
    failed = progress.done - progress.completed
    age = roughly((datetime.now(UTC) - batch.created_at).total_seconds())
    return (
        batch.id,
        batch.name or batch.source,
        progress.state,
        progress.total,
        progress.completed,
        failed,
        age,
        cost_of(progress),
    )


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def status(invocation: Invocation, batch_id: str, as_json: bool) -> None:
    """Show how far a batch is, what it used, and how to go on with it."""
    with invocation.client() as client:
        found = client.get_batch(batch_id)
        progress = found.progress()
        if as_json:
            render.json_line(batch_record(found, progress))
            return
        render.records(told(found, progress))
        if not progress.is_final:
            render.talk(
                f"`inturn batch watch {found.id}` goes on looking, `inturn batch cancel {found.id}` takes it back"
            )
            return
        tell_failed(client, found, progress, "")
    if not (found.discards and found.read_at):
        render.talk(f"`inturn batch results {found.id} -o OUT` writes its results")


def told(batch: "Batch", progress: "Progress") -> Iterator[tuple[str, object]]:
    """Its lines of ``status``: those that say something."""
    yield "batch", batch.id
    if batch.name:
        yield "name", batch.name
    yield "state", progress.state
    yield "model", batch.model
    yield "lines", progress.total
    if progress.stored < progress.total:
        yield "stored", progress.stored
    yield "completed", progress.completed
    yield "failed", progress.failed
    yield from ((kind, number) for kind in ("cancelled", "expired") if (number := getattr(progress, kind)))
    if not progress.is_final:
        yield "in flight", progress.running
        yield "retrying", progress.retrying
        yield "waiting", progress.queued - progress.retrying
        yield from on_average(batch, progress)
    yield "tokens in", progress.input_tokens
    yield "tokens out", progress.output_tokens
    yield "US dollars", cost_of(progress)
    yield "submitted", batch.created_at
    if batch.expires_at:
        yield "window ends", batch.expires_at
    if batch.finished_at:
        yield "finished", batch.finished_at
    if batch.discards:
        yield "discarded", batch.read_at or "once its results are written"


def on_average(batch: "Batch", progress: "Progress") -> Iterator[tuple[str, object]]:
    """How fast it was since it was submitted, and what that means for the rest."""
    seconds = (datetime.now(UTC) - batch.created_at).total_seconds()
    if progress.done and seconds > 0:
        yield "on average", speed(progress.done / seconds)
        yield "time left", roughly((progress.total - progress.done) * seconds / progress.done)


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="How long at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per look.")
@pass_invocation
def watch(invocation: Invocation, batch_id: str, timeout: float | None, as_json: bool) -> int:
    """Watch a batch until it is over. Exits with 0 if every line has a reply, with 3 if lines failed."""
    with invocation.client() as client:
        found = client.get_batch(batch_id)
        with way_back_to_batch(client, found.id):
            last = (print_looks if as_json else show_looks)(found, timeout)
        if not as_json:
            render.talk(f"batch {found.id} is {last.state}: {last.completed:,} of {last.total:,} lines have a reply")
            tell_failed(client, found, last, "")
    return ending(last)


def show_looks(batch: "Batch", timeout: float | None) -> "Progress":
    with shown(batch) as tell:
        for progress in batch.watch(timeout):
            tell(progress)
    return progress


def print_looks(batch: "Batch", timeout: float | None) -> "Progress":
    pace = Pace()
    for progress in batch.watch(timeout):
        pace.note(progress.done)
        record: dict[str, Any] = batch_record(batch, progress)
        left = pace.seconds_left(progress.total - progress.done)
        render.json_line(record | {"turns_per_second": pace.per_second, "seconds_left": left})
    return progress
