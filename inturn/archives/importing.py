"""Sessions out of an archive into a database: all of it is checked before the first one is stored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from inturn.archives.reading import Archived, ArchiveFile
from inturn.models.content import checked_session_id
from inturn.models.database import Database
from inturn.models.errors import InturnError, InvalidInputError, SessionExistsError
from inturn.models.store.opening import Chain
from inturn.models.store.transcripts import Transcript, store_transcript, taken

Progress = Callable[[int, int], object]
"""Told how many sessions are done, out of how many."""


@dataclass(frozen=True, slots=True)
class ImportedSession:
    """A session of an archive that was imported.

    Attributes:
        turns: how many it has in the archive.
        existed: there was one of that ID already, and it was left as it is.
    """

    session_id: str
    turns: int
    existed: bool = False


def wanted(
    archive: ArchiveFile, only: Sequence[str], look: Callable[[Archived], object] = lambda found: None
) -> dict[str, int]:
    """The line at which each session begins that is asked for; of several transcripts of one the last counts.

    Args:
        only: IDs, or patterns, of which a session has to match one; none: all are asked for.
        look: is shown each of them, and may object.

    Raises:
        InvalidInputError: the archive is damaged, or nothing in it matches.
    """
    lines: dict[str, int] = {}
    unmatched = set(only)
    for found in archive.sessions():
        hits = {pattern for pattern in only if fnmatchcase(found.session_id, pattern)}
        unmatched -= hits
        if hits or not only:
            look(found)
            lines[checked_session_id(found.session_id)] = found.line
    if unmatched:
        none = ", ".join(map(repr, sorted(unmatched)))
        raise InvalidInputError(f"no session in {archive.name} matches {none:.300}. Nothing was imported")
    return lines


@contextmanager
def alone(archive: ArchiveFile, only: Sequence[str]) -> Iterator[Archived]:
    """The one session of a file, or the one that is asked for.

    Raises:
        InvalidInputError: the file is damaged, or there is no such session, or several.
    """
    if not only and (found := archive.alone()):
        yield found
        return
    lines = wanted(archive, only)
    if len(lines) != 1:
        names = ", ".join(map(repr, lines))
        raise InvalidInputError(
            f"{archive.name} has {len(lines):,} sessions{f' ({names:.200})' if names else ''}, and one is asked for: say "
            "which with --only ID (only=...), or import all of them under their own IDs. Nothing was imported"
        )
    sessions = archive.sessions(set(lines.values()))
    yield next(sessions)


class Importer:
    """Makes sessions out of an archive. Of several transcripts with one ID the last one counts.

    Args:
        asked: who is asked from now on. Raises: UnknownModelError: that cannot be used here.
        only: IDs, or patterns (``user-123-*``), of which a session has to match one; none: all are imported.
        skips: leave out what exists already.
    """

    def __init__(
        self,
        database: Database,
        archive: ArchiveFile,
        asked: Callable[[Transcript], Chain],
        *,
        only: Sequence[str],
        skips: bool,
    ) -> None:
        self._database, self._archive, self._asked = database, archive, asked
        self._only, self._skips = only, skips

    def run(self, progress: Progress) -> list[ImportedSession]:
        """Check all, then store each session in a transaction of its own.

        Raises:
            InvalidInputError: the archive is damaged, or nothing in it matches; nothing was imported.
            SessionExistsError: some exist already; nothing was imported.
            UnknownModelError: who was asked cannot be used here; nothing was imported.
            StorageError: the database refused; what was imported until then stays.
        """
        lines = self._check()
        existing = self._existing(lines)
        done: list[ImportedSession] = []
        try:
            for found in self._archive.sessions(set(lines.values())):
                done.append(self._import(found, found.session_id in existing))
                progress(len(done), len(lines))
        except InturnError as error:
            error.add_note(
                f"{sum(not one.existed for one in done):,} of {len(lines):,} sessions were imported; the same again with "
                "--skip-existing (skip_existing=True) goes on behind them"
            )
            raise
        return done

    def _check(self) -> dict[str, int]:
        return wanted(self._archive, self._only, lambda found: self._asked(found.transcript))

    def _existing(self, lines: Mapping[str, int]) -> set[str]:
        existing = taken(self._database, lines)
        if existing and not self._skips:
            first = min(existing, key=lambda key: lines[key])
            raise SessionExistsError(
                first,
                f"of the {len(lines):,} in {self._archive.name}, {len(existing):,} are there. Leave them out with "
                "--skip-existing (skip_existing=True). Nothing was imported",
            )
        return existing

    def _import(self, found: Archived, existed: bool) -> ImportedSession:
        key, it = found.session_id, found.transcript
        if not existed:
            try:
                store_transcript(self._database, key, it.asking(*self._asked(it)))
            except SessionExistsError:
                if not self._skips:
                    raise
                existed = True  # made by somebody else meanwhile
        return ImportedSession(key, it.last, existed)
