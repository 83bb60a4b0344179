"""Who is alive, and which tick of the timetable has fired."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select

from inturn.models.clock import now
from inturn.models.states import ProcessKind
from inturn.models.store.opening import UPSERT
from inturn.models.tables import TICKS, WORKER_PROCESSES


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


def appear(db: Connection, process: Process) -> None:
    """The process's heartbeat: makes its row, or makes it young again."""
    values = {name: getattr(process, name) for name in Process.__slots__}
    db.execute(
        UPSERT[db.dialect.name](WORKER_PROCESSES)
        .values(**values, started_at=now(), heartbeat_at=now())
        .on_conflict_do_update(index_elements=["id"], set_={"heartbeat_at": now()})
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
    return [WorkerInfo(**{**row, "kind": ProcessKind(row["kind"]), "alive": bool(row["alive"])}) for row in rows]


def tick(db: Connection, name: str, slot: int) -> bool:
    """Claim one firing of the timetable; False if somebody has. Older slots of the name are forgotten."""
    fired = UPSERT[db.dialect.name](TICKS).values(name=name, slot=slot, fired_at=now())
    once = fired.on_conflict_do_nothing(index_elements=["name", "slot"]).returning(TICKS.c.slot)
    first = db.execute(once).first() is not None
    if first:
        db.execute(delete(TICKS).where(TICKS.c.name == name, TICKS.c.slot < slot - 100))
    return first
