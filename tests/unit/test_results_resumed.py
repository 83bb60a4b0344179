"""However often the writing is broken off, whatever came of the lines meanwhile: each is in one file, once, as it is now."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inturn.models.store.lines import LineResult
from inturn.results.writing import Counts, ResultFiles
from tests.unit.finished_lines import BATCH, FinishedLines, completed, entries, failed, invalid

LINES = st.lists(st.integers(1, 3000), unique=True, min_size=1, max_size=12)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def ended(data: st.DataObject, line: int, turn_id: str) -> LineResult:
    found: LineResult = data.draw(
        st.one_of(
            st.builds(lambda text: completed(line, turn_id=turn_id, reply=text), TEXT),
            st.builds(lambda text: failed(line, turn_id=turn_id, error_message=text), TEXT),
            st.just(failed(line, "timeout", None, turn_id=turn_id)),
            st.just(invalid(line)),
        )
    )
    return found


def retry(data: st.DataObject, batch: FinishedLines) -> None:
    """Some failed lines get another turn, which is seen once it has ended."""
    tried = [result for result in batch.results.values() if result.turn_id and result.reply is None]
    for result in data.draw(st.lists(st.sampled_from(tried), unique_by=lambda result: result.line)) if tried else []:
        session, number = (result.turn_id or "").split(".")
        turn_id = f"{session}.{int(number) + 1}"
        batch.finish(data.draw(st.sampled_from([completed, failed]))(result.line, turn_id=turn_id))


def tear(data: st.DataObject, path: Path) -> None:
    """As a crash does: what had not got to the disk is gone, from any byte on."""
    if path.exists():
        os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # disks are
@given(st.data(), st.booleans(), LINES)
def test_every_line_is_in_exactly_one_file_once(data: st.DataObject, short: bool, numbers: list[int]):
    batch = FinishedLines(*(ended(data, line, f"{line}.1") for line in numbers))
    with TemporaryDirectory() as directory:
        output, errors = Path(directory) / "out", Path(directory) / "out.errors"
        for _ in range(data.draw(st.integers(0, 3))):
            with ResultFiles(BATCH, batch, output, short=short) as files:
                for page in data.draw(st.lists(st.lists(st.sampled_from(list(batch.results.values()))), max_size=4)):
                    files.write(page)
                    retry(data, batch)
            for path in (output, errors):
                if data.draw(st.booleans()):
                    tear(data, path)
            retry(data, batch)
        with ResultFiles(BATCH, batch, output, short=short) as files:
            files.write(batch.results.values())
            counts = files.finish(len(numbers))
        expected = list(batch.results.values())
        replies = {result.custom_id: result.reply for result in expected if result.reply is not None}
        written, refused = entries(output), entries(errors)
        assert counts == Counts(len(written), len(refused)) == Counts(len(replies), len(expected) - len(replies))
        assert {entry["custom_id"]: reply(entry, short) for entry in written} == replies
        assert {entry["custom_id"] for entry in refused} == {result.custom_id for result in expected} - replies.keys()
        assert {turn(entry, short) for entry in refused} == {r.turn_id for r in expected if r.custom_id not in replies}


def reply(entry: Any, short: bool) -> object:
    return entry["reply"] if short else entry["response"]["body"]["choices"][0]["message"]["content"]


def turn(entry: Any, short: bool) -> object:
    if short:
        return entry["error"]["turn"]
    number = f"{entry['id']}_".split("_")[4]  # batch_req_<batch>_<line>_<turn>
    return number.replace("-", ".") or None
