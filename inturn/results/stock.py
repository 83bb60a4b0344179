"""What is in a result file already: read as a stream, and compared with the batch, before anything is added."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import orjson

from inturn.results.file import LONGEST_LINE, ResultFile
from inturn.results.forms import Entry, Form

CHUNK = 1000
"""Entries that the database is asked about at a time."""


class Standing(NamedTuple):
    """What the database has of a line at this moment.

    Attributes:
        turn_id: of the turn that stands for the line now, in whatever state; None: it has none, or it was deleted.
    """

    custom_id: str
    turn_id: str | None


class Lines(Protocol):
    """The lines of the batch whose files are written, as the database has them. Asked about at most ``CHUNK`` at once."""

    def standing(self, lines: Sequence[int]) -> Mapping[int, Standing]:
        """By line number; a line that the batch has not is left out."""

    def numbers(self, custom_ids: Sequence[str]) -> Mapping[str, int]:
        """The line of each custom ID; one that the batch has not is left out. Where invalid lines repeat it, the line that
        has a turn or had one.
        """


class NotOwnError(Exception):
    """There is something in the file that this batch would not have written there. It says what."""


class Stocked(NamedTuple):
    """An entry of a file.

    Attributes:
        outdated: whether the line was tried again since, in another turn.
    """

    line: int
    outdated: bool


def stock(file: ResultFile, form: Form, lines: Lines, *, failed: bool) -> Iterator[Stocked]:
    """Read a file. In the end, a last line that is half written is cut off.

    Args:
        failed: whether failed lines belong into it, instead of completed ones.

    Raises:
        NotOwnError: nothing was changed.
    """
    size, chunk, half = 0, [], b""
    for number, text in enumerate(file.lines(), 1):
        entry = form.read(text)
        if entry is None and _is_half(text, form):
            half = text
            break
        if entry is None:
            raise NotOwnError(f"line {number} of it is no such entry of this batch")
        if entry.completed is failed:
            raise NotOwnError(f"line {number} of it is a {'completed' if entry.completed else 'failed'} one")
        size += len(text)
        chunk.append(entry)
        if len(chunk) == CHUNK:
            yield from _compared(chunk, lines)
            chunk.clear()
        if not text.endswith(b"\n"):  # it was cut off just there
            half = b"\n"
    yield from _compared(chunk, lines)
    if half == b"\n":
        file.append(half)
    elif half:
        file.cut(size)


def _is_half(text: bytes, form: Form) -> bool:
    if text.endswith(b"\n") or len(text) == LONGEST_LINE or not form.began(text):
        return False
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return True
    return False


def _compared(chunk: Sequence[Entry], lines: Lines) -> Iterator[Stocked]:
    unknown = [entry.custom_id for entry in chunk if entry.line is None]
    numbers = lines.numbers(unknown) if unknown else {}
    failed = [entry.line for entry in chunk if entry.line is not None and not entry.completed]
    standing = lines.standing(failed) if failed else {}
    for entry in chunk:
        line = numbers.get(entry.custom_id) if entry.line is None else entry.line
        if line is None:
            raise NotOwnError(f"the batch has no line with the custom_id {entry.custom_id!r:.100}")
        yield Stocked(line, not entry.completed and _is_outdated(entry, standing.get(line)))


def _is_outdated(entry: Entry, now: Standing | None) -> bool:
    if now is None or now.custom_id != entry.custom_id:
        raise NotOwnError(f"the batch has no line {entry.line} with the custom_id {entry.custom_id!r:.100}")
    # Without a turn, nothing newer is known: its session was deleted since.
    return now.turn_id is not None and now.turn_id != entry.turn_id
