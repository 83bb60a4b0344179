"""The results of a batch, written while it runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from inturn.models.store.lines import LineResult
from inturn.results.writing import Counts, ResultFiles


class Source(Protocol):
    """A batch, as the database has it (``Pages``). Lines may come again."""

    def total_once_final(self) -> int | None:
        """How many lines it has; None: some are still waiting or running."""

    def new(self, *, is_final: bool) -> Iterator[Sequence[LineResult]]:
        """The lines that have become final since the last time, in the order in which they became it."""

    def all(self) -> Iterator[Sequence[LineResult]]:
        """Those that are final by now."""


def follow(source: Source, files: ResultFiles, wait: Callable[[Counts], object]) -> Counts:
    """Write a batch's results until it is final and all of them are written.

    Args:
        wait: called when everything is written that there is so far; it comes back when there may be more.

    Raises:
        ResultsError: the disk refused, or a line is missing in the end.
    """
    # Asked first: what becomes final between this and the reading is read.
    while (total := source.total_once_final()) is None:
        _write(files, source.new(is_final=False))
        wait(files.counts)
    _write(files, source.new(is_final=True))
    if sum(files.counts) != total:  # one was committed later than anybody thought of
        _write(files, source.all())
    return files.finish(total)


def _write(files: ResultFiles, pages: Iterable[Sequence[LineResult]]) -> None:
    for page in pages:
        files.write(page)
