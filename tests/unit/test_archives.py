"""Archives are written chunk by chunk: durable, whole, or refused with a reason; in directories and in stores."""

import gzip
import hashlib
import os
import random
import re
import resource
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fsspec
import pytest

from inturn.archives import objects
from inturn.archives.drafts import shown
from inturn.archives.reading import opened
from inturn.archives.writing import Archive, archive_name, check
from inturn.models.errors import ArchiveError, InvalidInputError
from tests.unit.archived import lines

NAME = "inturn-20261129T030000Z-idle-7.jsonl.gz"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has it installed."""
    monkeypatch.setitem(sys.modules, "s3fs", None)


@pytest.fixture
def bucket() -> Iterator[str]:
    url = "memory://bucket/archives"
    yield url
    fsspec.filesystem("memory").store.clear()


def objects_in(bucket: str) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in fsspec.filesystem("memory").find(bucket))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def sessions(place: Path | str) -> list[str]:
    with opened(place) as archive:
        return [found.session_id for found in archive.sessions()]


def write(archive: Archive, *keys: str) -> None:
    for key in keys:
        archive.add(lines(key, "one", "two"))
    archive.sync()


def noise(size: int) -> str:
    """What gzip makes little less of."""
    return random.Random(1).randbytes(size).hex()


def test_a_name_says_when_which_rule_and_which_run():
    began = datetime(2026, 11, 29, 4, 0, tzinfo=timezone(timedelta(hours=1)))
    assert archive_name("idle", "7", began) == NAME
    assert archive_name("../a b", "7", began) == "inturn-20261129T030000Z-..%2Fa%20b-7.jsonl.gz"


@pytest.mark.parametrize("as_url", [False, True])
def test_what_is_written_is_there_whole_and_readable_by_its_owner_only(tmp_path: Path, as_url: bool):
    with Archive.create(tmp_path.as_uri() if as_url else tmp_path, NAME) as archive:
        write(archive, "a", "b")
        write(archive, "c")
        assert names(tmp_path) == [f"{NAME}.partial"]
        sealed = archive.seal()
    assert names(tmp_path) == [NAME]
    stored = (tmp_path / NAME).read_bytes()
    assert sealed is not None
    assert (sealed.location, sealed.bytes, sealed.sessions) == (str(tmp_path / NAME), len(stored), 3)
    assert sealed.sha256 == hashlib.sha256(stored).hexdigest()
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert gzip.decompress(stored) == b"".join(line for key in "abc" for line in lines(key, "one", "two"))
    assert sessions(tmp_path / NAME) == ["a", "b", "c"]


def test_the_same_sessions_are_the_same_bytes(tmp_path: Path):
    seals = []
    for name in ("one", "two"):
        with Archive.create(tmp_path, name) as archive:
            write(archive, "a")
            seals.append(archive.seal())
    assert None not in seals
    assert len({sealed.sha256 for sealed in seals if sealed}) == 1


def test_each_chunk_is_on_disk_before_sync_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(fd: int) -> None:
        fsync(fd)
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")

    def note_rename(path: Path, to: Path) -> None:
        rename(path, to)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    with Archive.create(tmp_path, NAME) as archive:
        write(archive, "a")
        assert done == ["file", "directory"]
        assert sessions(tmp_path / f"{NAME}.partial") == ["a"]
        write(archive, "b")
        assert done[2:] == ["file"]
        assert sessions(tmp_path / f"{NAME}.partial") == ["a", "b"]
        archive.seal()
        assert done[3:] == ["renamed", "directory"]


def test_what_a_run_that_was_killed_had_synced_can_be_read(tmp_path: Path):
    program = f"""
import os
from tests.unit.test_archives import *
archive = Archive.create({str(tmp_path)!r}, NAME)
write(archive, "a", "b")
write(archive, "c")
archive.add(lines("lost", noise(500_000)))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 9
    assert (tmp_path / f"{NAME}.partial").stat().st_size > 100_000, "some of what was lost is there"
    assert sessions(tmp_path / f"{NAME}.partial") == ["a", "b", "c"]


