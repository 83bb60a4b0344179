"""Receipts: what retention removed, when, under which rule, and for whom. IDs and counts, never text."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    String,
    and_,
    cast,
    func,
    insert,
    literal,
    null,
    select,
    update,
)

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.states import Kept
from inturn.models.tables import MESSAGES, REMOVAL_RUNS, REMOVALS, SESSIONS, TURNS


@dataclass(frozen=True, slots=True)
class Removal:
    """A session that retention removed, or would remove.

    Attributes:
        turns, messages, bytes: how many went; bytes are those of the messages, as UTF-8.
        kept: what is left of it: ``nothing``, or ``metadata``, where only what was said went.
    """

    session_id: str
    rule: str
    turns: int
    messages: int
    bytes: int
    last_activity_at: datetime
    kept: str


@dataclass(frozen=True, slots=True)
class RemovalSum:
    """What a rule removed, or would remove, added up.

    Attributes:
        bytes: of messages, as UTF-8.
        kept: what is left of the sessions; see ``Removal``.
    """

    rule: str
    sessions: int = 0
    turns: int = 0
    messages: int = 0
    bytes: int = 0
    kept: str = Kept.NOTHING

    def plus(self, one: Removal) -> "RemovalSum":
        sums = self.sessions + 1, self.turns + one.turns, self.messages + one.messages, self.bytes + one.bytes
        return RemovalSum(self.rule, *sums, one.kept)


def add_up(sums: dict[str, RemovalSum], one: Removal) -> None:
    """Count a session to what its rule removed."""
    sums[one.rule] = sums.get(one.rule, RemovalSum(one.rule)).plus(one)


@dataclass(frozen=True, slots=True)
class Run:
    """One rule's part of a cleanup, as the receipts know it.

    Attributes:
        rows: of a kind that expires (``expiry``), which ``rule`` names: how many are gone. Those are no sessions.
        archive, checksum: where what it removed was written to before, and that file's SHA-256; None: nowhere. Of a run
            that ended early it is the beginning of the names of what it had written.
        error: why it ended early; None: it did not.
        ended_at: None: it is under way, or its process died.
        kept: what is left of what it removed; see ``Removal``.
    """

    id: int
    rule: str
    asked_by: str
    kept: str
    began_at: datetime
    ended_at: datetime | None
    sessions: int
    turns: int
    messages: int
    bytes: int
    rows: int
    archive: str | None
    checksum: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Receipt(Removal):
    """What says that a session was removed, or what was said in it.

    Attributes:
        run: under which; None: its batch was to be discarded once it was read.
    """

    removed_at: datetime
    run: Run | None


COUNTED = ("turns", "messages", "bytes")
NAMES = (*Removal.__slots__, "removed_at")
COLUMNS = [REMOVALS.c.session_key if name == "session_id" else REMOVALS.c[name] for name in NAMES]


def begin_run(database: Database, rule: str, asked_by: str, error: str | None = None, kept: Kept = Kept.NOTHING) -> int:
    """Note that a rule is being carried out, and for whom; with an error, that it was not."""
    told = {"rule": rule, "asked_by": asked_by, "kept": kept, "error": error}
    new = insert(REMOVAL_RUNS).values(told | {"began_at": now(), "ended_at": now() if error else null()})
    return int(database.transact(lambda db: db.execute(new.returning(REMOVAL_RUNS.c.id)).scalar_one()))


def note_deletion(db: Connection, rule: str, asked_by: str, which: ColumnElement[bool]) -> list[Removal]:
    """Write the receipts of what a transaction removes, and that is all of its run."""
    new = insert(REMOVAL_RUNS).values(rule=rule, asked_by=asked_by, began_at=now(), ended_at=now())
    return note(db, db.execute(new.returning(REMOVAL_RUNS.c.id)).scalar_one(), rule, which)


def end_run(
    database: Database, run: int, *, archive: str | None = None, checksum: str | None = None, error: str | None = None
) -> None:
    ended = {"ended_at": now(), "archive": archive, "checksum": checksum, "error": error}
    database.transact(lambda db: db.execute(update(REMOVAL_RUNS).where(REMOVAL_RUNS.c.id == run).values(ended)))


def counted(dialect: str, rule: str, keep: Kept = Kept.NOTHING, most: int | None = None) -> Select[Any]:
    """What receipts say of sessions: the columns of ``Removal``, in its order.

    Args:
        keep: what is to be left of them.
        most: count so many turns of each at most, the oldest of which anything is to be removed; None: all.
    """
    mine, turns = MESSAGES.c.session_id == SESSIONS.c.id, TURNS.c.session_id == SESSIONS.c.id
    if keep is Kept.METADATA:
        turns = and_(turns, TURNS.c.number > SESSIONS.c.content_removed_to)
    if most is not None:
        upto = SESSIONS.c.content_removed_to + most
        mine, turns = and_(mine, MESSAGES.c.turn_number <= upto), and_(turns, TURNS.c.number <= upto)
    # What SQLite calls the length of a text are its characters.
    size = func.octet_length(MESSAGES.c.content) if dialect == "postgresql" else _octets(MESSAGES.c.content)
    return select(
        SESSIONS.c.key,
        literal(rule).label("rule"),
        select(func.count()).where(turns).scalar_subquery().label("turns"),
        select(func.count()).where(mine).scalar_subquery().label("messages"),
        select(cast(func.coalesce(func.sum(size), 0), BigInteger)).where(mine).scalar_subquery().label("bytes"),
        SESSIONS.c.last_activity_at,
        literal(keep, String).label("kept"),
    )


def _octets(column: ColumnElement[str]) -> ColumnElement[int]:
    return func.length(cast(column, LargeBinary))


def note(
    db: Connection,
    run: int | None,
    rule: str,
    which: ColumnElement[bool],
    keep: Kept = Kept.NOTHING,
    most: int | None = None,
) -> list[Removal]:
    """Write the receipts of the sessions that a transaction is about to remove; returns what they say.

    Args:
        keep, most: as ``counted`` has them.
    """
    names = [column.key for column in COLUMNS[: len(Removal.__slots__)]]
    rows = counted(db.dialect.name, rule, keep, most).add_columns(literal(run, BigInteger), now()).where(which)
    new = insert(REMOVALS).from_select([*names, "run_id", "removed_at"], rows.order_by(SESSIONS.c.id))
    removals = [Removal(*row) for row in db.execute(new.returning(*COLUMNS[: len(names)]))]
    if removals:
        sums = {name: REMOVAL_RUNS.c[name] + sum(getattr(it, name) for it in removals) for name in COUNTED}
        mine = update(REMOVAL_RUNS).where(REMOVAL_RUNS.c.id == run)
        db.execute(mine.values(sums | {"sessions": REMOVAL_RUNS.c.sessions + len(removals)}))
    return removals


def note_more(db: Connection, run: int, more: Removal) -> None:
    """Add to the receipt of a session that goes piece by piece."""
    mine = (REMOVALS.c.run_id == run) & (REMOVALS.c.session_key == more.session_id)
    for table, which in ((REMOVALS, mine), (REMOVAL_RUNS, REMOVAL_RUNS.c.id == run)):
        sums = {name: table.c[name] + getattr(more, name) for name in COUNTED}
        db.execute(update(table).where(which).values(sums))


def note_rows(db: Connection, run: int, many: int) -> None:
    """Count what a transaction removes that are no sessions."""
    mine = update(REMOVAL_RUNS).where(REMOVAL_RUNS.c.id == run)
    db.execute(mine.values(rows=REMOVAL_RUNS.c.rows + many))


def list_runs(database: Database, before: int | None = None, limit: int = 100) -> list[Run]:
    """A page of the runs, newest first."""
    page = select(*(REMOVAL_RUNS.c[name] for name in Run.__slots__)).order_by(REMOVAL_RUNS.c.id.desc()).limit(limit)
    with database.reading() as db:
        rows = db.execute(page if before is None else page.where(REMOVAL_RUNS.c.id < before))
        return [Run(*row) for row in rows]


def list_receipts(database: Database, key: str) -> list[Receipt]:
    """Those of the sessions that had this ID, newest first."""
    runs = [REMOVAL_RUNS.c[name].label(f"run_{name}") for name in Run.__slots__]
    found = (
        select(*COLUMNS, *runs)
        .outerjoin(REMOVAL_RUNS, REMOVAL_RUNS.c.id == REMOVALS.c.run_id)
        .where(REMOVALS.c.session_key == key)
        .order_by(REMOVALS.c.id.desc())
    )
    with database.reading() as db:
        rows = [tuple(row) for row in db.execute(found)]
    many = len(NAMES)
    return [Receipt(*(*row[:many], Run(*row[many:]) if row[many] is not None else None)) for row in rows]
