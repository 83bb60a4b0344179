"""1. Every accepted prompt exists and is final, and its fate is one that its population may have."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from inturn.models.states import FINAL, AttemptOutcome, TurnState
from ops.chaos.entries import Entries, TurnId
from ops.chaos.misdeeds import told
from ops.chaos.promises import Accepted


def lost(books: Entries) -> Iterator[str]:
    """Every accepted prompt is there as it was sent, and final; nothing else is."""
    for one in books.standing():
        name, turn = shown(one.turn), books.turns.get(one.turn)
        if turn is None:
            yield f"turn {name} was accepted and is gone"
        elif turn.state not in FINAL:
            yield f"turn {name} is {turn.state} ({turn.error_type}: {turn.error_message})"
        elif not is_as_sent(books, one):
            yield f"turn {name} has another prompt than was sent"
    # A send may have been committed whose answer was lost, and whose session was busy or gone at the second try.
    accepted = {one.turn for one in books.log.accepted}
    tried = {refused.prompt for refused in books.log.refused}
    for extra in books.turns.keys() - accepted:
        if not tried.intersection(books.said(extra, "user")):
            yield f"turn {shown(extra)} was never accepted"


def is_as_sent(books: Entries, one: Accepted) -> bool:
    prompts = books.said(one.turn, "user")
    return prompts == ([] if books.is_stripped(one.turn) else [one.prompt]) or (
        one.when_busy == "coalesce" and len(prompts) == 1 and prompts[0].endswith(one.prompt)
    )


def contradicted(books: Entries) -> Iterator[str]:
    """What the SDK said twice was the same."""
    yield from books.log.contradictions
    for prompt, count in Counter(one.prompt for one in books.log.accepted).items():
        if count != 1:
            yield f"{prompt!r} was accepted {count} times"


def unjustified(books: Entries) -> Iterator[str]:
    """A turn failed only because its attempts are used up, or the model's answer can never be stored."""
    for one in books.standing():
        turn, tries = books.turns.get(one.turn), books.tries.get(one.turn, [])
        if turn is None or turn.state != TurnState.FAILED:
            continue
        outcomes = Counter(row.outcome for row in tries)
        is_used_up = (
            len(tries) - turn.rounds >= books.caps.max_attempts
            or outcomes[AttemptOutcome.AMBIGUOUS] >= books.caps.max_ambiguous_attempts
            or outcomes[AttemptOutcome.LOST] > books.caps.max_rescues
        )
        is_hopeless = outcomes[AttemptOutcome.PERMANENT] and told(one.prompt)[0] is AttemptOutcome.PERMANENT
        if not (is_used_up or is_hopeless):
            yield f"turn {shown(one.turn)} failed ({turn.error_type}: {turn.error_message}) after {dict(outcomes)}"


def unfounded(books: Entries) -> Iterator[str]:
    """An attempt ended badly only if the model was told to misbehave, or something was broken at the time."""
    for one in books.standing():
        expected, times = told(one.prompt)
        seen: Counter[str] = Counter()
        for row in books.tries.get(one.turn, ()):
            seen[row.outcome] += 1
            if row.outcome in (None, AttemptOutcome.COMPLETED, AttemptOutcome.CANCELLED):
                continue
            is_told = row.outcome == expected and seen[row.outcome] <= times
            is_lasting = row.outcome == AttemptOutcome.PERMANENT
            if not (is_told or (not is_lasting and (is_excused(books, row) or is_late(books, row)))):
                why = f"{row.outcome} ({row.error_type})"
                yield f"attempt {row.number} of turn {shown(one.turn)} ended {why} for no reason ({moments(books, row)})"


def moments(books: Entries, row: Any) -> str:
    """When an attempt was made, beside the fault before: for whoever looks for the reason."""
    began, ended = row.started_at.timestamp(), row.ended_at.timestamp()
    before = max((fault for fault in books.faults if fault.began <= ended), key=lambda fault: fault.ended, default=None)
    told = f"{began - before.ended:.1f} s after {before.name}" if before else "after no fault"
    return f"{row.started_at:%H:%M:%S}, {told}, for {ended - began:.1f} s"


def is_excused(books: Entries, row: Any) -> bool:
    """Whether something was broken while the attempt was under way, or had just been."""
    began, ended = row.started_at.timestamp(), row.ended_at.timestamp()
    repair = books.repair_seconds
    return any(fault.began - 1 <= ended and began <= fault.ended + repair for fault in books.faults)


def is_late(books: Entries, row: Any) -> bool:
    """Whether the call took all the time it was given: the machine may be that busy."""
    took = (row.ended_at - row.started_at).total_seconds()
    return row.outcome == AttemptOutcome.AMBIGUOUS and bool(took >= books.caps.attempt_deadline_seconds)


def revoked(books: Entries) -> Iterator[str]:
    """A turn is cancelled only if somebody wanted that, and always if somebody was told so."""
    asked = {(cancel.session, cancel.number) for cancel in books.log.cancels}
    confirmed = {(cancel.session, cancel.number) for cancel in books.log.cancels if cancel.confirmed}
    interrupts: dict[int, int] = defaultdict(int)
    for one in books.standing():
        if one.when_busy == "interrupt":
            interrupts[one.session] = max(interrupts[one.session], one.number)
    for turn, row in books.turns.items():
        is_wanted = turn in asked or turn[1] < interrupts[turn[0]] or row.merged_into is not None
        if row.state == TurnState.CANCELLED and not is_wanted:
            yield f"turn {shown(turn)} is cancelled, and nobody asked for that"
        if turn in confirmed and row.state != TurnState.CANCELLED:
            yield f"turn {shown(turn)} was said to be cancelled, and is {row.state}"


def merged(books: Entries) -> Iterator[str]:
    """A turn that was joined into another is cancelled, and its prompt is in that one, in the order of sending."""
    sources: dict[TurnId, list[TurnId]] = defaultdict(list)
    asked = {one.turn for one in books.log.accepted if one.when_busy == "coalesce"}
    for turn, row in sorted(books.turns.items()):
        if row.merged_into is not None:
            sources[turn[0], row.merged_into].append(turn)
            if row.state != TurnState.CANCELLED:
                yield f"turn {shown(turn)} was joined into {row.merged_into}, and is {row.state}"
    for target, joined in sources.items():
        if target not in books.turns or target <= max(joined) or target not in asked:
            yield f"turn {shown(target)}, into which others were joined, is not a later one that wanted that"
        prompt, place = "".join(books.said(target, "user")), 0
        for part in (part for turn in joined for part in books.said(turn, "user")):
            place = prompt.find(part, place)
            if place < 0:
                yield f"turn {shown(target)} does not hold what was joined into it, in its order"
                break
            place += len(part)


def shown(turn: TurnId) -> str:
    return f"{turn[0]}.{turn[1]}"
