"""The checker: what producers sent, what the model was asked, and what the database holds must tell one story.

Each invariant of the promise is a function that yields violations as sentences; a run is good when there are none.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from inturn.models.database import Database
from ops.chaos.aftermath import left, slow, unhealthy
from ops.chaos.answers import disordered, doubled, early, misinformed
from ops.chaos.entries import Entries
from ops.chaos.fates import contradicted, lost, merged, revoked, unfounded, unjustified
from ops.chaos.removals import interrupted, misbooked, removed, unarchived, unruly, unwelcome
from ops.chaos.spending import overlapping, stale, uncounted
from ops.chaos.strippings import diminished, stripped, unstripped
from ops.chaos.traces import search, undeleted

CHECKS: tuple[Callable[[Entries], Iterator[str]], ...] = (
    *(lost, contradicted, unjustified, unfounded, revoked, merged),
    *(doubled, disordered, early, misinformed),
    *(uncounted, overlapping, stale),
    *(undeleted, removed, interrupted, unruly, misbooked, unarchived, unwelcome),
    *(stripped, unstripped, diminished),
    *(left, slow, unhealthy),
)


class Books(Entries):
    """The books, to be compared: ``Books(log, calls, caps, faults).read(database).search(...).violations()``."""

    def search(self, database: Database, logs: Iterable[Path] = (), broker_url: str = "") -> Self:
        """Look for what deleted sessions held: in the whole database, in files of logs, and in Redis."""
        self.traces = list(search(database, logs, broker_url))
        return self

    def violations(self) -> list[str]:
        return [f"{check.__name__}: {sentence}" for check in CHECKS for sentence in check(self)]
