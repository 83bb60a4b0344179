"""A file of results: appended to in blocks, by one process at a time, and rewritten whole or not at all."""

import errno
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from inturn.models.errors import ResultsError

BLOCK = 1024 * 1024
"""Bytes that are gathered before they are written."""
LONGEST_LINE = 64 * 1024 * 1024
"""In bytes. No result is longer: a reply has at most 4 MiB, of which JSON may make six times as much."""
LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""From a file system that knows no locks: better written without one than not at all."""
APPENDING = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class Sink(ABC):
    """Where lines go, in blocks. All of it raises OSError as the system does."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._bytes = 0

    @property
    def pending(self) -> int:
        """Lines that are gathered, and not written yet."""
        return len(self._lines)

    def append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= BLOCK:
            self.flush()

    @abstractmethod
    def flush(self) -> None:
        """Write what is gathered."""

    @abstractmethod
    def sync(self) -> None:
        """See to it that what is written survives a power cut."""

    @abstractmethod
    def close(self) -> None:
        """Let go, without writing anything more."""


class Stream(Sink):
    """What cannot be read back: standard output, a pipe, a device.

    Args:
        output: what to write to.
        owned: whether it is closed in the end.
    """

    def __init__(self, output: BinaryIO, owned: bool = False) -> None:
        super().__init__()
        self._output, self._owned = output, owned

    def flush(self) -> None:
        if self._lines:
            data = b"".join(self._lines)
            self._lines.clear()  # first: nobody knows how much of what is broken off was written, so none of it is repeated
            self._bytes = 0
            self._output.write(data)
            self._output.flush()

    def sync(self) -> None:
        self.flush()

    def close(self) -> None:
        if self._owned:
            self._output.close()


class ResultFile(Sink):
    """A file on disk. It is made if it is missing, and locked against other processes as long as it is open.

    Args:
        path: without symbolic links, so that a rewritten file gets to where it was.

    Raises:
        OSError: it cannot be read and written.
        ResultsError: another process writes it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._fd = _locked(path)
        self._size = os.fstat(self._fd).st_size
        self._is_unsynced = True  # who wrote what is there may have been killed

    def flush(self) -> None:
        """What the disk does not take stays gathered, and no half line stays in the file: the next flush goes on."""
        data = memoryview(b"".join(self._lines))
        left = data
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        finally:
            # The file itself is asked: a Ctrl-C that comes while the system writes is raised before the count is known.
            self._take_off(min(max(os.fstat(self._fd).st_size - self._size, 0), len(data)))

    def _take_off(self, done: int) -> None:
        """Strike the lines off that are written with the first ``done`` bytes, and cut off a half one behind them."""
        written, whole = 0, 0
        for line in self._lines:
            if whole + len(line) > done:
                break
            whole += len(line)
            written += 1
        del self._lines[:written]
        self._bytes = sum(map(len, self._lines))
        self._size += whole
        self._is_unsynced = self._is_unsynced or done > 0
        if done > whole:
            with suppress(OSError):  # who opens the file next cuts it off
                os.ftruncate(self._fd, self._size)

    def lines(self) -> Iterator[bytes]:
        """What is in it, from its beginning: lines with their line feeds, the last one perhaps without."""
        with open(self._fd, "rb", buffering=BLOCK, closefd=False) as content:
            content.seek(0)
            while line := content.readline(LONGEST_LINE):
                yield line

    def cut(self, size: int) -> None:
        """Throw away what is behind the first ``size`` bytes."""
        os.ftruncate(self._fd, size)
        self._size, self._is_unsynced = size, True

    def rewrite(self, keep: Callable[[int], bool]) -> None:
        """Leave lines out, by their number in the file from 0. A draft beside it takes its place once that is on disk."""
        self.flush()
        draft = self.path.with_name(f".{self.path.name}.draft")
        draft.unlink(missing_ok=True)  # of who was killed over it: the lock says that nobody is at work on one
        fd = os.open(draft, APPENDING | os.O_EXCL, os.fstat(self._fd).st_mode & 0o777)
        try:
            _lock(fd, draft)
            size = self._copy(fd, keep)
            os.fsync(fd)
            draft.replace(self.path)
        except BaseException:
            os.close(fd)
            draft.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._size, self._is_unsynced = fd, size, False
        _sync_directory(self.path.parent)

    def _copy(self, fd: int, keep: Callable[[int], bool]) -> int:
        with os.fdopen(os.dup(fd), "wb", buffering=BLOCK) as draft:
            for number, line in enumerate(self.lines()):
                if keep(number):
                    draft.write(line)
        return os.fstat(fd).st_size

    def sync(self) -> None:
        self.flush()
        if self._is_unsynced:
            os.fsync(self._fd)
            self._is_unsynced = False

    def is_whole(self) -> bool:
        """Whether it is still where it was opened, and has in it what was written and nothing else."""
        return _is_at(self._fd, self.path) and os.fstat(self._fd).st_size == self._size

    def close(self) -> None:
        os.close(self._fd)


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, APPENDING, 0o666)
        try:
            _lock(fd, path)
            if _is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was rewritten between opening and locking: another file is there now


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ResultsError(
            f"another process writes {path} at this moment: let it finish or stop it, or name another file"
        ) from error
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise


def _is_at(fd: int, path: Path) -> bool:
    mine = os.fstat(fd)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
