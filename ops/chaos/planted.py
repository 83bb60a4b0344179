"""inturn with one of its guards taken away, to show that the checker sees what the guard is for.

``python -m ops.chaos.planted FAULT worker ...`` is ``inturn worker ...`` with a fault planted in this process only: the
product knows no switch for it.

===========  =====================================================================================================
``fence``    settling asks neither whose the lease is nor under which token: who comes back late overwrites
``unique``   the database takes two running turns of a session, and two replies to a turn
``recheck``  releasing a session does not look whether it was sent to meanwhile
``precount`` an attempt is recorded when it is over, rather than before the call
``hold``     a cleanup does not look whether sessions are held
``work``     nor whether prompts wait in them
``order``    a rule removes what an earlier one covers
``receipt``  what a cleanup removes it does not book
``archive``  of what it archives in one transaction, it leaves out a session
``words``    where only what was said is to go, it leaves the messages
``figures``  and takes the figures of turns with it
===========  =====================================================================================================
"""

import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import orjson
from sqlalchemy import Connection, and_, delete, false, insert, null, select, text, update

from inturn.archives.writing import Archive
from inturn.cli import main
from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.states import SessionState
from inturn.models.store import receipts, retention, rules, stripping
from inturn.models.store.dialects import postgresql, sqlite
from inturn.models.store.selecting import has_work
from inturn.models.tables import ATTEMPTS, LEASES, MESSAGES, REMOVALS, SESSIONS, TURNS
from inturn.settings import Settings

ENGINES: tuple[Any, ...] = (postgresql, sqlite)
IS_ACTIVE = SESSIONS.c.state == SessionState.ACTIVE
PRIMARY_KEY = re.compile(r",\s*CONSTRAINT pk_messages PRIMARY KEY \([^)]*\)")


def rewrite(engine: ModuleType, name: str, before: str, after: str) -> None:
    """Replace a part of a statement. It must be there once: else the fault would not be planted, and go unnoticed."""
    statement = getattr(engine, name).text
    if statement.count(before) != 1:
        sys.exit(f"{engine.__name__}.{name} has {before!r} {statement.count(before)} times: look what has become of it")
    setattr(engine, name, text(statement.replace(before, after)))


def fence() -> None:
    rewrite(
        postgresql, "SETTLE", "WHERE held.token = i.token AND held.owner = :owner", "WHERE CAST(:owner AS text) <> ''"
    )
    rewrite(sqlite, "HELD", "l.token = i.value ->> 'token' AND l.owner = :owner", ":owner <> ''")


def recheck() -> None:
    # A session that goes on in hand was looked at, too.
    rewrite(postgresql, "SETTLE", "lowest.lane = i.claimed", "false")
    rewrite(postgresql, "SETTLE", "ELSE item.ready_at END", "ELSE NULL END")
    rewrite(sqlite, "KEEP", "AND halted_by IS NULL", "AND false")
    rewrite(sqlite, "RELEASE", f"ready_at = (SELECT ready_at {sqlite.LOWEST})", "ready_at = NULL")


def precount() -> None:
    for engine in ENGINES:
        engine.claim, engine.settle = uncounted_claim(engine.claim), counting_settle(engine.settle)


