"""The results of a batch as they come out of the database: page by page."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

from inturn.models.database import Database
from inturn.models.store import batches
from inturn.models.store.batches import START, Cursor
from inturn.models.store.lines import LineResult

PAGE = 2000
OVERLAP = timedelta(seconds=2)
"""Lines become final in the order of their statements, and are seen in that of their commits: so far back is read again."""

Page = list[LineResult]
Rows = list[tuple[Any, ...]]


class Pages:
    """What is new of a batch, each time that it is asked. Some lines come twice.

    Args:
        batch_id: its surrogate.
    """

    def __init__(self, database: Database, batch_id: int) -> None:
        self._database, self._id = database, batch_id
        self._after: Cursor | None = None

    def new(self, *, is_final: bool) -> Iterator[Page]:
        """The lines that have become final since it was asked last, in the order in which they did, and some before them.

        Args:
            is_final: whether none will come any more. Then, and the first time, lines without a turn are among them.
        """
        if self._after is None or is_final:
            yield from self._without_turns()
        yield from self._with_turns(START if self._after is None else max(START, (self._after[0] - OVERLAP, 0)))

    def all(self) -> Iterator[Page]:
        """From the beginning."""
        self._after = None
        return self.new(is_final=True)

    def _with_turns(self, after: Cursor) -> Iterator[Page]:
        self._after = after
        with ThreadPoolExecutor(1, "results") as reader:
            rows = self._read(after)
            while rows:
                last = batches.result_of(rows[-1])
                self._after = (last.finished_at, last.line)
                following = self._following(reader, self._after) if len(rows) == PAGE else list
                yield list(map(batches.result_of, rows))
                rows = following()

    def _following(self, reader: ThreadPoolExecutor, after: Cursor) -> Callable[[], Rows]:
        """The next page, once it is asked for. It is read meanwhile, but on SQLite, which steps through rows under the
        interpreter's lock: a thread would only fight for that.
        """
        if self._database.dialect == "sqlite":
            return partial(self._read, after)
        return reader.submit(self._read, after).result

    def _read(self, after: Cursor) -> Rows:
        return batches.result_rows(self._database, self._id, after, PAGE)

    def _without_turns(self) -> Iterator[Page]:
        line = 0
        while page := batches.results_without_turns(self._database, self._id, line, PAGE):
            yield page
            line = page[-1].line
