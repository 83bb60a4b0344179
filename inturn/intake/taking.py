"""Taking a batch in: every line is read and checked before the first one is stored."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inturn.intake.custom_ids import CustomIds
from inturn.intake.lines import CheckModel, CheckOptions, checked_line, checked_text_line, fitting
from inturn.intake.reading import Progress, lines_of_items
from inturn.intake.sources import LIST, Source, opened
from inturn.intake.spool import Spool
from inturn.models.errors import InvalidBatchError
from inturn.models.store.lines import BadLine, Line

MOST_ERRORS = 20
"""Bad lines that are told about one by one."""
MODELS_KNOWN = 1_000
"""Whose answers are remembered."""
EMPTY = "it holds no line that is not blank: write one prompt a line"
EMPTY_LIST = "it is empty: give it one prompt at least"


@dataclass(frozen=True, slots=True)
class Intake:
    """A batch's lines, checked. Closing it lets go of them.

    Attributes:
        spool: the lines in their order, bad ones among them where those are skipped.
        total: how many there are, bad ones included.
        bad: how many bad ones.
        first_errors: the first 20 of these.
        fingerprint: SHA-256 of the content as it came, and of how it was read, in hex.
    """

    spool: Spool
    total: int
    bad: int
    first_errors: tuple[BadLine, ...]
    fingerprint: str

    def close(self) -> None:
        self.spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def take_in(
    source: Source,
    *,
    directory: Path,
    check_model: CheckModel,
    check_options: CheckOptions = lambda line: None,
    plain_text: bool = False,
    skip_invalid: bool = False,
    on_progress: Progress = lambda read, total: None,
) -> Intake:
    """Read and check all lines of a batch, in memory that does not grow with them.

    Args:
        source: a file's name; a stream of bytes; or an iterable, of which an item is what an object of the short form or of
            OpenAI's would be in a file, or a str, which is a prompt.
        directory: where the lines are kept until the intake is closed.
        check_model: gives the model that a line's model means, or raises UnknownModelError. Asked once per model.
        check_options: raises InvalidInputError where a line's model does not have its options.
        plain_text: a line of the file is a prompt, not JSON.
        skip_invalid: keep bad lines as such among the others, unless there are no others.
        on_progress: told how many bytes are read, out of how many (None: nobody knows), every now and then.

    Raises:
        InvalidBatchError: there are bad lines, or none at all.
        InvalidInputError: the source cannot be read, or changed meanwhile.
        InturnError: the directory cannot be written to, or is full.
    """
    digest = hashlib.sha256(b"text\n" if plain_text else b"")
    with ExitStack() as unless_taken:
        with opened(source, digest, on_progress) as (name, lines):
            spool = unless_taken.enter_context(Spool(directory))
            if plain_text:  # whose lines have no custom IDs but their numbers
                bad, first = _keep((fitting(checked_text_line(*line), check_options) for line in lines), spool)
            else:
                asked = lru_cache(MODELS_KNOWN)(check_model)
                checked = (fitting(checked_line(*line, asked), check_options) for line in lines)
                bad, first = _keep(_unique(checked, spool), spool)
        _refuse_unfit(name, len(spool), bad, first, skip_invalid)
        unless_taken.pop_all()
    return Intake(spool, len(spool), bad, tuple(first), digest.hexdigest())


def check_lines(
    items: Iterable[Any], *, check_model: CheckModel, check_options: CheckOptions = lambda line: None
) -> list[Line]:
    """Check prompts that a program has in memory, as ``take_in`` checks those of an iterable.

    Raises:
        InvalidBatchError: there are bad ones.
    """
    asked, first = lru_cache(MODELS_KNOWN)(check_model), dict[str, int]()
    good, bad = list[Line](), list[BadLine]()
    for item in lines_of_items(items, hashlib.sha256(), lambda read, total: None):
        line = fitting(checked_line(*item, asked), check_options)
        if isinstance(line, Line) and (before := first.setdefault(line.custom_id, line.line)) != line.line:
            line = _repeated(line, before)
        (bad if isinstance(line, BadLine) else good).append(line)  # type: ignore[arg-type]
    if bad:
        raise InvalidBatchError(LIST, bad[:MOST_ERRORS], len(bad), len(good) + len(bad))
    return good


def _keep(checked: Iterable[Line | BadLine], spool: Spool) -> tuple[int, list[BadLine]]:
    """How many bad ones there are, and the first of them."""
    bad, first = 0, list[BadLine]()
    for line in checked:
        if isinstance(line, BadLine):
            bad += 1
            if bad <= MOST_ERRORS:
                first.append(line)
        spool.append(line)
    spool.flush()
    return bad, first


def _unique(checked: Iterable[Line | BadLine], spool: Spool) -> Iterator[Line | BadLine]:
    """The lines, with a bad one for each whose custom ID an earlier one has. Each goes into the spool before the next.

    A good line without a custom ID has its number, which another may have written. So may a bad one, but that ID nobody
    chose: it takes none from a good line.
    """
    with closing(CustomIds(spool.directory, lambda place: spool.at(place).custom_id)) as ids:
        for line in checked:
            is_bad = isinstance(line, BadLine)
            if is_bad and line.custom_id == str(line.line):
                yield line
                continue
            place = ids.claim(line.custom_id, spool.size)
            yield line if place is None or is_bad else _repeated(line, spool.at(place).line)


def _repeated(line: Line | BadLine, first: int) -> BadLine:
    its_own = "" if line.custom_id != str(line.line) else ", which is this line's number,"
    return BadLine(
        line.line,
        line.custom_id,
        "duplicate_custom_id",
        f"custom_id {line.custom_id!r:.60}{its_own} was used in line {first} already: results are told apart by it, so "
        "give each line one of its own",
    )


def _refuse_unfit(name: str, total: int, bad: int, first: list[BadLine], skip_invalid: bool) -> None:
    if not total:
        why = EMPTY_LIST if name == LIST else EMPTY
        raise InvalidBatchError(name, [BadLine(0, "", "empty_file", why)], 1, 0)
    if bad and (bad == total or not skip_invalid):
        raise InvalidBatchError(name, first, bad, total)