def test_a_run_that_ends_without_a_seal_leaves_what_it_had_synced(tmp_path: Path):
    with Archive.create(tmp_path, NAME) as archive:
        write(archive, "a")
        archive.add(lines("lost", noise(500_000)))
    assert names(tmp_path) == [f"{NAME}.partial"]
    stored = (tmp_path / f"{NAME}.partial").read_bytes()
    assert gzip.decompress(stored) == b"".join(lines("a", "one", "two"))


@pytest.mark.parametrize("seals", [True, False])
def test_of_an_archive_of_nothing_nothing_is_left(tmp_path: Path, bucket: str, seals: bool):
    for target in (tmp_path, bucket):
        with Archive.create(target, NAME) as archive:
            archive.sync()
            assert not (seals and archive.seal())
    assert names(tmp_path) == []
    assert objects_in(bucket) == []


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses what is more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_takes_a_chunk_whole_or_not_at_all(tmp_path: Path):
    with Archive.create(tmp_path, NAME) as archive:
        write(archive, "a")
        write(archive, "b")
        archive.add(lines("c", noise(5_000)))
        with files_no_larger_than(50_000), pytest.raises(ArchiveError) as refused:
            archive.add(lines("d", noise(500_000)))
        assert f"cannot archive sessions in {tmp_path} (File too large): raise the limit" in str(refused.value)
        assert str(refused.value).endswith("What is not archived is not removed")
        assert refused.value.target == str(tmp_path)
        write(archive, "c")
        sealed = archive.seal()
    assert sealed is not None
    assert sealed.sessions == 3
    assert sealed.sha256 == hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest()
    assert sessions(tmp_path / NAME) == ["a", "b", "c"]


