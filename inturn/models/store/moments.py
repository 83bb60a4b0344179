"""When rules of retention are carried out that have a cron of their own, and when the others are.

``ticks`` has the latest moments of each that were seen to, in minutes since 1970: who is first to write one carries the
rule out. Of those that nobody was there for, the latest stands for all. A rule has moments from when a beat first saw it,
and so has one whose cron was changed: nothing is removed at once that was to wait for the night.

The database's clock says what is due. Ticks of its future, of when it was ahead, are not looked at, but are not repeated.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256

from sqlalchemy import Connection, func, select

from inturn.models.cron import Cron
from inturn.models.store import presence
from inturn.models.store.sweeping import database_time
from inturn.models.tables import TICKS

Crons = Mapping[str, Cron]
"""By the names of their rules."""
MINUTE = 60


def tick_name(rule: str, cron: Cron) -> str:
    """What its ticks are called: as short as they have to be."""
    return f"cleanup:{sha256(f'{rule} {cron}'.encode()).hexdigest()[:32]}"


def unseen(db: Connection, crons: Crons) -> Crons:
    """Rules that no beat has seen yet."""
    _, seen = _seen(db, crons)
    return {rule: cron for rule, cron in crons.items() if rule not in seen}


def begin(db: Connection, crons: Crons) -> None:
    """From now on, these rules have moments."""
    minute = int(database_time(db) // MINUTE)
    for rule, cron in crons.items():
        presence.tick(db, tick_name(rule, cron), minute)


def due(db: Connection, crons: Crons, since: datetime | None = None) -> dict[str, datetime]:
    """The rules that are to be carried out, each with the moment that it is for.

    Args:
        since: from when on a rule has moments that no beat has seen yet; None: it has none.
    """
    present, seen = _seen(db, crons)
    found = {}
    for rule, cron in crons.items():
        last = seen.get(rule, since)
        if last is not None and (first := cron.next(last)) <= present:
            found[rule] = cron.latest(1, first, present)[0]
    return found


def claim(db: Connection, crons: Crons) -> list[str]:
    """The rules that the caller is to carry out now, since nobody else does."""
    return [
        rule
        for rule, moment in due(db, crons).items()
        if presence.tick(db, tick_name(rule, crons[rule]), int(moment.timestamp()) // MINUTE)
    ]


def upcoming(db: Connection, crons: Crons) -> dict[str, datetime]:
    """When each rule is carried out next; what is past is due."""
    present, seen = _seen(db, crons)
    return {rule: cron.next(seen.get(rule, present)) for rule, cron in crons.items()}


def next_cleanup(db: Connection, name: str, seconds: float, beats: Iterable[datetime]) -> datetime | None:
    """About when the rules without a cron are carried out next; None: no beat is there.

    Args:
        name: of the cleanup's ticks, one for each of its periods.
        seconds: how long a period is.
        beats: when they began; each asks for a cleanup once in a period, counted from then.
    """
    present = database_time(db)
    done = db.execute(select(func.max(TICKS.c.slot)).where(TICKS.c.name == name)).scalar()
    asks = [began + seconds * ((present - began) // seconds + 1) for began in (beat.timestamp() for beat in beats)]
    return min((_at(ask + seconds * (ask // seconds == done)) for ask in asks), default=None)


def _seen(db: Connection, crons: Crons) -> tuple[datetime, dict[str, datetime]]:
    """The present, and the last moment of each rule that was seen to."""
    present = database_time(db)
    names = {tick_name(rule, cron): rule for rule, cron in crons.items()}
    last = select(TICKS.c.name, func.max(TICKS.c.slot)).where(
        TICKS.c.name.in_(names), TICKS.c.slot <= int(present // MINUTE)
    )
    rows = db.execute(last.group_by(TICKS.c.name)) if names else ()
    return _at(present), {names[name]: _at(slot * MINUTE) for name, slot in rows}


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
