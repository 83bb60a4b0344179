"""Where results can be written to, and what is said where they cannot."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from inturn.models.errors import InvalidInputError, ResultsError
from inturn.results.file import ResultFile, Sink, Stream

NO_ROOM = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room: your quota is used up",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
"""What to do, so that the same command can go on."""


def errors_path(output: Path | BinaryIO, errors: Path | None) -> Path | None:
    """Where failed lines go; None: where the others go. Nothing is made.

    Raises:
        InvalidInputError: nothing can be written there, or it is the output.
    """
    if errors is None:
        if not isinstance(output, Path):
            return None
        _refuse(output)
        if _is_stream(output):
            return None
        errors = output.with_name(f"{output.stem}.errors{output.suffix}")
    if isinstance(output, Path) and _are_same(output, errors):
        raise InvalidInputError(
            f"{output} cannot take both the results and the errors: name another file for one of them"
        )
    _refuse(errors)
    return errors


def opened(path: Path) -> Sink:
    """Open a file that exists or not, or what is no file on disk.

    Raises:
        InvalidInputError: it cannot be opened.
        ResultsError: there is no room for it, or another process writes it.
    """
    _refuse(path)
    with openings(path):
        if _is_stream(path):
            return Stream(path.open("wb"), owned=True)
        return ResultFile(Path(os.path.realpath(path)))


@contextmanager
def openings(path: Path) -> Iterator[None]:
    """Say in a sentence why a file cannot be opened.

    Raises:
        InvalidInputError, ResultsError: instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        if error.errno in NO_ROOM:
            raise ResultsError(f"cannot make {path} ({why}): {NO_ROOM[error.errno]}, or name another file") from error
        raise InvalidInputError(
            f"cannot write {path} ({why}): name a file that you may read and write, in a directory that is there"
        ) from error


def _refuse(path: Path) -> None:
    """Say now what would be found out when the first line is written, perhaps hours later."""
    if "\0" in str(path):
        raise InvalidInputError(f"{str(path)!r:.200} is no path: name another file")
    with openings(path):
        if path.is_dir():
            raise InvalidInputError(f"{path} is a directory: name a file in it")
        if not stat.S_ISDIR(path.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not path.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _is_stream(path: Path) -> bool:
    with openings(path):
        return path.exists() and not path.is_file() and not path.is_dir()


def _are_same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    with openings(other):
        return one.exists() and other.exists() and one.samefile(other)
