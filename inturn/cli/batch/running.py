"""``inturn batch run``: from the prompts to their results, in one command that can be broken off."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.batch.coming_back import when
from inturn.cli.batch.submitting import Submitted, submit_options, take, tell_submitted
from inturn.cli.batch.writing import Place, discarded, ending, place_options, tell_failed, tell_written, write_out
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.models.errors import BatchNotFoundError, InturnError, InvalidInputError

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.client import Client


@click.command()
@click.argument("file", metavar="FILE|-")
@place_options(is_needed=True)
@submit_options
@pass_invocation
def run(
    invocation: Invocation,
    /,
    file: str,
    output: str,
    errors: Path | None,
    short: bool,
    force: bool,
    **how: Any,
) -> int:
    """Submit a file of prompts, wait for the replies, and write them as they come.

    Exits with 0 if every line has a reply, and with 3 if lines failed. Ctrl-C leaves the batch running; the same command
    goes on where it was, after `inturn batch retry`, too.
    """
    place = Place(output, errors, short, force)
    with invocation.client() as client:
        refuse_place(place)
        batch, submitted = take(client, file, how, lambda submitted: refuse_occupied(place, submitted))
        if submitted.before != 0 and batch.discards and batch.read_at is not None:
            return go_over(client, batch, place)
        if not batch.is_final:
            tell_submitted(client, batch, submitted, is_gone_on=True)
        with way_back_to(client, batch, place, is_same=not how["again"]):
            progress, before = write_out(client, batch, place, follow=True)
        tell_written(client, batch, progress, place, is_again=before == progress.stored)
    return ending(progress)


def refuse_place(place: Place) -> None:
    """Raises: InvalidInputError: nothing can be written there, whichever batch it is."""
    from inturn.results.places import errors_path

    errors_path(place.target(), place.errors)


def refuse_occupied(place: Place, submitted: Submitted) -> None:
    """A batch without a stored line has no results: what is in the files is another's. Told before anything is stored.

    Raises:
        InvalidInputError: it would be found out later, when the calls were paid for.
    """
    if submitted.stored or place.force or place.is_stdout:
        return
    for path in (Path(place.output), Path(place.errors_name)):
        if path.is_file() and path.stat().st_size:
            raise InvalidInputError(
                f"{path} is there, and holds nothing of this batch, which is new; nothing was stored: name another file, or "
                "overwrite it with --force"
            )


def go_over(client: "Client", batch: "Batch", place: Place) -> int:
    """Of a batch whose results were written and discarded, nothing is left but the counts.

    Raises:
        InvalidInputError: there is no output that had them.
    """
    if place.is_stdout or not Path(place.output).exists():
        missing = "they cannot be written again" if place.is_stdout else f"there is no {place.output} that has them"
        raise InvalidInputError(f"{discarded(batch)}, and {missing}: --again runs it once more")
    progress = batch.progress()
    render.talk(f"{discarded(batch)}: {place.output} is left as it is. --again runs it once more")
    tell_failed(client, batch, progress, "")
    return ending(progress)


@contextmanager
def way_back_to(client: "Client", batch: "Batch", place: Place, *, is_same: bool) -> Iterator[None]:
    """Give every end of waiting that is not the batch's own a note on how to come back."""
    try:
        yield
    except (BatchNotFoundError, BrokenPipeError):
        raise
    except InvalidInputError as refused:
        if batch.is_final:
            refused.add_note(f"`inturn batch results {batch.id} -o OTHER` writes its results to another file")
        raise
    except (InturnError, KeyboardInterrupt) as end:
        same = "\n  the same command writes its results, and so does" if is_same else ""
        end.add_note(
            f"batch {batch.id} goes on{when(client)}:{same}\n"
            f"  `inturn batch results {batch.id} {place.arguments} --follow`{'' if is_same else ' writes its results'}\n"
            f"  `inturn batch watch {batch.id}` only looks"
        )
        raise
