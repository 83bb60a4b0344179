"""The handle on a batch. It holds an ID and nothing else: whoever has the ID has the batch."""

import math
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Self

from inturn.connections import Connected, Connections
from inturn.models.errors import BatchTimeoutError, InvalidInputError
from inturn.models.states import BATCH_FINAL, BatchState
from inturn.models.store import batches, concluding, retrying, tending
from inturn.models.store.batches import BatchRecord, Progress
from inturn.models.store.lines import LineResult, LineSet
from inturn.results.pages import Pages
from inturn.waiting import in_seconds
from inturn.workers.events import ring_cancel

LONGEST_WINDOW = timedelta(days=3650)


class BatchView:
    """What was known of a batch when it was last looked at: what its handles show, for threads and for asyncio."""

    _row: BatchRecord

    def __repr__(self) -> str:
        return f"<Batch {self.id} {self.state}>"

    @property
    def id(self) -> str:
        return self._row.key

    @property
    def name(self) -> str | None:
        return self._row.name

    @property
    def source(self) -> str | None:
        """The name of the file that it was submitted from; None: it was no file."""
        return self._row.how.get("source")

    @property
    def state(self) -> BatchState:
        return self._row.state

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come, unless its failed lines are sent again."""
        return self._row.state in BATCH_FINAL

    @property
    def total(self) -> int:
        """Its lines, those among them that were not valid and only have an error."""
        return self._row.total

    @property
    def model(self) -> str:
        """Who is asked where a line does not say."""
        return str(self._row.how["model"])

    @property
    def discards(self) -> bool:
        """Whether the sessions that it made go once its results were read."""
        return self._row.discards

    @property
    def created_at(self) -> datetime:
        return self._row.created_at

    @property
    def expires_at(self) -> datetime | None:
        """The end of its completion window; None: it has none."""
        return self._row.expires_at

    @property
    def finished_at(self) -> datetime | None:
        return self._row.finished_at

    @property
    def read_at(self) -> datetime | None:
        """When all of its results had been read (``note_read``)."""
        return self._row.read_at


class Batch(BatchView):
    """A handle on a batch, with what was known of it when it was last looked at (``refresh``)."""

    def __init__(self, client: Connected, row: BatchRecord) -> None:
        self._client = client
        self._row = row

    @property
    def _connections(self) -> Connections:
        return self._client.connections

    def refresh(self) -> Self:
        """Look again. Raises: BatchNotFoundError."""
        self._row = batches.get_batch(self._connections.database, self.id)
        return self

    def progress(self) -> Progress:
        """Count its lines: done, failed, waiting, in flight; tokens and cost. Raises: BatchNotFoundError."""
        self._row = concluding.conclude(self._connections.database, self.id, self._connections.hooks)
        found = batches.progress(self._connections.database, self.id)
        if found.is_final and not self.is_final:  # somebody else concluded it in between
            self.refresh()
        return found

    def watch(self, timeout: float | timedelta | None = None) -> Iterator[Progress]:
        """Its progress again and again, some times a second, until it is final.

        Args:
            timeout: seconds, or a timedelta; None watches for as long as it takes.

        Raises:
            BatchTimeoutError: the time is up. The batch goes on.
            NoWorkerError: nobody is alive to work on it; it stays stored.
            BatchNotFoundError: it was removed.
        """
        for found, pause in self._watching(timeout):
            yield found
            time.sleep(pause)

    def _watching(self, timeout: float | timedelta | None) -> Iterator[tuple[Progress, float]]:
        """Each look, and for how many seconds to wait before the next, as ``Waiter.watch`` has it."""
        seconds = in_seconds(timeout)
        found = None
        for found, pause in self._connections.waiter.watch(
            self._look, math.inf if seconds is None else time.monotonic() + seconds
        ):
            yield found, pause
        if found is None or not found.is_final:
            raise BatchTimeoutError(self.id, seconds or 0.0)

    def _look(self) -> tuple[Progress, bool]:
        found = self.progress()
        return found, found.is_final

    def wait(self, timeout: float | timedelta | None = None) -> Progress:
        """Wait until it is final. Returns: what came of it.

        Raises:
            BatchTimeoutError, NoWorkerError, BatchNotFoundError: as ``watch`` does.
        """
        *_, last = self.watch(timeout)
        return last

    def results(self, *, follow: bool = False) -> Iterator[LineResult]:
        """What became of its lines, in the order in which they ended, each once.

        Args:
            follow: go on while it runs, until every line has its result; else only what there is.

        Raises:
            InvalidInputError: its results were read, and it was submitted to be discarded then.
            NoWorkerError, BatchNotFoundError: as ``watch`` does.
        """
        return _waited_for(self._stepping(follow))

    def _stepping(self, follow: bool) -> Iterator[list[LineResult] | float]:
        """Results page by page, each once, and between them for how many seconds to wait for more."""
        if self.refresh().discards and self.read_at is not None:
            raise InvalidInputError(
                f"the results of batch {self.id} were discarded when they had been read, at {self.read_at:%Y-%m-%d %H:%M} "
                "UTC, as was asked for when it was submitted"
            )
        return self._steps(follow)

    def _steps(self, follow: bool) -> Iterator[list[LineResult] | float]:
        pages, seen = Pages(self._connections.database, self._row.id), LineSet()

        def unseen(found: Iterator[list[LineResult]]) -> Iterator[list[LineResult]]:
            return ([result for result in page if seen.add(result.line)] for page in found)

        for is_last, pause in self._looks(follow):
            yield from unseen(pages.new(is_final=is_last))
            if not is_last:
                yield pause
        if self.is_final and len(seen) < self.total:
            # Something was committed later than ever expected, or went between two looks.
            yield from unseen(pages.all())

    def _looks(self, follow: bool) -> Iterator[tuple[bool, float]]:
        """Whether it is the last look, and for how many seconds to wait before the next."""

        def look() -> tuple[bool, bool]:
            self._row = concluding.conclude(self._connections.database, self.id, self._connections.hooks)
            return self.is_final, self.is_final

        if follow:
            yield from self._connections.waiter.watch(look, math.inf)
        else:
            look()
            yield True, 0.0

    def note_read(self) -> None:
        """Say that its results are in safe hands. Where it was submitted to be discarded then, the sessions that it made
        are removed, and its results with them. Does nothing while it is not final.

        Raises:
            BatchNotFoundError: it was removed.
        """
        self._row = tending.note_read(self._connections.database, self.id)

    def cancel(self, *, abort: bool = False) -> bool:
        """Take it back: no call is begun for it any more; what is done stays.

        Args:
            abort: break off the calls that are under way, too; else they finish.

        Returns:
            Whether it could still be taken back. Until running calls are over it is ``cancelling``.

        Raises:
            BatchNotFoundError: it was removed.
        """
        connections = self._connections
        taken_back = concluding.cancel(connections.database, self.id, aborts=abort)
        if taken_back:
            self._carry_on()
            if abort:
                ring_cancel(connections.broker)
        else:
            self.refresh()
        return taken_back

    def retry_failed(self, window: timedelta | None = None) -> int:
        """Send the lines without a reply again, each as a new turn of its session: failed, expired and cancelled ones.

        Args:
            window: a new completion window, from now; None: none.

        Returns:
            How many there are.

        Raises:
            InvalidInputError: it is not final.
            BatchNotFoundError: it was removed.
        """
        many = retrying.retry(self._connections.database, self.id, checked_window(window))
        self._carry_on()
        return many

    def _carry_on(self) -> None:
        """What can be done at once; the sweep goes on with it if this process ends meanwhile."""
        self._row = tending.carry_on(self._connections.database, self.id, self._connections.hooks)


def _waited_for(steps: Iterator[list[LineResult] | float]) -> Iterator[LineResult]:
    for step in steps:
        if isinstance(step, float):
            time.sleep(step)
        else:
            yield from step


def checked_window(window: object) -> timedelta | None:
    """Raises: InvalidInputError."""
    if window is None or (isinstance(window, timedelta) and timedelta(0) < window <= LONGEST_WINDOW):
        return window
    raise InvalidInputError(
        f"a completion window is {window!r:.100}: use a positive timedelta of {LONGEST_WINDOW.days:,} days at most, or None"
    )
