"""What a turn may wait for: ``CAUSES``, in the order in which they are looked for.

A cause is a function from a ``Situation`` to a ``Reason``, or to None where it is not the case. A new one is a function in
that list; if it looks at more rows, they are a field of ``Situation``, which ``diagnosis`` fills.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from inturn.models.states import ProcessKind, TurnState, slots_of
from inturn.models.store.budgets import SENTENCE
from inturn.models.store.presence import WorkerInfo
from inturn.models.store.situation import Code, Reason, Situation, alive, counted

ERROR_WIDTH = 500


def explain(it: Situation) -> Reason:
    """The first cause that is the case, and what stands in the way besides."""
    first, reason = next((cause, found) for cause in CAUSES if (found := cause(it)) is not None)
    besides = (cause(it) for cause in OBSTACLES if cause is not first and first in ENDS_BY_ITSELF)
    return replace(reason, besides=tuple(filter(None, besides)), rows=it.rows())


def nothing_waits(it: Situation) -> Reason | None:
    if it.turn is not None or it.halting is not None:
        return None
    sent = it.session["next_turn"] - 1
    so = (
        f"all of its {counted(sent, 'turn')} are over"
        if sent > 1
        else "its turn is over"
        if sent
        else "nothing was sent"
    )
    clock, command = by_the_clock(it)
    return Reason(Code.NOTHING_WAITS, f"session {it.key} waits for nothing: {so}{clock}", command)


def by_the_clock(it: Situation) -> tuple[str, str | None]:
    """What a schedule will send to the session, or what keeps it from that; and the command that helps."""
    if not it.schedules:
        return "", None
    first = it.schedules[0]
    if first["next_at"] is None:
        command = f"inturn schedule resume {first['name']}"
        why = f", as it could not be fired ({first['paused_because']})" if first["paused_because"] else ""
        return f"; schedule {first['name']} is paused{why}, until `{command}`", command
    told = f"; schedule {first['name']} sends to it next, at {it.at_the_time(first['next_at'])}"
    if alive(it.processes, ProcessKind.BEAT):
        return told, None
    command = "inturn up" if it.terms.has_embedded_broker else "inturn beat"
    return f"{told}, but no beat is alive to fire it: start `{command}`", command


def halted(it: Situation) -> Reason | None:
    if it.halting is None or (it.turn is not None and it.turn["state"] == TurnState.RUNNING):
        return None
    number, command = it.halting["number"], f"inturn session continue {it.key}"
    waiting = it.behind + (it.turn is not None)
    waits = (
        f"{counted(waiting, 'turn')} {'waits' if waiting == 1 else 'wait'}" if waiting else "what is sent to it waits"
    )
    since = f" at {it.at_the_time(it.halting['finished_at'])}" if it.halting["finished_at"] else ""
    return Reason(
        Code.HALTED,
        f"session {it.key} is halted behind turn {it.named(number)}, which failed{since}: {error_of(it.halting)}; "
        f"{waits} until `{command}`",
        command,
    )


def error_of(turn: Mapping[str, Any], error_type: str | None = None) -> str:
    """What went wrong, on one line."""
    message = " ".join((turn["error_message"] or "").split())
    short = message if len(message) <= ERROR_WIDTH else f"{message[: ERROR_WIDTH - 1]}…"
    return ": ".join(filter(None, (turn["error_type"] or error_type, short))) or "the reason is not known"


def running(it: Situation) -> Reason | None:
    if it.turn is None or it.turn["state"] != TurnState.RUNNING:
        return None
    return worker_lost(it, it.turn) or cancelling(it, it.turn) or under_way(it, it.turn)


def worker_lost(it: Situation, turn: Mapping[str, Any]) -> Reason | None:
    expires, owner = it.lease["expires_at"], it.owner
    if expires is not None and expires > it.at and owner is not None and owner.alive:
        return None
    silent = "is gone" if owner is None else f"was last heard of at {it.at_the_time(owner.heartbeat_at)}"
    if owner is not None and owner.alive:
        silent = "did not renew it"
    if expires is None:
        lease = "its lease is nobody's"
    else:
        lease = f"its lease {'ran' if expires <= it.at else 'runs'} out at {it.at_the_time(expires)}"
    told = f"turn {it.named(turn['number'])} is stuck in attempt {it.attempts()}: {who(owner)} {silent}, and {lease}"
    if not alive(it.processes, ProcessKind.WORKER, ProcessKind.BEAT):
        command = worker_command(it)
        return Reason(Code.WORKER_LOST, f"{told}. Nobody is alive to take it over: start `{command}`", command)
    due = max(it.at, expires or it.at) + timedelta(seconds=it.terms.sweep_seconds)
    return Reason(Code.WORKER_LOST, f"{told}; the sweep takes it over by about {it.at_the_time(due)}")


def who(process: WorkerInfo | None) -> str:
    return "its worker" if process is None else f"worker {process.host}/{process.pid}"


def cancelling(it: Situation, turn: Mapping[str, Any]) -> Reason | None:
    asked = turn["cancel_requested_at"]
    if asked is None:
        return None
    return Reason(
        Code.CANCELLING,
        f"turn {it.named(turn['number'])} is being cancelled, as was asked for at {it.at_the_time(asked)}: "
        f"{who(it.owner)} breaks its call off (attempt {it.attempts()})",
    )


def under_way(it: Situation, turn: Mapping[str, Any]) -> Reason:
    began = it.attempt["started_at"] if it.attempt else turn["started_at"]
    deadline = began + timedelta(seconds=it.terms.deadline_seconds(turn["model"]))
    return Reason(
        Code.RUNNING,
        f"turn {it.named(turn['number'])} runs: attempt {it.attempts()} began at {it.at_the_time(began)}, by "
        f"{who(it.owner)}{those_who_died(it, turn)}; its deadline {'is' if deadline > it.at else 'was'} "
        f"{it.at_the_time(deadline)}",
    )


def those_who_died(it: Situation, turn: Mapping[str, Any]) -> str:
    """How often it was rescued, and what comes of that."""
    if not turn["rescues"]:
        return ""
    died = f"{counted(turn['rescues'], 'worker')} died over it"
    alone = turn["rescues"] >= it.terms.max_rescues
    return f"; its call is made in a process of its own, as {died}" if alone else f", after {died}"


def due_later(it: Situation) -> Reason | None:
    """A turn whose budget is used up or that its provider has no room for, a retry, or one that was sent for later."""
    if it.turn is None or (due := it.lease["ready_at"] or it.turn["ready_at"]) <= it.at:
        return None
    name, when = it.named(it.turn["number"]), it.at_the_time(due)
    if waits_for := it.turn["waits_for"]:
        if waits_for.startswith(SENTENCE):
            return Reason(Code.BUDGET, f"turn {name} waits, as {waits_for}: it asks again at {when}")
        return Reason(Code.PROVIDER_LIMIT, f"turn {name} waits for {waits_for}: it asks again at {when}")
    if not it.turn["attempts"]:
        return Reason(Code.SCHEDULED, f"turn {name} is not due before {when}")
    last = it.attempt["error_type"] or it.attempt["outcome"] if it.attempt else None
    used = "is" if it.turn["attempts"] == 1 else "are"
    return Reason(
        Code.RETRY,
        f"turn {name} is tried again at {when}: {it.attempts()} attempts {used} used up, the last one failed with "
        f"{error_of(it.turn, last)}",
    )


def lane_paused(it: Situation) -> Reason | None:
    if it.turn is None or it.pause is None:
        return None
    command = f"inturn lane resume {it.lane}"
    return Reason(
        Code.LANE_PAUSED,
        f"turn {it.named(it.turn['number'])} waits for its lane: {it.lane} is paused since "
        f"{it.at_the_time(it.pause['paused_at'])}, until `{command}`",
        command,
    )


def no_worker(it: Situation) -> Reason | None:
    if it.turn is None or it.workers:
        return None
    command = worker_command(it)
    others = alive(it.processes, ProcessKind.WORKER)
    nobody = f"none of the {counted(len(others), 'worker')} alive serves" if others else "no worker is alive to serve"
    return Reason(
        Code.NO_WORKER,
        f"turn {it.named(it.turn['number'])} waits for a worker: {nobody} the lane {it.lane}. Start `{command}`",
        command,
    )


def worker_command(it: Situation) -> str:
    """An embedded broker comes with ``inturn up``; a worker alone would wait for it."""
    if it.terms.has_embedded_broker and not alive(it.processes, ProcessKind.WORKER):
        return "inturn up"
    return f"inturn worker --lanes {it.lane}"


def slots_busy(it: Situation) -> Reason | None:
    if it.turn is None or not it.workers or any(has_room(it, worker) for worker in it.workers):
        return None
    slots = sum(room_in(it, worker) for worker in it.workers)
    return Reason(
        Code.SLOTS_BUSY,
        f"turn {it.named(it.turn['number'])} waits for a free slot: all {slots} that "
        f"{counted(len(it.workers), 'worker')} {'has' if len(it.workers) == 1 else 'have'} for the lane {it.lane} are "
        f"taken, and {counted(it.ahead, 'session')} of the lane {'has' if it.ahead == 1 else 'have'} been ready for "
        f"longer. More workers make it quicker: `inturn worker --lanes {it.lane}`",
        f"inturn worker --lanes {it.lane}",
    )


def has_room(it: Situation, worker: WorkerInfo) -> bool:
    in_all = sum(count for (owner, _), count in it.taken.items() if owner == worker.id)
    return in_all < worker.concurrency and it.taken.get((worker.id, it.lane), 0) < room_in(it, worker)


def room_in(it: Situation, worker: WorkerInfo) -> int:
    return slots_of(it.lane, worker.lanes.split(","), worker.concurrency, it.terms.batch_share)


def hint_not_sent(it: Situation) -> Reason | None:
    hinted, ready = it.lease["hinted_at"], it.lease["ready_at"]
    if it.turn is None or (hinted is not None and ready is not None and hinted >= ready):
        return None
    return Reason(
        Code.HINT_NOT_SENT,
        f"turn {it.named(it.turn['number'])} is ready since {it.at_the_time(ready or it.turn['ready_at'])}, and no "
        f"worker was told yet: the sweep does so within {it.terms.sweep_seconds:g} s",
    )


def hint_sent(it: Situation) -> Reason | None:
    """What is left: a worker should take it any moment."""
    if it.turn is None:
        return None
    told = (
        f"turn {it.named(it.turn['number'])} is ready, and workers were told at {it.at_the_time(it.lease['hinted_at'])}"
    )
    queued = it.terms.queued_hints(it.lane)
    if queued is None:
        command = "inturn doctor"
        return Reason(
            Code.HINT_SENT, f"{told}; but the broker does not answer, and they hear nothing: try `{command}`", command
        )
    return Reason(
        Code.HINT_SENT,
        f"{told}: {counted(it.ahead, 'session')} of the lane {it.lane} {'has' if it.ahead == 1 else 'have'} been ready "
        f"for longer, and {counted(queued, 'hint')} {'is' if queued == 1 else 'are'} in its queue; the sweep tells them "
        f"again within {it.terms.sweep_seconds:g} s",
    )


CAUSES: tuple[Callable[[Situation], Reason | None], ...] = (
    nothing_waits,
    halted,
    running,
    due_later,
    lane_paused,
    no_worker,
    slots_busy,
    hint_not_sent,
    hint_sent,
)

ENDS_BY_ITSELF = (due_later,)
"""Causes that go away with time: what stands in the way then is better said now."""

OBSTACLES = (lane_paused, no_worker)
"""What goes away by somebody's doing only."""
