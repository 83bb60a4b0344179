"""Which line goes into which file, and how a second run goes on."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from inturn.models.errors import InturnError, InvalidInputError, ResultsError
from inturn.models.states import TurnState
from inturn.models.store.lines import LineResult
from inturn.results.following import follow
from inturn.results.writing import Counts, ResultFiles
from tests.unit.finished_lines import BATCH, FinishedLines, completed, custom_ids, entries, failed, invalid

FORMS = pytest.mark.parametrize("short", [False, True], ids=["long", "short"])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    return tmp_path / "out.errors.jsonl"


def write(batch: FinishedLines, output: Path | BinaryIO, errors: Path | None = None, **how: bool) -> Counts:
    with ResultFiles(BATCH, batch, output, errors, **how) as files:
        files.write(batch.results.values())
        return files.finish(len(batch.results))


def put(text: bytes | str, path: Path) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_code_for_openais_files_reads_ours(output: Path, errors: Path):
    """Written down as one does it with their documentation at hand."""
    batch = FinishedLines(
        completed(1), failed(2), completed(3, input_tokens=None), failed(4, "timeout", None), invalid(6)
    )
    write(batch, output)
    replies, tokens = {}, 0
    for line in output.read_text().splitlines():
        result = json.loads(line)
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        body = result["response"]["body"]
        replies[result["custom_id"]] = body["choices"][0]["message"]["content"]
        tokens += body["usage"]["total_tokens"]
    assert replies == {"request-1": "reply 1", "request-3": "reply 3"}
    assert tokens == 20 + 3 + 3
    problems = {}
    for line in errors.read_text().splitlines():
        result = json.loads(line)
        error = result["error"] or result["response"]["body"]["error"]
        problems[result["custom_id"]] = error["code"]
    assert problems == {"request-2": "invalid_request", "request-4": "request_timeout", "request-6": "missing_field"}


@FORMS
def test_completed_lines_go_to_the_output_and_all_others_to_the_errors(short: bool, output: Path, errors: Path):
    cancelled = failed(3, "batch_cancelled", None, state=TurnState.CANCELLED)
    batch = FinishedLines(completed(1), failed(2), cancelled, completed(4), invalid(9))
    assert write(batch, output, short=short) == Counts(2, 3)
    assert custom_ids(output) == ["request-1", "request-4"]
    assert custom_ids(errors) == ["request-2", "request-3", "request-9"]


def test_the_error_file_is_made_when_it_is_needed(output: Path, errors: Path):
    write(FinishedLines(completed(1)), output)
    assert output.exists()
    assert not errors.exists()


def test_the_error_file_can_be_named(output: Path, errors: Path, tmp_path: Path):
    write(FinishedLines(failed(1)), output, tmp_path / "bad")
    assert custom_ids(tmp_path / "bad") == ["request-1"]
    assert not errors.exists()


@pytest.mark.parametrize(
    ("name", "beside"), [("out.jsonl", "out.errors.jsonl"), ("out", "out.errors"), ("a.b.json", "a.b.errors.json")]
)
def test_the_error_file_is_beside_the_output(name: str, beside: str, tmp_path: Path):
    write(FinishedLines(failed(1)), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((name, beside))


@FORMS
def test_lines_that_come_again_are_written_once(short: bool, output: Path, errors: Path):
    batch = FinishedLines(completed(1), failed(2))
    with ResultFiles(BATCH, batch, output, short=short) as files:
        for _ in range(3):
            assert files.write(batch.results.values()) == Counts(1, 1)
        files.finish(2)
    assert write(batch, output, short=short) == Counts(1, 1)
    assert (custom_ids(output), custom_ids(errors)) == (["request-1"], ["request-2"])


@FORMS
def test_a_second_run_adds_what_is_missing_and_leaves_the_rest_alone(short: bool, output: Path, errors: Path):
    batch = FinishedLines(completed(1), failed(2))
    write(batch, output, short=short)
    before = output.read_bytes(), errors.read_bytes()
    batch.finish(completed(3))
    batch.finish(failed(4))
    assert write(batch, output, short=short) == Counts(2, 2)
    assert output.read_bytes().startswith(before[0])
    assert errors.read_bytes().startswith(before[1])
    assert (custom_ids(output), custom_ids(errors)) == (["request-1", "request-3"], ["request-2", "request-4"])


def test_an_empty_file_is_written_into(output: Path):
    write(FinishedLines(completed(1)), put("", output))
    assert custom_ids(output) == ["request-1"]


@FORMS
@pytest.mark.parametrize("missing", [1, 2, 30])
def test_a_half_written_line_is_written_anew(missing: int, short: bool, output: Path):
    """One that lacks only its line feed is whole."""
    batch = FinishedLines(completed(1), completed(2))
    write(batch, output, short=short)
    whole = output.read_bytes()
    os.truncate(output, len(whole) - missing)
    write(batch, output, short=short)
    assert output.read_bytes() == whole


@FORMS
def test_a_retried_line_moves_from_the_errors_to_the_output(short: bool, output: Path, errors: Path):
    batch = FinishedLines(failed(1), completed(2), failed(3), failed(4))
    write(batch, output, short=short)
    errors.chmod(0o640)
    batch.finish(completed(1, turn_id="1.2"))
    batch.finish(failed(3, "dns", None, turn_id="3.2"))
    assert write(batch, output, short=short) == Counts(2, 2)
    assert (custom_ids(output), custom_ids(errors)) == (["request-2", "request-1"], ["request-4", "request-3"])
    assert "attempts_exhausted" in errors.read_text()
    assert errors.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


@FORMS
def test_a_line_that_waits_for_its_retry_is_in_no_file(short: bool, output: Path, errors: Path):
    batch = FinishedLines(failed(1), completed(2))
    write(batch, output, short=short)
    batch.finish(failed(1, turn_id="1.2"))
    with ResultFiles(BATCH, batch, output, short=short) as files:
        assert files.counts == Counts(1, 0)
        with pytest.raises(ResultsError, match=f"1 of the 2 lines of {BATCH} are in its result files: run the same"):
            files.finish(2)
    assert errors.read_bytes() == b""


@FORMS
def test_a_line_that_is_retried_while_it_is_followed_moves_as_well(short: bool, output: Path, errors: Path):
    batch = FinishedLines(failed(1), failed(2))
    with ResultFiles(BATCH, batch, output, short=short) as files:
        files.write(batch.results.values())
        batch.finish(completed(1, turn_id="1.2"))
        assert files.write(batch.results.values()) == Counts(1, 1)
        files.finish(2)
    assert (custom_ids(output), custom_ids(errors)) == (["request-1"], ["request-2"])


@FORMS
def test_what_is_in_both_files_leaves_the_errors(short: bool, output: Path, errors: Path):
    """Its move was broken off."""
    batch = FinishedLines(failed(1))
    write(batch, output, short=short)
    batch.finish(completed(1, turn_id="1.1"))
    with ResultFiles(BATCH, batch, output, short=short) as files:
        files.write(batch.results.values())  # and no finish
    assert (custom_ids(output), custom_ids(errors)) == (["request-1"], ["request-1"])
    assert write(batch, output, short=short) == Counts(1, 0)
    assert (custom_ids(output), custom_ids(errors)) == (["request-1"], [])


@FORMS
def test_what_is_written_stays_when_its_session_is_deleted(short: bool, output: Path, errors: Path):
    """As ``--discard`` does it: the files know more than the database."""
    batch = FinishedLines(completed(1), failed(2))
    write(batch, output, short=short)
    before = output.read_bytes(), errors.read_bytes()
    for line in (1, 2):
        batch.finish(invalid(line, "session_deleted"))
    assert write(batch, output, short=short) == Counts(1, 1)
    assert (output.read_bytes(), errors.read_bytes()) == before


@FORMS
def test_invalid_lines_that_share_a_custom_id_are_told_apart(short: bool, output: Path, errors: Path):
    one, other = invalid(2, custom_id="request-1"), invalid(3, custom_id="request-1")
    write(FinishedLines(completed(1), other), output, short=short)
    assert write(FinishedLines(completed(1), one, other), output, short=short) == Counts(1, 2)
    assert "line 2 is" in errors.read_text()


def test_both_files_are_compared_with_the_database_in_chunks(output: Path):
    batch = FinishedLines(*map(completed, range(1, 2302)), *map(failed, range(3000, 4001)))
    write(batch, output, short=True)
    batch.asked.clear()
    write(batch, output, short=True)
    assert batch.asked == [1000, 1000, 301, 1000, 1]


def test_a_link_is_followed(output: Path, errors: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    errors.symlink_to(tmp_path / "elsewhere" / "bad")
    batch = FinishedLines(failed(1), failed(2))
    write(batch, output)
    batch.finish(completed(1, turn_id="1.2"))
    write(batch, output)
    assert errors.is_symlink()
    assert custom_ids(tmp_path / "elsewhere" / "bad") == ["request-2"]


FOREIGN = [
    "notes of mine",
    "notes of mine\n",
    '{"custom_id":"request-1","session":"s","prompt":"one line of a submitted file"}',
    '{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n',
    '{"custom_id":"request-1","method":"POST","url":"/v1/chat/comp',
    "\0" * 100,
    "\n",
]


@FORMS
@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("which", ["output", "errors"])
def test_a_file_of_somebody_elses_is_refused_and_left_alone(
    which: str, text: str, short: bool, output: Path, errors: Path
):
    path = put(text, output if which == "output" else errors)
    batch = FinishedLines(completed(1), failed(2))
    with pytest.raises(
        InvalidInputError, match=rf"{path.name} is there, and .*line 1 of it is.*overwrite it with --force"
    ):
        write(batch, output, short=short)
    assert path.read_text() == text
    assert write(batch, output, short=short, force=True) == Counts(1, 1)
    assert (custom_ids(output), custom_ids(errors)) == (["request-1"], ["request-2"])


@FORMS
def test_a_file_of_another_batch_or_form_is_refused(short: bool, output: Path, errors: Path):
    batch = FinishedLines(completed(1), failed(2))
    with ResultFiles("batch-fedcba9876543210", batch, output, errors, short=short) as files:
        files.write([completed(10, custom_id="theirs"), failed(2, custom_id="theirs")])
    before = output.read_bytes(), errors.read_bytes()
    for other in (short, not short):
        with pytest.raises(InvalidInputError, match="overwrite it with --force"):
            write(batch, output, short=other)
        with pytest.raises(InvalidInputError, match="overwrite it with --force"):
            write(batch, output.with_name("new"), errors, short=other)
    assert (output.read_bytes(), errors.read_bytes()) == before


@FORMS
def test_files_that_were_mixed_up_are_refused(short: bool, output: Path, errors: Path):
    batch = FinishedLines(completed(1), failed(2))
    write(batch, output, short=short)
    with pytest.raises(InvalidInputError, match="line 1 of it is a failed one"):
        write(batch, errors, short=short)
    with pytest.raises(InvalidInputError, match="line 1 of it is a completed one"):
        write(batch, output.with_name("new"), output, short=short)


@FORMS
def test_force_goes_on_with_what_is_the_batchs_own(short: bool, output: Path, errors: Path):
    """Sessions may be gone by then, and their replies with them."""
    write(FinishedLines(completed(1)), output, short=short)
    put("notes of mine", errors)
    batch = FinishedLines(invalid(1, "session_deleted"), failed(2))
    batch.results[1] = completed(1, reply="other")
    write(batch, output, short=short, force=True)
    assert "reply 1" in output.read_text()
    assert custom_ids(errors) == ["request-2"]


def test_a_line_that_is_there_twice_is_left_once(output: Path):
    batch = FinishedLines(completed(1), completed(2))
    write(batch, output)
    put(output.read_bytes() * 2, output)
    assert write(batch, output) == Counts(2, 0)
    assert custom_ids(output) == ["request-1", "request-2"]


@FORMS
def test_a_stream_takes_all_lines(short: bool):
    stream = io.BytesIO()
    batch = FinishedLines(completed(1), failed(2))
    with ResultFiles(BATCH, batch, stream, short=short) as files:
        files.write(batch.results.values())
        batch.finish(completed(2, turn_id="2.2"))  # too late: it is out
        files.write(batch.results.values())
        assert files.finish(2) == Counts(1, 1)
    assert [json.loads(line)["custom_id"] for line in stream.getvalue().splitlines()] == ["request-1", "request-2"]


def test_errors_beside_a_stream_go_into_a_file_that_is_named(errors: Path):
    stream = io.BytesIO()
    batch = FinishedLines(completed(1), failed(2))
    for _ in range(2):
        write(batch, stream, errors)
    assert len(stream.getvalue().splitlines()) == 2, "a stream begins anew with each run"
    assert custom_ids(errors) == ["request-2"]


def test_a_pipe_is_a_stream(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write(FinishedLines(completed(1), failed(2)), pipe)
        text, _ = reader.communicate(timeout=60)
    assert len(text.splitlines()) == 2


def test_a_reader_who_went_away_is_no_failure_of_the_disk():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream, pytest.raises(BrokenPipeError):
        write(FinishedLines(completed(1)), stream)


def test_two_runs_do_not_write_the_same_file(output: Path, errors: Path):
    batch = FinishedLines(completed(1), failed(2))
    with ResultFiles(BATCH, batch, output) as files:
        files.write(batch.results.values())
        with pytest.raises(ResultsError, match=r"another process writes .*out\.jsonl at this moment"):
            ResultFiles(BATCH, batch, output)
        with pytest.raises(ResultsError, match=r"another process writes .*out\.errors\.jsonl"):
            ResultFiles(BATCH, batch, output.with_name("new"), errors)
        files.finish(2)
    assert write(batch, output) == Counts(1, 1)


def test_a_file_that_was_rewritten_is_locked_all_the_same(output: Path, errors: Path):
    batch = FinishedLines(failed(1), failed(2))
    write(batch, output)
    batch.finish(completed(1, turn_id="1.2"))
    with (
        ResultFiles(BATCH, batch, output),
        pytest.raises(ResultsError, match="another process writes"),
    ):
        ResultFiles(BATCH, batch, output.with_name("new"), errors)


def test_a_file_that_is_removed_or_changed_meanwhile_is_noticed(output: Path):
    batch = FinishedLines(completed(1))
    for change in (output.unlink, lambda: os.truncate(output, 3), lambda: put("other", output)):
        with ResultFiles(BATCH, batch, output, force=True) as files:
            files.write(batch.results.values())
            change()
            with pytest.raises(ResultsError, match="was removed or changed by somebody else"):
                files.finish(1)
    assert write(batch, output, force=True) == Counts(1, 0)


def test_what_the_database_refuses_is_not_blamed_on_the_disk(output: Path):
    """A timeout is an OSError to Python."""

    def results():
        yield completed(1)
        raise SlowDatabaseError

    with pytest.raises(SlowDatabaseError), ResultFiles(BATCH, FinishedLines(completed(1)), output) as files:
        files.write(results())
    assert custom_ids(output) == ["request-1"]


class SlowDatabaseError(InturnError, TimeoutError):
    pass


class Running(FinishedLines):
    """A batch that ends in the third look at it, and tells of a line late."""

    def __init__(self) -> None:
        super().__init__(completed(1), failed(2), completed(3), completed(4))
        self.looks: list[bool | None] = []

    def total_once_final(self) -> int | None:
        return 4 if len(self.looks) >= 2 else None

    def new(self, *, is_final: bool) -> Iterator[Sequence[LineResult]]:
        self.looks.append(is_final)
        yield list(self.results.values())[1 : len(self.looks) + 1]
        yield []

    def all(self) -> Iterator[Sequence[LineResult]]:
        self.looks.append(None)
        yield list(self.results.values())


def test_a_running_batch_is_followed_to_its_end(output: Path, errors: Path):
    batch, waits = Running(), []
    with ResultFiles(BATCH, batch, output) as files:
        assert follow(batch, files, lambda counts: waits.append((counts, len(custom_ids(output))))) == Counts(3, 1)
    assert waits == [(Counts(0, 1), 0), (Counts(1, 1), 1)], "what there is is written before anybody waits"
    assert custom_ids(output) == ["request-3", "request-4", "request-1"]
    assert batch.looks == [False, False, True, None], "a line is missing: all are looked at again"


@pytest.mark.parametrize("share", [1.0, 0.5, 0.001])
def test_what_is_interrupted_is_not_written_twice(share: float, output: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C is raised when the system has written, and before anybody learns how much."""
    batch, real = FinishedLines(*map(completed, range(1, 21))), os.write

    def interrupted(fd: int, data: memoryview) -> int:
        monkeypatch.undo()
        real(fd, data[: int(len(data) * share)])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(batch, output)
    assert custom_ids(output) == list(map("request-{}".format, range(1, 21))), "the rest is written on the way out"


