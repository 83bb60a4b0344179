"""An archive that is not finished yet, wherever it is to be, and what is said where it cannot be."""

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from inturn.models.errors import ArchiveError
from inturn.results.places import NO_ROOM
from inturn.urls import MASK, masked_url

REASON_LENGTH = 300
RIGHTS = "give this user the right to write there, or name another directory"
ADVICE = {
    **{number: f"{advice}, or name another directory" for number, advice in NO_ROOM.items()},
    errno.ENOENT: "make the directory, or name another one",
    errno.ENOTDIR: "name a directory",
    errno.EEXIST: "there is one of that name already: each run needs a name of its own",
    errno.ENAMETOOLONG: "give the rule a shorter name",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), RIGHTS),
}
STORE_ADVICE = {
    FileNotFoundError: "make the bucket or directory, or name another place",
    PermissionError: "see that its keys are right, and may list, read, write and delete there, or name another place",
    Exception: (
        "see that it answers, and that beat and workers have the keys to it (`inturn doctor` tries), or name another place"
    ),
}
"""By what is raised: most of them set no errno."""


class Draft(ABC):
    """Where the bytes of an archive go. All of it raises ArchiveError.

    Attributes:
        location: where the archive is once it is finished, without a password.
    """

    location: str

    @abstractmethod
    def write(self, data: bytes) -> None: ...

    @abstractmethod
    def sync(self) -> None:
        """Returns once what was written survives this process and a power cut."""

    @abstractmethod
    def cut(self) -> None:
        """Take back what was written since the last ``sync``."""

    @abstractmethod
    def finish(self) -> None:
        """Show what was synced under its name, whole."""

    @abstractmethod
    def close(self) -> None:
        """Let go. What was synced and not finished stays, under another name; nothing else does."""


def shown(target: object) -> str:
    """A directory or URL as it may be told."""
    return masked_url(str(target))


def reason_of(error: BaseException, target: object) -> str:
    """What went wrong, on a line, and without the password of the target: stores quote what they were given."""
    said = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    secret = str(target).partition("://")[2].rpartition("@")[0].partition(":")[2]
    for part in filter(None, (secret, unquote(secret), *secret.split("/"))):
        said = said.replace(part, MASK)
    return said[:REASON_LENGTH]


def there_already(target: object, name: str) -> ArchiveError:
    return ArchiveError(shown(target), f"{name} is there already", "each run needs a name of its own")


@contextmanager
def refusals(target: object) -> Iterator[None]:
    """Say in a sentence why nothing can be written to a directory or a store.

    Raises:
        ArchiveError: instead of whatever a file system or a store raises inside.
    """
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:  # each of fsspec's stores has errors of its own
        raise ArchiveError(shown(target), reason_of(error, target), _advice(error, target)) from error


def _advice(error: Exception, target: object) -> str:
    if "://" in str(target):
        return next(advice for kind, advice in STORE_ADVICE.items() if isinstance(error, kind))
    return ADVICE.get(getattr(error, "errno", None) or 0, "see to it, or name another place")
