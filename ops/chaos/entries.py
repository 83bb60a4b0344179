"""The three books side by side: what producers were promised, what the model was asked, and what the database holds."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Table, select

from inturn.models.database import Database
from inturn.models.states import Kept
from inturn.models.tables import ATTEMPTS, LEASES, MESSAGES, REMOVAL_RUNS, REMOVALS, SESSIONS, TURNS
from inturn.settings import Settings
from ops.chaos.archives import Archive, archives_in
from ops.chaos.guards import ailments, missing_guards
from ops.chaos.model import Call
from ops.chaos.nemesis import Fault
from ops.chaos.promises import Accepted, Log

TurnId = tuple[int, int]
"""A session's surrogate id, and the turn's number in it."""


@dataclass
class Entries:
    """What there is to compare.

    Args:
        log: the producers' own.
        calls: the model server's own log.
        caps: what the run is judged by.
        faults: what was done to inturn meanwhile.

    Attributes:
        tries: the recorded attempts of each turn, in order.
        receipts: of all sessions that were removed; ``removals`` are those of the run's, ``guest_removals`` of its guests',
            and ``strippings`` of those of the run's that lost only what was said.
        stripped_to: the last turn of each session of which what was said is gone; 0: none.
        runs: of cleanups and erasures, by their numbers.
        guests: how many turns sessions have that were imported out of archives, by ID.
        found_wrong: what the database says of itself, as sentences.
        traces: where a text was found that must be gone; see ``traces``.
    """

    log: Log
    calls: list[Call]
    caps: Settings
    faults: Sequence[Fault] = ()
    turns: dict[TurnId, Any] = field(default_factory=dict)
    messages: dict[TurnId, list[Any]] = field(default_factory=lambda: defaultdict(list))
    tries: dict[TurnId, list[Any]] = field(default_factory=lambda: defaultdict(list))
    leases: list[Any] = field(default_factory=list)
    sessions: list[Any] = field(default_factory=list)
    receipts: list[Any] = field(default_factory=list)
    removals: list[Any] = field(default_factory=list)
    guest_removals: list[Any] = field(default_factory=list)
    strippings: list[Any] = field(default_factory=list)
    stripped_to: dict[int, int] = field(default_factory=dict)
    runs: dict[int, Any] = field(default_factory=dict)
    guests: dict[str, int] = field(default_factory=dict)
    archives: list[Archive] = field(default_factory=list)
    found_wrong: list[str] = field(default_factory=list)
    missing_guards: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)

    def read(self, database: Database) -> Self:
        """Take down what the database holds of this run's sessions."""
        prefix = self.log.run
        self.sessions = [row for row in all_rows(database, SESSIONS) if row.key.startswith(prefix)]
        self.stripped_to = {row.id: row.content_removed_to for row in self.sessions}
        self.read_removals(database)
        strangers = {row.id: row.key for row in all_rows(database, SESSIONS) if not row.key.startswith(prefix)}
        self.guests = {key: 0 for key in strangers.values() if key.startswith(f"back-{prefix}")}
        for row in all_rows(database, TURNS):
            if row.session_id not in strangers:
                self.turns[row.session_id, row.number] = row
            elif strangers[row.session_id] in self.guests:
                self.guests[strangers[row.session_id]] += 1
        for row in all_rows(database, MESSAGES, "turn_number", "position"):
            if row.session_id not in strangers:
                self.messages[row.session_id, row.turn_number].append(row)
        for row in all_rows(database, ATTEMPTS, "turn_number", "number"):
            if row.session_id not in strangers:
                self.tries[row.session_id, row.turn_number].append(row)
        self.leases = [row for row in all_rows(database, LEASES) if row.session_id not in strangers]
        self.found_wrong, self.missing_guards = list(ailments(database)), list(missing_guards(database))
        return self

    def read_removals(self, database: Database) -> None:
        """What was removed, by whom, and what was archived of it."""
        self.receipts = all_rows(database, REMOVALS, "id")
        mine = [row for row in self.receipts if row.session_key.startswith(self.log.run)]
        self.removals = [row for row in mine if row.kept == Kept.NOTHING]
        self.strippings = [row for row in mine if row.kept == Kept.METADATA]
        self.guest_removals = [row for row in self.receipts if row.session_key.startswith(f"back-{self.log.run}")]
        self.runs = {row.id: row for row in all_rows(database, REMOVAL_RUNS)}
        for rule in self.caps.retention:
            if rule.archive:
                self.archives += archives_in(Path(rule.archive))

    @property
    def repair_seconds(self) -> float:
        """After a fault everything is in order again within a lease and two sweeps."""
        return self.caps.lease_seconds + 2 * self.caps.sweep_seconds

    @property
    def gone(self) -> set[int]:
        """Sessions that were deleted, or removed by retention."""
        return {deleted.session for deleted in self.log.deleted}

    def standing(self) -> Iterator[Accepted]:
        """The accepted prompts whose sessions are still there."""
        gone = self.gone
        return (one for one in self.log.accepted if one.session not in gone)

    def is_stripped(self, turn: TurnId) -> bool:
        """Whether what was said in a turn is gone, as its session says."""
        return turn[1] <= self.stripped_to.get(turn[0], 0)

    def sent_to(self, session: int) -> list[Accepted]:
        return [one for one in self.log.accepted if one.session == session]

    def said(self, turn: TurnId, role: str) -> list[str]:
        """Without what a model said to tools."""
        mine = self.messages.get(turn, ())
        return [row.content for row in mine if row.role == role and "tool_calls" not in (row.data or {})]

    def asked(self, turn: TurnId) -> list[str]:
        """A turn's prompt, and what was asked of tools and said by them."""
        steps = self.turns[turn].steps if turn in self.turns else 0
        return [row.content for row in self.messages.get(turn, ()) if row.position <= steps + 1]

    def rounds(self, turn: TurnId) -> int:
        """How many answers were no replies."""
        return self.turns[turn].rounds if turn in self.turns else 0

    def calls_of(self) -> dict[TurnId, list[Call]]:
        """The calls of each turn, in the order of their beginning: prompts are unique in a run, joined ones too."""
        by_prompt = {one.prompt: one.turn for one in self.log.accepted}
        for turn in self.messages:
            by_prompt |= dict.fromkeys(self.said(turn, "user"), turn)
        found: dict[TurnId, list[Call]] = defaultdict(list)
        for call in sorted(self.calls, key=lambda call: call.start):
            if call.prompt in by_prompt:
                found[by_prompt[call.prompt]].append(call)
        return found

    def calls_by_session(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = defaultdict(list)
        for (session, _), calls in self.calls_of().items():
            found[session] += calls
        return {session: sorted(calls, key=lambda call: call.start) for session, calls in found.items()}


def all_rows(database: Database, table: Table, *order: str) -> list[Any]:
    with database.reading() as db:
        return list(db.execute(select(table).order_by(*(table.c[name] for name in order))))
