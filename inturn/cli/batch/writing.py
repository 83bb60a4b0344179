"""``inturn batch results``, and writing results for ``inturn batch run``."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from inturn.cli import render
from inturn.cli.batch.coming_back import way_back_to_batch
from inturn.cli.batch.gauge import Pace, gauge, reading_of, used
from inturn.cli.exits import Exit
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.screen import stdout
from inturn.models.errors import InvalidInputError

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.cli.batch.source import BatchSource
    from inturn.client import Client
    from inturn.models.store.batches import Progress
    from inturn.results.writing import ResultFiles

Command = Callable[..., Any]

SWITCH_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Place:
    """Where results go, and how: ``output`` is a file, or - for stdout."""

    output: str
    errors: Path | None
    short: bool
    force: bool

    @property
    def is_stdout(self) -> bool:
        return self.output == "-"

    def target(self) -> Path | BinaryIO:
        if not self.is_stdout:
            return Path(self.output)
        return stdout()

    @property
    def errors_name(self) -> str:
        """Where who wrote looks for failed lines."""
        from inturn.results.places import errors_path

        path = errors_path(self.target(), self.errors)
        return str(path) if path else "the output"

    @property
    def arguments(self) -> str:
        """As they are typed."""
        errors = f" --errors {self.errors}" if self.errors else ""
        return f"-o {self.output}{errors}{' --short' if self.short else ''}"


def needed(ctx: click.Context, option: click.Parameter, output: str | None) -> str:
    """Raises: click.UsageError: what is the value of a required option is missing."""
    if output is None and not ctx.resilient_parsing:
        raise click.UsageError(
            "missing option -o: say where results go, `-o OUT` or, for stdout, `-o -`; `inturn batch submit` takes prompts "
            "without waiting for their results",
            ctx,
        )
    return output or ""


def place_options(*, is_needed: bool) -> Callable[[Command], Command]:
    """``-o``, ``--errors``, ``--short`` and ``--force``."""
    output: dict[str, Any] = {"callback": needed} if is_needed else {"default": "-"}
    told = "Where completed lines go; - is stdout." + ("  [required]" if is_needed else " Default: -.")
    options = (
        click.option("-o", "--output", metavar="OUT", help=told, **output),
        click.option(
            "--errors",
            metavar="ERR",
            type=click.Path(path_type=Path),
            help="Where failed lines go [beside OUT: out.errors.jsonl for out.jsonl; with -o - the same].",
        ),
        click.option("--short", is_flag=True, help="{custom_id, session, reply or error} instead of OpenAI's form."),
        click.option("--force", is_flag=True, help="Overwrite a file that holds something else."),
    )

    def declare(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return declare


@click.command()
@click.argument("batch_id", metavar="ID")
@place_options(is_needed=False)
@click.option("--follow", is_flag=True, help="Go on until every line has its result.")
@pass_invocation
def results(
    invocation: Invocation, batch_id: str, output: str, errors: Path | None, short: bool, force: bool, follow: bool
) -> int:
    """Write what became of the lines of a batch, in the order in which they ended, also while it runs.

    A file that the same batch was written to before is gone on with: nothing stands in it twice, and lines that were sent
    again move from the errors to the output. Exits with 0 once it wrote what there is; with --follow, with 3 if lines
    failed.
    """
    place = Place(output, errors, short, force)
    with invocation.client() as client:
        found = client.get_batch(batch_id)
        come_back = way_back_to_batch(client, found.id) if follow else nullcontext()
        with come_back:
            progress, before = write_out(client, found, place, follow=follow)
        tell_written(client, found, progress, place, is_again=before == progress.stored)
    return ending(progress) if follow else Exit.OK


def write_out(client: "Client", batch: "Batch", place: Place, *, follow: bool) -> "tuple[Progress, int]":
    """Write results; of a final batch all of them, and note that they were read.

    Returns: how far the batch is, and how many lines were in the files before.
    """
    from inturn.cli.batch.source import BatchLines, BatchSource
    from inturn.results.following import follow as write_until_final
    from inturn.results.writing import ResultFiles

    refuse_discarded(batch)
    lines = BatchLines(client, batch)
    with (
        ResultFiles(batch.id, lines, place.target(), place.errors, short=place.short, force=place.force) as files,
        watched(batch, follow, place) as tell,
        quick_switches(),
    ):
        before = sum(files.counts)
        source = BatchSource(client, batch, batch.watch() if follow else iter([batch.progress()]), tell)
        if follow:
            write_until_final(source, files, lambda counts: None)
        else:
            write_what_there_is(source, files)
    progress = cast("Progress", source.progress)
    if progress.is_final:
        batch.note_read()
    return progress, before


@contextmanager
def quick_switches() -> Iterator[None]:
    """Let the thread that reads the next page go on as soon as the database has answered. At Python's 5 ms it waits several
    times a page, and the writing then for it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def refuse_discarded(batch: "Batch") -> None:
    """Raises: InvalidInputError: its results are gone, as was asked for."""
    if batch.discards and batch.read_at is not None:
        raise InvalidInputError(discarded(batch))


