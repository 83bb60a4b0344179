"""A cleanup: the rules of retention carried out one after the other, each chunk archived before it is removed."""

import getpass
import logging
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement

from inturn.models.database import Database, translated
from inturn.models.errors import InturnError, RemovalShareError
from inturn.models.store import receipts, retention
from inturn.models.store.receipts import Removal
from inturn.models.store.retention import Seen
from inturn.models.store.rules import Rule

if TYPE_CHECKING:
    from inturn.archives.writing import Archive

logger = logging.getLogger(__name__)

FEW = 100
"""So many sessions may always be removed at once, whatever share of all they are."""
ALL_RULES = "all rules"
"""What a run that was refused is booked under."""
SHARE_OF_TIME, LONGEST_PAUSE_SECONDS = 0.25, 2.0
"""A paced cleanup works no more than this part of the time."""

Progress = Callable[[int, int], object]
"""Told how many sessions are removed, and of how many."""


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What is to be removed, and how.

    Attributes:
        rules: in their order.
        asked_by: who is named in the receipts.
        chunk: sessions per transaction.
        share: of all sessions, what one cleanup may remove at most; None: any.
        is_paced: whether it rests between chunks, so that others get the database.
        only: the names of those that are carried out; None: all. The others cover their sessions all the same.
    """

    database: Database
    rules: Sequence[Rule]
    asked_by: str
    chunk: int = 100
    share: float | None = None
    is_paced: bool = False
    only: Collection[str] | None = None

    def due(self) -> Iterator[Removal]:
        """What ``run`` would remove now, rule by rule."""
        for rule in self._chosen():
            yield from retention.list_due(self.database, self.rules, rule)

    def run(self, on_progress: Progress = lambda done, total: None) -> Iterator[Removal]:
        """Remove what is due; yields what was removed once its chunk is committed. A rule that fails does not hold up the
        others: the first failure is raised in the end.

        Raises:
            RemovalShareError: it would be too large a share of all sessions; nothing is removed.
            ArchiveError: an archive cannot be written; what it was to hold is not removed.
        """
        counts = retention.count_due(self.database, self.rules, self._chosen())
        total, done = sum(counts.values()), 0
        self._check_share(counts, total)
        failures = list[InturnError]()
        for rule in self._chosen():
            if counts.get(rule.name):
                try:
                    for removal in self._carry_out(rule):
                        done += 1
                        yield removal
                        on_progress(done, max(done, total))
                except InturnError as error:
                    logger.error("action=retention_failed rule=%s reason=%s", rule.name, error)
                    failures.append(error)
        if failures:
            raise failures[0]

    def _chosen(self) -> Sequence[Rule]:
        return self.rules if self.only is None else [rule for rule in self.rules if rule.name in self.only]

    def _carry_out(self, rule: Rule) -> Iterator[Removal]:
        which = retention.due_now(self.database, self.rules, rule)
        if which is None:
            return
        run = receipts.begin_run(self.database, rule.name, self.asked_by)
        archive = None
        try:
            with ExitStack() as stack:
                if rule.archive:
                    from inturn.archives.writing import Archive, archive_name  # whoever archives nothing does without

                    name = archive_name(rule.name, str(run), datetime.now(UTC))
                    archive = stack.enter_context(Archive.create(rule.archive, name))
                chunk = self._chunks(rule, which, run, archive)
                while removed := self._timed(chunk):
                    yield from removed
                sealed = archive.seal() if archive else None
        except BaseException as error:
            said = str(error) if isinstance(error, InturnError) else type(error).__name__
            receipts.end_run(self.database, run, archive=archive.partial if archive else None, error=said)
            raise
        where = {"archive": sealed.location, "checksum": sealed.sha256} if sealed else {}
        receipts.end_run(self.database, run, **where)

    def _chunks(
        self, rule: Rule, which: ColumnElement[bool], run: int, archive: "Archive | None"
    ) -> Callable[[], list[Removal]]:
        """What removes the next chunk each time that it is called."""
        if archive is None:
            return lambda: retention.remove_due(self.database, rule, which, run, self.chunk)
        changed = set[int]()

        def chunk() -> list[Removal]:
            removed = list[Removal]()
            while not removed and (seen := self._archived(archive, rule, which, changed)):
                removed = retention.remove_due(self.database, rule, which, run, self.chunk, seen)
                gone = {removal.session_id for removal in removed}
                changed.update(session for session, it in seen.items() if it.key not in gone)
            return removed

        return chunk

    def _archived(
        self, archive: "Archive", rule: Rule, which: ColumnElement[bool], changed: Collection[int]
    ) -> Mapping[int, Seen]:
        """The next chunk, once it is durable; without those that were changed before they could be removed."""
        with translated(self.database), self.database.snapshot() as db:
            seen = retention.choose_due(db, rule, which, self.chunk, changed)
            archive.keep(db, seen)
        archive.sync()
        return seen

    def _timed(self, work: Callable[[], list[Removal]]) -> list[Removal]:
        began = time.monotonic()
        removed = work()
        if self.is_paced and removed:
            took = time.monotonic() - began
            time.sleep(min(took / SHARE_OF_TIME - took, LONGEST_PAUSE_SECONDS))
        return removed

    def _check_share(self, counts: dict[str, int], total: int) -> None:
        if self.share is None or total <= FEW:
            return
        there = retention.count_sessions(self.database)
        if total > self.share * there:
            largest = max(counts, key=lambda name: counts[name])
            error = RemovalShareError(total, there, self.share, largest)
            receipts.begin_run(self.database, ALL_RULES, self.asked_by, str(error))
            raise error


def caller() -> str:
    """Who runs this program, as receipts name them: ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in containers
        user = str(os.getuid()) if hasattr(os, "getuid") else "somebody"
    return f"{user}@{platform.node()}"[:200]