def uncounted_claim(claim: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
    def claim_without_count(db: Connection, *how: Any) -> list[dict[str, Any]]:
        started = claim(db, *how)
        for row in started:
            db.execute(delete(ATTEMPTS).where(*mine(ATTEMPTS, row), ATTEMPTS.c.number == row["attempts"]))
            db.execute(update(TURNS).where(*mine(TURNS, row)).values(attempts=TURNS.c.attempts - 1))
        return started

    return claim_without_count


def counting_settle(settle: Callable[..., dict[int, bool]]) -> Callable[..., dict[int, bool]]:
    def settle_and_count(db: Connection, owner: str, lease_seconds: float, items: str) -> dict[int, bool]:
        for item in orjson.loads(items):
            held = (LEASES.c.session_id == item["session_id"]) & (LEASES.c.token == item["token"])
            if db.execute(select(LEASES.c.owner).where(held).with_for_update()).scalar() != owner:
                continue
            key = {"session_id": item["session_id"], "turn_number": item["number"], "number": item["attempt"]}
            db.execute(insert(ATTEMPTS).values(**key, token=item["token"], started_at=now()))
            db.execute(update(TURNS).where(*mine(TURNS, item)).values(attempts=item["attempt"]))
        return settle(db, owner, lease_seconds, items)

    return settle_and_count


def mine(table: Any, row: dict[str, Any]) -> tuple[Any, ...]:
    number = table.c.number if table is TURNS else table.c.turn_number
    return table.c.session_id == row["session_id"], number == row["number"]


def unique() -> None:
    database = Database(Settings.load().effective_database_url, connections=1)
    with database.writing() as db:
        db.execute(text("DROP INDEX IF EXISTS uq_turns_running"))
        if database.dialect == "postgresql":
            db.execute(text("ALTER TABLE messages DROP CONSTRAINT IF EXISTS pk_messages"))
        else:
            rebuild_without_key(db)
    database.close()


def rebuild_without_key(db: Connection) -> None:
    """SQLite drops no constraint. Another process may have done this already."""
    made: str = db.execute(text("SELECT sql FROM sqlite_master WHERE name = 'messages'")).scalar_one()
    without, found = PRIMARY_KEY.subn("", made)
    if found:
        db.execute(text("ALTER TABLE messages RENAME TO messages_with_key"))
        db.exec_driver_sql(without)
        db.execute(insert(MESSAGES).from_select(list(MESSAGES.c.keys()), select(text("* FROM messages_with_key"))))
        db.execute(text("DROP TABLE messages_with_key"))


def put(place: Any, name: str, instead: Callable[..., Any]) -> None:
    """Replace a function. It must be there: else the fault would not be planted, and go unnoticed."""
    if not hasattr(place, name):
        sys.exit(f"{place.__name__} has no {name}: look what has become of it")
    setattr(place, name, instead)


def hold() -> None:
    put(rules, "removable", lambda: and_(IS_ACTIVE, ~has_work()))


def work() -> None:
    put(rules, "removable", lambda: and_(IS_ACTIVE, SESSIONS.c.held.is_(False)))


def order() -> None:
    covered = rules.covered
    put(rules, "covered", lambda dialect, _all, rule: covered(dialect, [rule], rule))


def receipt() -> None:
    note = receipts.note

    def forgetful(db: Connection, run: int, *about: Any) -> Any:
        removals = note(db, run, *about)
        db.execute(delete(REMOVALS).where(REMOVALS.c.run_id == run))
        return removals

    put(retention, "note", forgetful)


def archive() -> None:
    keep = Archive.keep
    put(Archive, "keep", lambda self, db, sessions: keep(self, db, list(sessions)[1:]))


def words() -> None:
    put(stripping, "delete", lambda table: delete(table).where(false()))


def figures() -> None:
    strip_turns = stripping._strip_turns

    def strip_all(db: Connection, which: Any) -> None:
        strip_turns(db, which)
        db.execute(update(TURNS).where(which).values(input_tokens=null(), output_tokens=null()))

    put(stripping, "_strip_turns", strip_all)


FAULTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (fence, unique, recheck, precount, hold, work, order, receipt, archive, words, figures)
}

if __name__ == "__main__":
    wanted = sys.argv.pop(1).split("+") if len(sys.argv) > 1 else []
    if not wanted or not FAULTS.keys() >= set(wanted):
        sys.exit(f"usage: python -m ops.chaos.planted {{{','.join(FAULTS)}}} worker|beat ... (several: hold+order)")
    for each in wanted:
        FAULTS[each]()
    main()
