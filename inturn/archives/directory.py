"""An archive in a directory: one file that grows, and gets its name when it is whole."""

import os
import tempfile
from pathlib import Path

from inturn.archives.drafts import Draft, refusals, there_already

PARTIAL = ".partial"
"""Behind the name of an archive that is not finished: its run is under way, or died."""
PROBE_BYTES = 4096


class DirectoryDraft(Draft):
    """A file that only its owner may read.

    Args:
        directory: has to be there.
        name: of the finished archive.

    Raises:
        ArchiveError: there can be no such file.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._target = directory.absolute()
        self._final = self._target / name
        self._partial = self._final.with_name(name + PARTIAL)
        self.location = str(self._final)
        self._size = self._synced = 0
        with refusals(self._target):
            self._directory = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._fd = self._made()
            except BaseException:
                os.close(self._directory)
                raise

    def _made(self) -> int:
        if os.path.lexists(self._final):
            raise there_already(self._target, self._final.name)
        return os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        with refusals(self._target):
            left = memoryview(data)
            while left:
                written = os.pwrite(self._fd, left, self._size)
                self._size += written
                left = left[written:]

    def sync(self) -> None:
        with refusals(self._target):
            os.ftruncate(self._fd, self._size)  # to cut once may have failed
            os.fsync(self._fd)
            if not self._synced:
                os.fsync(self._directory)  # the file's name has to be there as well
        self._synced = self._size

    def cut(self) -> None:
        self._size = self._synced
        with refusals(self._target):
            os.ftruncate(self._fd, self._size)

    def finish(self) -> None:
        with refusals(self._target):
            self._partial.rename(self._final)
            os.fsync(self._directory)

    def close(self) -> None:
        try:
            if self._size > self._synced:
                self.cut()
        finally:
            os.close(self._fd)
            os.close(self._directory)
            if not self._synced:
                self._partial.unlink(missing_ok=True)


def probe(directory: Path) -> None:
    """Write something there that is gone again at once. Raises: ArchiveError: it cannot be."""
    with refusals(directory), tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
