"""Removal: on request, and by the rules of retention, with receipts."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    literal,
    null,
    select,
    update,
)

from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.failpoints import reached
from inturn.models.pace import Pace
from inturn.models.states import SessionState
from inturn.models.store.budgets import SESSION
from inturn.models.store.lines import SESSION_DELETED
from inturn.models.store.receipts import Removal, counted, note, note_deletion
from inturn.models.store.rules import Rule, covered, due, order_of, removable
from inturn.models.store.selecting import Among
from inturn.models.store.tally import INSERT, keep_usage, used_by
from inturn.models.tables import (
    ATTEMPTS,
    BATCH_LINES,
    BATCHES,
    LEASES,
    MESSAGES,
    PAST_HOLDS,
    SCHEDULES,
    SESSIONS,
    SPENDING,
    TURNS,
)

ERASURE = "erasure"
"""What receipts call sessions that were removed by somebody's request."""
MANY_TURNS, TURNS_A_STEP = 1000, 500
"""A session with more turns is removed in several transactions, so that no other statement waits long for one."""
TURNS_A_TRANSACTION = 5000
"""So many may be removed at once with other sessions, however quickly that went before."""


def remove(database: Database, key: str, *, asked_by: str | None = None) -> int:
    """Remove a session with all it owns, whatever it is doing: a call under way finds its lease gone and stores nothing.

    Args:
        asked_by: who is named in its receipt; None: it has none.

    Returns: its surrogate id. Raises: SessionNotFoundError.
    """
    mine = SESSIONS.c.key == key

    def book(db: Connection) -> None:
        if asked_by is not None:
            note_deletion(db, ERASURE, asked_by, mine)

    removed = _remove(database, mine, book)
    if removed is None:
        raise SessionNotFoundError(key)
    return removed


def erase(database: Database, session_id: int, run: int, *, held_too: bool) -> Removal | None:
    """Remove a session as ``remove`` does, whatever it is called by now, with what schedules would send to it, and with a
    receipt.

    Returns: None, if it is gone, or is held and such are to stay.
    """
    booked = list[Removal]()

    def book(db: Connection) -> None:
        booked[:] = note(db, run, ERASURE, mine)
        keys = [removal.session_id for removal in booked]
        db.execute(delete(SCHEDULES).where(SCHEDULES.c.session_key.in_(keys), SCHEDULES.c.new_session.is_(False)))

    mine = and_(SESSIONS.c.id == session_id, SESSIONS.c.state == SessionState.ACTIVE)
    found = _remove(database, mine if held_too else and_(mine, SESSIONS.c.held.is_(False)), book)
    return None if found is None else booked[0]


def _remove(database: Database, which: ColumnElement[bool], before: Callable[[Connection], object]) -> int | None:
    def mark(db: Connection) -> tuple[int, int] | None:
        found = (
            select(SESSIONS.c.id, SESSIONS.c.next_turn, SESSIONS.c.state).where(which).with_for_update(key_share=True)
        )
        row = db.execute(found).one_or_none()
        if row is None:
            return None
        if row.state == SessionState.ACTIVE:  # or its removal was begun, and has its receipt
            before(db)
        fence_off(db, row.id)
        if row.next_turn <= MANY_TURNS:
            _take_whole(db, [row.id])
        return row.id, row.next_turn

    marked = database.transact(mark)
    if marked is not None and marked[1] > MANY_TURNS:
        take_away(database, *marked)
    return marked and marked[0]


def fence_off(db: Connection, session_id: int) -> None:
    """From here on the session takes no sends, and its worker's token is stale. The caller holds the session's lock."""
    db.execute(
        update(LEASES)
        .where(LEASES.c.session_id == session_id)
        .values(owner=null(), expires_at=null(), ready_at=null(), token=LEASES.c.token + 1)
    )
    db.execute(update(SESSIONS).where(SESSIONS.c.id == session_id).values(state=SessionState.DELETING))


