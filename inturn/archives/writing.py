"""Writing an archive, chunk by chunk: each is durable before the transaction begins that removes what is in it."""

import hashlib
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import Connection

from inturn.archives import directory, objects
from inturn.archives.directory import DirectoryDraft
from inturn.archives.drafts import Draft
from inturn.archives.objects import ObjectDraft
from inturn.models.store.transcripts import transcripts

ENDING = ".jsonl.gz"
GZIP = 16 + zlib.MAX_WBITS
"""For zlib: with gzip's header, in which there is neither a time nor a name."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """An archive that is whole.

    Attributes:
        location: its path or URL.
        sha256: of the file as it is stored: what ``sha256sum`` says.
        bytes: how large it is.
        sessions: how many transcripts are in it, also of sessions that were used again before they were removed.
    """

    location: str
    sha256: str
    bytes: int
    sessions: int


def archive_name(rule: str, run: str, at: datetime) -> str:
    """What the archive of a run and a rule is called: ``inturn-20261129T030000Z-RULE-RUN.jsonl.gz``.

    Args:
        at: when the run began, with its timezone.
    """
    return f"inturn-{at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{quote(rule, safe='')}-{quote(run, safe='')}{ENDING}"


def check(target: str | Path, *, writes: bool = True) -> None:
    """Find out early whether archives can be written to a target.

    Args:
        writes: write something small there, and remove it; otherwise only see to it that a URL's store is known, and the
            package for it is installed.

    Raises:
        ArchiveError: they cannot, with the reason and what to do.
    """
    path = directory_of(target)
    if path is None and writes:
        objects.probe(str(target))
    elif path is None:
        objects.store_of(str(target))
    elif writes:
        directory.probe(path)


def directory_of(target: str | Path) -> Path | None:
    """The directory that a path or a ``file://`` URL names; None: it is another URL."""
    url = urlsplit(str(target))
    if isinstance(target, Path) or "://" not in target:
        return Path(target)
    return Path(unquote(url.path)) if url.scheme in ("file", "local") else None


class Archive:
    """One file of a cleanup run and a rule, with the transcripts of any number of sessions; memory does not grow with them.

        with Archive.create("/var/lib/inturn/archives", archive_name("idle", run, began)) as archive:
            while there_is_more:
                with database.snapshot() as db:
                    chunk = choose_due(db, ...)
                    archive.keep(db, chunk)
                archive.sync()  # a disk or a store takes its time, and nobody waits
                remove_due(database, ..., archived=chunk)
            sealed = archive.seal()

    Each chunk is a gzip member. In a directory it is written to ``NAME.partial`` and synced, and ``seal`` gives the file its
    name; in a store behind a URL it is uploaded as ``NAME.partial-0001`` and so on, and ``seal`` makes one object of them
    (``inturn.archives.objects``). Where a run ends without ``seal``, by a fault or because its process dies, what was synced
    stays there under those names, and can be imported as it is. Only its owner may read a file.

    A session that was used between ``keep`` and its removal stays, and is in the archive as it was: of several transcripts
    with one session ID the last one counts.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._member = zlib.compressobj(wbits=GZIP)
        self._is_begun = False
        self._now, self._synced = _Tally(), _Tally()

    @classmethod
    def create(cls, target: str | Path, name: str) -> Self:
        """Begin one.

        Args:
            target: a directory, or a URL that fsspec knows.
            name: see ``archive_name``.

        Raises:
            ArchiveError: nothing can be written there.
        """
        path = directory_of(target)
        return cls(ObjectDraft(str(target), name) if path is None else DirectoryDraft(path, name))

    def keep(self, db: Connection, session_ids: Collection[int]) -> int:
        """Add sessions as a snapshot sees them. They are durable after the next ``sync``.

        Args:
            session_ids: surrogate ids.

        Returns: how many of them there are.

        Raises:
            ArchiveError: it cannot be written; nothing of this chunk is in the archive.
            UnfinishedTurnsError: a session is at work.
        """
        from inturn.transcripts import as_jsonl  # whoever archives nothing does without its models

        before = self._now.sessions
        with self._all_or_nothing():
            for key, it in transcripts(db, session_ids):
                self.add(as_jsonl(key, it))
        return self._now.sessions - before

    def add(self, transcript: Iterable[bytes]) -> None:
        """Add a session's lines, as ``Session.export`` gives them. They are durable after the next ``sync``. A fault takes
        back all that was added since the last one.

        Raises:
            ArchiveError: it cannot be written.
        """
        with self._all_or_nothing():
            self._is_begun = True
            for line in transcript:
                self._write(self._member.compress(line))
            self._now.sessions += 1

    def sync(self) -> None:
        """End a chunk: returns once it is durable. Raises: ArchiveError: it is not, and taken back."""
        if not self._is_begun:
            return
        with self._all_or_nothing():
            self._write(self._member.flush())
            self._draft.sync()
        self._synced = self._now.copy()
        self._begin()

    def seal(self) -> Sealed | None:
        """End the archive: after that it is there under its name, whole. None: nothing was added, and nothing is there.

        Raises:
            ArchiveError: it could not be; what was synced stays readable.
        """
        self.sync()
        if not self._synced.sessions:
            return None
        self._draft.finish()
        whole = self._synced
        return Sealed(self._draft.location, whole.digest.hexdigest(), whole.size, whole.sessions)

    @property
    def partial(self) -> str | None:
        """What the names begin with of what was synced, where ``seal`` was not reached; None: nothing was."""
        return f"{self._draft.location}.partial" if self._synced.sessions else None

    def _write(self, data: bytes) -> None:
        if data:
            self._draft.write(data)
            self._now.add(data)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._now = self._synced.copy()
            self._begin()
            self._draft.cut()
            raise

    def _begin(self) -> None:
        self._member, self._is_begun = zlib.compressobj(wbits=GZIP), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draft.close()


class _Tally:
    """What is in an archive up to some place."""

    def __init__(self) -> None:
        self.digest, self.size, self.sessions = hashlib.sha256(), 0, 0

    def add(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += len(data)

    def copy(self) -> "_Tally":
        other = _Tally()
        other.digest, other.size, other.sessions = self.digest.copy(), self.size, self.sessions
        return other
