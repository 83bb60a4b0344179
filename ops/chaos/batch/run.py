"""One batch: it is submitted, followed and visited while things are killed, and the books are compared."""

import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from inturn.cli.exits import Exit
from inturn.models.errors import InturnError
from inturn.workers.stack import inturn_command
from ops.chaos.batch import sheet
from ops.chaos.batch.receipts import SENT_AGAIN, Receipts
from ops.chaos.batch.sheet import SheetLine
from ops.chaos.batch.submitter import Submitter
from ops.chaos.batch.visitors import Visitors
from ops.chaos.books import CHECKS, Books
from ops.chaos.figures import extra_calls, overlapping_calls
from ops.chaos.fleet import Fleet, FleetError
from ops.chaos.model import ModelServer
from ops.chaos.nemesis import Attack, Fault, Nemesis, stalls
from ops.chaos.promises import Accepted, Log
from ops.chaos.run import Outcome, is_violation, new_name, patience_of, progress, sentence_of
from ops.chaos.spending import wasted_replies
from ops.chaos.stage import LATENCY_SECONDS, Stage

FAULTS = ("kill", "workers.pause_beyond_lease", "redis_wiped", "redis_restarted", "redis_frozen")
PACE = {"lease_seconds": 10, "heartbeat_seconds": 3}
"""A worker gives up claims whose answers have not come by its second heartbeat. One that was only just started may claim
hundreds of sessions at once; on a machine that does all of this, their answers take longer than a quick one lasts.
"""
PAUSE_SECONDS, ALONE_SECONDS = (0.2, 1.5), 1.0
SHARE, PROGRESS_SECONDS, LOOK_SECONDS = 0.1, 8.0, 0.5
"""A fault mostly waits until so much of the batch has been done since the last one, or so many seconds."""
LONGEST_SECONDS = 600
AGAIN_SECONDS, DRAIN_SECONDS = 120, 60
LEFT_OUT = ("slow",)
"""What is promised of the time that a ``send`` takes is measured in other runs: this one keeps the database busy."""


@dataclass(frozen=True)
class Plan:
    """How large the batch is, and what happens meanwhile."""

    seed: int
    lines: int
    sessions: int
    attacks: Sequence[Attack] = ()


@dataclass
class Files:
    """What is submitted, and where its results go."""

    directory: Path

    def __post_init__(self) -> None:
        self.source = self.directory / "batch.jsonl"
        self.output, self.errors = self.directory / "results.jsonl", self.directory / "failed.jsonl"

    @property
    def command(self) -> list[str]:
        return ["batch", "run", str(self.source), "-o", str(self.output), "--errors", str(self.errors)]


def play(stage: Stage, plan: Plan) -> Outcome:
    """Submit, break things, wait, compare; then send what has failed again, to a model that answers."""
    assert stage.fleet is not None
    fleet, files, name, log = stage.fleet, Files(stage.fleet.home), new_name(), Log()
    lines = sheet.write(files.source, name, plan.seed, plan.lines, plan.sessions)
    began = time.monotonic()
    submitter, faults = submit(stage, plan, files, name, log)
    took = time.monotonic() - began
    violations = ended(submitter, drained(fleet))
    starved = stalls(fleet.logs, faults, patience_of(stage.settings))
    strays = [(fault.began, fault.ended + PACE["lease_seconds"]) for fault in (*faults, *starved) if fault.may_overlap]
    receipts = Receipts(lines, stage.model.calls(), strays=strays).read(fleet.database, files.output, files.errors)
    books = books_of(stage, receipts, log, [*faults, *starved])
    violations += [*receipts.violations(), *broken(books)]
    again = Again(stage, files, lines, plan.seed)
    violations += again.violations(receipts)
    crashes = list(fleet.crashes)
    violations += map(sentence_of, filter(is_violation, crashes))
    figures = {
        "lines": len(lines), "sessions": plan.sessions, "visits": len(log.accepted) - len(lines),
        "refused": len(log.refused), "completed": len(receipts.output), "failed": len(receipts.errors),
        "calls": len(books.calls), "faults": dict(Counter(fault.name for fault in faults)),
        "stalls": len(starved),
        "submitter_killed": dict(submitter.kills), "submitter_killed_again": dict(again.kills),
        "submitter_ended": dict(Counter(submitter.endings)), "extra_calls": extra_calls(books),
        "wasted_replies": wasted_replies(books), "overlaps": overlapping_calls(books),
        "violations": dict(Counter(violation.partition(":")[0] for violation in violations)),
        "took_s": round(took, 1), "again_s": round(again.seconds, 1), "all_s": round(time.monotonic() - began, 1),
    }  # fmt: skip
    return Outcome(log, faults, violations, figures, crashes)