@pytest.mark.parametrize("number", [28, 5])
def test_what_cannot_be_synced_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def refuse(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    with Archive.create(tmp_path, NAME) as archive:
        write(archive, "a")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(ArchiveError, match=os.strerror(number)):
                write(archive, "b")
        archive.seal()
    assert sessions(tmp_path / NAME) == ["a"]


def test_a_session_that_cannot_be_read_takes_its_chunk_back(tmp_path: Path):
    def broken() -> Iterator[bytes]:
        yield next(lines("b", "one"))
        raise LookupError("deleted")

    with Archive.create(tmp_path, NAME) as archive:
        write(archive, "a")
        archive.add(lines("x", "one"))
        with pytest.raises(LookupError):
            archive.add(broken())
        write(archive, "c")
        sealed = archive.seal()
    assert sealed is not None
    assert sealed.sessions == 2
    assert sessions(tmp_path / NAME) == ["a", "c"]


BAD = {
    "none": ("No such file or directory", "make the directory"),
    "file": ("Not a directory", "name a directory"),
    "nowhere://x/y": ("nowhere", "a store that fsspec knows"),
    "s3://bucket/x": ("s3fs", "install that package"),
}


@pytest.mark.parametrize("target", BAD)
@pytest.mark.parametrize("ask", [check, lambda target: Archive.create(target, NAME)])
def test_a_bad_target_is_refused_with_reason_and_advice(target: str, ask: Callable[[str], Any], tmp_path: Path):
    (tmp_path / "file").touch()
    reason, advice = BAD[target]
    place = target if "://" in target else str(tmp_path / target)
    with pytest.raises(ArchiveError, match=rf"{re.escape(place)} \(.*{reason}.*\): .*{advice}"):
        ask(place)
    assert names(tmp_path) == ["file"]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A directory in which this process may not write."""
    tmp_path.chmod(0o500)
    mine = os.geteuid()
    if mine == 0:  # root may everything
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(mine)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("ask", [check, lambda target: Archive.create(target, NAME)])
def test_where_nobody_may_write(ask: Callable[[Path], Any], locked: Path):
    with pytest.raises(ArchiveError, match=r"\(Permission denied\): give this user the right to write there"):
        ask(locked)


def test_without_fsspec_a_url_is_refused_and_a_directory_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    for writes in (True, False):
        with pytest.raises(ArchiveError, match=r"fsspec is missing\): `pip install 'inturn\[archive\]'`"):
            check("s3://bucket/x", writes=writes)
        check(tmp_path, writes=writes)
        check(tmp_path.as_uri(), writes=writes)


def test_a_check_leaves_nothing_behind(tmp_path: Path, bucket: str):
    for target in (tmp_path, str(tmp_path), bucket):
        check(target)
    assert names(tmp_path) == []
    assert objects_in(bucket) == []


def test_a_password_is_not_told():
    assert shown("ftp://ann:secret@host/x") == "ftp://ann:***@host/x"
    with pytest.raises(ArchiveError) as refused:
        check("nowhere://ann:secret@host/x")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://ann:se/cr+et@bucket/x", 'no bucket "ann:se"'),
        ("memory://ann:se/cr+et@bucket/x", 'no bucket "ann:se/cr+et@bucket"'),
        ("memory://ann:se%2Fcr%2Bet@bucket/x", "no user ann with se/cr+et"),
    ],
)
def test_nor_is_it_where_a_store_says_it_again(url: str, said: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError(f"Parameter validation failed:\n{said}")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "exists", refuse)
    with pytest.raises(
        ArchiveError, match=r"memory://ann:\*\*\*@bucket/x \(Parameter validation failed: no "
    ) as refused:
        Archive.create(url, NAME)
    assert "se/" not in str(refused.value)
    assert "et@" not in str(refused.value)
    assert "cr" not in str(refused.value)


WRONG = {
    FileNotFoundError("The specified bucket does not exist"): "make the bucket or directory, or name another place",
    PermissionError("Forbidden"): "see that its keys are right, and may list, read, write and delete there",
    RuntimeError("Unable to locate credentials"): "see that it answers, and that beat and workers have the keys to it",
}


@pytest.mark.parametrize("error", WRONG, ids=lambda error: type(error).__name__)
def test_a_store_that_refuses_is_told_with_advice(error: Exception, bucket: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "exists", refuse)
    with pytest.raises(ArchiveError, match=re.escape(f"{bucket} ({error}): {WRONG[error]}")):
        Archive.create(bucket, NAME)


def test_a_name_that_is_taken_is_refused(tmp_path: Path, bucket: str):
    for target in (tmp_path, bucket):
        with Archive.create(target, NAME) as archive:
            write(archive, "a")
            if target == tmp_path:
                with pytest.raises(ArchiveError, match="there is one of that name already"):
                    Archive.create(target, NAME)
            archive.seal()
        with pytest.raises(ArchiveError, match=f"{NAME} is there already"):
            Archive.create(target, NAME)


def test_in_a_store_each_chunk_is_an_archive_until_all_are_one(bucket: str):
    with Archive.create(bucket, NAME) as archive:
        write(archive, "a", "b")
        write(archive, "c")
        parts = [f"{NAME}.partial-0001", f"{NAME}.partial-0002"]
        assert objects_in(bucket) == parts
        assert [sessions(f"{bucket}/{part}") for part in parts] == [["a", "b"], ["c"]]
        sealed = archive.seal()
    assert objects_in(bucket) == [NAME]
    assert sealed is not None
    assert sealed.location == f"{bucket}/{NAME}"
    assert sealed.sha256 == hashlib.sha256(fsspec.filesystem("memory").cat_file(sealed.location)).hexdigest()
    assert sessions(sealed.location) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("memory://bucket/none", "FileNotFoundError"), ("s3://ann:secret@bucket/x", "s3fs"), ("nowhere://x", "nowhere")],
)
def test_what_cannot_be_read(place: str, reason: str, bucket: str):
    with pytest.raises(InvalidInputError, match=rf"cannot be read: .*{reason}") as refused:
        sessions(place)
    assert "secret" not in str(refused.value)


def test_a_store_that_refuses_takes_a_chunk_whole_or_not_at_all(bucket: str, monkeypatch: pytest.MonkeyPatch):
    store = type(fsspec.filesystem("memory"))

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("503 slow down")

    with Archive.create(bucket, NAME) as archive:
        write(archive, "a")
        with monkeypatch.context() as patch:
            patch.setattr(store, "put_file", refuse)
            with pytest.raises(ArchiveError, match=rf"{bucket} \(503 slow down\)"):
                write(archive, "lost")
        with monkeypatch.context() as patch:
            patch.setattr(store, "size", lambda *_: 3)
            with pytest.raises(ArchiveError, match="has 3 bytes there, of"):
                write(archive, "lost")
        write(archive, "b")
        with monkeypatch.context() as patch:
            patch.setattr(store, "put_file", refuse)
            with pytest.raises(ArchiveError):
                archive.seal()
        assert [sessions(f"{bucket}/{part}") for part in objects_in(bucket)] == [["a"], ["b"]]
        archive.seal()
    assert sessions(f"{bucket}/{NAME}") == ["a", "b"]


def test_a_store_where_nothing_may_be_removed(bucket: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise PermissionError("locked")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "rm_file", refuse)
    check(bucket)
    with Archive.create(bucket, NAME) as archive:
        write(archive, "a")
        archive.seal()
    assert objects_in(bucket) == [objects.PROBE, NAME, f"{NAME}.partial-0001"]


def test_of_an_upload_that_is_cut_off_nothing_is_left(bucket: str, monkeypatch: pytest.MonkeyPatch):
    store = type(fsspec.filesystem("memory"))
    put_file = store.put_file

    def drop(self: Any, local: str, remote: str) -> None:
        """As a server of files does, where no object store would show anything."""
        put_file(self, local, remote)
        self.store[f"/{remote.lstrip('/')}"].truncate(30)
        raise ConnectionResetError(104, "Connection reset by peer")

    with Archive.create(bucket, NAME) as archive:
        write(archive, "a")
        with monkeypatch.context() as patch:
            patch.setattr(store, "put_file", drop)
            with pytest.raises(ArchiveError, match="Connection reset by peer"):
                write(archive, "lost")
            assert objects_in(bucket) == [f"{NAME}.partial-0001"]
            with pytest.raises(ArchiveError, match="Connection reset by peer"):
                archive.seal()
            assert objects_in(bucket) == [f"{NAME}.partial-0001"]
        with monkeypatch.context() as patch:
            patch.setattr(store, "size", lambda *_: 3)
            with pytest.raises(ArchiveError, match="has 3 bytes there, of"):
                write(archive, "lost")
        assert objects_in(bucket) == [f"{NAME}.partial-0001"]


def test_the_parts_of_a_run_that_ended_early_are_read_under_the_name_that_it_is_booked_with(bucket: str):
    with Archive.create(bucket, NAME) as archive:
        write(archive, "a", "b")
        write(archive, "c")
        booked = archive.partial
    assert booked == f"{bucket}/{NAME}.partial"
    assert objects_in(bucket) == [f"{NAME}.partial-0001", f"{NAME}.partial-0002"]
    assert sessions(booked) == ["a", "b", "c"]


def test_memory_does_not_grow_with_the_sessions(tmp_path: Path):
    with Archive.create(tmp_path, NAME) as archive:
        write(archive, "first")
        tracemalloc.start()
        try:
            for chunk in range(10):
                for number in range(10):
                    archive.add(lines(f"s-{chunk}-{number}", noise(50_000)))
                archive.sync()
            archive.seal()
            assert sum(1 for _ in sessions(tmp_path / NAME)) == 101
            assert tracemalloc.get_traced_memory()[1] < 6_000_000, "there are 20 MB of them"
        finally:
            tracemalloc.stop()
