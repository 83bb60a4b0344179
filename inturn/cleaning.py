"""A cleanup: the rules of retention carried out one after the other, each chunk archived before it is removed."""

import getpass
import logging
import os
import platform
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement

from inturn.models.database import Database
from inturn.models.errors import InturnError, RemovalShareError
from inturn.models.pace import Pace
from inturn.models.refusals import translated
from inturn.models.states import Kept
from inturn.models.store import receipts, retention, stripping
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
FIRST = 50
"""Sessions in the first chunk."""
PACED_SECONDS = 0.02
"""That a chunk of a paced cleanup may take."""
SHARE_OF_TIME, SHARE_ALONE = 0.2, 0.8
"""How much of the time it works, while any turn is under way, and while none is."""

Progress = Callable[[int, int], object]
"""Told how many sessions are removed, and of how many."""


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What is to be removed, and how.

    Attributes:
        rules: in their order.
        asked_by: who is named in the receipts.
        chunk: sessions per transaction, at most; it takes fewer where that would take long.
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

    def due(self) -> Generator[Removal, None, None]:
        """What ``run`` would remove now, rule by rule."""
        for rule in self._chosen():
            yield from retention.list_due(self.database, self.rules, rule)

    def run(self, on_progress: Progress = lambda done, total: None) -> Generator[Removal, None, None]:
        """Remove what is due, or what was said in it; yields what was removed once its chunk is committed. A rule that fails
        does not hold up the others: the first failure is raised in the end.

        Raises:
            RemovalShareError: it would be too large a share of all sessions; nothing is removed.
            ArchiveError: an archive cannot be written; what it was to hold is not removed.
        """
        counts = retention.count_due(self.database, self.rules, self._chosen())
        total, done = sum(counts.values()), 0
        self._check_share(counts)
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
        run = receipts.begin_run(self.database, rule.name, self.asked_by, kept=rule.keep)
        archive = None
        try:
            with ExitStack() as stack:
                if rule.archive:
                    from inturn.archives.writing import Archive, archive_name  # whoever archives nothing does without

                    name = archive_name(rule.name, str(run), datetime.now(UTC))
                    archive = stack.enter_context(Archive.create(rule.archive, name))
                yield from self._chunks(rule, which, run, archive)
                sealed = archive.seal() if archive else None
        except BaseException as error:
            said = str(error) if isinstance(error, InturnError) else type(error).__name__
            receipts.end_run(self.database, run, archive=archive.partial if archive else None, error=said)
            raise
        where = {"archive": sealed.location, "checksum": sealed.sha256} if sealed else {}
        receipts.end_run(self.database, run, **where)

    def _chunks(self, rule: Rule, which: ColumnElement[bool], run: int, archive: "Archive | None") -> Iterator[Removal]:
        if archive is not None:
            yield from self._archived(rule, which, run, archive)
            return
        pace = self._pace()
        while removed := remover(rule)(self.database, rule, which, run, self.chunk, pace=pace):
            yield from removed

    def _archived(self, rule: Rule, which: ColumnElement[bool], run: int, archive: "Archive") -> Iterator[Removal]:
        """A chunk is durable before it is removed. One that was changed meanwhile stays."""
        changed, pace = set[int](), self._pace()
        while seen := self._durable(archive, rule, which, min(pace.size, self.chunk), changed):
            removed = remover(rule)(self.database, rule, which, run, self.chunk, seen, pace)
            gone = {removal.session_id for removal in removed}
            changed.update(session for session, it in seen.items() if it.key not in gone)
            yield from removed

    def _durable(
        self, archive: "Archive", rule: Rule, which: ColumnElement[bool], limit: int, without: Collection[int]
    ) -> Mapping[int, Seen]:
        with translated(self.database), self.database.snapshot() as db:
            seen = retention.choose_due(db, rule, which, limit, without)
            archive.keep(db, seen)
        archive.sync()
        return seen

    def _pace(self) -> Pace:
        if not self.is_paced:
            return Pace(FIRST)
        return Pace(FIRST, PACED_SECONDS, lambda: share_of_time(self.database))

    def _check_share(self, counts: dict[str, int]) -> None:
        """Of all sessions; and of those with content, what is to lose it: where most have lost theirs already, what is left
        is never much of all.
        """
        self._check_part(counts, retention.count_sessions, "sessions")
        metadata = {rule.name for rule in self.rules if rule.keep is Kept.METADATA}
        content = {name: many for name, many in counts.items() if name in metadata}
        self._check_part(content, stripping.count_with_content, "sessions with content")

    def _check_part(self, counts: dict[str, int], there: Callable[[Database], int], what: str) -> None:
        total = sum(counts.values())
        if self.share is None or total <= FEW:
            return
        if total > self.share * (most := there(self.database)):
            largest = max(counts, key=lambda name: counts[name])
            error = RemovalShareError(total, most, self.share, largest, what)
            receipts.begin_run(self.database, ALL_RULES, self.asked_by, str(error))
            raise error


def remover(rule: Rule) -> Callable[..., list[Removal]]:
    """What removes a chunk of what is due by a rule: whole sessions, or what was said in them."""
    return stripping.strip_due if rule.keep is Kept.METADATA else retention.remove_due


def share_of_time(database: Database) -> float:
    """How much of the time a paced cleanup works now."""
    return SHARE_OF_TIME if retention.is_in_use(database) else SHARE_ALONE


def caller() -> str:
    """Who runs this program, as receipts name them: ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in containers
        user = str(os.getuid()) if hasattr(os, "getuid") else "somebody"
    return f"{user}@{platform.node()}"[:200]
