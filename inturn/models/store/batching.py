"""A batch on its way in: made under its fingerprint, its lines stored a chunk at a time, each chunk whole and once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import IntegrityError

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import BatchNotFoundError, SessionNotFoundError
from inturn.models.states import BatchState, Lane, Retention
from inturn.models.store import retention
from inturn.models.store.admitting import Admission, Admitted, admit
from inturn.models.store.lines import BadLine, Line
from inturn.models.store.loading import load
from inturn.models.store.opening import UPSERT
from inturn.models.store.waking import Ready
from inturn.models.tables import BATCH_LINES, BATCHES

TRIES = 5
"""Somebody may make a session while it is looked for, or remove it."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a batch is made from.

    Attributes:
        key: its public ID.
        fingerprint: of its content and its name.
        how: what else says what becomes of its lines: ``model``, ``system``, ``options``, ``context_turns``, ``retention``,
            ``retention_seconds``, ``window_seconds``.
        total: how many lines there are to store.
        discards: its sessions are removed once its results were read.
    """

    key: str
    fingerprint: str
    total: int
    name: str | None = None
    how: dict[str, Any] = field(default_factory=dict)
    discards: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch to store lines of.

    Attributes:
        how: what it was submitted with; of one that was there already, the first time.
        stored: how many of its lines are there.
    """

    id: int
    key: str
    state: BatchState
    how: dict[str, Any]
    total: int
    stored: int
    discards: bool
    expires_at: datetime | None
    is_new: bool = False


BEGUN = [BATCHES.c[name] for name in Begun.__slots__ if name != "is_new"]


def begin(database: Database, new: NewBatch) -> Begun:
    """Make the batch, or find the one that was made from the same before."""
    window = new.how.get("window_seconds")
    made = {
        "key": new.key,
        "name": new.name,
        "fingerprint": new.fingerprint,
        "how": new.how,
        "state": BatchState.VALIDATING,
        "total": new.total,
        "discards": new.discards,
        "expires_at": None if window is None else now(window),
        "created_at": now(),
        "stored_at": now(),
        "aborts": False,
        "input_tokens": 0,
        "output_tokens": 0,
    }

    def make(db: Connection) -> Begun:
        inserted = UPSERT[db.dialect.name](BATCHES).values(made).on_conflict_do_nothing(index_elements=["fingerprint"])
        is_new = db.execute(inserted.returning(BATCHES.c.id)).scalar() is not None
        row = db.execute(select(*BEGUN).where(BATCHES.c.fingerprint == new.fingerprint)).one()
        return _begun(dict(row._mapping), is_new=is_new)

    return database.transact(make, is_patient=True)


def forget(database: Database, key: str) -> None:
    """Take a batch back of which no line was stored."""
    mine = (BATCHES.c.key == key) & (BATCHES.c.state == BatchState.VALIDATING) & (BATCHES.c.stored == 0)
    database.transact(lambda db: db.execute(delete(BATCHES).where(mine)), is_patient=True)


def _begun(row: dict[str, Any], *, is_new: bool = False) -> Begun:
    return Begun(**row | {"state": BatchState(row["state"]), "discards": bool(row["discards"]), "is_new": is_new})


@dataclass(frozen=True, slots=True)
class Stored:
    """How far a batch is stored now, and who is to be told: the first of the sessions that became ready."""

    state: BatchState
    stored: int
    ready: Sequence[Ready] = ()


def store(
    database: Database,
    batch: Begun,
    after: int,
    lines: Sequence[Line | BadLine],
    hints: int,
    trace: Mapping[str, str] | None = None,
) -> Stored:
    """Store the lines that come behind the first ``after``, all of them or none. The batch is ``in_progress`` with its last.

    Where somebody else has stored lines meanwhile, nothing is: the answer says how far they are.

    Args:
        hints: how many of the sessions that become ready count as told.
        trace: the link to where they are sent.

    Raises:
        BatchNotFoundError: it was removed meanwhile.
    """

    def chunk(db: Connection, *, all_may_exist: bool) -> Stored:
        row = db.execute(select(BATCHES.c.state, BATCHES.c.stored).where(BATCHES.c.id == batch.id).with_for_update())
        found = row.one_or_none()
        if found is None:
            raise BatchNotFoundError(batch.key)
        if found.state != BatchState.VALIDATING or found.stored != after:
            return Stored(BatchState(found.state), found.stored)
        done = after + len(lines)
        prompts = [it for it in lines if isinstance(it, Line)]
        admitted = admit(db, admission(batch, trace), prompts, hints, all_may_exist)
        keep_bad(db, batch.id, [it for it in lines if isinstance(it, BadLine)])
        state = BatchState.IN_PROGRESS if done >= batch.total else BatchState.VALIDATING
        db.execute(update(BATCHES).where(BATCHES.c.id == batch.id).values(stored=done, state=state, stored_at=now()))
        return Stored(state, done, admitted.ready)

    return _patiently(database, chunk)


def admission(batch: Begun, trace: Mapping[str, str] | None = None) -> Admission:
    """How the lines of a batch are taken in."""
    how = batch.how
    return Admission(
        model=how["model"],
        system=how.get("system"),
        lane=Lane.BATCH,
        retention=Retention(how.get("retention", Retention.POLICY)),
        retention_seconds=how.get("retention_seconds"),
        options=how.get("options") or {},
        context_turns=how["context_turns"],
        batch_id=batch.id,
        prefix=batch.key,
        not_after=batch.expires_at,
        trace=trace,
    )


def send_many(database: Database, how: Admission, lines: Sequence[Line], hints: int) -> Admitted:
    """Store prompts that belong to no batch, all of them or none."""

    def work(db: Connection, *, all_may_exist: bool) -> Admitted:
        return admit(db, how, lines, hints, all_may_exist)

    return _patiently(database, work)


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    def __call__(self, db: Connection, *, all_may_exist: bool) -> T_co: ...


def _patiently(database: Database, work: Work[T]) -> T:
    """Do it again if a session that it looked for was made or removed meanwhile."""
    all_may_exist = False
    for left in reversed(range(TRIES)):
        try:
            return database.transact(partial(work, all_may_exist=all_may_exist), is_patient=True)
        except SessionNotFoundError as error:
            if not left or not retention.finish_removal(database, error.session_id):
                raise
        except IntegrityError:
            if not left:
                raise
            all_may_exist = True
    raise AssertionError("the last try returns or raises")


def keep_bad(db: Connection, batch_id: int, lines: Sequence[BadLine]) -> None:
    """Store lines that are no prompts, for the results."""
    columns = ("batch_id", "line", "custom_id", "error_type", "error_message")
    load(db, BATCH_LINES, columns, [(batch_id, it.line, it.custom_id, it.code, it.message) for it in lines])
