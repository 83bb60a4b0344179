"""Schedules on both databases: every run is sent once, whoever is there, and whatever becomes of it."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select

from inturn.models.clock import now
from inturn.models.cron import Cron
from inturn.models.errors import ScheduleExistsError, ScheduleNotFoundError, SessionNotFoundError, StorageError
from inturn.models.states import Lane, Misfire, ProcessKind, SessionState
from inturn.models.store import forking, presence, reading, retention, schedules, sweeping
from inturn.models.store.presence import Process
from inturn.models.store.schedules import BeatWork, NewSchedule, Schedule
from inturn.models.store.sending import HINT_STALE_SECONDS, Sent
from inturn.models.tables import SCHEDULES, SESSIONS, TURNS
from inturn.workers.schedules import Firing
from tests.integration.stores import Store, meet

DAY = timedelta(days=1)
HOUR = (datetime.now(UTC).hour + 12) % 24
"""Far from the present, so that no run becomes due in the middle of a test."""
DAILY = Cron(f"0 {HOUR} * * *", "UTC")


def add(store: Store, name: str = "daily", key: str = "s", **how: Any) -> Schedule:
    made: dict[str, Any] = {"name": name, "key": key, "prompt": "go", "cron": DAILY} | how
    return schedules.add(store.database, NewSchedule(**made))


def make_due(store: Store, at: Any, name: str = "daily") -> None:
    """Let it be due since then, as if no beat had been there."""
    store.change(SCHEDULES, SCHEDULES.c.name == name, next_at=at)


def last_run(store: Store, back: int = 0) -> datetime:
    """The last run that has been, or one so many days before it."""
    with store.database.reading() as db:
        present: datetime = db.execute(select(now())).scalar_one()
    today = present.replace(hour=HOUR, minute=0, second=0, microsecond=0)
    return today - (back + (today > present)) * DAY


def fire(store: Store) -> list[Sent]:
    """What a beat does every second. Returns whom it has told."""
    told: list[Sent] = []
    Firing(store.database, told.append).run()
    return told


def get(store: Store, name: str = "daily") -> Schedule:
    return schedules.get(store.database, name)


def sent(store: Store) -> int:
    return store.count(f"SELECT count(*) FROM {TURNS.name}")


def test_a_schedule_from_its_beginning_to_its_end(store: Store):
    session = store.session()
    added = add(store)
    assert (added.next_at, added.last_at, added.is_paused) == (last_run(store, -1), None, False)
    assert added.next_runs(2) == [last_run(store, -1), last_run(store, -2)]
    assert fire(store) == [], "it is not due"
    make_due(store, last_run(store))
    [told] = fire(store)
    assert (told.turn.key, told.number, told.lane) == ("s", 1, Lane.CHAT)
    assert store.turn(session).prompt == "go"
    fired = get(store)
    assert (fired.last_at, fired.last_turn, fired.next_at) == (last_run(store), f"{session}.1", last_run(store, -1))
    assert fire(store) == []
    schedules.remove(store.database, "daily")
    assert schedules.list_schedules(store.database) == []
    assert sent(store) == 1
    for verb in (schedules.get, schedules.pause, schedules.resume, schedules.remove):
        with pytest.raises(ScheduleNotFoundError):
            verb(store.database, "daily")


def test_a_name_is_taken_once_and_a_session_has_to_be_there(store: Store):
    with pytest.raises(SessionNotFoundError):
        add(store)
    store.session()
    add(store)
    with pytest.raises(ScheduleExistsError, match="inturn schedule remove daily"):
        add(store)
    add(store, "annual")
    assert [one.name for one in schedules.list_schedules(store.database)] == ["annual", "daily"]


def test_two_beats_fire_once(store: Store, other: Store):
    session = store.session()
    add(store)
    make_due(store, last_run(store))
    with ThreadPoolExecutor(2) as threads:
        told = list(threads.map(fire, [store, other] * 4))
    assert sum(map(len, told)) == sent(store) == 1
    assert store.turn(session).number == 1


def test_a_beat_that_comes_while_another_one_commits_fires_nothing(store: Store, other: Store):
    store.session()
    added = add(store)
    make_due(store, last_run(store))
    first = partial(store.write, schedules.fire, 1)
    if store.is_sqlite:  # PostgreSQL skips the locked row, and waits for nobody
        assert meet(first, store, partial(other.write, schedules.fire, 1)) is None
    else:
        with store.database.writing() as db:
            assert schedules.fire(db, 1) is not None
            assert other.write(schedules.fire, 1) is None
    assert (sent(store), get(store).next_at) == (1, added.next_at)


def test_a_beat_that_dies_before_its_commit_leaves_the_run_to_the_next(store: Store, other: Store):
    store.session()
    add(store)
    make_due(store, last_run(store))

    def die(db: Any) -> None:
        schedules.fire(db, 1)
        raise SystemExit

    with pytest.raises(SystemExit):
        store.write(die)
    assert (sent(store), len(fire(other)), sent(store)) == (0, 1, 1)


def test_a_beat_that_dies_before_its_hint_has_sent_the_run(store: Store, other: Store):
    session = store.session()
    add(store)
    make_due(store, last_run(store))

    def die(_sent: Sent) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        Firing(store.database, die).run()
    assert (fire(other), sent(store)) == ([], 1)
    assert [one.session_id for one in other.write(sweeping.unhinted, Lane.CHAT, 0.0, 10)] == [session]


@pytest.mark.parametrize(
    ("misfire", "back", "days"),
    [
        (Misfire.ONCE, 3, [0]),
        (Misfire.ALL, 3, [3, 2, 1, 0]),
        (Misfire.ALL, 120, list(range(99, -1, -1))),
    ],
)
def test_runs_that_nobody_was_there_for(store: Store, misfire: Misfire, back: int, days: list[int]):
    session = store.session()
    add(store, misfire=misfire)
    make_due(store, last_run(store, back))
    expected = [f"schedule:1:{last_run(store, day).isoformat()}" for day in days]
    began = time.monotonic()
    hints = len(fire(store))
    stale = int((time.monotonic() - began) // HINT_STALE_SECONDS)
    assert 1 <= hints <= 1 + stale, "one hint is enough for a session, as long as it is fresh"
    turns = sorted(reading.list_turns(store.database, session), key=lambda turn: turn.number)
    with store.database.reading() as db:
        keys = db.execute(select(TURNS.c.idempotency_key).order_by(TURNS.c.number)).scalars().all()
    assert (len(turns), list(keys)) == (len(days), expected)
    assert get(store).next_at == last_run(store, -1)


def test_missed_runs_are_left_out_if_they_are_to_be(store: Store):
    store.session()
    rare = Cron("0 0 1 1 *", "UTC")
    add(store, misfire=Misfire.SKIP, cron=rare)
    make_due(store, now(-7200))
    assert (fire(store), sent(store)) == ([], 0)
    skipped = get(store)
    assert skipped.next_at is not None
    assert skipped.next_at > datetime.now(UTC)
    assert (skipped.last_at, skipped.last_turn) == (None, None)
    make_due(store, now(-5))
    assert len(fire(store)) == 1, "a few seconds are no misfire"


def test_a_schedule_that_is_paused_sends_nothing_and_makes_nothing_up(store: Store):
    store.session()
    add(store, misfire=Misfire.ALL)
    make_due(store, last_run(store, 5))
    assert schedules.pause(store.database, "daily")
    assert not schedules.pause(store.database, "daily")
    paused = get(store)
    assert (paused.is_paused, paused.paused_because, paused.next_at, paused.next_runs()) == (True, None, None, [])
    assert fire(store) == []
    assert schedules.resume(store.database, "daily")
    assert not schedules.resume(store.database, "daily")
    assert (get(store).next_at, get(store).is_paused) == (last_run(store, -1), False)
    assert (fire(store), sent(store)) == ([], 0)


def test_a_clock_that_is_put_back_fires_nothing_twice(store: Store):
    """As the database sees it: what was fired last lies in the future."""
    store.session()
    add(store)
    make_due(store, last_run(store))
    fire(store)
    ahead = last_run(store, -3)
    store.change(SCHEDULES, SCHEDULES.c.name == "daily", last_at=ahead, next_at=ahead + DAY)
    assert fire(store) == []
    schedules.pause(store.database, "daily")
    schedules.resume(store.database, "daily")
    assert get(store).next_at == ahead + DAY


def test_a_run_that_was_sent_is_not_sent_again(store: Store):
    session = store.session()
    add(store)
    make_due(store, last_run(store))
    fire(store)
    make_due(store, last_run(store))
    assert (fire(store), sent(store), get(store).last_turn) == ([], 1, f"{session}.1")


def test_each_run_may_have_a_session_of_its_own(store: Store):
    add(store, new_session=True, key="news", model="echo/echo", system_message="Be brief.", misfire=Misfire.ALL)
    make_due(store, last_run(store, 1))
    keys = [f"news-{last_run(store, back):%Y-%m-%dT%H:%MZ}" for back in (1, 0)]
    assert [one.turn.key for one in fire(store)] == keys
    for key in keys:
        made = reading.get_session(store.database, key)
        assert (made.model, made.labels) == ("echo/echo", {"schedule": "daily"})
        assert store.history(made.id) == [(1, "system", "Be brief."), (1, "user", "go")]


@pytest.mark.parametrize("is_half_gone", [False, True])
def test_a_session_that_is_gone_pauses_its_schedule_and_no_other(store: Store, is_half_gone: bool):
    for key in "ab":
        store.session(key)
        add(store, key, key)
    for name in "ba":
        make_due(store, last_run(store), name)
    if is_half_gone:
        store.change(SESSIONS, SESSIONS.c.key == "a", state=SessionState.DELETING)
    else:
        retention.remove(store.database, "a")
    assert [one.turn.key for one in fire(store)] == ["b"]
    gone = get(store, "a")
    assert gone.is_paused
    assert "no session 'a'" in (gone.paused_because or "")
    assert (fire(store), get(store, "b").is_paused) == ([], False)
    assert schedules.resume(store.database, "a")
    assert get(store, "a").paused_because is None


def test_a_schedule_that_cannot_be_read_pauses_and_tells_no_secrets(store: Store, caplog: pytest.LogCaptureFixture):
    for key in "abc":
        store.session(key)
        add(store, key, key, prompt=f"secret {key}")
        make_due(store, last_run(store), key)
    store.change(SCHEDULES, SCHEDULES.c.name == "a", timezone="Atlantis/Center")
    store.change(SCHEDULES, SCHEDULES.c.name == "b", cron="now and then")
    assert [one.turn.key for one in fire(store)] == ["c"]
    assert "time zone 'Atlantis/Center' is not known here" in (get(store, "a").paused_because or "")
    assert get(store, "b").paused_because == "CronSimError, which is a bug in inturn: beat's log says where"
    assert "action=schedule_broken" in caplog.text
    assert "secret" not in caplog.text


def test_a_database_that_is_away_pauses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.session()
    add(store)
    make_due(store, last_run(store))

    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(schedules, "accept", refuse)
        with pytest.raises(StorageError):
            fire(store)
    assert (get(store).is_paused, len(fire(store))) == (False, 1)


def test_a_schedule_follows_its_session_to_another_id(store: Store):
    session = store.session()
    add(store)
    add(store, "news", "s", new_session=True, model="echo/echo")
    forking.rename(store.database, session, "s", "t")
    assert (get(store).session_id, get(store, "news").session_id) == ("t", "s")
    make_due(store, last_run(store))
    assert [one.session_id for one in fire(store)] == [session]


def test_what_waits_for_a_beat(store: Store):
    def work() -> BeatWork:
        return store.write(schedules.beat_work, "cleanup", 3600.0, {})

    assert work() == BeatWork(0, False)
    store.session()
    add(store)
    assert work() == BeatWork(1, False)
    schedules.pause(store.database, "daily")
    store.change(SESSIONS, SESSIONS.c.key == "s", created_at=now(-7300))
    assert work() == BeatWork(0, True)
    store.write(presence.tick, "cleanup", 1)
    store.write(presence.appear, Process("b", ProcessKind.BEAT, "h", 1, "", 0, "0"))
    assert work() == BeatWork(0, False)
