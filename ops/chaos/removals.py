"""7., 9. and 12.: what a rule may take it takes once, with a receipt and an archive; what it may not, it leaves alone."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inturn.models.states import Kept
from inturn.workers.maintenance import BEAT
from ops.chaos.answers import CLOCK_SECONDS
from ops.chaos.archives import Copy
from ops.chaos.entries import Entries
from ops.chaos.fates import shown
from ops.chaos.model import Call
from ops.chaos.promises import Deleted, Population
from ops.chaos.rules import ERASURE, Group, group_of
from ops.chaos.spending import excusing, surely_until
from ops.chaos.strippings import strippings

Window = tuple[float, float]
"""From and until when, in Unix time."""
ERASED = (Population.DOOMED, Population.ERASED)
"""Whom users take away."""
TENANTS = {
    Population.HELD: "held",
    Population.KEPT: "to be kept for ever",
    Population.STRIPPED: "to lose only what was said",
}
"""Whom no rule may take away, and why not."""


def removed(books: Entries) -> Iterator[str]:
    """7. Who is gone was removed once, with all turns, and has a receipt; nobody else was."""
    for one in books.log.accepted:
        if one.population in TENANTS and one.session in books.gone:
            yield f"session {one.session} was {TENANTS[one.population]}, and is gone"
    counts: dict[int, int] = defaultdict(int)
    for one in books.log.accepted:
        counts[one.session] += 1
    for gone in books.log.deleted:
        yield from removed_once(books, gone, counts[gone.session])
    for row in books.removals:
        if not any(is_of(row, gone) for gone in books.log.deleted):
            yield f"session {row.session_key} was removed at {row.removed_at}, and nobody noticed"


def removed_once(books: Entries, gone: Deleted, prompts: int) -> Iterator[str]:
    """It was removed with all its turns. Others that were made before, their answers lost, came and went without any."""
    rows = [row.turns for row in receipts_of(books, gone)]
    if not rows:
        yield f"session {gone.session} is gone, and no removal is on record"
    elif rows[-1] < prompts or any(rows[:-1]):
        yield f"session {gone.session} was removed with {rows} turns of {prompts}"


def receipts_of(books: Entries, gone: Deleted) -> list[Any]:
    """In the order of their removal."""
    return [row for row in books.removals if is_of(row, gone)]


def is_of(row: Any, gone: Deleted) -> bool:
    return bool(row.session_key == gone.key and gone.since <= row.removed_at.timestamp() <= gone.at)


def interrupted(books: Entries) -> Iterator[str]:
    """9. No rule takes a prompt away that waits, or is being answered: unless the model could not be reached, or its worker
    was cut off, everything that was accepted there had its answer by then.
    """
    calls_of, excuses = books.calls_of(), excusing(books)
    ends = {gone.session: end_of(books, gone) for gone in books.log.deleted if gone.expired}
    stripped = strippings(books)
    for one in books.log.accepted:
        moment = ends.get(one.session) or stripped.get(one.turn)
        if moment is None:
            continue
        if any(
            fault.began <= moment and one.at - one.seconds <= fault.ended + books.repair_seconds for fault in excuses
        ):
            continue
        calls = calls_of.get(one.turn, [])
        if not calls:
            yield f"turn {shown(one.turn)} was removed before a model was asked"
        elif is_under_way(calls, moment + CLOCK_SECONDS):
            yield f"turn {shown(one.turn)} was removed while a model was asked"


def is_under_way(calls: list[Call], moment: float) -> bool:
    """Whether none had been answered, and one was still to be."""
    is_answered = any(call.outcome == "200" and call.end is not None and call.end <= moment for call in calls)
    return not is_answered and any(surely_until(call) > moment for call in calls)


def end_of(books: Entries, gone: Deleted) -> float:
    """When it was removed; else when that was seen."""
    rows = receipts_of(books, gone)
    return float(rows[-1].removed_at.timestamp()) if rows else gone.at


def unruly(books: Entries) -> Iterator[str]:
    """12. The rule that a receipt names is the one that covers the session, which was beyond its limits, and not held."""
    active = activity(books)
    for row in [*books.removals, *books.strippings]:
        key, group = row.session_key, group_of(books.log.run, row.session_key)
        if row.rule == ERASURE:
            if not key.startswith(tuple(f"{books.log.run}-{population}-" for population in ERASED)):
                yield f"session {key} was erased, and nobody wanted that"
        elif group is None or group.name != row.rule or group.is_kept:
            yield f"session {key} was removed by the rule {row.rule!r}, which is not for it"
        elif group.is_stripped != (row.kept == Kept.METADATA):
            yield f"of session {key} {row.kept} was kept by the rule {row.rule!r}"
        elif group.is_timed and row.run_id in books.runs and books.runs[row.run_id].asked_by == BEAT:
            yield f"session {key} was removed by the rule {row.rule!r} at no moment of its own"
        elif early := too_early(books, group, row, active):
            yield f"session {key} was removed by the rule {row.rule!r}, {early}"
        if any(hold.key == key and hold.began < row.removed_at.timestamp() < hold.ended for hold in books.log.holds):
            yield f"session {key} was removed at {row.removed_at}, while it was held"


def too_early(books: Entries, group: Group, row: Any, active: Mapping[str, Sequence[Window]]) -> str:
    """Which limit it was not beyond; empty: it was."""
    removed, used = row.removed_at.timestamp(), row.last_activity_at.timestamp()
    if group.idle_seconds is not None and removed - used < group.idle_seconds:
        return f"idle for {removed - used:.2f} s"
    if group.age_seconds is not None:
        made = max((gone.since for gone in books.log.deleted if is_of(row, gone)), default=removed)
        if removed - made < group.age_seconds:
            return f"at most {removed - made:.2f} s old"
    if group.most is not None and (many := newer(books, row, active)) < group.most:
        return f"with {many} that were active later"
    return ""


def newer(books: Entries, row: Any, active: Mapping[str, Sequence[Window]]) -> int:
    """How many others of its group may have been active after it, when it was removed."""
    group, since, until = group_of(books.log.run, row.session_key), row.last_activity_at, row.removed_at
    others = (key for key in active if key != row.session_key and group_of(books.log.run, key) is group)
    return sum(
        any(began <= until.timestamp() and since.timestamp() <= ended for began, ended in active[key]) for key in others
    )


def activity(books: Entries) -> Mapping[str, Sequence[Window]]:
    """In which times sessions of an ID were active, at one moment of each: when they are made, and when they are sent to."""
    found = defaultdict[str, list[Window]](list)
    keys = {row.id: row.key for row in books.sessions} | {gone.session: gone.key for gone in books.log.deleted}
    for row in books.sessions:
        found[row.key].append((row.created_at.timestamp(), row.created_at.timestamp()))
    for gone in books.log.deleted:
        found[gone.key].append((gone.since, gone.at))
    tried = {refused.prompt: refused.at - refused.seconds for refused in reversed(books.log.refused)}
    for one in books.log.accepted:
        if one.session in keys:
            found[keys[one.session]].append((tried.get(one.prompt, one.at - one.seconds), one.at))
    return found


def misbooked(books: Entries) -> Iterator[str]:
    """12. A run's sums are those of its receipts, and each receipt has its run."""
    of_runs: dict[int, list[Any]] = defaultdict(list)
    for row in books.receipts:
        if row.run_id is not None:
            of_runs[row.run_id].append(row)
    for run, rows in of_runs.items():
        if run not in books.runs:
            yield f"{len(rows)} receipts are of run {run}, which is not there"
    for run in books.runs.values():
        rows = of_runs[run.id]
        sums = (len(rows), *(sum(getattr(row, name) for row in rows) for name in ("turns", "messages", "bytes")))
        if sums != (run.sessions, run.turns, run.messages, run.bytes):
            booked = (run.sessions, run.turns, run.messages, run.bytes)
            yield f"run {run.id} of the rule {run.rule!r} has booked {booked}, and its receipts are {sums}"
        if other := next((row for row in rows if row.rule != run.rule), None):
            yield f"run {run.id} of the rule {run.rule!r} has a receipt of {other.rule!r}"


