"""The receipts: what stands in the result files, beside the sheet, the database, and what the model was asked.

Each promise is a function that yields violations as sentences. What is promised of turns, whoever sent them, is for the
``Books`` to say.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import orjson

from inturn.models.database import Database
from inturn.models.states import TurnState
from inturn.models.tables import BATCHES, SESSIONS, TURNS
from ops.chaos.batch.sheet import SheetLine
from ops.chaos.entries import all_rows
from ops.chaos.model import Call


@dataclass
class Receipts:
    """What there is to compare.

    Attributes:
        output, errors: the lines of the result files, parsed.
        batches: the rows of all batches.
        turns: those of lines, by custom ID.
        keys: of sessions, by their surrogate IDs.
        strays: from when to when (Unix time) somebody alive may have called who had lost the session by then, as a
            worker that was stopped, or the process that calls for it. Nothing of that is stored.
    """

    sheet: Sequence[SheetLine]
    calls: Sequence[Call] = ()
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    turns: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    keys: dict[int, str] = field(default_factory=dict)
    strays: Sequence[tuple[float, float]] = ()

    def read(self, database: Database, output: Path, errors: Path) -> Self:
        """Take down what the files and the database hold. Raises: ValueError: a line of a file is not whole."""
        self.output, self.errors = lines_of(output), lines_of(errors)
        self.batches = all_rows(database, BATCHES, "id")
        self.keys = {row.id: row.key for row in all_rows(database, SESSIONS)}
        for row in all_rows(database, TURNS, "session_id", "number"):
            if row.batch_id is not None:
                self.turns[row.custom_id].append(row)
        return self

    def violations(self, checks: "Sequence[Check] | None" = None) -> list[str]:
        return [f"{check.__name__}: {sentence}" for check in checks or CHECKS for sentence in check(self)]


Check = Callable[[Receipts], Iterator[str]]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def unaccounted(receipts: Receipts) -> Iterator[str]:
    """Every line is in exactly one of the two files, once, and nothing else is."""
    output, errors = (Counter(line["custom_id"] for line in file) for file in (receipts.output, receipts.errors))
    for line in receipts.sheet:
        found = output[line.custom_id], errors[line.custom_id]
        if found not in ((1, 0), (0, 1)):
            yield f"line {line.number} is {found[0]} times in the output and {found[1]} times among the errors"
    for stranger in (output | errors).keys() - {line.custom_id for line in receipts.sheet}:
        yield f"{stranger!r} is in the files, and was never submitted"


def misreported(receipts: Receipts) -> Iterator[str]:
    """What a file says of a line is what became of its turn."""
    sheet = {line.custom_id: line for line in receipts.sheet}
    for written, state in ((receipts.output, TurnState.COMPLETED), (receipts.errors, TurnState.FAILED)):
        for result in written:
            name = result["custom_id"]
            if any(turn.state != state for turn in receipts.turns.get(name, ())):
                yield f"{name!r} is reported as {state}, and its turn is not"
            if state is TurnState.COMPLETED and name in sheet and not answers(result, sheet[name].prompt):
                yield f"{name!r} is reported with the reply of another"


def answers(result: dict[str, Any], prompt: str) -> bool:
    reply = result["response"]["body"]["choices"][0]["message"]["content"]
    return result["error"] is None and str(reply).startswith(f"reply to: {prompt} (seen")


def unexpected(receipts: Receipts) -> Iterator[str]:
    """What the model refuses for good is among the errors, and what it answers in the end is in the output. (What a fault
    does to a line beyond the rescues that it has, the ``Books`` judge.)
    """
    refused = {line.custom_id for line in receipts.sheet if line.is_refused}
    for result in receipts.output:
        if result["custom_id"] in refused:
            yield f"{result['custom_id']!r} was refused by the model, and is in the output"


def miscounted(receipts: Receipts) -> Iterator[str]:
    """There is one batch, it is completed, and its counts are those of the files."""
    if len(receipts.batches) != 1:
        yield f"there are {len(receipts.batches)} batches"
    for row in receipts.batches:
        said = {"state": str(row.state), "total": row.total, "stored": row.stored}
        said |= {"completed": row.completed, "failed": row.failed, "cancelled": row.cancelled, "expired": row.expired}
        lines, written = len(receipts.sheet), {"completed": len(receipts.output), "failed": len(receipts.errors)}
        wanted = {"state": "completed", "total": lines, "stored": lines, **written, "cancelled": 0, "expired": 0}
        if said != wanted:
            yield f"batch {row.key} says {said}, and it should say {wanted}"


def misplaced(receipts: Receipts) -> Iterator[str]:
    """Every line is one turn, of its session, and turns of a session are in the order of the file."""
    for line in receipts.sheet:
        mine = receipts.turns.get(line.custom_id, [])
        if [turn.line for turn in mine] != [line.number]:
            yield f"line {line.number} is the turns of lines {[turn.line for turn in mine]}"
    for name in receipts.turns.keys() - {line.custom_id for line in receipts.sheet}:
        yield f"{name!r} is a turn, and was never submitted"
    batch = receipts.batches[0].key if receipts.batches else ""
    for turn, line in placed(receipts):
        wanted, key = line.session or f"{batch}:{line.number}", receipts.keys.get(turn.session_id)
        if key != wanted:
            yield f"line {line.number} is in session {key}, and belongs to {wanted}"


def placed(receipts: Receipts) -> Iterator[tuple[Any, SheetLine]]:
    for line in receipts.sheet:
        yield from ((turn, line) for turn in receipts.turns.get(line.custom_id, ()))


def swapped(receipts: Receipts) -> Iterator[str]:
    """The turns of a session have numbers in the order of its lines."""
    sessions: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for turn, line in placed(receipts):
        sessions[turn.session_id].append((line.number, turn.number))
    for session, pairs in sessions.items():
        for (earlier, first), (later, second) in pairwise(sorted(pairs)):
            if first >= second:
                yield f"session {session}: line {earlier} is turn {first}, and the later line {later} turn {second}"


def misshown(receipts: Receipts) -> Iterator[str]:
    """What the model was shown of a session are earlier lines of it, in the order of the file; and it was asked so."""
    lines = {line.prompt: line for line in receipts.sheet}
    asked: dict[str, int] = {}
    for call in sorted(receipts.calls, key=lambda call: call.start):
        if (own := lines.get(call.prompt)) is None:
            continue
        prompts = [message["content"] for message in call.messages if message["role"] == "user"]
        seen = [lines[prompt] for prompt in prompts if prompt in lines]
        if any(line.session != own.session for line in seen) or (own.session is None and len(seen) != 1):
            yield f"line {own.number} was shown with lines of another session"
        if any(first.number >= second.number for first, second in pairwise(seen)):
            yield f"line {own.number} was shown after {[line.number for line in seen[:-1]]}"
        if own.session is not None:
            is_stray = any(began <= call.start <= ended for began, ended in receipts.strays)
            if own.number < asked.get(own.session, 0) and not is_stray:
                yield f"line {own.number} was asked after line {asked[own.session]}"
            asked[own.session] = max(own.number, asked.get(own.session, 0))


CHECKS: tuple[Check, ...] = (unaccounted, misreported, unexpected, miscounted, misplaced, swapped, misshown)
SENT_AGAIN: tuple[Check, ...] = (unaccounted, misreported, miscounted)
"""Those that hold for lines that were sent again: as new turns, behind all others of their session."""
