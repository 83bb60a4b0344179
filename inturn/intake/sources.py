"""Where lines come from: a file that must not change meanwhile, a stream, or a program's own list."""

import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inturn.intake.reading import ByteSource, Digest, NumberedLines, Progress, Watched, lines_of_bytes, lines_of_items
from inturn.models.errors import InvalidInputError

Source = str | Path | ByteSource | Iterable[Mapping[str, Any] | str]
"""A file's name, a stream of bytes, or dicts and prompts."""
LIST = "the list"
"""What those are called."""


@contextmanager
def opened(source: Source, digest: Digest, progress: Progress) -> Iterator[tuple[str, NumberedLines]]:
    """What to call the source, and its lines.

    Raises:
        InvalidInputError: it is nothing that lines can be read from, or, on leaving, a file that has changed.
    """
    if isinstance(source, str | Path):
        with _opened_file(source) as file:
            before = os.fstat(file.fileno())
            size = before.st_size if stat.S_ISREG(before.st_mode) else None
            yield str(source), lines_of_bytes(Watched(str(source), file, digest, progress, size))
            _refuse_changed(str(source), before, os.fstat(file.fileno()))
    elif isinstance(source, ByteSource):
        name = _name_of(source)
        yield name, lines_of_bytes(Watched(name, source, digest, progress, None))
    elif isinstance(source, Iterable) and not isinstance(source, Mapping | bytes | bytearray | memoryview):
        yield LIST, lines_of_items(source, digest, progress)
    else:
        raise InvalidInputError(
            f"a batch is read from a file's name, a stream of bytes, or an iterable of dicts, and this is a "
            f"{type(source).__name__}"
        )


def _opened_file(path: str | Path) -> io.FileIO:
    try:
        return io.FileIO(path)
    except FileNotFoundError:
        raise InvalidInputError(
            f"there is no file {str(path)!r}: check its name and the directory you are in"
        ) from None
    except IsADirectoryError:
        raise InvalidInputError(f"{str(path)!r} is a directory: name a file in it") from None
    except PermissionError:
        raise InvalidInputError(f"you may not read {str(path)!r}: have its owner permit it (chmod +r)") from None
    except (OSError, ValueError) as refused:
        raise InvalidInputError(
            f"{str(path)!r} cannot be read: {getattr(refused, 'strerror', '') or refused}"
        ) from None


def _refuse_changed(name: str, before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InvalidInputError(
            f"{name!r} changed while it was read (it had {before.st_size:,} bytes, and has {after.st_size:,}). Nothing "
            "was stored: submit it once it is written"
        )


def _name_of(stream: ByteSource) -> str:
    name = getattr(stream, "name", None)
    return "standard input" if name == "<stdin>" else name if isinstance(name, str) else "the stream"
