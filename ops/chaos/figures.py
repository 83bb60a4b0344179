"""The figures that every run prints."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from inturn.archives.directory import PARTIAL
from inturn.workers.maintenance import BEAT
from ops.chaos.books import Books
from ops.chaos.entries import Entries
from ops.chaos.misdeeds import told
from ops.chaos.nemesis import Fault
from ops.chaos.phases import BACK, DOWN, FROZEN, culprit, healthy_sends, recoveries, sends_within
from ops.chaos.promises import Log
from ops.chaos.spending import excusing, overlaps, wasted_replies


def figures(books: Books, faults: Sequence[Fault], log: Log) -> dict[str, Any]:
    """What a run was like; see each part for what it counts. Times are in the unit that their names end with."""
    found = Counter(sentence.partition(":")[0] for sentence in books.violations())
    return {
        "faults": dict(Counter(fault.kind for fault in faults)),
        "accepted": len(log.accepted),
        "refused": len(log.refused),
        "deleted": len(log.deleted),
        "removed": dict(Counter(row.rule for row in (*books.removals, *books.strippings))),
        "by_beat": sum(run.sessions for run in books.runs.values() if run.asked_by == BEAT),
        "archives": dict(
            Counter("partial" if archive.path.suffix == PARTIAL else "whole" for archive in books.archives)
        ),
        "brought_back": len(log.guests),
        "cancelled": sum(row.state == "cancelled" for row in books.turns.values()),
        "failed": sum(row.state == "failed" for row in books.turns.values()),
        "calls": len(books.calls),
        "lost": found["lost"],
        "duplicate_replies": found["doubled"],
        "order_violations": found["disordered"],
        "violations": dict(found),
        "extra_calls": extra_calls(books),
        "wasted_replies": wasted_replies(books),
        "overlaps": overlapping_calls(books),
        "recovery": {kind: spread_seconds(list(recoveries(books, kind))) for kind in ("kill", *BACK)},
        "send": {
            "healthy": spread(healthy_sends(books)),
            "redis_frozen": spread(sends_within(books, FROZEN)),
            "redis_down": spread(sends_within(books, DOWN)),
        },
        "drain": spread_seconds([each for fault in faults for each in fault.detail.get("drains", ())]),
    }


def extra_calls(books: Entries) -> dict[str, int]:
    """Calls of a turn beyond its first, by the kind of fault that they go back to.

    One that follows a call in which the model misbehaved as the prompt told it to is no extra call.
    """
    found: Counter[str] = Counter()
    for calls in books.calls_of().values():
        _, times = told(calls[0].prompt)
        rest = calls[int(min(times, len(calls))) :]
        found.update(culprit(books, former, call, books.faults) for former, call in pairwise(rest))
    return dict(found)


def overlapping_calls(books: Entries) -> dict[str, int]:
    """Calls that began while another one of the session was under way, by the kind of fault that excuses them."""
    excuses = excusing(books)
    found: Counter[str] = Counter()
    for calls in books.calls_by_session().values():
        found.update(culprit(books, former, call, excuses) for former, call in overlaps(calls))
    return dict(found)


def percentile(values: Sequence[float], hundredths: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * hundredths // 100)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and 99th percentile of so many values in seconds, in milliseconds."""
    if not values:
        return {"count": 0}
    return {
        "count": len(values),
        "p50_ms": round(percentile(values, 50) * 1000, 1),
        "p99_ms": round(percentile(values, 99) * 1000, 1),
    }


def spread_seconds(values: Sequence[float]) -> dict[str, Any]:
    """The same in seconds."""
    if not values:
        return {"count": 0}
    return {
        "count": len(values),
        "p50_s": round(percentile(values, 50), 2),
        "p99_s": round(percentile(values, 99), 2),
    }
