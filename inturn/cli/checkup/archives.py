"""What a check-up finds of the archives of retention rules: whether they can be written from here."""

import time
from collections.abc import Iterator
from threading import Thread
from typing import TYPE_CHECKING

from inturn.cli import render
from inturn.cli.checkup.finding import Finding
from inturn.models.errors import ArchiveError

if TYPE_CHECKING:
    from inturn.settings import Settings

SECONDS = 5.0


class Probe:
    """One target, asked once, in a thread that nobody has to wait for: stores try again for minutes."""

    def __init__(self, target: str, *, writes: bool) -> None:
        self._target, self._writes = target, writes
        self._error: ArchiveError | None = None
        self._is_over, self._until = False, time.monotonic() + SECONDS
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        from inturn.archives.writing import check

        try:
            check(self._target, writes=self._writes)
        except ArchiveError as error:
            self._error = error
        self._is_over = True

    def outcome(self) -> ArchiveError | None:
        """What is wrong, once it is known, or has taken too long."""
        from inturn.archives.drafts import shown

        self._thread.join(max(0.0, self._until - time.monotonic()))
        if self._is_over:
            return self._error
        return ArchiveError(
            shown(self._target), f"no answer within {SECONDS:g} s", "see whether it is reached from here"
        )


def check_archives(settings: "Settings", *, offline: bool) -> Iterator[Finding]:
    """Write something small to each, and remove it; offline, only to directories."""
    rules: dict[str, list[str]] = {}
    for rule in settings.retention:
        if rule.archive:
            rules.setdefault(rule.archive, []).append(rule.name)
    with render.waiting("looking at archives"):
        probes = {target: Probe(target, writes=not (offline and "://" in target)) for target in rules}
        outcomes = {target: probe.outcome() for target, probe in probes.items()}
    for target, error in outcomes.items():
        names = ", ".join(rules[target])
        if error is not None:
            yield Finding("warn", "archives", f"of {names}: {error}")
        elif offline and "://" in target:
            yield Finding("note", "archives", f"of {names}: not asked (--offline)")
        else:
            yield Finding("ok", "archives", f"of {names}: can be written")