FULL = """
import resource, sys
from pathlib import Path
from inturn.models.errors import ResultsError
from inturn.results.writing import ResultFiles
from tests.unit.finished_lines import BATCH, FinishedLines, completed

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
batch = FinishedLines(*map(completed, range(1, 301)))
try:
    with ResultFiles(BATCH, batch, Path(sys.argv[1])) as files:
        files.write(batch.results.values())
except ResultsError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_loses_nothing(output: Path):
    """A real refusal of the system's, in the middle of a line."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, output], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    written = output.read_bytes()
    assert written.endswith(b"\n")
    assert 49_000 < len(written) <= 50_000
    assert f"{len(entries(output))} lines are in the files, and nothing is lost: raise" in done.stdout
    batch = FinishedLines(*map(completed, range(1, 301)))
    assert write(batch, output) == Counts(300, 0)
    assert output.read_bytes().startswith(written)
    assert len(set(custom_ids(output))) == 300


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@FORMS
def test_a_full_disk_loses_nothing(short: bool, small_disk: Path):
    output = small_disk / "out.jsonl"
    ballast = put(b"x" * 20_000, small_disk / "ballast")
    batch = FinishedLines(*(completed(line, reply="a" * 300) for line in range(1, 41)), *map(failed, range(41, 61)))
    with pytest.raises(ResultsError, match=r"No space left on device\)\. \d+ lines are in .*: make room"):
        write(FinishedLines(*(completed(line, reply="a" * 1500) for line in range(1, 100))), output, short=short)
    output.unlink()
    with ResultFiles(BATCH, batch, output, short=short) as files:
        put(b"x" * 52_000, ballast)
        with pytest.raises(ResultsError) as refused:
            files.write(batch.results.values())
        written = len(entries(output)) + len(entries(small_disk / "out.errors.jsonl"))
        assert 0 < written < 60
        assert f" {written} lines are in the files" in str(refused.value)
        ballast.unlink()
        files.write(batch.results.values())  # in the same run
        assert files.finish(60) == Counts(40, 20)
    assert write(batch, output, short=short) == Counts(40, 20)
    assert len(set(custom_ids(output) + custom_ids(small_disk / "out.errors.jsonl"))) == 60


def test_an_error_file_that_cannot_be_rewritten_stays_as_it_is(small_disk: Path):
    output, errors = small_disk / "out.jsonl", small_disk / "out.errors.jsonl"
    batch = FinishedLines(*(failed(line, error_message="a" * 300) for line in range(1, 61)))
    write(batch, output)
    before = errors.read_bytes()
    batch.finish(completed(1, turn_id="1.2"))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        put(b"x" * 64_000, ballast)
    with pytest.raises(ResultsError, match="make room"):
        write(batch, output)
    assert errors.read_bytes() == before
    ballast.unlink()
    assert write(batch, output) == Counts(1, 59)
    assert sorted(path.name for path in small_disk.iterdir()) == ["out.errors.jsonl", "out.jsonl"]
