"""The checker: what producers sent, what the model was asked, and what the database holds must tell one story.

Each invariant of the promise is a function that yields violations as sentences; a run is good when there are none.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import Table, select

from inturn.models.database import Database
from inturn.models.tables import ATTEMPTS, LEASES, MESSAGES, SESSIONS, TURNS
from tests.model_server import Call

OVERLAP_SECONDS = 0.05
"""The model server notices a caller's death a little later than the caller's successor may be started."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A prompt that ``send`` returned for."""

    session: int
    number: int
    prompt: str
    seconds: float
    """How long ``send`` took."""


@dataclass
class Books:
    """The three books that are compared.

    Args:
        accepted: the producers' own log.
        calls: the model server's own log.
        context_turns: how many completed turns a model is shown.
        max_attempts: the cap.
    """

    accepted: list[Accepted]
    calls: list[Call]
    context_turns: int
    max_attempts: int
    turns: dict[tuple[int, int], Any] = field(default_factory=dict)
    messages: dict[tuple[int, int], list[Any]] = field(default_factory=lambda: defaultdict(list))
    attempts: Counter[tuple[int, int]] = field(default_factory=Counter)
    tries: list[Any] = field(default_factory=list)
    leases: list[Any] = field(default_factory=list)
    sessions: list[Any] = field(default_factory=list)

    def read(self, database: Database) -> "Books":
        """Take down what the database holds."""
        self.turns = {(row.session_id, row.number): row for row in all_rows(database, TURNS)}
        for row in sorted(
            all_rows(database, MESSAGES), key=lambda row: (row.session_id, row.turn_number, row.position)
        ):
            self.messages[row.session_id, row.turn_number].append(row)
        self.tries = all_rows(database, ATTEMPTS)
        self.attempts = Counter((row.session_id, row.turn_number) for row in self.tries)
        self.leases, self.sessions = all_rows(database, LEASES), all_rows(database, SESSIONS)
        return self

    def violations(self) -> list[str]:
        checks = (
            self.lost,
            self.doubled,
            self.disordered,
            self.misinformed,
            self.uncounted,
            self.overlapping,
            self.left,
        )
        return [f"{check.__name__}: {sentence}" for check in checks for sentence in check()]

    def reply(self, turn: tuple[int, int]) -> str | None:
        return next((row.content for row in self.messages[turn] if row.role == "assistant"), None)

    def calls_of(self) -> dict[tuple[int, int], list[Call]]:
        """The calls of each turn: prompts are unique in a run."""
        by_prompt = {one.prompt: (one.session, one.number) for one in self.accepted}
        found: dict[tuple[int, int], list[Call]] = defaultdict(list)
        for call in self.calls:
            if call.prompt in by_prompt:
                found[by_prompt[call.prompt]].append(call)
        return found

    def lost(self) -> Iterator[str]:
        """1. Every accepted prompt exists, and has its reply."""
        for one in self.accepted:
            turn = self.turns.get((one.session, one.number))
            if turn is None:
                yield f"turn {one.session}.{one.number} was accepted and is gone"
            elif turn.state != "completed":
                yield f"turn {one.session}.{one.number} is {turn.state} ({turn.error_type}: {turn.error_message})"
            elif [row.content for row in self.messages[one.session, one.number] if row.role == "user"] != [one.prompt]:
                yield f"turn {one.session}.{one.number} has another prompt than was sent"
        for extra in self.turns.keys() - {(one.session, one.number) for one in self.accepted}:
            yield f"turn {extra} was never accepted"

    def doubled(self) -> Iterator[str]:
        """2. One reply per turn, and it answers that turn's prompt."""
        for turn, rows in self.messages.items():
            replies = [row.content for row in rows if row.role == "assistant"]
            if len(replies) != 1:
                yield f"turn {turn} has {len(replies)} replies"
            elif not replies[0].startswith(
                f"reply to: {next(row.content for row in rows if row.role == 'user')} (seen"
            ):
                yield f"turn {turn} has the reply of another"
        for prompt, count in Counter(one.prompt for one in self.accepted).items():
            if count != 1:
                yield f"{prompt!r} was accepted {count} times"

    def disordered(self) -> Iterator[str]:
        """2. Replies are stored in the order of their turns; numbers have no gaps."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for session, number in sorted(self.turns):
            numbers[session].append(number)
        for session, mine in numbers.items():
            if mine != list(range(1, len(mine) + 1)):
                yield f"session {session} has gaps in {mine}"
            ends = [self.turns[session, number].finished_at for number in mine]
            if None not in ends and ends != sorted(ends):
                yield f"session {session} finished its turns out of order"
            said = [
                row.created_at for number in mine for row in self.messages[session, number] if row.role == "assistant"
            ]
            if said != sorted(said):
                yield f"session {session} stored its replies out of order"

    def misinformed(self) -> Iterator[str]:
        """3. The model was shown exactly the completed turns with smaller numbers, within the window."""
        for (session, number), calls in self.calls_of().items():
            window = range(max(1, number - self.context_turns), number)
            shown = [row.content for earlier in window for row in self.messages[session, earlier]]
            for call in calls:
                if [message["content"] for message in call.messages] != [*shown, call.prompt]:
                    yield f"call {call.number} of turn {session}.{number} was shown {len(call.messages)} other messages"

    def uncounted(self) -> Iterator[str]:
        """4. Calls <= attempts recorded <= the cap."""
        for turn, calls in self.calls_of().items():
            if len(calls) > self.attempts[turn]:
                yield f"turn {turn} was called {len(calls)} times, and {self.attempts[turn]} attempts are on record"
            elif sum(call.outcome == "200" for call in calls) == 0:
                yield f"turn {turn} was answered by nobody"
        for turn, row in self.turns.items():
            if row.attempts != self.attempts[turn] or row.attempts > self.max_attempts:
                yield f"turn {turn} counts {row.attempts} attempts, and {self.attempts[turn]} are on record"

    def overlapping(self) -> Iterator[str]:
        """5. At no time two calls of one session: nobody was paused or cut off here."""
        by_session: dict[int, list[Call]] = defaultdict(list)
        for (session, _), calls in self.calls_of().items():
            by_session[session] += calls
        for session, calls in by_session.items():
            for earlier, later in pairwise(sorted(calls, key=lambda call: call.start)):
                if earlier.end is None or earlier.end > later.start + OVERLAP_SECONDS:
                    yield f"session {session}: call {later.number} began before call {earlier.number} was over"

    def left(self) -> Iterator[str]:
        """8. Nothing runs, is held, or waits."""
        for row in self.leases:
            if row.owner is not None or row.ready_at is not None:
                yield f"session {row.session_id} is still held by {row.owner} or ready at {row.ready_at}"
        for row in self.sessions:
            if row.state != "active":
                yield f"session {row.id} is {row.state}"

    def repeated_calls(self) -> int:
        """Calls beyond one per turn."""
        return sum(len(calls) - 1 for calls in self.calls_of().values())

    def unfinished_tries(self) -> list[str]:
        """Attempts that did not complete their turn."""
        return [
            f"{row.session_id}.{row.turn_number} attempt {row.number} {row.outcome} ({row.error_type}), "
            f"from {row.started_at:%T.%f} to {row.ended_at:%T.%f}"
            for row in self.tries
            if row.outcome != "completed"
        ]

    def wasted_replies(self) -> int:
        """Replies that were paid for and not kept."""
        return sum(sum(call.outcome == "200" for call in calls) - 1 for calls in self.calls_of().values())


def all_rows(database: Database, table: Table) -> list[Any]:
    with database.reading() as db:
        return list(db.execute(select(table)))
