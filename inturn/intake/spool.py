"""The checked lines of a batch in a private file of ours, from where they can be read again from any of them on.

A record is a JSON array on a line of its own: the fields of a ``Line`` in order, without those at its end that say nothing;
of a ``BadLine`` its number, its custom ID, null, its code and its message.
"""

import errno
import io
import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson

from inturn.models.errors import InturnError
from inturn.models.states import Role
from inturn.models.store.lines import BadLine, Line, Utterance

BUFFER = 256 * 1024
LOOK = 4096
"""The buffer for a single record."""
STRIDE = 500
"""Every so many records it is remembered where one begins."""


class Spool:
    """A file without a name, so that nobody else can read it, and nothing of it is left however the process ends."""

    def __init__(self, directory: Path) -> None:
        """Raises: InturnError: the directory takes no file."""
        self.directory = directory
        self.size = 0
        """Bytes; the place of the next record."""
        self._count = 0
        self._strides = array("Q")
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory, buffering=BUFFER)  # noqa: SIM115 - close() does
        except OSError as refused:
            raise unwritable(directory, refused) from refused

    def __len__(self) -> int:
        return self._count

    def append(self, line: Line | BadLine) -> None:
        """Raises: InturnError: the disk is full."""
        record = record_of(line)
        if self._count % STRIDE == 0:
            self._strides.append(self.size)
        try:
            self._file.write(record)
        except OSError as refused:
            raise unwritable(self.directory, refused) from refused
        self._count += 1
        self.size += len(record)

    def flush(self) -> None:
        """Raises: InturnError: the disk is full."""
        try:
            self._file.flush()
        except OSError as refused:
            raise unwritable(self.directory, refused) from refused

    def at(self, place: int) -> Line | BadLine:
        """The record that begins there."""
        return line_of(self._from(place, LOOK).readline())

    def lines(self, after: int = 0) -> Iterator[Line | BadLine]:
        """The records but for the first ``after``; several may be at it at once, and none while lines are appended."""
        if after >= self._count:
            return
        records = self._from(self._strides[after // STRIDE], BUFFER)
        for record in islice(records, after % STRIDE, None):
            yield line_of(record)

    def _from(self, place: int, buffer: int) -> io.BufferedReader:
        self.flush()
        return io.BufferedReader(_Reader(self._file.fileno(), place), buffer)

    def close(self) -> None:
        with suppress(OSError):  # what is still to be written to a full disk is not wanted any more
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Reader(io.RawIOBase):
    """A position of its own in a file that others read and write as well."""

    def __init__(self, descriptor: int, place: int) -> None:
        super().__init__()
        self._descriptor, self._place = descriptor, place

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = os.pread(self._descriptor, len(buffer), self._place)
        buffer[: len(block)] = block
        self._place += len(block)
        return len(block)


def unwritable(directory: Path, refused: OSError) -> InturnError:
    """What to raise where something in there cannot be written."""
    full = refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return InturnError(
        f"the lines of a batch are kept in {str(directory)!r} until they are stored, and nothing can be written there: "
        f"{refused.strerror or refused}. Nothing was stored. "
        + ("Make room, and submit again" if full else "Make it a directory that you can write to, and submit again")
    )


def record_of(line: Line | BadLine) -> bytes:
    return orjson.dumps(_fields(line), option=orjson.OPT_APPEND_NEWLINE)


def _fields(line: Line | BadLine) -> list[Any]:
    if isinstance(line, BadLine):
        return [line.line, line.custom_id, None, line.code, line.message]
    start = [line.line, line.custom_id, line.prompt]
    if line.history or line.follows:
        history, follows = map(_said, line.history), map(_said, line.follows)
        rest = [line.session, line.model, line.system, line.options, line.labels, list(history), list(follows)]
    elif line.options or line.labels:
        rest = [line.session, line.model, line.system, line.options, line.labels]
    elif line.session is not None or line.model is not None or line.system is not None:
        rest = [line.session, line.model, line.system]
    else:
        return [*start, line.data] if line.data is not None else start
    return [*start, line.data, *rest]


def _said(utterance: Utterance) -> list[Any]:
    return [utterance.role, utterance.content, utterance.data]


def line_of(record: bytes) -> Line | BadLine:
    fields = orjson.loads(record)
    if fields[2] is None:
        return BadLine(fields[0], fields[1], fields[3], fields[4])
    if len(fields) == LAST_FIELDS:
        fields[-2:] = (tuple(Utterance(Role(role), *said) for role, *said in field) for field in fields[-2:])
    return Line(*fields)


LAST_FIELDS = 11
"""How many fields a line has."""
