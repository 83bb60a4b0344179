"""The lines of a source, one at a time, however long it is: of files, of streams, and of iterables."""

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Protocol, runtime_checkable

from inturn.intake.refusal import Refusal, of_type
from inturn.models.errors import InvalidInputError

LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of a line. What is longer is never in memory as a whole."""
BLOCK = 256 * 1024
BOM = b"\xef\xbb\xbf"
ITEMS_A_REPORT = 1_000

Raw = bytes | Refusal
"""A line as it came: its bytes, or why there are none to be looked at."""
NumberedLines = Iterator[tuple[int, Raw]]
"""Lines that are not blank, with their numbers, from 1; blank ones count."""
Progress = Callable[[int, int | None], object]
"""Told how many bytes are read, out of how many; None: nobody knows."""


class Digest(Protocol):
    """The part of a ``hashlib`` hash that is used here."""

    def update(self, content: bytes | memoryview, /) -> None: ...


@runtime_checkable
class ByteSource(Protocol):
    """The part of a binary file that is used here."""

    def read(self, size: int, /) -> bytes: ...


class ByteLines(Protocol):
    """The part of a buffered file that is used here."""

    def readline(self, size: int, /) -> bytes: ...


class Watched(io.RawIOBase):
    """A source that is digested and counted as it is read, a block at a time: by the line this would cost more than JSON."""

    def __init__(self, name: str, source: ByteSource, digest: Digest, progress: Progress, total: int | None) -> None:
        super().__init__()
        self.name = name
        # read1 gives what a pipe has; read would wait until a block is full.
        self._read = getattr(source, "read1", source.read)
        self._digest, self._progress, self._total = digest, progress, total
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises: InvalidInputError: the source breaks off."""
        try:
            block = self._read(len(buffer))
        except OSError as refused:
            raise InvalidInputError(
                f"{self.name} could be read for {self._count:,} bytes only: {refused.strerror or refused}. Nothing was "
                "stored: submit it again"
            ) from refused
        if not isinstance(block, bytes):
            raise InvalidInputError(f"{self.name} gives {of_type(block)}, not bytes: open it with mode 'rb'")
        buffer[: len(block)] = block
        self._digest.update(block)
        self._count += len(block)
        self._progress(self._count, self._total)
        return len(block)


def lines_of_bytes(source: Watched) -> NumberedLines:
    """The lines of a file or stream. Raises: InvalidInputError: it cannot be read."""
    buffered = io.BufferedReader(source, BLOCK)
    for number in count(1):
        raw = buffered.readline(LINE_LIMIT + 1)
        if not raw:
            return
        if number == 1:
            _refuse_utf_16(source.name, raw)
            raw = raw.removeprefix(BOM)
        if len(raw) > LINE_LIMIT and raw[-1:] != b"\n":
            yield number, _too_long(len(raw) + _skip_line(buffered))
        elif raw.strip():
            yield number, raw


def _refuse_utf_16(name: str, start: bytes) -> None:
    is_every_other_nul = len(start) > 3 and b"\0\0" in (start[:4:2], start[1:4:2])
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or is_every_other_nul:
        raise InvalidInputError(f"{name} looks like UTF-16: save it as UTF-8. Nothing was stored")


def _skip_line(source: ByteLines) -> int:
    """How many bytes were skipped."""
    skipped = 0
    while part := source.readline(BLOCK):
        skipped += len(part)
        if part[-1:] == b"\n":
            break
    return skipped


def _too_long(size: int) -> Refusal:
    return Refusal(
        "prompt_too_large",
        f"the line has {size:,} bytes, and {LINE_LIMIT:,} (16 MiB) are the limit: shorten it, and refer to images by "
        "their URLs",
    )


def lines_of_items(items: Iterable[Any], digest: Digest, progress: Progress) -> NumberedLines:
    """An item a line, in the JSON that a file would have had: a dict as it is, a str as a prompt."""
    read = 0
    for number, item in enumerate(items, 1):
        try:
            raw = written_out(item)
        except Refusal as refusal:
            digest.update(b"\n")
            yield number, refusal
            continue
        read += len(raw)
        digest.update(raw)
        if number % ITEMS_A_REPORT == 0:
            progress(read, None)
        yield number, raw if len(raw) <= LINE_LIMIT else _too_long(len(raw))
    progress(read, None)


def written_out(item: object) -> bytes:
    """An item as JSON, its names sorted. Raises: Refusal."""
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, Mapping):
        raise Refusal(
            "invalid_json_line",
            f"the item is {item!r:.60}, {of_type(item)}: an item is a dict such as {{'prompt': ...}}, or a str",
        )
    try:
        return json.dumps(dict(item), allow_nan=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as refused:
        raise Refusal("invalid_json_line", f"the item cannot be written as JSON: {refused}") from None
