"""Places where results cannot be written to."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from inturn.models.errors import InvalidInputError
from inturn.results.writing import ResultFiles
from tests.unit.finished_lines import BATCH, FinishedLines, completed, failed


def refusal(output: Path, errors: Path | None = None) -> str:
    """What is said before anything is written, whatever the lines are."""
    with pytest.raises(InvalidInputError) as caught:
        ResultFiles(BATCH, FinishedLines(completed(1), failed(2)), output, errors)
    return str(caught.value)


def test_a_directory_is_refused(tmp_path: Path):
    assert f"{tmp_path} is a directory: name a file in it" in refusal(tmp_path)
    assert "is a directory" in refusal(tmp_path / "out", tmp_path)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path):
    wanted = r"cannot write .*out \(No such file or directory\): name a file .* in a directory"
    assert re.search(wanted, refusal(tmp_path / "none" / "out"))
    assert "No such file or directory" in refusal(tmp_path / "out", tmp_path / "none" / "errors")
    assert list(tmp_path.iterdir()) == [], "nothing is made if one of them cannot be written"


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_what_is_no_name_is_refused(name: str, tmp_path: Path):
    assert re.search("name too long|is no path", refusal(tmp_path / name))


def test_a_link_in_a_circle_is_refused(tmp_path: Path):
    (tmp_path / "out").symlink_to(tmp_path / "out")
    assert "symbolic links" in refusal(tmp_path / "out")


@pytest.mark.parametrize("name", ["out", "./out", "link", "twin"])
def test_one_file_for_both_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("out").touch()
    Path("link").symlink_to("out")
    Path("twin").hardlink_to("out")
    assert "out cannot take both the results and the errors" in refusal(tmp_path / "out", Path(name))


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
    assert re.search(r"cannot write .* \(Permission denied\)", refusal(locked / name))
    assert "Permission denied" in refusal(Path(os.devnull), locked / name)
