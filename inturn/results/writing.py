"""The files of a batch: which line goes where, once each, however often the writing is broken off and begun again.

What is written is told by the files themselves. When they are opened again they are read, and what is missing is added: the
results are all in the database, so that a full disk or a killed process loses nothing.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from inturn.models.errors import InturnError, InvalidInputError, ResultsError
from inturn.models.states import TurnState
from inturn.models.store.lines import LineResult, LineSet
from inturn.results.file import ResultFile, Sink, Stream
from inturn.results.forms import form
from inturn.results.places import NO_ROOM, errors_path, opened
from inturn.results.stock import Lines, NotOwnError, stock

SYNC_SECONDS = 5.0
"""Between two times that what is written is sent to the disk for good."""


class Counts(NamedTuple):
    """Lines in the files, those among them that an earlier run wrote."""

    completed: int
    failed: int


class ResultFiles:
    """The output file and the error file of a batch, open for writing.

    Completed lines go to the output, all others to the errors. Files that exist are gone on with if they are this batch's
    own, in the same form; in the error file, lines that were tried again since make room. Where the output is a stream
    (standard output, a pipe), failed lines go there too unless a file is named for them.

    Args:
        batch_id: the batch's.
        lines: what the database knows of its lines.
        output: a path, or a stream, which is left open.
        errors: None: beside the output, ``out.errors.jsonl`` for ``out.jsonl``. It is made for the first failed line.
        short: write the short form instead of OpenAI's.
        force: overwrite a file that is not the batch's own. Its own one is gone on with all the same.

    Raises:
        InvalidInputError: a file cannot be written there, or is another's.
        ResultsError: another process writes them, or the disk is full.
    """

    def __init__(
        self,
        batch_id: str,
        lines: Lines,
        output: Path | BinaryIO,
        errors: Path | None = None,
        *,
        short: bool = False,
        force: bool = False,
    ) -> None:
        self._batch, self._lines, self._force = batch_id, lines, force
        self._form, self._other_form = form(batch_id, short), form(batch_id, not short)
        self._short = short
        self._completed, self._failed = LineSet(), LineSet()
        self._has_outdated = False
        self._synced = time.monotonic()
        self._sinks: list[Sink] = []
        self._errors_path = errors_path(output, errors)
        try:
            self._output = self._open(output, failed=False)
            self._errors = self._output if self._errors_path is None else None
            if self._errors_path is not None and self._errors_path.exists():
                self._errors = self._open(self._errors_path, failed=True)
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(ResultsError, BrokenPipeError):  # what is not written is no worse than what ended it
            self.close()

    @property
    def counts(self) -> Counts:
        return Counts(len(self._completed), len(self._failed))

    def write(self, results: Iterable[LineResult]) -> Counts:
        """Add results, in the order in which they come; those that are in the files already are passed over. A failed
        line that was tried again and is completed now goes to the output, and leaves the error file in ``finish``.

        Returns:
            The lines in the files by now.

        Raises:
            ResultsError: the disk refused. What was not written can be had by writing again, here or in another run.
        """
        with self._refusals():
            for result in results:
                if result.state == TurnState.COMPLETED:
                    self._add_completed(result)
                else:
                    self._add_failed(result)
            self._flush()
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()
        return self.counts

    def finish(self, total: int) -> Counts:
        """Send everything to the disk, and make sure that each of the batch's ``total`` lines is in exactly one file.

        Raises:
            ResultsError: one is missing, or somebody else changed the files.
        """
        with self._refusals():
            self._flush()
            self._refuse_changed()
            self._take_out_outdated()
            self._sync()
        if sum(self.counts) != total:
            raise ResultsError(
                f"{sum(self.counts)} of the {total} lines of {self._batch} are in its result files: run the same command "
                "again, and the others are added"
            )
        return self.counts

    def close(self) -> None:
        """Send what is written to the disk, and let go of the files.

        Raises:
            ResultsError: the disk refused.
        """
        try:
            with self._refusals():
                self._sync()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        while self._sinks:
            self._sinks.pop().close()

    def _add_completed(self, result: LineResult) -> None:
        if result.line in self._failed:
            if self._errors is self._output:  # a stream, which cannot take a line back
                return
            self._failed.discard(result.line)
            self._has_outdated = True
        if self._completed.add(result.line):
            self._output.append(self._form.write(result))

    def _add_failed(self, result: LineResult) -> None:
        if result.line in self._completed or result.line in self._failed:
            return
        if self._errors is None:
            assert self._errors_path is not None
            self._errors = self._open(self._errors_path, failed=True)
        if self._failed.add(result.line):
            self._errors.append(self._form.write(result))

    def _open(self, place: Path | BinaryIO, *, failed: bool) -> Sink:
        sink = opened(place) if isinstance(place, Path) else Stream(place)
        self._sinks.append(sink)
        if isinstance(sink, ResultFile):
            with self._refusals():
                self._take_over(sink, failed)
        return sink

    def _take_over(self, file: ResultFile, failed: bool) -> None:
        """Go on with a file, if it is the batch's own.

        Raises:
            InvalidInputError: it is not.
        """
        try:
            self._review(file, failed)
        except NotOwnError as error:
            if not self._force:
                raise InvalidInputError(
                    f"{file.path} is there, and no file that this command goes on with ({error}): "
                    f"{self._same_form(file)}name another one, or overwrite it with --force"
                ) from error
            file.cut(0)
            (self._failed if failed else self._completed).clear()

    def _same_form(self, file: ResultFile) -> str:
        """What to do about a file that was written in the other form; empty: it was not."""
        first = next(file.lines(), b"")
        if self._other_form.read(first) is None:
            return ""
        return (
            "it was written without --short: leave it out, or "
            if self._short
            else "it was written with --short: say --short again, or "
        )

    def _review(self, file: ResultFile, failed: bool) -> None:
        """Note which lines a file has, and take out those that do not belong there any more.

        Raises:
            NotOwnError: somebody else wrote in it.
        """
        mine = self._failed if failed else self._completed
        leaving = LineSet()
        for number, (line, is_outdated) in enumerate(stock(file, self._form, self._lines, failed=failed)):
            if is_outdated or line in self._completed or not mine.add(line):
                leaving.add(number)
        if leaving:
            file.rewrite(lambda number: number not in leaving)

    def _take_out_outdated(self) -> None:
        if self._has_outdated and isinstance(self._errors, ResultFile):
            self._failed.clear()
            self._review(self._errors, failed=True)
        self._has_outdated = False

    def _refuse_changed(self) -> None:
        for sink in self._sinks:
            if isinstance(sink, ResultFile) and not sink.is_whole():
                raise ResultsError(
                    f"{sink.path} was removed or changed by somebody else while it was written: run the same command "
                    "again, and what is missing is added"
                )

    def _flush(self) -> None:
        for sink in self._sinks:
            sink.flush()

    def _sync(self) -> None:
        for sink in self._sinks:
            sink.sync()
        self._synced = time.monotonic()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say in a sentence what the disk refuses, and what was written.

        Raises:
            ResultsError: instead of any OSError inside, but that of a reader who went away.
        """
        try:
            yield
        except (BrokenPipeError, InturnError):
            raise
        except NotOwnError as error:
            raise ResultsError(
                f"the result files of {self._batch} were changed while they were written: {error}"
            ) from error
        except OSError as error:
            written = sum(self.counts) - sum(sink.pending for sink in self._sinks)
            remedy = NO_ROOM.get(error.errno or 0, "see to the disk")
            raise ResultsError(
                f"the results of {self._batch} cannot be written any further ({error.strerror or error}). {written} lines "
                f"are in the files, and nothing is lost: {remedy}, and run the same command again"
            ) from error
