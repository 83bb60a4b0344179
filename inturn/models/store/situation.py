"""Where a session stands: all that its lowest unfinished turn may wait for, at one moment, and how it is said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from inturn.models.states import Lane, ProcessKind
from inturn.models.store.presence import WorkerInfo

NAMING_TURNS = ("retry_of", "merged_into", "halted_by")
"""Columns that hold the number of a turn of the session."""

MANY = 10_000
"""Nobody counts further how many sessions are ready before one."""


class Code(StrEnum):
    """What it is, for machines."""

    NOTHING_WAITS = "nothing_waits"
    HALTED = "halted"
    CANCELLING = "cancelling"
    """It runs, and its cancellation was asked for."""
    WORKER_LOST = "worker_lost"
    """It runs, and whoever runs it is silent, or has lost the lease."""
    RUNNING = "running"
    EARLIER_TURN = "earlier_turn"
    """Of a turn that was asked for: one before it is not over. The sentence goes on about that one."""
    PROVIDER_LIMIT = "provider_limit"
    """Its provider's limit, of rate or of calls at once, left no room for it."""
    BUDGET = "budget"
    """A budget of its is used up, and it is to wait for another day."""
    RETRY = "retry"
    SCHEDULED = "scheduled"
    LANE_PAUSED = "lane_paused"
    NO_WORKER = "no_worker"
    SLOTS_BUSY = "slots_busy"
    HINT_NOT_SENT = "hint_not_sent"
    HINT_SENT = "hint_sent"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings of the deployment say about waiting, and whom to ask about Redis.

    Attributes:
        deadline_seconds: of one call to a model, by the model's name.
        queued_hints: how many hints a lane's queue holds; None if Redis does not say.
    """

    max_attempts: int
    max_rescues: int
    sweep_seconds: float
    silent_seconds: float
    batch_share: float
    has_embedded_broker: bool
    deadline_seconds: Callable[[str], float]
    queued_hints: Callable[[Lane], int | None]


@dataclass(frozen=True, slots=True)
class Reason:
    """What a session, or a turn, waits for.

    Attributes:
        code: for machines.
        sentence: for people, with the values in it.
        command: the next thing to type, where there is one.
        besides: what else stands in the way, and will not go away by itself.
        rows: what the sentence was read from, without text of the conversation.
    """

    code: Code
    sentence: str
    command: str | None = None
    besides: tuple["Reason", ...] = ()
    rows: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Situation:
    """A session, its lowest unfinished turn and all that this one may wait for, at one moment of the database's clock."""

    at: datetime
    terms: Terms
    session: Mapping[str, Any]
    lease: Mapping[str, Any]
    turn: Mapping[str, Any] | None
    attempt: Mapping[str, Any] | None
    behind: int
    """Turns that wait behind that turn."""
    halting: Mapping[str, Any] | None
    """The quarantined turn behind which the session is halted."""
    pause: Mapping[str, Any] | None
    processes: Sequence[WorkerInfo]
    taken: Mapping[tuple[str, str], int]
    """How many leases each living worker holds, by its id and by lane."""
    schedules: Sequence[Mapping[str, Any]]
    """Those that send to it, the next one first, and then those that are paused."""
    ahead: int
    """Sessions of the lane that have been ready for longer; ``MANY`` at most."""

    @property
    def key(self) -> str:
        return str(self.session["key"])

    @property
    def lane(self) -> Lane:
        return Lane(self.lease["lane"])

    @property
    def owner(self) -> WorkerInfo | None:
        return next((one for one in self.processes if one.id == self.lease["owner"]), None)

    @property
    def workers(self) -> list[WorkerInfo]:
        """Who is alive and serves the lane."""
        return [one for one in alive(self.processes, ProcessKind.WORKER) if self.lane in one.lanes.split(",")]

    def named(self, number: int) -> str:
        """A turn of the session, as people name it."""
        return f"{self.session['id']}.{number}"

    def row(self, row: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """A row of the session with IDs as commands take them, in place of what the tables are joined by."""
        if row is None:
            return None
        named = {name: self.named(row[name]) for name in NAMING_TURNS if row.get(name) is not None}
        return {**row, "session_id": self.key, **named}

    def turn_row(self, turn: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if turn is None else self.row({"id": self.named(turn["number"]), **turn})

    def attempts(self) -> str:
        tried = self.turn["attempts"] - self.turn["rounds"] if self.turn else 0
        return f"{tried} of {self.terms.max_attempts}"

    def at_the_time(self, when: datetime) -> str:
        """``14:03:11 (12 s ago)`` or ``14:03:11 (in 12 s)``, in the reader's time zone."""
        local, today = when.astimezone(), self.at.astimezone()
        shown = f"{local:%H:%M:%S}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M:%S}"
        return f"{shown} (in {span(when - self.at)})" if when > self.at else f"{shown} ({span(self.at - when)} ago)"

    def rows(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "session": {"session_id": self.key, **without(self.session, "id", "key")},
            "lease": self.row(self.lease),
            "turn": self.turn_row(self.turn),
            "attempt": self.row(self.attempt),
            "waiting_behind": self.behind,
            "worker": None if self.owner is None else described(self.owner),
            "halting_turn": self.turn_row(self.halting),
            "lane_pause": self.pause,
            "lane_workers": [described(one) for one in self.workers],
            "ready_before": self.ahead,
            "schedules": list(self.schedules),
        }


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def alive(processes: Sequence[WorkerInfo], *kinds: ProcessKind) -> list[WorkerInfo]:
    return [one for one in processes if one.alive and one.kind in kinds]


def described(process: WorkerInfo) -> dict[str, Any]:
    return {name: getattr(process, name) for name in WorkerInfo.__slots__ if name not in ("recent", "settings")}


def span(length: timedelta) -> str:
    """A length of time, as exactly as somebody who waits wants to know it."""
    seconds = max(0.0, length.total_seconds())
    for unit, factor, below in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds / factor < below:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def counted(number: int, noun: str) -> str:
    shown = f"more than {MANY:,}" if noun == "session" and number >= MANY else f"{number:,}"
    return f"{shown} {noun}" if number == 1 else f"{shown} {noun}s"
