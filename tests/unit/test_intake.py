"""Taking a batch in: from files, streams and lists, in constant memory, all of it or nothing."""

import gc
import io
import json
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inturn.intake import Intake, take_in
from inturn.intake.reading import LINE_LIMIT
from inturn.models.errors import InturnError, InvalidBatchError, InvalidInputError
from inturn.models.store.lines import BadLine, Line


def taken(source: Any, directory: Path, **how: Any) -> Intake:
    return take_in(source, **{"directory": directory, "check_model": str, **how})


def lines_of(source: Any, directory: Path, **how: Any) -> list[Line | BadLine]:
    with taken(source, directory, **how) as intake:
        found = list(intake.spool.lines())
        assert (intake.total, intake.bad) == (len(found), sum(isinstance(line, BadLine) for line in found))
        return found


def refusal_of(source: Any, directory: Path, **how: Any) -> InvalidBatchError:
    with pytest.raises(InvalidBatchError) as refused:
        taken(source, directory, **how)
    return refused.value


def prompts(*texts: str) -> list[Line]:
    return [Line(number, str(number), text) for number, text in enumerate(texts, 1)]


def test_a_file_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"custom_id": "x", "prompt": "b"}\n')
    told: list[tuple[int, int | None]] = []
    with taken(path, tmp_path, on_progress=lambda read, total: told.append((read, total))) as intake:
        assert list(intake.spool.lines()) == [Line(1, "1", "a"), Line(2, "x", "b")]
        assert (intake.total, intake.bad, intake.first_errors) == (2, 0, ())
        assert list(tmp_path.iterdir()) == [path]
    size = path.stat().st_size
    assert told[-1] == (size, size)


