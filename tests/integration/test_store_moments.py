"""Moments of rules with a cron: once each, whoever comes first; what was missed, once; on both databases."""

import itertools
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from inturn.cleaning import FEW
from inturn.models.clock import now
from inturn.models.cron import Cron
from inturn.models.errors import RemovalShareError
from inturn.models.store import moments, opening, presence, reading, receipts, schedules, sweeping
from inturn.models.store.moments import Crons, tick_name
from inturn.models.store.schedules import BeatWork
from inturn.models.store.selecting import SessionFilter
from inturn.models.tables import SESSIONS, TICKS
from inturn.settings import Settings
from inturn.workers.maintenance import scheduled_cleanup, timed_cleanup
from inturn.workers.meter import Meter
from inturn.workers.moments import Reminder
from tests.integration.stores import Store, meet, only_postgresql

DAY = 86400.0
ZONE = "Asia/Kathmandu"
FAR = (datetime.now(ZoneInfo(ZONE)).minute + 30) % 60
"""A minute that no test is about to meet."""
CRONS = {"hourly": Cron(f"{FAR} * * * *", ZONE), "yearly": Cron("0 3 1 1 *", "Europe/Berlin")}
HOUR, YEAR = 60, 366 * 24 * 60
"""In minutes."""


def go_by(store: Store, minutes: int) -> None:
    """Let it be so long ago that rules were seen to."""
    for shift in (-(10**9), 10**9 - minutes):  # in two steps: rows that change places would meet
        store.change(TICKS, TICKS.c.name.like("cleanup:%"), slot=TICKS.c.slot + shift)


def due(store: Store, crons: Crons = CRONS) -> dict[str, datetime]:
    return store.write(moments.due, crons)


def claim(store: Store, crons: Crons = CRONS) -> list[str]:
    return store.write(moments.claim, crons)


def begun(store: Store) -> None:
    store.write(moments.begin, CRONS)


def present(store: Store) -> datetime:
    return datetime.fromtimestamp(store.write(sweeping.database_time), UTC)


def test_a_rule_has_moments_from_when_a_beat_first_saw_it(store: Store):
    assert due(store) == {}
    assert store.write(moments.unseen, CRONS) == CRONS
    begun(store)
    assert store.write(moments.unseen, CRONS) == {}
    assert (due(store), claim(store)) == ({}, [])
    for rule, moment in store.write(moments.upcoming, CRONS).items():
        assert present(store) < moment == CRONS[rule].next(present(store))


def test_a_moment_is_claimed_once(store: Store, other: Store):
    begun(store)
    go_by(store, HOUR)
    assert list(due(store)) == ["hourly"]
    assert store.write(moments.upcoming, CRONS)["hourly"] < present(store)
    assert [claim(store), claim(other), claim(store)] == [["hourly"], [], []]
    assert due(other) == {}
    assert present(store) < store.write(moments.upcoming, CRONS)["hourly"]


@only_postgresql
def test_two_who_claim_at_once(store: Store, other: Store):
    begun(store)
    go_by(store, HOUR)
    first = list[list[str]]()
    assert meet(lambda: first.append(claim(store)), store, lambda: claim(other)) == []
    assert first == [["hourly"]]


def test_all_that_was_missed_is_made_up_for_once(store: Store):
    begun(store)
    go_by(store, 2 * YEAR)
    at = present(store)
    assert due(store) == {rule: cron.latest(1, at - timedelta(days=400), at)[-1] for rule, cron in CRONS.items()}
    assert set(claim(store)) == {"hourly", "yearly"}
    assert (due(store), claim(store)) == ({}, [])
    begun(store)
    assert due(store) == {}


def test_a_cron_that_was_changed_waits_for_its_next_moment(store: Store):
    begun(store)
    go_by(store, 2 * YEAR)
    changed = {"yearly": Cron("0 3 1 1 *", "Asia/Tokyo"), "hourly": Cron(f"{FAR},0 * * * *", ZONE)}
    assert due(store, changed) == {}
    assert store.write(moments.unseen, changed) == changed
    assert due(store, {"renamed": CRONS["yearly"]}) == {}


@pytest.mark.parametrize("ahead", [3 * HOUR, YEAR])
def test_a_clock_that_was_ahead_holds_nothing_up(store: Store, ahead: int):
    begun(store)
    go_by(store, HOUR)
    assert claim(store) == ["hourly"]
    go_by(store, -ahead)  # the clock is put back
    assert (due(store), store.write(moments.unseen, CRONS)) == ({}, CRONS)
    begun(store)
    go_by(store, HOUR)
    assert claim(store) == ["hourly"]
    go_by(store, ahead - HOUR)
    assert "hourly" not in due(store), "what was claimed then is not done again when its time comes"


def test_ticks_of_long_ago_are_forgotten(store: Store):
    begun(store)
    for _ in range(5):
        go_by(store, HOUR)
        assert claim(store) == ["hourly"]
    name = tick_name("hourly", CRONS["hourly"])
    assert 1 <= store.count(f"SELECT count(*) FROM ticks WHERE name = '{name}'") <= 3


