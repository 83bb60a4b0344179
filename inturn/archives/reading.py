"""Reading an archive: its transcripts one by one, each of them checked, with a place for whatever is wrong."""

import gzip
import shutil
import zlib
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import IO

import orjson

from inturn import transcripts
from inturn.archives import members
from inturn.archives.directory import PARTIAL
from inturn.archives.drafts import reason_of, shown
from inturn.archives.objects import parts_of, store_of
from inturn.archives.writing import directory_of
from inturn.models.errors import ArchiveError, InvalidInputError
from inturn.models.store.transcripts import Transcript
from inturn.transcripts import LONGEST_LINE

GZIP_MAGIC = b"\x1f\x8b"
IN_MEMORY_BYTES = 4 * 1024 * 1024
"""Of a session, while it is read; a longer one waits in a file."""
BEGINS, ENDS = b'{"type":"session"', b'{"type":"end"'


@dataclass(frozen=True, slots=True)
class Archived:
    """A session in an archive.

    Attributes:
        line: its first line there, from 1.
        transcript: can be used until the next one is asked for.
    """

    line: int
    session_id: str
    transcript: Transcript


@contextmanager
def opened(source: Path | str | IO[bytes]) -> "Iterator[ArchiveFile]":
    """A private copy of an archive, so that what is checked is what is imported.

    Args:
        source: a path, a URL as fsspec takes it, or an open file.

    Raises:
        InvalidInputError: it cannot be read.
    """
    name = shown(getattr(source, "name", source))
    place = directory_of(source) if isinstance(source, str) else source
    with _fetched(str(source)) if place is None else transcripts.copied(place) as copy:
        yield ArchiveFile(copy, name)


def _fetched(url: str) -> IO[bytes]:
    with ExitStack() as stack:
        copy = stack.enter_context(TemporaryFile())
        try:
            store, path = store_of(url)
            for part in parts_of(store, path):
                with store.open(part, "rb") as file:
                    shutil.copyfileobj(file, copy)
        except ArchiveError as error:
            reason = reason_of(error.__cause__ or error, url)
            raise InvalidInputError(f"{error.target} cannot be read: {reason}") from error
        except Exception as error:  # each of fsspec's stores has errors of its own
            reason = f"{type(error).__name__}: {reason_of(error, url)}"
            raise InvalidInputError(f"{shown(url)} cannot be read: {reason}") from error
        stack.pop_all()
    return copy


class ArchiveFile:
    """Transcripts one after the other, as lines, or as those in gzip, of any number of members; or one that is an object
    (``json``). Memory does not grow with their number.

    Args:
        file: can be read anew from its beginning.
        name: what it is called in errors; one that ends with ``.partial`` may be cut off, and is read as far as it is whole.

    Attributes:
        cut_off: where it was, in a sentence, once it is read; None: it is whole, or not read yet.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self.name = file, name
        self._is_partial = name.endswith(PARTIAL)
        self._session = ""
        self.cut_off: str | None = None
        self._line_read = 0
        file.seek(0)
        magic = file.read(len(GZIP_MAGIC))
        self._is_gzip = magic == GZIP_MAGIC or (self._is_partial and not magic.startswith(b"{"))

    def alone(self) -> Archived | None:
        """What is in a file that has to be one transcript; None: it is in gzip, and may be of many.

        Raises:
            InvalidInputError: it is no transcript, or damaged, or something follows it.
        """
        if self._is_gzip or self._is_partial:
            return None
        return Archived(1, *transcripts.read(self._file, self.name))

    def sessions(self, lines: Container[int] | None = None) -> Iterator[Archived]:
        """Its sessions, checked.

        Args:
            lines: only those that begin at one of them; default: all.

        Raises:
            InvalidInputError: it is no archive, or damaged, with the line and, where it is known, the session.
        """
        if not (self._is_gzip or self._is_partial or transcripts.begins_lines(self._file)):
            yield Archived(1, *transcripts.read(self._file, self.name))
            return
        try:
            for line, spool in self._spools():
                if lines is None or line in lines:
                    yield Archived(line, *transcripts.read(spool, self._named(), line - 1))
        except InvalidInputError as error:
            if not (self._is_gzip and self._is_partial):
                raise
            self._check_end(error)

    def _spools(self) -> Iterator[tuple[int, IO[bytes]]]:
        """Each transcript in a file of its own, with the number of its first line."""
        lines, first = self._lines(), 0
        for first, line in lines:
            self._session = session_in(line)
            with SpooledTemporaryFile(IN_MEMORY_BYTES) as spool:
                if not self._fill(spool, first, line, lines):
                    return
                yield first, spool
            self._session = ""
        if not first and not self._is_partial:
            raise InvalidInputError(f"{self.name} is empty: no session was archived in it. Nothing was imported")

    def _fill(self, spool: IO[bytes], number: int, line: bytes, lines: Iterator[tuple[int, bytes]]) -> bool:
        """Returns: whether the transcript is whole; False, behind what a partial archive has of whole ones."""
        spool.write(line)
        for number, line in lines:
            if line.startswith(BEGINS):
                raise self._bad(number, "another session begins here, and the one before it is not whole")
            spool.write(line)
            if line.startswith(ENDS):
                return True
        if not self._is_partial:
            raise self._bad(number, "the file ends here, and its last session is not whole: it was cut off")
        self._end(number)
        return False

    def _end(self, number: int) -> None:
        """Note where a partial archive ends that is cut off."""
        self.cut_off = self.cut_off or (
            f"{self.name} is cut off at line {number}: the sessions before it are whole, and nothing behind it was read; "
            "what its run had not written whole it did not remove"
        )

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        lines: IO[bytes] = gzip.GzipFile(fileobj=self._file) if self._is_gzip else self._file  # type: ignore[assignment]
        number = 0
        while line := self._line(lines, number + 1):
            number += 1
            yield number, line

    def _line(self, lines: IO[bytes], number: int) -> bytes:
        self._line_read = number
        try:
            return lines.readline(LONGEST_LINE)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            if isinstance(error, EOFError):
                raise self._bad(
                    number, "the file ends here, in the middle of what gzip wrote: it was cut off"
                ) from None
            raise self._bad(number, f"it is damaged: gzip says {error}") from None

    def _check_end(self, error: InvalidInputError) -> None:
        """What the run of a partial archive had not synced may be anything, and is the last member.

        Raises:
            InvalidInputError: that is not where it is damaged.
        """
        size, lines = members.whole(self._file)
        if self._line_read <= lines:
            raise error
        if members.is_there(self._file, size, BEGINS):
            before = f"; what stands before can be imported by itself: `head -c {size}` of it" if size else ""
            error.add_note(f"sessions follow that were written whole: it is damaged there, and not cut off{before}")
            raise error
        self._end(self._line_read)

    def _named(self) -> str:
        return f"{self.name}, session {self._session!r}" if self._session else self.name

    def _bad(self, number: int, what: str) -> InvalidInputError:
        return InvalidInputError(f"{self._named()}, line {number}: {what}. Nothing was imported")


def session_in(line: bytes) -> str:
    """The session ID in the first line of a transcript, as far as it can be made out."""
    try:
        return str(orjson.loads(line)["session_id"])[:200]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