def test_both_forms_may_stand_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    body = {
        "model": "gpt-3.5-turbo-0125",
        "messages": [{"role": "user", "content": "Hello world!"}],
        "max_tokens": 1000,
    }
    chat = {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path.write_text(f'{json.dumps(chat)}\n{{"prompt": "b"}}')
    assert lines_of(str(path), tmp_path) == [
        Line(1, "request-1", "Hello world!", model="gpt-3.5-turbo-0125", options={"max_tokens": 1000}),
        Line(2, "2", "b"),
    ]


def test_bom_crlf_blank_lines_and_no_final_newline(tmp_path: Path) -> None:
    raw = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \t\n{"prompt": "b"}\n\n{"prompt": "c"}'
    assert [(line.line, line.custom_id) for line in lines_of(io.BytesIO(raw), tmp_path)] == [
        (1, "1"),
        (4, "4"),
        (6, "6"),
    ]


def test_plain_text(tmp_path: Path) -> None:
    raw = "\ufeffWhat is this?\r\n\n  indented\n{not JSON".encode()
    assert lines_of(io.BytesIO(raw), tmp_path, plain_text=True) == [
        Line(1, "1", "What is this?"),
        Line(3, "3", "  indented"),
        Line(4, "4", "{not JSON"),
    ]


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            for number in range(20_000):
                pipe.write(b'{"prompt": "%d"}\n' % number)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb") as pipe, taken(pipe, tmp_path) as intake:
        assert intake.total == 20_000
    writer.join()


def test_a_list_is_what_its_file_would_be(tmp_path: Path) -> None:
    chat = {"body": {"messages": [{"role": "user", "content": "c"}]}}
    items = ["a", {"prompt": "b", "options": {"top_p": 0.5, "stop": ("x",)}}, chat]
    assert lines_of(iter(items), tmp_path) == [
        Line(1, "1", "a"),
        Line(2, "2", "b", options={"top_p": 0.5, "stop": ["x"]}),
        Line(3, "3", "c"),
    ]
    assert lines_of(["a\ud800"], tmp_path) == prompts("a\ufffd")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_told_once(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "in.jsonl").write_bytes('{"prompt": "a"}\n{"prompt": "b"}\n'.encode(encoding))
    with pytest.raises(InvalidInputError, match=r"in\.jsonl looks like UTF-16: save it as UTF-8"):
        lines_of(tmp_path / "in.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("item", "code", "says"),
    [
        (5, "invalid_json_line", "the item is 5, an int"),
        (None, "invalid_json_line", "the item is None"),
        ({"prompt": "a", "options": {"x": float("nan")}}, "invalid_json_line", "not JSON compliant"),
        ({"prompt": "a", "options": {"x": {1}}}, "invalid_json_line", "set is not JSON serializable"),
        ({"prompt": "a", 5: 6, "x": 7}, "invalid_json_line", "cannot be written as JSON"),
        ({"prompt": ""}, "missing_field", "prompt is empty"),
        ("", "missing_field", "prompt is empty"),
    ],
)
def test_bad_items(item: object, code: str, says: str, tmp_path: Path) -> None:
    error = refusal_of(["good", item], tmp_path).errors[0]
    assert (error.line, error.code) == (2, code)
    assert says in error.message


def test_what_a_list_raises_is_passed_on(tmp_path: Path) -> None:
    def items() -> Iterator[str]:
        yield "a"
        raise OSError("the tape is torn")

    with pytest.raises(OSError, match="the tape is torn"):
        taken(items(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    def fingerprint(source: Any, **how: Any) -> str:
        with taken(source, tmp_path, **how) as intake:
            return intake.fingerprint

    path, raw = tmp_path / "in.jsonl", b'{"prompt": "a"}\n{"prompt": "b"}'
    path.write_bytes(raw)
    assert len(fingerprint(path)) == 64
    assert fingerprint(path) == fingerprint(io.BytesIO(raw))
    others = [raw + b"\n", raw[:-1] + b" }", raw[:15]]
    assert len({fingerprint(path), fingerprint(path, plain_text=True), *map(fingerprint, map(io.BytesIO, others))}) == 5
    written = {"custom_id": "x", "prompt": "a", "options": {"a": 1, "b": 2}}
    turned = {"options": {"b": 2, "a": 1}, "prompt": "a", "custom_id": "x"}
    assert fingerprint([written]) == fingerprint([turned])
    assert fingerprint(["a"]) == fingerprint([{"prompt": "a"}]) != fingerprint(["b"])
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint([5, "a"], skip_invalid=True) != fingerprint(["a"])


def test_bad_lines_are_listed_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n\n{\n{"prompt": "b"}\n{}\n')
    error = refusal_of(path, tmp_path)
    assert [(bad.line, bad.code) for bad in error.errors] == [(3, "invalid_json_line"), (5, "missing_field")]
    assert (error.count, error.total) == (2, 4)
    assert str(error).splitlines()[0] == (
        f"2 of 4 lines of {path} cannot be used, and nothing was stored: correct them, or skip them (--skip-invalid, "
        "skip_invalid=True)"
    )
    assert "\n  line 5: there is no prompt" in str(error)
    assert "more" not in str(error)


def test_of_10_000_bad_lines_the_first_20_are_told(tmp_path: Path) -> None:
    error = refusal_of(io.BytesIO(b'{"prompt": "a"}\n' + b"nonsense\n" * 10_000), tmp_path)
    assert [bad.line for bad in error.errors] == list(range(2, 22))
    assert (error.count, error.total) == (10_000, 10_001)
    assert str(error).endswith("\n  and 9,980 more")


def test_bad_lines_are_kept_where_they_are_skipped(tmp_path: Path) -> None:
    raw = b'{"prompt": "a"}\n{"custom_id": "x"}\n{"prompt": "b"}\n' + b"nonsense\n" * 30
    with taken(io.BytesIO(raw), tmp_path, skip_invalid=True) as intake:
        found = list(intake.spool.lines())
        assert (intake.total, intake.bad) == (33, 31)
        assert list(intake.first_errors) == [line for line in found if isinstance(line, BadLine)][:20]
    assert [(line.line, line.custom_id, isinstance(line, BadLine)) for line in found[:4]] == [
        (1, "1", False),
        (2, "x", True),
        (3, "3", False),
        (4, "4", True),
    ]


def test_there_has_to_be_a_good_line(tmp_path: Path) -> None:
    error = refusal_of(io.BytesIO(b"{}\n{}\n"), tmp_path, skip_invalid=True)
    assert (error.count, error.total) == (2, 2)
    assert "skip" not in str(error)


@pytest.mark.parametrize("source", [b"", b"\xef\xbb\xbf", b"\n \r\n\n"])
@pytest.mark.parametrize("plain_text", [False, True])
def test_there_has_to_be_a_line(source: bytes, plain_text: bool, tmp_path: Path) -> None:
    error = refusal_of(io.BytesIO(source), tmp_path, plain_text=plain_text, skip_invalid=True)
    assert [bad.code for bad in error.errors] == ["empty_file"]
    assert error.total == 0
    assert "holds no line that is not blank" in str(error)
    assert refusal_of([], tmp_path).errors[0].code == "empty_file"


def ids(*custom_ids: str | None) -> io.BytesIO:
    written = ({"prompt": "a"} | ({} if custom_id is None else {"custom_id": custom_id}) for custom_id in custom_ids)
    return io.BytesIO("\n".join(map(json.dumps, written)).encode())


@pytest.mark.parametrize(
    ("custom_ids", "repeats"),
    [
        (("a", "b", "a"), {3: 1}),
        (("a", "a", "a"), {2: 1, 3: 1}),
        (("3", None, None), {3: 1}),
        ((None, "x", "1"), {3: 1}),
        (("1", "2", None), {}),
        (("0", "1", "2"), {}),
        ((None, None, None), {}),
        (("a", "A", "a "), {}),
    ],
)
def test_a_custom_id_is_used_once(custom_ids: tuple[str | None, ...], repeats: dict[int, int], tmp_path: Path) -> None:
    found = lines_of(ids(*custom_ids), tmp_path, skip_invalid=True)
    bad = [line for line in found if isinstance(line, BadLine)]
    assert {line.line for line in bad} == set(repeats)
    for line in bad:
        assert (line.code, line.custom_id) == ("duplicate_custom_id", custom_ids[line.line - 1] or str(line.line))
        assert f"was used in line {repeats[line.line]} already" in line.message


def test_a_repetition_far_away_is_found(tmp_path: Path) -> None:
    error = refusal_of(ids(*(f"id-{number}" for number in range(100_000)), "id-7"), tmp_path)
    assert [(bad.line, bad.code) for bad in error.errors] == [(100_001, "duplicate_custom_id")]
    assert "'id-7' was used in line 8 already" in error.errors[0].message


def test_a_bad_line_takes_only_an_id_that_was_chosen_for_it(tmp_path: Path) -> None:
    bad, good = b'{"custom_id": "x"}\n', b'{"custom_id": "x", "prompt": "a"}\n'
    raw = b'{\n{"custom_id": "1", "prompt": "a"}\n' + bad + good + bad
    found = lines_of(io.BytesIO(raw), tmp_path, skip_invalid=True)
    assert [line.code if isinstance(line, BadLine) else "" for line in found] == [
        "invalid_json_line",
        "",
        "missing_field",
        "duplicate_custom_id",
        "missing_field",
    ]


def test_a_line_of_any_length_is_refused_without_being_held(tmp_path: Path) -> None:
    path, million = tmp_path / "in.jsonl", b"x" * 1_000_000
    with path.open("wb") as file:
        file.write(b'{"prompt": "a"}\n{"prompt": "')
        for _ in range(80):
            file.write(million)
        file.write(b'"}\n{"prompt": "b"}\n')
    with traced() as peak:
        found = lines_of(path, tmp_path, skip_invalid=True)
    assert peak[0] < 3 * LINE_LIMIT
    assert (found[0], found[2]) == (Line(1, "1", "a"), Line(3, "3", "b"))
    assert isinstance(found[1], BadLine)
    assert (found[1].line, found[1].code) == (2, "prompt_too_large")
    assert "the line has 80,000,015 bytes, and 16,777,216 (16 MiB) are the limit" in found[1].message


def test_a_line_of_10_mb_is_refused_for_its_prompt(tmp_path: Path) -> None:
    raw = b'{"prompt": "a"}\n{"custom_id": "big", "prompt": "' + b"x" * 10_000_000 + b'"}\n'
    error = refusal_of(io.BytesIO(raw), tmp_path).errors[0]
    assert (error.line, error.custom_id, error.code) == (2, "big", "prompt_too_large")
    assert "the prompt has 10,000,000 bytes, and 262,144 (256 KiB) are the limit" in error.message


@pytest.mark.parametrize("end", [b"\n", b""])
def test_the_longest_line_is_read(end: bytes, tmp_path: Path) -> None:
    start = b'{"prompt": "a", "options": {"x": "'
    fits = start + b"y" * (LINE_LIMIT - len(start) - 3) + b'"}}'
    assert len(fits) == LINE_LIMIT
    for raw, code in ((fits, None), (fits + b" ", "prompt_too_large")):
        last = lines_of(io.BytesIO(b'{"prompt": "b"}\n' + raw + end), tmp_path, skip_invalid=True)[1]
        assert getattr(last, "code", None) == code


def test_what_is_no_source(tmp_path: Path) -> None:
    for source in (5, b'{"prompt": "a"}', {"prompt": "a"}, None):
        with pytest.raises(InvalidInputError, match=f"this is a {type(source).__name__}"):
            taken(source, tmp_path)
    with pytest.raises(InvalidInputError, match="gives a str, not bytes: open it with mode 'rb'"):
        taken(io.StringIO("a"), tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"there is no file '.*none'"):
        taken(tmp_path / "none", tmp_path)
    with pytest.raises(InvalidInputError, match="is a directory: name a file in it"):
        taken(tmp_path, tmp_path)
    with pytest.raises(InvalidInputError, match="cannot be read: embedded null byte"):
        taken("a\0b", tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}')
    path.chmod(0)
    with as_nobody(), pytest.raises(InvalidInputError, match=r"you may not read '.*in\.jsonl'"):
        taken(path, tmp_path)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_stream_that_breaks_off(tmp_path: Path) -> None:
    with (
        Broken(os.open(tmp_path, os.O_RDONLY)) as stream,
        pytest.raises(InvalidInputError, match="could be read for 0 bytes only: Is a directory"),
    ):
        taken(stream, tmp_path)


class Broken(io.RawIOBase):
    """A stream whose reads the system refuses."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int = -1, /) -> bytes:
        return os.read(self._descriptor, size)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


@pytest.mark.parametrize("change", ["longer", "other", "shorter"])
def test_a_file_that_changes_while_it_is_read(change: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a", "model": "echo/x"}\n' * 10 + b"nonsense\n")

    def check_model(model: str) -> str:
        with path.open("ab" if change == "longer" else "r+b") as file:
            file.truncate(20) if change == "shorter" else file.write(b'{"prompt": "b"}\n')
        return model

    with pytest.raises(InvalidInputError, match="changed while it was read") as refused:
        taken(path, tmp_path, check_model=check_model)
    assert not isinstance(refused.value, InvalidBatchError)


def test_a_file_that_is_replaced_while_it_is_read_is_the_one_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a", "model": "echo/x"}\n')

    def check_model(model: str) -> str:
        (tmp_path / "other").write_bytes(b"nonsense")
        (tmp_path / "other").replace(path)
        return model

    assert lines_of(path, tmp_path, check_model=check_model) == [Line(1, "1", "a", model="echo/x")]


def test_a_model_is_asked_about_once(tmp_path: Path) -> None:
    asked: list[str] = []
    items = [{"prompt": "a", "model": f"echo/{number % 3}"} for number in range(300)]

    def check_model(model: str) -> str:
        asked.append(model)
        return model

    lines_of(items, tmp_path, check_model=check_model)
    assert sorted(asked) == ["echo/0", "echo/1", "echo/2"]


@pytest.mark.parametrize(
    ("room", "count", "width"),
    [
        pytest.param(1_000_000, 1, 6, id="for no table of custom IDs"),
        pytest.param(3_000_000, 100_000, 6, id="for no larger one"),
        pytest.param(3_000_000, 20_000, 200, id="for no more lines"),
        pytest.param(2_200_000, 10_300, 200, id="for the last lines not"),
    ],
)
def test_a_full_disk_is_named(room: int, count: int, width: int, tmp_path: Path) -> None:
    source = ids(*(f"{number:0{width}}" for number in range(count)))
    with files_no_larger_than(room), pytest.raises(InturnError, match="File too large") as refused:
        taken(source, tmp_path)
    assert f"kept in {str(tmp_path)!r}" in str(refused.value)
    assert "Make room" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses what is more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def traced() -> Iterator[list[int]]:
    """The most bytes that were in memory meanwhile, afterwards."""
    peak = [0]
    gc.collect()
    tracemalloc.start()
    try:
        yield peak
        peak[0] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TAKE_IN = """
import pathlib, resource, sys
from inturn.intake import take_in
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
with take_in(sys.argv[1], directory=pathlib.Path(sys.argv[2]), check_model=str) as intake:
    print(intake.total, sum(1 for _ in intake.spool.lines()), peak() - before)
"""


def test_memory_does_not_grow_with_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        file.writelines(
            f'{{"custom_id": "request-{number}", "prompt": "Review {number}"}}\n' for number in range(300_000)
        )
    done = subprocess.run(
        [sys.executable, "-c", TAKE_IN, path, tmp_path], check=True, capture_output=True, text=True, timeout=100
    )
    total, read_back, peak = map(int, done.stdout.split())
    assert total == read_back == 300_000
    assert peak < 30_000_000
