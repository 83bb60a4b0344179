"""Content-only removal: what was said in sessions goes, their rows with states, times and what was used stay."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.failpoints import reached
from inturn.models.pace import Pace
from inturn.models.states import SessionState
from inturn.models.store.receipts import COUNTED, Removal, counted, note, note_more
from inturn.models.store.retention import MANY_TURNS, SEEN, TURNS_A_STEP, Seen, few
from inturn.models.store.rules import Rule, has_content, order_of, removable
from inturn.models.store.selecting import Among
from inturn.models.tables import LEASES, MESSAGES, REMOVALS, SESSIONS, TURNS

UNTOLD = "what it said was removed by retention"
"""Stands where an error's message was, which may quote what a model was shown."""


def count_with_content(database: Database) -> int:
    """Of how many sessions anything is left that was said in them."""
    with database.reading() as db:
        mine = and_(SESSIONS.c.state == SessionState.ACTIVE, has_content())
        return int(db.execute(select(func.count()).select_from(SESSIONS).where(mine)).scalar_one())


def strip_due(
    database: Database,
    rule: Rule,
    which: ColumnElement[bool],
    run: int,
    limit: int = 100,
    archived: Mapping[int, Seen] | None = None,
    pace: Pace | None = None,
) -> list[Removal]:
    """Remove what was said in a chunk of what is due by a rule that keeps metadata, as ``retention.remove_due`` removes
    whole sessions: under the same locks, looked at anew, with receipts.

    A long session goes in pieces, each in a transaction of its own, under one receipt. One that is sent to in between has
    lost its beginning, and is due again like any other.
    """
    which = and_(which, ~_is_begun(run))
    if archived is not None:
        which = and_(which, SESSIONS.c.id.in_(archived))
    pace = pace or Pace(limit)
    chunk = partial(_strip_chunk, which=which, rule=rule, run=run, archived=archived)
    found, long = pace.step(lambda size: database.transact(partial(chunk, limit=min(limit, size)), is_patient=True))
    if found:
        reached("cleanup.between_chunks")
    for session in long:
        found[session.id] = _strip_rest(database, session, found[session.id], rule, run, pace.counting(TURNS_A_STEP))
    return list(found.values())


def _is_begun(run: int) -> ColumnElement[bool]:
    """Whether somebody else strips it for the same run, and is between two pieces."""
    return exists().where(REMOVALS.c.run_id == run, REMOVALS.c.session_key == SESSIONS.c.key)


Chosen = Row[Any, str, int, datetime]
"""A session's surrogate id, and what it is like (``Seen``)."""


def _strip_chunk(
    db: Connection,
    which: ColumnElement[bool],
    rule: Rule,
    run: int,
    limit: int,
    archived: Mapping[int, Seen] | None,
) -> tuple[dict[int, Removal], list[Chosen]]:
    """Returns: what was removed, by surrogate id, and of which sessions that was only the first piece."""
    locked = select(SESSIONS.c.id, *SEEN).where(which).order_by(*order_of(rule)).limit(limit)
    rows = db.execute(locked.with_for_update(skip_locked=True, key_share=True)).all()
    chosen = {row.key: row for row in few(row for row in rows if archived is None or archived[row.id] == row[1:])}
    if not chosen:
        return {}, []
    # Looked at anew under the locks, in a statement of its own: its snapshot is younger than any send it waited for.
    these = and_(Among(db, (row.id for row in chosen.values())).has(SESSIONS.c.id), which)
    found = {
        chosen[removal.session_id].id: removal for removal in note(db, run, rule.name, these, rule.keep, MANY_TURNS)
    }
    spans = _spans(db, found, MANY_TURNS)
    for (after, upto), mine in spans.items():
        strip(db, mine, after, upto)
    long = {session_id for (_, upto), mine in spans.items() if upto is not None for session_id in mine}
    return found, [row for row in chosen.values() if row.id in long]


def _strip_rest(database: Database, session: Chosen, before: Removal, rule: Rule, run: int, pace: Pace) -> Removal:
    """Args: before: what the first piece removed. Returns: what all of them did."""
    piece = partial(_strip_piece, session=session, rule=rule, run=run)
    while more := pace.step(lambda most: database.transact(partial(piece, most=most), is_patient=True)):
        before = replace(more, **{name: getattr(before, name) + getattr(more, name) for name in COUNTED})
        reached("cleanup.between_chunks")
    return before


