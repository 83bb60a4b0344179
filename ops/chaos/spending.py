"""4. to 6.: every call is on record before it is made, sessions have one at a time, and who lost a lease changes nothing."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from inturn.models.states import AttemptOutcome, TurnState
from ops.chaos.entries import Entries
from ops.chaos.fates import shown
from ops.chaos.misdeeds import told
from ops.chaos.model import Call
from ops.chaos.nemesis import Fault
from ops.chaos.phases import NOBODY, NOTICE_SECONDS, culprit

OVERLAP_SECONDS = 0.05
"""How far the end of a call that was answered may be off."""
GONE = "client gone"


def uncounted(books: Entries) -> Iterator[str]:
    """4. Calls <= attempts recorded <= the cap."""
    gone, calls_of = books.gone, books.calls_of()
    for turn, calls in calls_of.items():
        if len(calls) - books.rounds(turn) > books.caps.max_attempts:
            yield f"turn {shown(turn)} was called {len(calls)} times, and {books.caps.max_attempts} are allowed"
        recorded = len(books.tries.get(turn, ()))
        if len(calls) > recorded and turn[0] not in gone:
            yield f"turn {shown(turn)} was called {len(calls)} times, and {recorded} attempts are on record"
    for turn, row in books.turns.items():
        numbers = [each.number for each in books.tries.get(turn, ())]
        if numbers != list(range(1, row.attempts + 1)) or row.attempts - row.rounds > books.caps.max_attempts:
            yield f"turn {shown(turn)} counts {row.attempts} attempts, and {numbers} are on record"
        if row.state == TurnState.COMPLETED and "200" not in {call.outcome for call in calls_of.get(turn, ())}:
            yield f"turn {shown(turn)} was answered by nobody"


def overlapping(books: Entries) -> Iterator[str]:
    """5. At no time two calls of one session, but for what a fault excuses: then at most once per such fault."""
    excuses = excusing(books)
    for session, calls in books.calls_by_session().items():
        found = {former.number: (former, call) for former, call in overlaps(calls)}
        for former, call in found.values():
            if culprit(books, former, call, excuses) == NOBODY:
                yield f"session {session}: call {call.number} began before {former.number} was over, over nothing"
        if len(found) > len(excuses):
            yield f"session {session}: {len(found)} calls began before an earlier one was over, over {len(excuses)} faults"


def excusing(books: Entries) -> list[Fault]:
    """Faults over which somebody alive may have lost leases, or the model server could not see that a caller had gone."""
    return [fault for fault in books.faults if fault.may_overlap or fault.kind == "model"]


def overlaps(calls: list[Call]) -> list[tuple[Call, Call]]:
    """Pairs of a session's calls, in the order of their beginning: the former was under way when the latter began."""
    found = []
    for place, call in enumerate(calls):
        last = max(calls[:place], key=surely_until, default=None)
        if last is not None and surely_until(last) > call.start:
            found.append((last, call))
    return found


def surely_until(call: Call) -> float:
    """Until when the call was under way for its caller: that he has gone is noticed later than it happens."""
    if call.end is None:
        return float("inf")
    return call.end - (NOTICE_SECONDS if call.outcome == GONE else OVERLAP_SECONDS)


def stale(books: Entries) -> Iterator[str]:
    """6. Who lost a lease changes nothing any more: tokens grow, and an attempt is over before the next one begins."""
    by_session: dict[int, list[Any]] = defaultdict(list)
    for (session, _), tries in sorted(books.tries.items()):
        by_session[session] += tries
    for session, tries in by_session.items():
        yield from superseded(session, tries)
    for turn, row in books.turns.items():
        outcomes = [each.outcome for each in books.tries.get(turn, ())]
        kept = outcomes.count(AttemptOutcome.COMPLETED) - row.rounds
        if kept != (row.state == TurnState.COMPLETED) or (kept and outcomes[-1] != AttemptOutcome.COMPLETED):
            yield f"turn {shown(turn)} is {row.state}, and its attempts ended {outcomes}"
        if row.finished_at is not None and None in outcomes:
            yield f"turn {shown(turn)} is {row.state}, and an attempt at it is not over"
    newest = {session: max(each.token for each in tries) for session, tries in by_session.items()}
    for lease in books.leases:
        if lease.token < newest.get(lease.session_id, 0):
            yield f"session {lease.session_id} has a lease with a smaller token than an attempt"


def superseded(session: int, tries: list[Any]) -> Iterator[str]:
    for earlier, later in pairwise(tries):
        name = f"{session}.{earlier.turn_number} attempt {earlier.number}"
        if earlier.token >= later.token:
            yield f"{name} has token {earlier.token}, and the one that superseded it {later.token}"
        if earlier.ended_at is None or earlier.ended_at > later.started_at:
            yield f"{name} was changed after it was superseded: it ended {earlier.outcome} at {earlier.ended_at}"


def repeated_calls(books: Entries) -> int:
    """Calls beyond one per turn, and one for each round."""
    return sum(len(calls) - 1 - books.rounds(turn) for turn, calls in books.calls_of().items())


def wasted_replies(books: Entries) -> int:
    """Replies that were paid for and not kept; what the model was told to spoil does not count."""
    wasted = 0
    for turn, calls in books.calls_of().items():
        _, spoilt = told(calls[0].prompt)
        good = sum(call.outcome == "200" for place, call in enumerate(calls) if place >= spoilt)
        wasted += max(0, good - 1 - books.rounds(turn))
    return wasted
