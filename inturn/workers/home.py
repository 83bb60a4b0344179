"""The inturn home on disk: private directories, logs, files that are whole or absent, and locks.

```
<home>/            0700, when inturn creates it
  inturn.db        the embedded database
  broker.sock      the embedded broker listens here     broker/   its append-only file
  up.json          who runs here: see stack.py          log/      what each process said: NAME.log, and NAME.log.1 before
  up.lock          held by the one supervisor           users.lock  shared by those who need a linked stack
  starting.lock    held by the user who starts a linked stack
```

Lock files are never removed: whoever opened one just before would go on to lock a file that nobody else sees. Locks are
``flock``: the kernel frees them when their holder dies, in whatever way.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

from inturn.models.errors import StorageError

ROTATE_BYTES = 10 * 1024 * 1024
LOG_SECONDS = 5.0
"""Between two looks at how long a log is."""
TAIL_BYTES = 8192
STDOUT, STDERR = 1, 2

HINTS = {
    errno.ENOSPC: "the disk is full: free some space, or set INTURN_HOME to a directory on another one",
    errno.EDQUOT: "your quota is used up: free some space, or set INTURN_HOME to a directory on another disk",
    errno.EROFS: "the file system is read-only: set INTURN_HOME to a directory that can be written",
    errno.ENOLCK: "the file system knows no locks: set INTURN_HOME to a directory on a local disk",
    errno.EOPNOTSUPP: "the file system knows no locks: set INTURN_HOME to a directory on a local disk",
}
OTHERWISE = "make it writable for you, or set INTURN_HOME to a directory that is"


@contextmanager
def storage_refusals(path: Path) -> Iterator[None]:
    """Say in a sentence what the file system refuses.

    Raises:
        StorageError: Instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        hint = HINTS.get(error.errno or 0, OTHERWISE)
        raise StorageError(f"cannot write {path} ({error.strerror or error}): {hint}") from error


def private_directory(directory: Path) -> Path:
    """The directory, created 0700 when it is missing; one that exists keeps its permissions: it may be anybody's.

    Raises:
        StorageError: It cannot be created, or not be written to.
    """
    with storage_refusals(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):  # to try is the only way to know, and to know why not
            pass
    return directory


def log_file(home: Path, name: str) -> Path:
    """Where a process of the stack writes its log."""
    return home / "log" / f"{name}.log"


def put_aside(log: Path) -> None:
    """Keep a log that has grown too long as ``.1``, in the place of the one before. Whoever has it open goes on in that.

    Raises:
        OSError: It stays where it is.
    """
    with suppress(FileNotFoundError):
        if log.stat().st_size > ROTATE_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))


def open_log(path: Path) -> int:
    """A descriptor that appends to the log, 0600; one that has grown too long is put aside first.

    Raises:
        StorageError: It cannot be written.
    """
    private_directory(path.parent)
    with storage_refusals(path):
        put_aside(path)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class OwnLog:
    """The log of the home that this process writes to, if it writes to one: whoever started it has opened that."""

    def __init__(self, home: Path) -> None:
        logs = home.joinpath("log").glob("*.log")
        self._path = next((path for path in logs if _is_written_to(path, STDERR)), None)

    def keep_short(self) -> None:
        """Go on in a new one, once it has grown too long. No line is lost: the files change places in one step, and so do
        the descriptors. To copy it and cut it off would lose what is written in between.
        """
        if self._path is None or os.fstat(STDERR).st_size <= ROTATE_BYTES:
            return
        with suppress(StorageError, OSError):  # then it grows on, until there is room
            ours = [number for number in (STDOUT, STDERR) if os.path.sameopenfile(number, STDERR)]
            new = open_log(self._path)
            for number in ours:
                os.dup2(new, number)
            os.close(new)


def _is_written_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def last_lines(log: Path, count: int, *, after: int = 0) -> list[str]:
    """The log's last lines, without what was in its first ``after`` bytes."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(after if after <= size else 0, size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


def write_whole(path: Path, text: str) -> None:
    """Replace a file, 0600, so that a reader finds the old text or the new one, and never half of it.

    Raises:
        OSError: It cannot be written; the old text stays.
    """
    draft = path.with_name(f"{path.name}.new")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


class FileLock:
    """One hold on a lock file. It is let go by ``close``, by the garbage collector, or by the process's death."""

    def __init__(self, path: Path) -> None:
        """Open the lock file, created 0600 when it is missing; nothing is locked yet.

        Raises:
            StorageError: It cannot be opened.
        """
        self.path = path
        with storage_refusals(path):
            self._file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")

    def try_exclusive(self) -> bool:
        """Take the lock alone, if nobody else holds it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take the lock together with others, if nobody holds it alone."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        """Let the lock go, but keep the file open."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let the lock go."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            with storage_refusals(self.path):
                raise error
        return True


def lock_is_held(path: Path) -> bool:
    """Whether somebody holds the lock alone. Looking takes it for a moment, so that takers must try more than once."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def lock_holders(path: Path) -> list[int]:
    """PIDs of those who hold the lock, for people to read; empty where the system does not tell."""
    try:
        inode, lines = str(path.stat().st_ino), Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    # "1: FLOCK  ADVISORY  READ 4711 fd:00:123456 0 EOF"; the device is not compared: btrfs shows another one there
    locks = (line.split() for line in lines)
    return sorted({int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].rpartition(":")[2] == inode})
