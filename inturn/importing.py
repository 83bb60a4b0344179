"""The part of a client that takes in what was exported or archived."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from inturn.connections import Connections
from inturn.models.content import checked_session_id
from inturn.models.store.opening import Chain
from inturn.models.store.transcripts import store_transcript
from inturn.session import Session

if TYPE_CHECKING:
    from inturn.archives.importing import ImportedSession
    from inturn.archives.reading import ArchiveFile

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Told how many sessions are done, out of how many."""


class Imports(ABC):
    """The part of a client that makes sessions out of files."""

    @property
    @abstractmethod
    def connections(self) -> Connections:
        """What the client is connected with. Raises: ClosedError."""

    @abstractmethod
    def _checked_chain(self, model: str | Sequence[str]) -> Chain:
        """Raises: UnknownModelError, InvalidInputError."""

    def import_session(
        self,
        source: Path | str | IO[bytes],
        session_id: str | None = None,
        *,
        only: str | Sequence[str] | None = None,
        model: str | Sequence[str] | None = None,
    ) -> Session:
        """Make a session out of a transcript, as ``Session.export`` writes them, or out of one in an archive: all of it, or
        nothing.

        Args:
            source: a file, its path, or a URL as fsspec takes it.
            session_id: its ID here, where it counts as just used; default: the one that it had.
            only: which one, of an archive of several: its ID, or patterns as ``import_archive`` takes them.
            model: who is asked from now on; default: as before.

        Raises:
            InvalidInputError: it is no transcript, or damaged, with the line; or there are several. Nothing was imported.
            SessionExistsError: the ID is taken.
            UnknownModelError: its model cannot be used here: name another one.
        """
        from inturn.archives import importing, reading  # few programs import, and their models take a moment to be made

        with reading.opened(source) as archive, importing.alone(archive, _patterns(only)) as found:
            key = checked_session_id(found.session_id if session_id is None else session_id)
            asked = self._checked_chain(found.transcript.chain if model is None else model)
            made = store_transcript(self.connections.database, key, found.transcript.asking(*asked))
            _tell_end(archive)
        return Session(self, key, made)

    def import_archive(
        self,
        source: Path | str | IO[bytes],
        *,
        only: str | Sequence[str] | None = None,
        skip_existing: bool = False,
        model: str | Sequence[str] | None = None,
        on_progress: Progress | None = None,
    ) -> "list[ImportedSession]":
        """Make sessions out of an archive, which cleanup writes, or of any number of transcripts one after the other.

        All of it is checked before anything is stored; then each session is stored by itself, whole, and counts as just
        used, and for rules of age as just made. After a fault of the database the same call goes on with ``skip_existing``.
        What a run that died had archived, a file whose name ends with ``.partial``, is imported as far as it is whole; a
        warning says where it is cut off.

        Args:
            source: a file, its path, or a URL as fsspec takes it (``pip install 'inturn[archive]'``).
            only: the ID of a session, or a pattern such as ``user-123-*``; or several; default: all.
            skip_existing: leave sessions out that exist already; default: import nothing if there are any.
            model: who is asked from now on; default: as before.
            on_progress: told how many sessions are done, and of how many.

        Returns:
            Those that were to be imported, in the archive's order. Of several with one ID the last one counts.

        Raises:
            InvalidInputError: it is no archive, or damaged, with the line; or nothing in it matches. Nothing was imported.
            SessionExistsError: sessions exist already; nothing was imported.
            UnknownModelError: a model cannot be used here: name another one. Nothing was imported.
        """
        from inturn.archives import importing, reading  # few programs do, as above

        database = self.connections.database
        with reading.opened(source) as archive:
            importer = importing.Importer(
                database,
                archive,
                lambda found: self._checked_chain(found.chain if model is None else model),
                only=_patterns(only),
                skips=skip_existing,
            )
            found = importer.run(on_progress or (lambda done, total: None))
            _tell_end(archive)
            return found


def _patterns(only: str | Sequence[str] | None) -> list[str]:
    return [only] if isinstance(only, str) else list(only or ())


def _tell_end(archive: "ArchiveFile") -> None:
    if archive.cut_off:
        logger.warning("action=archive_cut_off: %s", archive.cut_off)