def _take_whole(db: Connection, sessions: Collection[int]) -> None:
    """What they used stays, as a sum. The caller holds their locks. Each table has a statement of its own: the cascade,
    which finds none left, would take one for each session and table.
    """
    if not sessions:
        return
    these = Among(db, sessions)
    db.execute(delete(LEASES).where(these.has(LEASES.c.session_id)))  # first: no worker is at one of them after that
    used = used_by(db, these.has(ATTEMPTS.c.session_id))
    _keep_lines(db, these.has(TURNS.c.session_id))
    scopes = select(literal(f"{SESSION}:") + cast(SESSIONS.c.id, Text)).where(these.has(SESSIONS.c.id))
    db.execute(delete(SPENDING).where(SPENDING.c.scope.in_(scopes)))
    db.execute(update(PAST_HOLDS).where(these.has(PAST_HOLDS.c.session_id)).values(reason=null()))
    for rows in (MESSAGES, ATTEMPTS, TURNS):
        db.execute(delete(rows).where(these.has(rows.c.session_id)))
    db.execute(delete(SESSIONS).where(these.has(SESSIONS.c.id)))
    keep_usage(db, used)


def take_away(database: Database, session_id: int, next_turn: int, pace: Pace | None = None) -> None:
    """Remove the rows of a session that is ``deleting``, oldest turns first, and at last the session itself. Several may be
    at it: who comes second finds nothing left of a chunk, also nothing to count.
    """
    upto, pace = 0, (pace or Pace(0)).counting(TURNS_A_STEP)
    while upto < next_turn:
        upto += pace.size
        chunk = partial(_take_turns, session_id=session_id, upto=upto)
        pace.step(lambda _, chunk=chunk: database.transact(chunk, is_patient=True))  # type: ignore[misc]
        reached("cleanup.between_chunks")
    database.transact(lambda db: _take_whole(db, _locked(db, session_id)), is_patient=True)


def _take_turns(db: Connection, session_id: int, upto: int) -> None:
    if _locked(db, session_id):
        keep_usage(db, used_by(db, and_(ATTEMPTS.c.session_id == session_id, ATTEMPTS.c.turn_number <= upto)))
        _keep_lines(db, and_(TURNS.c.session_id == session_id, TURNS.c.number <= upto))
    for rows, number in (
        (MESSAGES, MESSAGES.c.turn_number),
        (ATTEMPTS, ATTEMPTS.c.turn_number),
        (TURNS, TURNS.c.number),
    ):
        db.execute(delete(rows).where(rows.c.session_id == session_id, number <= upto))


def _keep_lines(db: Connection, which: ColumnElement[bool]) -> None:
    """Before turns are taken away: those that are lines of a batch stay in its results, unless it is gone, or all of them
    were read, and nobody wanted them any longer.
    """
    names = ("batch_id", "line", "custom_id", "error_type", "error_message")
    said = "its session was deleted before its result was read"
    wanted = exists().where(BATCHES.c.id == TURNS.c.batch_id, ~(BATCHES.c.discards & BATCHES.c.read_at.is_not(None)))
    lost = select(TURNS.c.batch_id, TURNS.c.line, TURNS.c.custom_id, literal(SESSION_DELETED), literal(said)).where(
        which, TURNS.c.batch_id.is_not(None), TURNS.c.line.is_not(None), wanted
    )
    db.execute(INSERT[db.dialect.name](BATCH_LINES).from_select(names, lost).on_conflict_do_nothing())


def _locked(db: Connection, session_id: int) -> list[int]:
    """The session, if it is still there. Two removers would count the same attempts otherwise, each before the other's
    deletion is to be seen.
    """
    mine = select(SESSIONS.c.id).where(SESSIONS.c.id == session_id).with_for_update(key_share=True)
    return list(db.execute(mine).scalars())


def finish_removal(database: Database, key: str | None = None) -> bool:
    """Finish what a remover that died had begun: all such sessions, or the one named. Returns whether there was any."""
    with database.reading() as db:
        begun = select(SESSIONS.c.id, SESSIONS.c.next_turn).where(SESSIONS.c.state == SessionState.DELETING)
        rows = db.execute(begun if key is None else begun.where(SESSIONS.c.key == key)).all()
    for session_id, next_turn in rows:
        take_away(database, session_id, next_turn)
    return bool(rows)