def unarchived(books: Entries) -> Iterator[str]:
    """12. What was to be archived is in the archive of its run, whole; archives that were sealed are what was booked."""
    for archive in books.archives:
        booked = books.runs[archive.run].checksum if archive.run in books.runs else None
        if archive.fault:
            yield f"the archive {archive.path.name} cannot be read: {archive.fault}"
        if booked not in (None, archive.checksum):
            yield f"the archive {archive.path.name} has the checksum {archive.checksum}, and {booked} is on record"
    lives = [gone for gone in books.log.deleted if gone.expired]
    copies = {archive.run: archive.copies for archive in books.archives}
    for row in [*books.removals, *books.guest_removals]:
        group = group_of(books.log.run, row.session_key)
        if row.rule != ERASURE and (group is None or group.is_archived):  # or it is a guest
            sent = [one.prompt for gone in lives if is_of(row, gone) for one in books.sent_to(gone.session)]
            if not any(is_copy(copy, row, sent) for copy in copies.get(row.run_id, ())):
                name = f"session {row.session_key} (removed at {row.removed_at})"
                yield f"{name} is not in the archive of run {row.run_id} with its {row.turns} turns"


def is_copy(copy: Copy, row: Any, prompts: Sequence[str]) -> bool:
    return copy.key == row.session_key and len(copy.turns) == row.turns and all(map(copy.answers, prompts))


def unwelcome(books: Entries) -> Iterator[str]:
    """12. What was imported is there with all its turns, or has a receipt that counts as many."""
    for guest in books.log.guests:
        there = [books.guests[guest.key]] if guest.key in books.guests else []
        found = there or [row.turns for row in books.guest_removals if row.session_key == guest.key]
        if guest.turns not in found:
            yield f"session {guest.key} was imported with {guest.turns} turns, and has {found}"
