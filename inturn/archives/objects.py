"""An archive in an object store, or whatever else fsspec knows: parts, which become one object.

An object is there whole or not at all, and cannot grow. So each chunk is uploaded as an object of its own, which is an
archive in itself (``NAME.partial-0001``); at the end all of them are uploaded once more, as one object, and then the parts
go. Until then what was archived is also in the directory for temporary files, where it takes as much room as it will there.
"""

import logging
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from inturn.archives.directory import PARTIAL
from inturn.archives.drafts import Draft, reason_of, refusals, shown, there_already
from inturn.models.errors import ArchiveError

logger = logging.getLogger(__name__)

PROBE = ".inturn-probe"


class ObjectDraft(Draft):
    """Parts in a store.

    Args:
        target: a URL, as fsspec takes it; the store has to be there.
        name: of the finished archive.

    Raises:
        ArchiveError: the store is unknown, or cannot be asked.
    """

    def __init__(self, target: str, name: str) -> None:
        self._target = target
        self._store, root = store_of(target)
        self._path = f"{root.rstrip('/')}/{name}"
        self.location = f"{shown(target).rstrip('/')}/{name}"
        self._parts: list[str] = []
        with refusals(target):
            if self._store.exists(self._path):
                raise there_already(target, name)
            self._room = TemporaryDirectory(prefix="inturn-archive-")
            self._part, self._whole = ((Path(self._room.name) / what).open("w+b") for what in ("part", "whole"))
        self._synced = 0

    def write(self, data: bytes) -> None:
        with refusals(self._room.name):
            self._part.write(data)

    def sync(self) -> None:
        with refusals(self._room.name):
            self._part.seek(0)
            shutil.copyfileobj(self._part, self._whole)
        part = f"{self._path}{PARTIAL}-{len(self._parts) + 1:04}"
        self._upload(self._part, part)
        self._parts.append(part)
        self._synced = self._whole.tell()
        self.cut()

    def cut(self) -> None:
        with refusals(self._room.name):
            for file, size in ((self._part, 0), (self._whole, self._synced)):
                file.seek(size)
                file.truncate()

    def finish(self) -> None:
        self._upload(self._whole, self._path)
        for part in self._parts:
            remove(self._store, part, self._target)

    def _upload(self, file: BinaryIO, path: str) -> None:
        """Raises: ArchiveError: it is not there afterwards, and neither is what an upload that was cut off may leave."""
        try:
            with refusals(self._target):
                file.flush()
                size = os.fstat(file.fileno()).st_size
                self._store.put_file(file.name, path)
                there = self._store.size(path)
            if there != size:
                reason = f"{path.rpartition('/')[2]} has {there} bytes there, of {size} that were sent"
                raise ArchiveError(shown(self._target), reason, "see to the store, and try again")
        except ArchiveError:
            remove(self._store, path, self._target)
            raise

    def close(self) -> None:
        with self._room, self._part, self._whole:
            pass


def store_of(target: str) -> tuple[Any, str]:
    """The file system that a URL is of, and the path in it. Raises: ArchiveError: there is none."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        advice = "`pip install 'inturn[archive]'` where it is written, or name a directory"
        raise ArchiveError(shown(target), "the package fsspec is missing", advice) from error
    with refusals(target):
        try:
            store, root = url_to_fs(target)
        except ImportError as error:  # fsspec says which
            advice = "install that package where it is written, or name a directory"
            raise ArchiveError(shown(target), error, advice) from error
        except ValueError as error:
            advice = "name a directory, or a store that fsspec knows, such as s3://bucket/prefix"
            raise ArchiveError(shown(target), error, advice) from error
    return store, root


def parts_of(store: Any, path: str) -> list[str]:
    """What to read for a path, in order: of a run that was broken off, what it is booked with begins the names of parts."""
    found = store.glob(f"{path}-*") if path.endswith(PARTIAL) else []
    return sorted(found, key=lambda part: (len(part), part)) or [path]


def probe(target: str) -> None:
    """Write a small object, and remove it. Raises: ArchiveError: it cannot be written."""
    store, root = store_of(target)
    path = f"{root.rstrip('/')}/{PROBE}"
    with refusals(target):
        store.pipe_file(path, b"inturn asks whether it may write here\n")
    remove(store, path, target)


def remove(store: Any, path: str, target: str) -> None:
    """Take away what is not needed any more; a store where nothing may be removed keeps it."""
    try:
        store.rm_file(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever the store says, what matters is there
        name, reason = path.rpartition("/")[2], reason_of(error, target)
        logger.warning("action=archive_object_left place=%s name=%s reason=%s", shown(target), name, reason)
