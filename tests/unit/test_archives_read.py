"""Reading archives: gzip of any number of members, plain lines, one object; and what is said of one that is damaged."""

import gzip
import io
import json
import re
from collections.abc import Callable

import pytest

from inturn.archives.reading import ArchiveFile
from inturn.models.errors import InvalidInputError
from tests.unit.archived import lines

ONE, TWO = b"".join(lines("a", "one", "two")), b"".join(lines("b", "three"))
"""Lines 1 to 4, and 5 to 7."""


def read(content: bytes, name: str = "x.jsonl.gz") -> list[tuple[int, str, list[str]]]:
    return [
        (found.line, found.session_id, [turn["messages"][0]["content"] for turn in found.transcript.turns()])
        for found in ArchiveFile(io.BytesIO(content), name).sessions()
    ]


WHOLE = [(1, "a", ["one", "two"]), (5, "b", ["three"])]


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(ONE + TWO),
        gzip.compress(ONE) + gzip.compress(TWO),
        gzip.compress(ONE + TWO[:100]) + gzip.compress(TWO[100:]),
        ONE + TWO,
    ],
    ids=["one member", "two members", "members that end anywhere", "plain lines"],
)
def test_all_that_is_in_it_is_read(content: bytes):
    assert read(content) == WHOLE


def test_only_what_begins_at_some_lines():
    archive = ArchiveFile(io.BytesIO(gzip.compress(ONE + TWO)), "x")
    assert [found.session_id for found in archive.sessions({5})] == ["b"]


def test_one_that_is_an_object():
    head, turn, _ = map(json.loads, TWO.splitlines())
    assert read(json.dumps(head | {"turns": [turn]}).encode()) == [(1, "b", ["three"])]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


LINES = ONE.splitlines(keepends=True)
DAMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a changed word": (
        lambda: gzip.compress(ONE + TWO.replace(b"three", b"threw")),
        "x.jsonl.gz, session 'b', line 7: the lines before it are not those that were written",
    ),
    "a changed word in plain lines": (lambda: ONE.replace(b"two", b"too") + TWO, "session 'a', line 4: the lines before"),
    "a turn that is missing": (lambda: gzip.compress(LINES[0] + LINES[2] + LINES[3]), "session 'a', line 2: turn 2 follows"),
    "an end that is missing": (lambda: gzip.compress(b"".join(LINES[:-1]) + TWO), "session 'a', line 4: another session"),
    "a beginning that is missing": (lambda: gzip.compress(ONE + TWO.split(b"\n", 1)[1]), "x.jsonl.gz, line 5: "),
    "a beginning that is none": (lambda: gzip.compress(ONE + TWO.replace(b'"version":1', b'"version":9')), "'b', line 5: v"),
    "something behind it": (lambda: gzip.compress(ONE + b"and more\n"), "x.jsonl.gz, line 5: the file ends here"),
    "cut off": (lambda: gzip.compress(ONE + TWO)[:-20], r"line \d: the file ends here, in the middle of what gzip wrote"),
    "cut off between lines": (lambda: gzip.compress(ONE + TWO[:-200]), r"session 'b', line \d: the file ends here, and its"),
    "plain lines cut off": (lambda: ONE + TWO[:-200], r"session 'b', line \d: the file ends here, and its last"),
    "a damaged checksum of gzip": (lambda: flipped(gzip.compress(ONE + TWO), -8), "line 8: it is damaged: gzip says CRC"),
    "what is no gzip behind it": (lambda: gzip.compress(ONE) + b"and more", "line 5: it is damaged: gzip says Not a gzip"),
    "nothing": (lambda: gzip.compress(b""), "x.jsonl.gz is empty"),
    "no byte": (lambda: b"", "it is no transcript"),
    "something else": (lambda: b"[1, 2]", "it is no transcript"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_place(damage: str):
    spoil, sentence = DAMAGES[damage]
    with pytest.raises(InvalidInputError, match=re.escape(sentence) if "\\" not in sentence else sentence) as refused:
        read(spoil())
    assert damage in ("no byte", "something else") or str(refused.value).endswith("Nothing was imported")


def test_no_flipped_bit_is_overlooked():
    content = gzip.compress(ONE) + gzip.compress(TWO)
    for place in range(10, len(gzip.compress(ONE)), 7):  # behind gzip's header
        with pytest.raises(InvalidInputError, match=r"x\.jsonl\.gz.*, line \d"):
            read(flipped(content, place))


def test_a_partial_one_is_read_as_far_as_it_is_whole():
    synced, content = len(gzip.compress(ONE)), gzip.compress(ONE) + gzip.compress(TWO)
    for size in range(synced, len(content)):
        assert read(content[:size], "x.jsonl.gz.partial")[:1] == WHOLE[:1]
    assert read(content[:synced] + bytes(500), "x.jsonl.gz.partial") == WHOLE[:1]
    assert read(content[:synced] + b"\x1f", "x.jsonl.gz.partial") == WHOLE[:1]
    assert read(content, "x.jsonl.gz.partial") == WHOLE
    assert read(b"", "x.jsonl.gz.partial") == []
    with pytest.raises(InvalidInputError):
        read(content[: synced + 100])


THREE = b"".join(lines("c", "four"))


@pytest.mark.parametrize("place", [0, 1, 2, 60, -12, -6, -2])
def test_damage_within_a_partial_one_is_no_end_of_it(place: int):
    """Whole members come behind: it was synced, and its sessions were removed."""
    members = [gzip.compress(each) for each in (ONE, TWO, THREE)]
    for damaged in (0, 1):
        spoilt = [*members[:damaged], flipped(members[damaged], place), *members[damaged + 1 :]]
        begins = len(b"".join(members[:damaged]))
        with pytest.raises(InvalidInputError, match=r"line \d: .*Nothing was imported") as refused:
            read(b"".join(spoilt), "x.partial")
        (note,) = refused.value.__notes__
        assert note.startswith("sessions follow that were written whole")
        assert (f"`head -c {begins}`" in note) == (damaged > 0)
        assert read(b"".join(spoilt)[:begins], "x.partial") == WHOLE[:damaged]
    assert read(b"".join([*members[:2], flipped(members[2], place)]), "x.partial")[:2] == WHOLE, "nobody can tell"


def test_what_is_wrong_in_the_whole_part_of_a_partial_one_is_no_end_of_it():
    wrong = gzip.compress(ONE.replace(b"two", b"too"))
    with pytest.raises(InvalidInputError, match="session 'a', line 4: the lines before") as refused:
        read(wrong + gzip.compress(TWO)[:-20], "x.partial")
    assert not hasattr(refused.value, "__notes__")
    assert read(gzip.compress(TWO) + wrong[:-1], "x.partial") == [(1, "b", ["three"])]


def test_a_partial_one_says_where_it_ends():
    """What came behind had not been synced, as far as anybody can tell."""
    content = gzip.compress(ONE) + gzip.compress(TWO)
    for cut, line in ((len(content), None), (-1, 8), (-30, r"\d"), (len(gzip.compress(ONE)) + 3, 5)):
        archive = ArchiveFile(io.BytesIO(content[:cut]), "x.partial")
        list(archive.sessions())
        if line is None:
            assert archive.cut_off is None
        else:
            assert re.match(rf"x.partial is cut off at line {line}: ", archive.cut_off or "")
