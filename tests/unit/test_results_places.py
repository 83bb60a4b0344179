"""Places where results cannot be written to."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from inturn.models.errors import InvalidInputError
from inturn.results.writing import ResultFiles
from tests.unit.finished_lines import BATCH, FinishedLines, completed, failed


def refused(why: str, output: Path, errors: Path | None = None) -> None:
    """Before anything is written, whatever the lines are."""
    with pytest.raises(InvalidInputError, match=why):
        ResultFiles(BATCH, FinishedLines(completed(1), failed(2)), output, errors)


def test_a_directory_is_refused(tmp_path: Path):
    refused(rf"{re.escape(str(tmp_path))} is a directory: name a file in it", tmp_path)
    refused("is a directory", tmp_path / "out", tmp_path)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path):
    refused(
        r"cannot write .*out \(No such file or directory\): name a file .* in a directory", tmp_path / "none" / "out"
    )
    refused("No such file or directory", tmp_path / "out", tmp_path / "none" / "errors")
    assert list(tmp_path.iterdir()) == [], "nothing is made if one of them cannot be written"


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "file").touch()
    refused("Not a directory", tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_what_is_no_name_is_refused(name: str, tmp_path: Path):
    refused("name too long|is no path", tmp_path / name)


def test_a_link_in_a_circle_is_refused(tmp_path: Path):
    (tmp_path / "out").symlink_to(tmp_path / "out")
    refused("symbolic links", tmp_path / "out")


@pytest.mark.parametrize("name", ["out", "./out", "link", "twin"])
def test_one_file_for_both_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("out").touch()
    Path("link").symlink_to("out")
    Path("twin").hardlink_to("out")
    refused("out cannot take both the results and the errors", tmp_path / "out", Path(name))


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A directory in which this process may not write, with a file that it may not either."""
    (tmp_path / "there").touch(0o400)
    tmp_path.chmod(0o500)
    mine = os.geteuid()
    if mine == 0:  # root may everything
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(mine)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["new", "there"])
def test_a_place_without_permission_is_refused(name: str, locked: Path):
    refused(r"cannot write .* \(Permission denied\)", locked / name)
    refused("Permission denied", Path(os.devnull), locked / name)
