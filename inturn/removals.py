"""The part of a client that removes sessions, many at once: by the rules of retention, and by request."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from datetime import timedelta

from inturn.cleaning import Cleanup, Progress, caller
from inturn.clearance import Clearance
from inturn.connections import Connections
from inturn.models.content import checked_labels, checked_pattern
from inturn.models.errors import InturnError, InvalidInputError
from inturn.models.store import receipts, retention
from inturn.models.store.receipts import Removal, RemovalSum, add_up
from inturn.models.store.rules import Rule
from inturn.models.store.rules import older_than as once
from inturn.records import retention_rule
from inturn.settings import Settings
from inturn.workers.live import forget, rewrite

logger = logging.getLogger(__name__)

Told = Callable[[Removal], object]
"""Told each session that is removed, once it is: memory does not grow with their number."""


class Removals(ABC):
    """The part of a client that removes many sessions at once. Memory does not grow with their number."""

    settings: Settings

    @property
    @abstractmethod
    def connections(self) -> Connections:
        """What the client is connected with. Raises: ClosedError."""

    def cleanup(
        self,
        *,
        dry_run: bool = False,
        older_than: timedelta | None = None,
        any_share: bool = False,
        on_progress: Progress = lambda done, total: None,
        on_removal: Told = lambda removal: None,
    ) -> list[RemovalSum]:
        """Remove now what the rules of retention say, whole sessions or (``kept``) only what was said, and what else expired
        (``list_expiries``). A SQLite file gives the space back. With ``dry_run``, only add up the sessions (``list_due``
        lists them).

        Args:
            older_than: instead of all rules, those that keep or archive among them: every session that was idle for so long,
                but those that are held, or were made with ``retention=None``.
            any_share: remove it also if it is more of all sessions than ``max_removal_share`` allows.
            on_progress: told how many sessions are removed, and of how many.
            on_removal: told each session that is removed, or would be.

        Returns: what was removed, or would be, by rule; without rules by which none was.

        Raises:
            InvalidInputError: ``older_than`` is not positive.
            RemovalShareError: it would be too large a share of all sessions; nothing is removed.
            ArchiveError: a rule's archive cannot be written; what it was to hold is not removed.
        """
        work = self._cleanup(older_than, None if any_share else self.settings.max_removal_share)
        sums = dict[str, RemovalSum]()
        try:
            with closing(work.due() if dry_run else work.run(on_progress)) as removals:
                for removal in removals:
                    add_up(sums, removal)
                    on_removal(removal)
        except InturnError as error:
            if sums:
                many = sum(one.sessions for one in sums.values())
                error.add_note(f"{many:,} sessions were removed all the same: `inturn retention history` says which")
            if not dry_run:
                self._clear(older_than)
            raise
        if not dry_run:
            self._clear(older_than)
        return list(sums.values())

    def _clear(self, older_than: timedelta | None) -> None:
        expiries = self.settings.expiries() if older_than is None else []
        Clearance(self.connections.database, expiries, caller()).run()

    def list_due(self, *, older_than: timedelta | None = None) -> Iterator[Removal]:
        """The sessions that ``cleanup`` would remove now, rule by rule, page by page.

        Raises:
            InvalidInputError: ``older_than`` is not positive.
        """
        return self._cleanup(older_than).due()

    def _cleanup(self, older_than: timedelta | None, share: float | None = None) -> Cleanup:
        rules = self.settings.rules()
        if older_than is not None:
            _, seconds = retention_rule(older_than)
            rules = [once(seconds or 0.0)]
        return Cleanup(self.connections.database, rules, caller(), self.settings.cleanup_chunk, share)

    def delete_sessions(
        self,
        *,
        pattern: str | None = None,
        labels: Mapping[str, str] | None = None,
        held_too: bool = False,
        dry_run: bool = False,
        on_progress: Progress = lambda done, total: None,
        on_removal: Told = lambda removal: None,
    ) -> RemovalSum:
        """Remove all sessions of a pattern and labels, whatever they are doing, with what schedules would send to them.

        Each is removed in one transaction (in several, if it has more than a thousand turns), and has a receipt.

        Args:
            pattern: of session IDs: ``*`` is any characters, ``?`` any one.
            labels: that they have, all of them.
            held_too: also those that are held.
            dry_run: only add them up (``list_matching`` lists them).
            on_progress: told how many sessions are done, and of how many.
            on_removal: told each session that is removed, or would be.

        Returns: what was removed, or would be.

        Raises:
            InvalidInputError: neither pattern nor labels are given, or no ID can be of the pattern.
        """
        which = _matching(pattern, labels)
        removed = RemovalSum(retention.ERASURE)
        with closing(
            self._listed(which, held_too) if dry_run else self._erase(which, held_too, on_progress)
        ) as removals:
            for removal in removals:
                removed = removed.plus(removal)
                on_removal(removal)
        return removed

    def list_matching(
        self, *, pattern: str | None = None, labels: Mapping[str, str] | None = None, held_too: bool = False
    ) -> Iterator[Removal]:
        """The sessions that ``delete_sessions`` would remove now, page by page.

        Raises:
            InvalidInputError: neither pattern nor labels are given, or no ID can be of the pattern.
        """
        return self._listed(_matching(pattern, labels), held_too)

    def _listed(self, which: Rule, held_too: bool) -> Generator[Removal, None, None]:
        return (removal for _, removal in self._matches(which, held_too))

    def _matches(self, which: Rule, held_too: bool) -> Iterator[tuple[int, Removal]]:
        """Surrogate ids, by which they are in order, and what is in the sessions."""
        after = 0
        while page := retention.list_matching(self.connections.database, which, after, held_too=held_too):
            yield from page
            after = page[-1][0]

    def _erase(self, which: Rule, held_too: bool, on_progress: Progress) -> Generator[Removal, None, None]:
        database = self.connections.database
        total = retention.count_matching(database, which, held_too=held_too)
        if not total:
            return
        run = receipts.begin_run(database, retention.ERASURE, caller())
        error: str | None = "it was broken off"
        try:
            for done, (session, _) in enumerate(self._matches(which, held_too), 1):
                if removal := retention.erase(database, session, run, held_too=held_too):
                    forget(self.connections.broker, session)
                    yield removal
                on_progress(done, max(done, total))
            error = None
        finally:
            receipts.end_run(database, run, error=error)
            self._overwrite()

    def _overwrite(self) -> None:
        """The files of ours that what was deleted may still stand in."""
        if not self.connections.database.empty_wal():
            logger.warning("action=wal_not_emptied: what was deleted stands in it until others need the place")
        if self.settings.has_embedded_broker:
            rewrite(self.connections.broker)


def _matching(pattern: str | None, labels: Mapping[str, str] | None) -> Rule:
    """Raises: InvalidInputError."""
    if not pattern and not labels:
        raise InvalidInputError("which sessions? Give a pattern of their IDs, labels that they have, or both")
    return Rule(retention.ERASURE, checked_pattern(pattern) if pattern else "*", labels=checked_labels(labels) or {})