def _strip_piece(db: Connection, session: Chosen, rule: Rule, run: int, most: int) -> Removal | None:
    """Returns: what was removed; None: nothing is left, or it is not what it was when the first piece went."""
    mine = SESSIONS.c.id == session.id
    locked = select(SESSIONS.c.id, *SEEN).where(mine, has_content(), removable()).with_for_update(key_share=True)
    if db.execute(locked).one_or_none() != session:
        return None
    more = Removal(*db.execute(counted(db.dialect.name, rule.name, rule.keep, most).where(mine)).one())
    note_more(db, run, more)
    for (after, upto), _ in _spans(db, [session.id], most).items():
        strip(db, [session.id], after, upto)
    return more


def _spans(db: Connection, sessions: Collection[int], most: int) -> dict[tuple[int, int | None], list[int]]:
    """Behind which turn, and up to which (None: the last), what was said goes, with the sessions of which it does: all but
    the long ones are in one span.
    """
    spans: dict[tuple[int, int | None], list[int]] = {}
    rows = select(SESSIONS.c.id, SESSIONS.c.content_removed_to, SESSIONS.c.next_turn).where(SESSIONS.c.id.in_(sessions))
    for session_id, removed_to, next_turn in db.execute(rows):
        upto = removed_to + most if next_turn > removed_to + most else None
        after = removed_to if removed_to >= MANY_TURNS or upto else 0
        spans.setdefault((after, upto), []).append(session_id)
    return spans


def strip(db: Connection, sessions: Collection[int], after: int = 0, upto: int | None = None) -> None:
    """Remove what was said in sessions. The caller holds their locks, and none of them has a turn without an end.

    Messages go as rows; of turns what was heard of a reply, and what errors said. Of options, which may hold schemas, tools
    or predicted text, numbers and switches stay: a session that is sent to again is not to answer at greater length than it
    was made to. What names things stays: IDs, labels, models, tools, keys of sends. A turn's ``system_turn`` stays, too, and
    leads nowhere.

    Args:
        sessions: surrogate ids.
        after: the last turn of which nothing is left, or one before it.
        upto: the last turn of which it goes; None: of all there are, with a system message that waits for the next one.
    """
    _let_go(db, sessions)
    between = partial(_between, after=after, upto=upto)
    db.execute(delete(MESSAGES).where(MESSAGES.c.session_id.in_(sessions), between(MESSAGES.c.turn_number)))
    _strip_turns(db, and_(TURNS.c.session_id.in_(sessions), between(TURNS.c.number)))
    last = SESSIONS.c.next_turn - 1
    removed_to = last if upto is None else case((last < upto, last), else_=upto)
    system_turn = null() if upto is None else case((SESSIONS.c.system_turn > upto, SESSIONS.c.system_turn))
    which = SESSIONS.c.id.in_(sessions)
    _strip_options(db, SESSIONS, which)
    changes = {"content_removed_at": now(), "content_removed_to": removed_to, "system_turn": system_turn}
    db.execute(update(SESSIONS).where(which).values(changes))


def _between(number: ColumnElement[int], after: int, upto: int | None) -> ColumnElement[bool]:
    return number > after if upto is None else and_(number > after, number <= upto)


def _let_go(db: Connection, sessions: Collection[int]) -> None:
    """A worker that has not noticed that there is nothing to do any more writes nothing into them."""
    held = and_(LEASES.c.session_id.in_(sessions), LEASES.c.owner.is_not(None))
    db.execute(update(LEASES).where(held).values(owner=null(), expires_at=null(), token=LEASES.c.token + 1))


def _strip_turns(db: Connection, which: ColumnElement[bool]) -> None:
    """Most have nothing of it, and are not written."""
    said = and_(TURNS.c.error_message.is_not(None), TURNS.c.error_message != UNTOLD)
    of_text = or_(TURNS.c.partial.is_not(None), TURNS.c.waits_for.is_not(None), said)
    untold = case((TURNS.c.error_message.is_not(None), UNTOLD))
    db.execute(update(TURNS).where(which, of_text).values(partial=null(), waits_for=null(), error_message=untold))
    _strip_options(db, TURNS, which)


def _strip_options(db: Connection, table: Table, which: ColumnElement[bool]) -> None:
    keys = list(table.primary_key.columns)
    found = select(*keys, table.c.options).where(which, func.length(cast(table.c.options, Text)) > len("{}"))
    rows = [tuple(row) for row in db.execute(found)]
    changed = [(key, kept) for *key, options in rows if (kept := _figures(options)) != options]
    if changed:
        one = and_(*(column == bindparam(f"of_{column.name}") for column in keys))
        names = [f"of_{column.name}" for column in keys]
        values = [dict(zip(names, key, strict=True)) | {"kept": kept} for key, kept in changed]
        db.execute(update(table).where(one).values(options=bindparam("kept")), values)


def _figures(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if isinstance(value, int | float)}