def test_what_waits_for_a_beat(store: Store):
    def work() -> BeatWork:
        return store.write(schedules.beat_work, "cleanup", 1e9, CRONS)

    assert work() == BeatWork(0, False)
    store.session()
    store.change(SESSIONS, SESSIONS.c.key == "s", created_at=now(-2 * DAY))
    assert work() == BeatWork(0, True), "no beat ever was"
    begun(store)
    assert work() == BeatWork(0, False)
    go_by(store, HOUR)
    assert work() == BeatWork(0, True)
    claim(store)
    assert work() == BeatWork(0, False)


def test_when_rules_without_a_cron_are_carried_out_next(store: Store):
    def after(seconds: float, *began: float) -> float | None:
        """In how many seconds, with beats that began so long ago."""
        at = present(store)
        found = store.write(moments.next_cleanup, "cleanup", seconds, [at - timedelta(seconds=ago) for ago in began])
        return None if found is None else round((found - at).total_seconds(), -1)

    assert after(3600) is None
    assert after(3600, 600) == 3000
    assert after(3600, 600, 3600 + 900) == 2700, "whoever is first"
    year = 366 * DAY
    left = year - present(store).timestamp() % year  # of the period
    store.write(presence.tick, "cleanup", int(present(store).timestamp() // year))
    assert after(year, year - left / 2) == pytest.approx(left / 2 + year, abs=20), "this period's is done"
    assert after(year, year - left - 100) == pytest.approx(left + 100, abs=20)


def test_a_worker_is_asked_until_one_has_come(store: Store, monkeypatch: pytest.MonkeyPatch):
    seconds, answers, asked = [1000.0], itertools.chain([False], itertools.repeat(True)), list[float]()
    monkeypatch.setattr("inturn.workers.moments.time", SimpleNamespace(monotonic=lambda: seconds[0]))

    def ask() -> bool:
        asked.append(seconds[0])
        return next(answers)

    reminder = Reminder(store.database, CRONS, ask)

    def asked_after(*pauses: float) -> list[float]:
        asked.clear()
        for pause in pauses:
            seconds[0] += pause
            reminder.run()
        return [at - seconds[0] for at in asked]

    assert asked_after(1, 1) == [], "nothing is due, but both are seen"
    go_by(store, HOUR)
    assert asked_after(1, 1, 1) == [-2, -1], "Redis was away the first time"
    assert asked_after(30, 28) == []
    assert asked_after(1, 1) == [-1]
    go_by(store, 2 * YEAR)
    assert asked_after(1, 1) == [-1], "another one is due"
    assert claim(store) != []
    assert asked_after(100, 100) == []


RULES: list[dict[str, Any]] = [
    {"name": "kept", "match": "*-kept", "forever": True},
    {"name": "nightly", "match": "a-*", "idle_days": 1, "cron": "0 3 1 1 *", "timezone": "Europe/Berlin"},
    {"name": "weekly", "match": "b-*", "idle_days": 1, "cron": "0 4 1 1 *"},
    {"name": "often", "match": "?-*", "idle_days": 1},
]


def left(store: Store) -> set[str]:
    return {row.key for row in reading.list_sessions(store.database, SessionFilter())}


def runs(store: Store) -> dict[str, int]:
    return {run.rule: run.sessions for run in receipts.list_runs(store.database)}


def old_sessions(store: Store, *keys: str) -> None:
    with store.database.writing() as db:
        for key in keys:
            opening.create(db, opening.NewSession(key, "echo/echo"))
    store.change(SESSIONS, SESSIONS.c.id > 0, last_activity_at=now(-40 * DAY))


def test_each_rule_is_carried_out_in_its_time_and_covers_its_sessions_always(store: Store):
    settings = Settings.load(retention=RULES, cleanup_interval_seconds=1e9)
    old_sessions(store, "a-1", "a-2", "a-kept", "b-1", "c-1", "else")
    crons = settings.crons()
    store.write(moments.begin, crons)

    for _ in range(2):
        timed_cleanup(store.database, settings, Meter())
    assert runs(store) == {}, "no moment has come"
    for _ in range(2):
        scheduled_cleanup(store.database, settings, Meter())
    assert left(store) == {"a-1", "a-2", "a-kept", "b-1"}
    assert runs(store) == {"often": 1, "default": 1}

    nightly = TICKS.c.name == tick_name("nightly", crons["nightly"])
    store.change(TICKS, nightly, slot=TICKS.c.slot - YEAR)
    for _ in range(2):
        timed_cleanup(store.database, settings, Meter())
    assert left(store) == {"a-kept", "b-1"}
    assert runs(store) == {"often": 1, "default": 1, "nightly": 2}


def test_the_share_is_that_of_what_is_carried_out(store: Store):
    settings = Settings.load(retention=RULES, cleanup_interval_seconds=1e9)
    store.write(moments.begin, settings.crons())
    old_sessions(store, *(f"a-{number}" for number in range(FEW + 5)), "else")
    scheduled_cleanup(store.database, settings, Meter())
    assert runs(store) == {"default": 1}
    store.change(TICKS, TICKS.c.name == tick_name("nightly", settings.crons()["nightly"]), slot=TICKS.c.slot - YEAR)
    with pytest.raises(RemovalShareError, match="105 of 105 sessions"):
        timed_cleanup(store.database, settings, Meter())
    assert len(left(store)) == 100, "a page of them: nothing is removed"
    timed_cleanup(store.database, settings, Meter())  # and it is not tried again before its next moment