def due_now(database: Database, rules: Sequence[Rule], rule: Rule) -> ColumnElement[bool] | None:
    """The condition of what a rule would remove (None: it never removes any), to be used for all of a cleanup."""
    with database.reading() as db:
        return due(db, rules, rule)


def list_due(database: Database, rules: Sequence[Rule], rule: Rule, limit: int = 100) -> Iterator[Removal]:
    """Sessions that a rule would remove now, page by page, by ascending surrogate id."""
    after: int | None = 0
    which = due_now(database, rules, rule)
    while after is not None and which is not None:
        page = counted(database.dialect, rule.name, rule.keep).add_columns(SESSIONS.c.id).order_by(SESSIONS.c.id)
        with database.reading() as db:
            rows = db.execute(page.where(which, SESSIONS.c.id > after).limit(limit))
            found = [(last, Removal(*row)) for *row, last in rows]
        yield from (removal for _, removal in found)
        after = found[-1][0] if len(found) == limit else None


def count_due(database: Database, rules: Sequence[Rule], among: Sequence[Rule] | None = None) -> dict[str, int]:
    """How many sessions each rule (or each of those ``among`` them) would remove now."""
    chosen = rules if among is None else among
    with database.reading() as db:
        return {rule.name: _count(db, which) for rule in chosen if (which := due(db, rules, rule)) is not None}


def count_covered(database: Database, rules: Sequence[Rule], rule: Rule) -> int:
    """How many sessions a rule covers, whatever becomes of them."""
    with database.reading() as db:
        return _count(db, covered(database.dialect, rules, rule))


def is_in_use(database: Database) -> bool:
    """Whether any turn is under way."""
    with database.reading() as db:
        return bool(db.execute(select(exists().where(LEASES.c.owner.is_not(None)))).scalar())


def count_sessions(database: Database) -> int:
    with database.reading() as db:
        return _count(db, SESSIONS.c.state == SessionState.ACTIVE)


def _count(db: Connection, which: ColumnElement[bool]) -> int:
    return int(db.execute(select(func.count()).select_from(SESSIONS).where(which)).scalar_one())


def count_matching(database: Database, which: Rule, *, held_too: bool) -> int:
    """How many sessions there are of a pattern and labels."""
    with database.reading() as db:
        return _count(db, _matching(database.dialect, which, held_too))


def list_matching(
    database: Database, which: Rule, after: int = 0, limit: int = 100, *, held_too: bool
) -> list[tuple[int, Removal]]:
    """A page of the sessions of a pattern and labels: surrogate ids, by which they are in order, and what is in them."""
    page = counted(database.dialect, ERASURE).add_columns(SESSIONS.c.id).order_by(SESSIONS.c.id).limit(limit)
    with database.reading() as db:
        rows = db.execute(page.where(_matching(database.dialect, which, held_too), SESSIONS.c.id > after))
        return [(session_id, Removal(*row)) for *row, session_id in rows]


def _matching(dialect: str, which: Rule, held_too: bool) -> ColumnElement[bool]:
    active = and_(SESSIONS.c.state == SessionState.ACTIVE, which.matches(dialect))
    return active if held_too else and_(active, SESSIONS.c.held.is_(False))


class Seen(NamedTuple):
    """What a session was like when it was archived. One that was sent to, resumed or renamed since is another."""

    key: str
    next_turn: int
    last_activity_at: datetime


SEEN = [SESSIONS.c[name] for name in Seen._fields]


def choose_due(
    db: Connection, rule: Rule, which: ColumnElement[bool], limit: int, without: Collection[int] = ()
) -> dict[int, Seen]:
    """The chunk that a rule removes next, by surrogate ids, as a snapshot sees it: to be archived in it, made durable while
    nothing is locked, and removed by ``remove_due`` as far as it is still the same.

    Args:
        which: as ``due_now`` says.
        without: those that turned out not to be the same.
    """
    next_ones = select(SESSIONS.c.id, *SEEN).where(which, SESSIONS.c.id.not_in(without)).order_by(*order_of(rule))
    return {row.id: Seen(*row[1:]) for row in few(db.execute(next_ones.limit(limit)))}


