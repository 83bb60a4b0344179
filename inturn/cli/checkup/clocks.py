"""What a check-up finds of clocks: whether the database's and the broker's tell the time that it is here."""

import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import text

from inturn.cli.checkup.finding import Finding
from inturn.cli.top.units import lasting
from inturn.models.database import Database

TOLERATED_SECONDS = 2.0
"""What no NTP leaves: below it a difference changes nothing that anybody would notice."""
TRIES = 3


def offset(ask: Callable[[], float], ours: Callable[[], float] = time.time) -> tuple[float, float]:
    """How far a clock is ahead of ours, in seconds, and how far that may be off: half of what asking took."""
    found = []
    for _ in range(TRIES):
        began, started = ours(), time.monotonic()
        theirs = ask()
        took = time.monotonic() - started
        found.append((took / 2, theirs - began - took / 2))
    unsure, ahead = min(found)
    return ahead, unsure


def database_offset(database: Database) -> tuple[float, float]:
    """Of PostgreSQL's clock; SQLite has ours."""
    if database.dialect == "sqlite":
        return 0.0, 0.0
    with database.reading() as db:
        return offset(lambda: float(db.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()))


def about_clock(whose: str, ahead: float, unsure: float, check: str) -> Finding:
    """Two clocks that differ hurt nobody's order or lease, which one clock rules; but moments that are named do."""
    figures = {"ahead_seconds": round(ahead, 6), "uncertainty_seconds": round(unsure, 6)}
    if abs(ahead) - unsure <= TOLERATED_SECONDS:
        told = f"{whose}'s is as ours (within {max(abs(ahead) + unsure, 0.001) * 1000:.0f} ms)"
        return Finding("ok", "clock", told, check, more=figures)
    how = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "warn",
        "clock",
        f"{whose}'s is {lasting(timedelta(seconds=abs(ahead)))} {how} the one of this machine. Leases and order are safe, "
        f"as the database's clock rules them; but moments that are named here (--not-before, schedules), ages that are "
        "shown, and cleanups that wait in the queue are off by that. Set both by NTP (`timedatectl`, `chronyc tracking`)",
        check,
        more=figures,
    )
