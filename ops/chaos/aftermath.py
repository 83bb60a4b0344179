"""8., 10. and 11.: what is in order when everything is over, and how long a ``send`` may take meanwhile."""

from collections.abc import Iterator
from statistics import median

from inturn.models.states import TurnState
from ops.chaos.entries import Entries
from ops.chaos.fates import shown
from ops.chaos.phases import DOWN, FROZEN, healthy_sends, sends_within

FROZEN_SECONDS, DOWN_SECONDS = 1.5, 0.2
"""How long ``send`` may take with Redis frozen, and with Redis down, over what the database takes."""


def left(books: Entries) -> Iterator[str]:
    """8. Nothing runs, is held, or waits; and what waits is ready, as else nobody would ever come for it."""
    leases = {row.session_id: row for row in books.leases}
    for row in leases.values():
        if row.owner is not None or row.ready_at is not None:
            yield f"session {row.session_id} is still held by {row.owner} or ready at {row.ready_at}"
    for turn, row in books.turns.items():
        lease = leases.get(turn[0])
        if row.state == TurnState.QUEUED and (lease is None or (lease.owner is None and lease.ready_at is None)):
            yield f"turn {shown(turn)} waits, and its session is not ready: nobody will come for it"
        if row.state == TurnState.RUNNING and (lease is None or lease.owner is None):
            yield f"turn {shown(turn)} runs, and nobody holds its session"
    for session in books.sessions:
        if session.state != "active":
            yield f"session {session.id} is {session.state}"


def slow(books: Entries) -> Iterator[str]:
    """10. ``send`` returns in 1.5 s with Redis frozen; with Redis down it costs 0.2 s more than it does else."""
    healthy, frozen, down = healthy_sends(books), sends_within(books, FROZEN), sends_within(books, DOWN)
    if not healthy:
        return
    # What the database takes now and then, on a busy machine, is not for Redis to answer for.
    allowed = FROZEN_SECONDS + sorted(healthy)[len(healthy) * 99 // 100]
    if frozen and max(frozen) > allowed:
        yield f"a send took {max(frozen):.2f} s with Redis frozen, where {allowed:.2f} s are allowed"
    allowed = median(healthy) + DOWN_SECONDS
    if down and median(down) > allowed:
        yield f"a send took {median(down):.2f} s (median) with Redis down, where {allowed:.2f} s are allowed"


def unhealthy(books: Entries) -> Iterator[str]:
    """11. The database is whole, and nobody has left a transaction open."""
    yield from books.found_wrong