def discarded(batch: "Batch") -> str:
    return (
        f"the results of batch {batch.id} were discarded when they had been written, at {render.cell(batch.read_at)}, as "
        "--discard asked for"
    )


def write_what_there_is(source: "BatchSource", files: "ResultFiles") -> None:
    # Asked first: of what is final now, all can be read.
    total = source.total_once_final()
    for page in source.all():
        files.write(page)
    if total is not None:
        files.finish(total)


@contextmanager
def watched(batch: "Batch", follow: bool, place: Place) -> Iterator[Callable[["Progress"], None]]:
    """Show how far a batch is that is waited for, unless its results are on the same screen."""
    if not follow or (place.is_stdout and sys.stdout.isatty()):
        yield lambda progress: None
        return
    with shown(batch) as tell:
        yield tell


@contextmanager
def shown(batch: "Batch") -> Iterator[Callable[["Progress"], None]]:
    """A gauge for a batch."""
    pace = Pace()
    with gauge(stays=True) as show:

        def tell(progress: "Progress") -> None:
            pace.note(progress.done)
            show(reading_of(batch, progress, pace))

        yield tell


def ending(progress: "Progress") -> Exit:
    """Whether every line has a reply."""
    return Exit.OK if progress.completed == progress.total else Exit.LINES_FAILED


def tell_written(client: "Client", batch: "Batch", progress: "Progress", place: Place, *, is_again: bool) -> None:
    """Say what was written, and what can be done next."""
    where = "on stdout" if place.is_stdout else f"in {place.output}"
    if not progress.is_final:
        written = f"results of {progress.done:,} of {progress.total:,} lines are {where} so far"
        render.talk(f"batch {batch.id} is {progress.state}: {written}; --follow goes on until the end")
        return
    already = " already" if is_again else ""
    done = f"{progress.completed:,} of {progress.total:,} lines have a reply"
    render.talk(f"batch {batch.id} is {progress.state}: {done}, {where}{already}; {used(progress)}")
    tell_failed(client, batch, progress, f": {place.errors_name} says why")
    if batch.discards:
        render.talk("its results were written, so the sessions that it made were removed, as --discard asked for")


def tell_failed(client: "Client", batch: "Batch", progress: "Progress", where: str) -> None:
    """Say how many lines have no reply, and what can be done about it."""
    kinds = {"failed": progress.failed, "expired": progress.expired, "cancelled": progress.cancelled}
    named = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
    if named:
        again = "" if batch.discards and batch.read_at is not None else f". {remedy(client, batch, progress)}"
        render.talk(f"lines without a reply: {named}{where}{again}")
    if progress.stored < progress.total:
        render.talk(
            f"{progress.total - progress.stored:,} lines were never stored: submit the file again, with --again"
        )


def remedy(client: "Client", batch: "Batch", progress: "Progress") -> str:
    """What brings lines without a reply to one. Those that were no prompts were never asked, and never will be."""
    from inturn.models.store.batches import count_invalid

    without, invalid = progress.done - progress.completed, count_invalid(client.connections.database, batch.id)
    if invalid >= without:
        them, are = ("it", "It is") if invalid == 1 else ("them", "They are")
        return f"{are} not valid: correct {them}, and submit {them} under another --name"
    but = f", but for {invalid:,} that {'is' if invalid == 1 else 'are'} not valid" if invalid else ""
    return f"`inturn batch retry {batch.id}` sends {'it' if without == 1 else 'those'} again{but}"
