"""A beat that is missed is told of, when something waits for it, and not all the time."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inturn.models import migrations
from inturn.models.cron import checked_cron
from inturn.models.database import Database
from inturn.models.states import ProcessKind
from inturn.models.store import moments, presence, schedules
from inturn.models.store.presence import Process
from inturn.models.store.schedules import NewSchedule
from inturn.models.tables import TICKS
from inturn.settings import Settings
from inturn.workers import watch
from inturn.workers.watch import REMIND_SECONDS, Watch

BEAT = Process("beat", ProcessKind.BEAT, "host", 1, "", 0, "0")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'inturn.db'}")
    migrations.prepare(database)
    yield database
    database.close()


class Clock:
    """The process's clock, which a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def test_a_beat_is_missed(database: Database, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.load(heartbeat_seconds=5)
    caplog.set_level(logging.WARNING)
    mine = Watch(database, settings)

    def warnings_after(seconds: float) -> int:
        clock.seconds += seconds
        caplog.clear()
        mine.run()
        return caplog.text.count("action=beat_missing")

    assert [warnings_after(seconds) for seconds in (0, 60)] == [0, 0], "nothing waits for it"
    cron = checked_cron("0 9 * * 1", "UTC", datetime.now(UTC))
    schedules.add(database, NewSchedule("n", "s", "secret", cron, new_session=True, model="echo/echo"))
    assert warnings_after(5) == 1
    assert "schedules=1 cleanup_due=False" in caplog.text
    assert [warnings_after(seconds) for seconds in (5, REMIND_SECONDS - 6, 2)] == [0, 0, 1]

    database.transact(lambda db: presence.appear(db, BEAT))
    assert warnings_after(REMIND_SECONDS) == 0
    database.transact(lambda db: presence.disappear(db, [BEAT.id]))
    # Three heartbeats from now on: another one may be about to start.
    assert [warnings_after(seconds) for seconds in (1, 14, 2)] == [0, 0, 1]


def test_a_moment_that_nobody_was_there_for_is_one_of_them(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"name": "nightly", "idle_days": 1, "cron": "0 3 * * *", "timezone": "Europe/Berlin"}
    settings = Settings.load(heartbeat_seconds=5, retention=[rule])
    mine = Watch(database, settings)
    database.transact(lambda db: moments.begin(db, settings.crons()))
    for wanted in (0, 1):
        for _ in range(2):
            mine.run()
            clock.seconds += 60
        assert caplog.text.count("action=beat_missing schedules=0 cleanup_due=True") == wanted
        with database.writing() as db:
            db.execute(TICKS.update().values(slot=TICKS.c.slot - 24 * 60))