def submit(stage: Stage, plan: Plan, files: Files, name: str, log: Log) -> tuple[Submitter, list[Fault]]:
    """Until the submitter is done."""
    assert stage.fleet is not None
    fleet = stage.fleet
    submitter = Submitter(fleet, files.command, files.source, files.output, f"{plan.seed}/submitter")
    nemesis = Nemesis(
        plan.attacks, plan.seed, patience_of(stage.settings),
        pause=PAUSE_SECONDS, alone=ALONE_SECONDS, settle=lambda: settle(fleet, submitter, plan.lines),
    )  # fmt: skip
    keys, faults = [f"{name}-{number}" for number in range(plan.sessions)], list[Fault]()
    over = time.monotonic() + LONGEST_SECONDS
    with stage.client() as client, progress(lambda: state_of(fleet, submitter, nemesis)):
        try:
            with Visitors(client, log, name, keys, f"{plan.seed}/visitors"):
                submitter.start()
                faults.extend(nemesis.run(lambda: submitter.is_at_work and time.monotonic() < over))
        finally:
            stage.heal()
            submitter.join(0 if time.monotonic() > over else LONGEST_SECONDS)
    return submitter, faults


def settle(fleet: Fleet, submitter: Submitter, lines: int) -> None:
    """Wait until everybody is at work, and something was done: however slow the machine, the batch gets on."""
    fleet.settle()
    with suppress(InturnError):
        wanted = finished(fleet) + lines * SHARE
        over = time.monotonic() + PROGRESS_SECONDS
        while submitter.is_at_work and time.monotonic() < over and finished(fleet) < wanted:
            time.sleep(LOOK_SECONDS)


def finished(fleet: Fleet) -> int:
    (row,) = fleet.query("SELECT count(*) AS number FROM turns WHERE finished_at IS NOT NULL")
    return int(row.number)


def state_of(fleet: Fleet, submitter: Submitter, nemesis: Nemesis) -> str:
    try:
        left: object = fleet.unfinished()
    except InturnError:
        left = "?"
    return f"{left:>6} unfinished, submitter killed {submitter.kills.total()} times  {nemesis.current}"


def ended(submitter: Submitter, left: Sequence[str]) -> list[str]:
    found = [*left, *(f"complained: {sentence}" for sentence in submitter.complaints)]
    if submitter.join(0) is None:
        found.append(f"unended: the submitter was not done: it ended with {submitter.endings}")
    return found


def drained(fleet: Fleet) -> list[str]:
    """Wait for the visitors' turns, and until no session is held."""
    try:
        fleet.await_drained(DRAIN_SECONDS)
    except FleetError as error:
        return [f"undrained: {error}"]
    return []


def books_of(stage: Stage, receipts: Receipts, log: Log, faults: Sequence[Fault]) -> Books:
    """Those of the whole deployment: a line that is stored was accepted."""
    for line in receipts.sheet:
        for turn in receipts.turns.get(line.custom_id, ()):
            log.accepted.append(Accepted(turn.session_id, turn.number, line.prompt, 0.0))
    return Books(log, list(receipts.calls), stage.settings, faults).read(stage.database)


def broken(books: Books) -> Iterator[str]:
    for check in CHECKS:
        if check.__name__ not in LEFT_OUT:
            yield from (f"{check.__name__}: {sentence}" for sentence in check(books))


class Again:
    """What has failed is sent again, and the same command moves it from one file to the other.

    Attributes:
        kills: how often the submitter was killed at what.
        seconds: how long it took.
    """

    def __init__(self, stage: Stage, files: Files, lines: Sequence[SheetLine], seed: int) -> None:
        assert stage.fleet is not None
        self._stage, self._fleet, self._files, self._lines = stage, stage.fleet, files, lines
        self._seed = seed
        self.kills: Counter[str] = Counter()
        self.seconds = 0.0

    def violations(self, before: Receipts) -> list[str]:
        began = time.monotonic()
        try:
            return [f"again: {sentence}" for sentence in self._found(before)] if before.batches else []
        finally:
            self.seconds = time.monotonic() - began

    def _found(self, before: Receipts) -> Iterator[str]:
        with mended(self._stage):
            done = self._command("batch", "retry", before.batches[0].key)
            if done.returncode != Exit.OK:
                yield f"`batch retry` ended with {done.returncode}: {done.stderr}"
                return
            submitter = Submitter(
                self._fleet, self._files.command, self._files.source, self._files.output, f"{self._seed}/again",
                first=("checking", "writing"),
            )  # fmt: skip
            submitter.start()
            code = submitter.join(AGAIN_SECONDS)
            self.kills = submitter.kills
            yield from submitter.complaints
            if code != Exit.OK:
                yield f"the submitter ended with {submitter.endings}, and all lines should have a reply"
        after = Receipts(self._lines).read(self._stage.database, self._files.output, self._files.errors)
        yield from after.violations(SENT_AGAIN)
        if after.errors:
            yield f"{len(after.errors)} lines are still among the errors"
        moved = {line["custom_id"] for line in before.errors}
        if (kept := [line for line in after.output if line["custom_id"] not in moved]) != before.output:
            yield f"of {len(before.output)} lines that were in the output, {len(kept)} are as they were or changed places"

    def _command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            inturn_command(*words), env=self._fleet.environment(), cwd=self._fleet.home,
            capture_output=True, text=True, check=False,
        )  # fmt: skip


@contextmanager
def mended(stage: Stage) -> Iterator[None]:
    """The model server answers whatever it is told, from now on."""
    port = stage.model.port
    stage.model.stop()
    with ModelServer(port=port, latency=LATENCY_SECONDS, docile=True):
        yield