def remove_due(
    database: Database,
    rule: Rule,
    which: ColumnElement[bool],
    run: int,
    limit: int = 100,
    archived: Mapping[int, Seen] | None = None,
    pace: Pace | None = None,
) -> list[Removal]:
    """Remove a chunk of what is due by a rule in one transaction, each session with its row in ``removals``.

    They are chosen and locked in the transaction that removes them: one that was used since anybody listed it stays.

    Args:
        which: as ``due_now`` says.
        run: under which the receipts stand.
        limit: how many sessions at most.
        archived: none but these, which ``choose_due`` chose, and of them only those that are what they were then.
        pace: how many sessions it takes at once. One with very many turns is a chunk by itself, in several transactions.
    """
    if archived is not None:
        which = and_(which, SESSIONS.c.id.in_(archived))
    pace = pace or Pace(limit)
    order = order_of(rule)
    chunk = partial(_remove_chunk, which=which, rule=rule.name, order=order, run=run, archived=archived)
    removed = pace.step(lambda size: database.transact(partial(chunk, limit=min(limit, size)), is_patient=True))
    if removed.receipts:
        reached("cleanup.between_chunks")
    for session_id, next_turn in removed.begun:
        take_away(database, session_id, next_turn, pace)
    return removed.receipts


class Chunk(NamedTuple):
    """What a transaction removed.

    Attributes:
        begun: surrogate id and next turn of those that are marked so far, as they have very many turns.
    """

    receipts: list[Removal]
    begun: list[tuple[int, int]]


def _remove_chunk(
    db: Connection,
    which: ColumnElement[bool],
    rule: str,
    limit: int,
    order: Sequence[ColumnElement[Any]] = (SESSIONS.c.id,),
    run: int | None = None,
    archived: Mapping[int, Seen] | None = None,
) -> Chunk:
    locked = select(SESSIONS.c.id, *SEEN).where(which).order_by(*order).limit(limit)
    rows = db.execute(locked.with_for_update(skip_locked=True, key_share=True)).all()
    same = [row for row in rows if archived is None or archived[row.id] == row[1:]]
    if not same:
        return Chunk([], [])
    chosen = {row.key: row for row in few(same)}
    # Looked at anew under the locks, in a statement of its own: its snapshot is younger than any send it waited for.
    removals = note(db, run, rule, and_(Among(db, (row.id for row in chosen.values())).has(SESSIONS.c.id), which))
    found = [chosen[removal.session_id] for removal in removals]
    begun = [(row.id, row.next_turn) for row in found if row.next_turn > MANY_TURNS]
    for session_id, _ in begun:
        fence_off(db, session_id)
    _take_whole(db, [row.id for row in found if row.next_turn <= MANY_TURNS])
    return Chunk(removals, begun)


def few(rows: Iterable[Row[Any, Any, Any, Any]]) -> Iterator[Row[Any, Any, Any, Any]]:
    """As many as have no more turns together than a transaction takes away; one at least. The others are next."""
    turns = 0
    for place, row in enumerate(rows):
        turns += row.next_turn - 1
        if place and turns > TURNS_A_TRANSACTION:
            return
        yield row


def remove_unused(database: Database, sessions: Collection[int], batch_id: int, rule: str) -> int:
    """Remove those of the sessions that a batch made and nobody uses: no work waits, and they are not held.

    Returns: how many.
    """
    made = and_(SESSIONS.c.id.in_(sessions), SESSIONS.c.batch_id == batch_id, removable())
    chunk = partial(_remove_chunk, which=made, rule=rule, limit=len(sessions))
    many = 0
    while removed := database.transact(chunk, is_patient=True).receipts:
        many += len(removed)
    return many
