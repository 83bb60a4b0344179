"""What happened while something was broken, and how soon after it was over: sends, and calls."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ops.chaos.entries import Entries
from ops.chaos.model import Call
from ops.chaos.nemesis import Fault
from ops.chaos.promises import Accepted, Population

FROZEN, DOWN = "redis_frozen", "redis_restarted"
BACK = ("redis_wiped", "redis_restarted", "postgresql_restarted")
"""Kinds of faults after whose end work goes on; after a ``kill`` it should go on at once."""
NOBODY = "none"
NOTICE_SECONDS = 1.0
"""How long after a caller's death the model server may see it."""


def sends_within(books: Entries, kind: str) -> list[float]:
    """How long each ``send`` took that began and returned during a fault of the kind, in seconds."""
    faults = [fault for fault in books.faults if fault.kind == kind]
    return [one.seconds for one in books.log.accepted if any(is_within(one, fault) for fault in faults)]


def healthy_sends(books: Entries) -> list[float]:
    """How long each ``send`` took that met no fault."""
    return [
        one.seconds
        for one in books.log.accepted
        if not any(fault.began <= one.at and one.at - one.seconds <= fault.ended for fault in books.faults)
    ]


def is_within(one: Accepted, fault: Fault) -> bool:
    return fault.began <= one.at - one.seconds and one.at <= fault.ended


def culprit(books: Entries, former: Call, call: Call, faults: Sequence[Fault]) -> str:
    """The kind of the latest of these faults that may be why ``former`` was not enough: it had begun before the next call
    did, and was not over, or not repaired, when the former one began.
    """
    repair = books.repair_seconds
    kinds = [fault.kind for fault in faults if fault.began <= call.start and former.start <= fault.ended + repair]
    return kinds[-1] if kinds else NOBODY


def recoveries(books: Entries, kind: str) -> Iterator[float]:
    """For each fault of the kind and each session that it kept waiting: seconds until the session's next call.

    A ``kill`` keeps those sessions waiting whose call the worker was in, and which it was made again for: they count
    from the moment in which the model server saw the caller go. Other faults keep the plain sessions waiting that are
    ready when the fault is over: a prompt of theirs was accepted before and is called for the first time after, and no
    call of theirs is under way. They count from the end of the fault. Faults do not count that met nobody at work, as
    another one was not over, or that the next one followed at once.
    """
    for fault in books.faults:
        by_itself = fault.detail.get("after_recovery", True) and fault.detail.get("left_alone", True)
        if fault.kind == kind and by_itself:
            yield from after_kill(books, fault) if kind == "kill" else after_return(books, fault.ended)


def after_kill(books: Entries, fault: Fault) -> Iterator[float]:
    struck = set(fault.detail.get("sessions", ()))
    for (session, _), calls in books.calls_of().items():
        if session in struck:
            for broken, again in pairwise(calls):
                # A reply that was sent a moment before the kill may have met nobody who could store it.
                gone = max(broken.end or fault.began, fault.began)
                was_under_way = broken.end is None or broken.end >= fault.began - NOTICE_SECONDS
                if (
                    was_under_way
                    and broken.start <= fault.ended
                    and gone <= min(again.start, fault.ended + NOTICE_SECONDS)
                ):
                    yield again.start - gone


def after_return(books: Entries, moment: float) -> Iterator[float]:
    calls_by_session = books.calls_by_session()
    first = {turn: mine[0].start for turn, mine in books.calls_of().items()}
    waiting = {
        one.session
        for one in books.log.accepted
        if one.population is Population.PLAIN and one.at <= moment < first.get(one.turn, 0.0)
    }
    for session in waiting:
        calls = calls_by_session[session]
        if not any(call.start <= moment and (call.end is None or call.end > moment) for call in calls):
            yield next(call.start for call in calls if call.start > moment) - moment
