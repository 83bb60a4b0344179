"""A batch as those who write its result files ask about it: what is new of it, and where its lines stand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from inturn.models.store import batches, standing
from inturn.models.store.batches import Progress
from inturn.results.pages import Pages
from inturn.results.stock import Standing

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.client import Client


class BatchLines:
    """Where the lines of a batch stand (``results.stock.Lines``)."""

    def __init__(self, client: "Client", batch: "Batch") -> None:
        """Raises: BatchNotFoundError."""
        self._database = client.connections.database
        self._id = batches.get_batch(self._database, batch.id).id
        self._numbers = standing.Numbers(self._database, self._id)

    def standing(self, lines: Sequence[int]) -> Mapping[int, Standing]:
        return {line: Standing(*found) for line, found in standing.of_lines(self._database, self._id, lines).items()}

    def numbers(self, custom_ids: Sequence[str]) -> Mapping[str, int]:
        return self._numbers.of(custom_ids)


class BatchSource(Pages):
    """What is new of a batch (``results.following.Source``).

    Args:
        looks: at how far it is; each waits until the next one is due.
        tell: told what every look shows.
    """

    def __init__(
        self, client: "Client", batch: "Batch", looks: Iterator[Progress], tell: Callable[[Progress], object]
    ) -> None:
        """Raises: BatchNotFoundError."""
        database = client.connections.database
        super().__init__(database, batches.get_batch(database, batch.id).id)
        self._looks, self._tell = looks, tell
        self.progress: Progress | None = None

    def total_once_final(self) -> int | None:
        """Of a submission that was cut off, and given up or cancelled, the lines that were stored."""
        self.progress = next(self._looks)
        self._tell(self.progress)
        return self.progress.stored if self.progress.is_final else None
