"""Who is alive, and which tick of the timetable has fired."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Connection, delete, select

from inturn.models.clock import now
from inturn.models.states import ProcessKind
from inturn.models.store.opening import UPSERT
from inturn.models.tables import TICKS, WORKER_PROCESSES


@dataclass(frozen=True, slots=True)
class Recent:
    """What a process did in the last seconds before its heartbeat.

    Attributes:
        seconds: how many.
        turns: those that it brought to an end, by lane and state.
        usd: what its attempts cost, as far as there are prices, in US dollars.
        tokens: what they took, both ways.
    """

    seconds: float
    turns: dict[str, dict[str, int]] = field(default_factory=dict)
    usd: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, told: Mapping[str, Any] | None) -> Self | None:
        """As it is stored; None: nothing was told, or it has another shape, by another version of inturn."""
        try:
            return None if told is None else cls(**told)
        except TypeError:
            return None

    def ended(self, lane: str | None = None, state: str | None = None) -> int:
        """How many turns of this lane, or of any, that ended in this state, or in any."""
        lanes = self.turns.values() if lane is None else [self.turns.get(lane, {})]
        return sum(many for states in lanes for known, many in states.items() if state in (None, known))


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A process of inturn, as its heartbeat last described it."""

    id: str
    kind: ProcessKind
    host: str
    pid: int
    lanes: str
    concurrency: int
    version: str
    started_at: datetime
    heartbeat_at: datetime
    alive: bool
    """Its heartbeat is not older than asked for."""
    recent: Recent | None = None
    """What it did lately; None: it has just begun, or is a beat."""
    settings: dict[str, str] | None = None
    """Digests of those that it was started with, by what they are about; None: it has not said."""


@dataclass(frozen=True, slots=True)
class Process:
    """What a process says of itself."""

    id: str
    kind: ProcessKind
    host: str
    pid: int
    lanes: str
    concurrency: int
    version: str
    settings: dict[str, str] | None = None


def appear(db: Connection, process: Process, recent: Recent | None = None) -> None:
    """The process's heartbeat: makes its row, or makes it young again."""
    values = {name: getattr(process, name) for name in Process.__slots__}
    told = None if recent is None else asdict(recent)
    db.execute(
        UPSERT[db.dialect.name](WORKER_PROCESSES)
        .values(**values, started_at=now(), heartbeat_at=now(), recent=told)
        .on_conflict_do_update(index_elements=["id"], set_={"heartbeat_at": now(), "recent": told})
    )


def disappear(db: Connection, processes: list[str]) -> None:
    db.execute(delete(WORKER_PROCESSES).where(WORKER_PROCESSES.c.id.in_(processes)))


def forget_silent(db: Connection, silent_seconds: float) -> None:
    """Take away the rows of processes that have long been silent."""
    db.execute(delete(WORKER_PROCESSES).where(WORKER_PROCESSES.c.heartbeat_at < now(-silent_seconds)))


def list_processes(db: Connection, silent_seconds: float) -> list[WorkerInfo]:
    """All processes, oldest first; ``alive`` if heard of within ``silent_seconds``."""
    alive = (WORKER_PROCESSES.c.heartbeat_at > now(-silent_seconds)).label("alive")
    columns = [WORKER_PROCESSES.c[name] for name in WorkerInfo.__slots__ if name != "alive"]
    rows = db.execute(select(*columns, alive).order_by(WORKER_PROCESSES.c.started_at)).mappings()
    return [_info(row) for row in rows]


def _info(row: Mapping[Any, Any]) -> WorkerInfo:
    known = {"kind": ProcessKind(row["kind"]), "alive": bool(row["alive"]), "recent": Recent.of(row["recent"])}
    return WorkerInfo(**{**row, **known})


def tick(db: Connection, name: str, slot: int) -> bool:
    """Claim one firing of the timetable; False if somebody has. Older slots of the name are forgotten."""
    fired = UPSERT[db.dialect.name](TICKS).values(name=name, slot=slot, fired_at=now())
    once = fired.on_conflict_do_nothing(index_elements=["name", "slot"]).returning(TICKS.c.slot)
    first = db.execute(once).first() is not None
    if first:
        db.execute(delete(TICKS).where(TICKS.c.name == name, TICKS.c.slot < slot - 100))
    return first
