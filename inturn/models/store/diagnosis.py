"""What a session or a turn waits for: its rows, read in one snapshot, for ``causes`` to make a sentence of."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Select, false, func, select

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import FINAL, ProcessKind, SessionState, TurnState
from inturn.models.store.causes import error_of, explain
from inturn.models.store.presence import list_processes
from inturn.models.store.reading import no_turn
from inturn.models.store.situation import MANY, Code, Reason, Situation, Terms, alive, counted
from inturn.models.tables import ATTEMPTS, LANE_PAUSES, LEASES, SCHEDULES, SESSIONS, TURNS

UNSAID = ("options", "labels", "system_turn", "idempotency_key", "partial")
"""What users wrote, and models, is nobody's business who asks why something waits."""


def why(database: Database, key: str, terms: Terms) -> Reason:
    """What the session's lowest unfinished turn waits for. Raises: SessionNotFoundError."""
    with database.snapshot() as db:
        session = _row(db, _columns(SESSIONS).where(SESSIONS.c.key == key, SESSIONS.c.state == SessionState.ACTIVE))
        if session is None:
            raise SessionNotFoundError(key)
        found = _look(db, session, terms)
    reason = explain(found)  # outside: it may ask Redis
    if not found.behind:
        return reason
    behind = f"{counted(found.behind, 'turn')} {'waits' if found.behind == 1 else 'wait'} behind it"
    return reason if reason.code is Code.HALTED else replace(reason, sentence=f"{reason.sentence}; {behind}")


def why_turn(database: Database, session_id: int, number: int, terms: Terms) -> Reason:
    """What this turn waits for; that of an earlier one, if one is not over. Raises: TurnNotFoundError."""
    with database.snapshot() as db:
        turn = _row(db, _columns(TURNS).where(TURNS.c.session_id == session_id, TURNS.c.number == number))
        session = _row(db, _columns(SESSIONS).where(SESSIONS.c.id == session_id))
        if turn is None or session is None:
            raise no_turn(db, session_id, number)
        found = _look(db, session, terms)
    if turn["state"] in FINAL:
        return _is_over(found, turn)
    reason = explain(found)
    rows = {**reason.rows, "asked_turn": found.turn_row(turn)}
    if found.turn is None or found.turn["number"] == number:
        return replace(reason, rows=rows)
    first = f"turn {found.named(found.turn['number'])}, which is {found.turn['state']}"
    sentence = f"turn {found.named(number)} waits for {first}: {reason.sentence}"
    return replace(reason, code=Code.EARLIER_TURN, sentence=sentence, rows=rows)


def _is_over(found: Situation, turn: Mapping[str, Any]) -> Reason:
    name, command = found.named(turn["number"]), None
    told = f"turn {name} is {turn['state']} since {found.at_the_time(turn['finished_at'])}"
    if turn["state"] == TurnState.FAILED:
        command = f"inturn turn retry {name}"
        told += f" ({error_of(turn)}), and waits for nothing: `{command}` sends its prompt again"
    elif turn["merged_into"] is not None:
        command = f"inturn why {found.named(turn['merged_into'])}"
        told += f": its prompt was joined into turn {found.named(turn['merged_into'])} (`{command}`)"
    else:
        told += ", and waits for nothing"
    return Reason(Code.NOTHING_WAITS, told, command, rows={**found.rows(), "asked_turn": found.turn_row(turn)})


def _look(db: Connection, session: Mapping[str, Any], terms: Terms) -> Situation:
    mine = session["id"]
    lease = _row(db, select(LEASES).where(LEASES.c.session_id == mine)) or {}
    lowest = _lowest_unfinished(db, mine)
    tries = select(ATTEMPTS).where(ATTEMPTS.c.session_id == mine, ATTEMPTS.c.turn_number == lowest)
    processes = list_processes(db, terms.silent_seconds)
    return Situation(
        at=db.execute(select(now())).scalar_one(),
        terms=terms,
        session=session,
        lease=lease,
        turn=_turn(db, mine, lowest),
        attempt=_row(db, tries.order_by(ATTEMPTS.c.number.desc()).limit(1)),
        behind=_behind(db, mine, lowest),
        halting=_turn(db, mine, lease["halted_by"]),
        pause=_row(db, select(LANE_PAUSES).where(LANE_PAUSES.c.lane == lease["lane"])),
        processes=processes,
        taken=_taken(db, [one.id for one in alive(processes, ProcessKind.WORKER)]),
        schedules=_schedules(db, session["key"]),
        ahead=_ahead(db, lease),
    )


def _columns(table: Any) -> Select[Any]:
    return select(*(column for column in table.c if column.name not in UNSAID))


def _row(db: Connection, statement: Select[Any]) -> dict[str, Any] | None:
    found = db.execute(statement).mappings().one_or_none()
    return None if found is None else dict(found)


def _turn(db: Connection, session_id: int, number: int | None) -> dict[str, Any] | None:
    return _row(db, _columns(TURNS).where(TURNS.c.session_id == session_id, TURNS.c.number == number))


def _lowest_unfinished(db: Connection, session_id: int) -> int | None:
    """One look a state: each has its index, and a long session's finished turns are not walked through."""
    lowest = [
        db.execute(select(func.min(TURNS.c.number)).where(TURNS.c.session_id == session_id, TURNS.c.state == state))
        for state in (TurnState.RUNNING, TurnState.QUEUED)
    ]
    return min((number for one in lowest if (number := one.scalar()) is not None), default=None)


def _behind(db: Connection, session_id: int, number: int | None) -> int:
    if number is None:
        return 0
    waiting = (TURNS.c.session_id == session_id) & (TURNS.c.state == TurnState.QUEUED) & (TURNS.c.number > number)
    return int(db.execute(select(func.count()).where(waiting)).scalar_one())


def _taken(db: Connection, owners: list[str]) -> dict[tuple[str, str], int]:
    held = select(LEASES.c.owner, LEASES.c.lane, func.count().label("leases")).where(LEASES.c.owner.in_(owners))
    rows = db.execute(held.group_by(LEASES.c.owner, LEASES.c.lane))
    return {(row.owner, row.lane): row.leases for row in rows}


def _schedules(db: Connection, key: str) -> list[dict[str, Any]]:
    named = (SCHEDULES.c[name] for name in ("name", "next_at", "last_at", "last_turn", "paused_at", "paused_because"))
    mine = select(*named).where(SCHEDULES.c.session_key == key, SCHEDULES.c.new_session.is_(false()))
    ordered = mine.order_by(SCHEDULES.c.next_at.is_(None), SCHEDULES.c.next_at, SCHEDULES.c.name)
    return [dict(row) for row in db.execute(ordered).mappings()]


def _ahead(db: Connection, lease: Mapping[str, Any]) -> int:
    """How many sessions of its lane have been ready for longer, ``MANY`` at most."""
    if lease["owner"] is not None or lease["ready_at"] is None:
        return 0
    longer = select(LEASES.c.session_id).where(
        LEASES.c.lane == lease["lane"],
        LEASES.c.owner.is_(None),
        LEASES.c.ready_at < lease["ready_at"],
        LEASES.c.halted_by.is_(None),
    )
    return int(db.execute(select(func.count()).select_from(longer.limit(MANY).subquery())).scalar_one())
