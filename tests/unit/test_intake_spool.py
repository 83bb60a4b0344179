"""Checked lines in their file, and the custom IDs among them."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inturn.intake import Spool, take_in
from inturn.intake.custom_ids import CustomIds
from inturn.intake.spool import STRIDE
from inturn.models.errors import InturnError
from inturn.models.states import Role
from inturn.models.store.lines import BadLine, Line, Utterance

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SAID = TEXT.filter(str.strip)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OPTIONS = st.dictionaries(TEXT.map("x{}".format), JSON, max_size=3)
PART = st.builds(lambda text: {"type": "text", "text": text}, SAID)
PROMPTS = st.tuples(SAID, st.none()) | st.lists(PART, min_size=1, max_size=3).map(
    lambda parts: ("\n".join(part["text"] for part in parts), {"parts": parts})
)


def utterances(*roles: Role) -> st.SearchStrategy[tuple[Utterance, ...]]:
    data = st.none() | st.fixed_dictionaries({"name": SAID})
    return st.lists(st.builds(Utterance, st.sampled_from(roles), TEXT, data), max_size=3).map(tuple)


@st.composite
def lines(draw: st.DrawFn) -> list[Line]:
    """Lines as a file may say them; some have custom IDs, and numbers are left out."""
    found = list[Line]()
    for number in range(1, draw(st.integers(1, 12)) + 1):
        custom_id = draw(st.just(str(number)) | SAID.map(f"{number}: {{}}".format))
        prompt, data = draw(PROMPTS)
        shared: dict[str, Any] = {
            "model": draw(st.none() | st.just("echo/x")),
            "system": draw(st.none() | SAID),
            "options": draw(OPTIONS),
        }
        if draw(st.booleans()):
            more: dict[str, Any] = {
                "session": draw(st.none() | st.just("user-1")),
                "labels": draw(st.dictionaries(TEXT, TEXT, max_size=2)),
            }
        else:
            history = draw(utterances(*Role).filter(lambda said: not said or said[0].role != Role.SYSTEM))
            more = {"history": history, "follows": draw(utterances(Role.ASSISTANT, Role.TOOL, Role.SYSTEM))}
        found.append(Line(number, custom_id, prompt, data, **shared, **more))
    return found


def content(text: str, data: dict[str, Any] | None) -> Any:
    return (data or {}).get("parts", text)


def message(said: Utterance) -> dict[str, Any]:
    return {"role": said.role, "content": said.content, **(said.data or {})}


def as_written(line: Line) -> dict[str, Any]:
    """The line's JSON: in the short form if that can say it."""
    named = {} if line.custom_id == str(line.line) else {"custom_id": line.custom_id}
    if not line.history and not line.follows:
        fields = {"session": line.session, "model": line.model, "system": line.system}
        there = {name: value for name, value in fields.items() if value is not None}
        said = {"prompt": content(line.prompt, line.data)}
        return {**named, **said, **there, "options": dict(line.options), "labels": dict(line.labels)}
    system = [] if line.system is None else [{"role": "system", "content": line.system}]
    prompt = {"role": "user", "content": content(line.prompt, line.data)}
    messages = [*system, *map(message, line.history), prompt, *map(message, line.follows)]
    return {**named, "body": {"model": line.model, "messages": messages, **line.options}}


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(lines(), st.booleans(), st.integers(0, 13))
def test_lines_come_back_as_they_were_written(tmp_path: Path, wanted: list[Line], ascii_only: bool, after: int) -> None:
    path = tmp_path / "lines.jsonl"
    written = (json.dumps(as_written(line), ensure_ascii=ascii_only) for line in wanted)
    path.write_bytes("\n".join(written).encode())
    with take_in(path, directory=tmp_path, check_model=str) as intake:
        assert list(intake.spool.lines()) == wanted
        assert list(intake.spool.lines(after)) == wanted[after:]
    with take_in(map(as_written, wanted), directory=tmp_path, check_model=str) as intake:
        assert list(intake.spool.lines()) == wanted


def numbered(count: int) -> Iterator[Line | BadLine]:
    for number in range(1, count + 1):
        yield (
            Line(number, f"id-{number}", "x" * (number % 50 + 1))
            if number % 3
            else BadLine(number, str(number), "missing_field", "no")
        )


def test_reading_begins_at_any_record(tmp_path: Path) -> None:
    wanted = list(numbered(3 * STRIDE + 1))
    with Spool(tmp_path) as spool:
        for line in wanted:
            spool.append(line)
        assert len(spool) == len(wanted)
        for after in (0, 1, STRIDE - 1, STRIDE, STRIDE + 1, 3 * STRIDE, 3 * STRIDE + 1, 3 * STRIDE + 2):
            assert list(spool.lines(after)) == wanted[after:]


def test_several_may_read_at_once(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for line in numbered(2_000):
            spool.append(line)
        for one, other in zip(spool.lines(), spool.lines(1), strict=False):
            assert one.line + 1 == other.line


def test_an_empty_spool_has_no_lines(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        assert list(spool.lines()) == []


def test_nobody_else_can_read_it_and_nothing_is_left(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append(Line(1, "1", "Hi"))
        assert list(spool.lines()) == [Line(1, "1", "Hi")]
        assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InturnError, match=r"kept in '.*/none' until they are stored.*No such file or directory"):
        Spool(tmp_path / "none")


def test_an_id_is_claimed_once_however_many_there_are(tmp_path: Path) -> None:
    count = 200_000  # so that the table grows twice
    with closing(CustomIds(tmp_path, lambda place: f"id-{place}")) as ids:
        assert all(ids.claim(f"id-{place}", place) is None for place in range(count))
        assert all(ids.claim(f"id-{place}", count) == place for place in range(0, count, 7))
        assert list(tmp_path.iterdir()) == []


class SameHash(str):
    __slots__ = ()

    def __hash__(self) -> int:
        return 2**61 - 2


def test_ids_of_one_hash_are_told_apart(tmp_path: Path) -> None:
    with closing(CustomIds(tmp_path, "abc".__getitem__)) as ids:
        assert [ids.claim(SameHash(custom_id), place) for place, custom_id in enumerate("abc")] == [None] * 3
        assert [ids.claim(SameHash(custom_id), 9) for custom_id in "cab"] == [2, 0, 1]
