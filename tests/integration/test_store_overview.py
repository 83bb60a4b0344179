"""How a deployment is, as its processes see it, on both databases."""

import time
from typing import Any

import pytest

from inturn.models.clock import now
from inturn.models.cron import Cron
from inturn.models.database import Database
from inturn.models.errors import StorageError
from inturn.models.states import Lane, ProcessKind
from inturn.models.store import lanes, overview, presence, schedules
from inturn.models.store.overview import Overview
from inturn.models.store.presence import Process
from inturn.models.store.schedules import NewSchedule
from inturn.models.tables import LEASES, SCHEDULES, WORKER_PROCESSES
from inturn.settings import Settings
from inturn.workers import lookout
from inturn.workers.lookout import Lookout
from ops.servers import free_port
from tests.integration.stores import Store

CLEANUP = "cleanup"


def look(store: Store) -> Overview:
    with store.database.reading() as db:
        return overview.look(db, CLEANUP, 15)


def test_where_nothing_is_nothing_is_seen(store: Store):
    seen = look(store)
    assert set(seen.ready.values()) == {0}
    assert not any(seen.oldest.values())
    assert set(seen.ready) == set(seen.oldest) == set(Lane)
    assert seen.alive == {ProcessKind.WORKER: 0, ProcessKind.BEAT: 0}
    assert (seen.last_tick, seen.schedules_due) == (None, 0)


def test_ready_is_what_a_worker_could_take_and_the_oldest_has_waited_longest(store: Store):
    ids = {key: store.session(key) for key in ("old", "new", "later", "taken", "halted", "lone")}
    for key in ids:
        store.send(key)
    store.start(ids["taken"])
    states: dict[str, dict[str, Any]] = {
        "old": {"ready_at": now(-90)},
        "later": {"ready_at": now(60)},
        "halted": {"ready_at": now(-900), "halted_by": 1},
        "lone": {"lane": Lane.BATCH},
    }
    for key, values in states.items():
        store.change(LEASES, LEASES.c.session_id == ids[key], **values)
    lanes.pause(store.database, Lane.BATCH)  # a paused lane is one in which things wait
    seen = look(store)
    assert seen.ready == {Lane.CHAT: 2, Lane.BATCH: 1, Lane.MAINTENANCE: 0}
    assert seen.oldest[Lane.CHAT].total_seconds() == pytest.approx(90, abs=5)
    assert 0 <= seen.oldest[Lane.BATCH].total_seconds() < 5


def test_no_more_are_counted_than_are_counted_quickly(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overview, "COUNTED", 3)
    for key in "abcde":
        store.session(key)
        store.send(key)
    assert look(store).ready[Lane.CHAT] == 3


def test_who_was_not_heard_of_is_not_alive_and_what_beat_should_do_is_due(store: Store):
    for name, kind in ("w1", ProcessKind.WORKER), ("w2", ProcessKind.WORKER), ("b", ProcessKind.BEAT):
        store.write(presence.appear, Process(name, kind, "host", 1, "", 1, "0"))
    store.change(WORKER_PROCESSES, WORKER_PROCESSES.c.id == "b", heartbeat_at=now(-20))
    assert store.write(presence.tick, CLEANUP, 1)
    assert store.write(presence.tick, "something else", 1)
    store.session()
    for name in ("due", "later"):
        schedules.add(store.database, NewSchedule(name, "s", "hello", Cron("0 0 1 1 *", "UTC")))
    store.change(SCHEDULES, SCHEDULES.c.name == "due", next_at=now(-1))
    seen = look(store)
    assert seen.alive == {ProcessKind.WORKER: 2, ProcessKind.BEAT: 0}
    assert seen.schedules_due == 1
    assert seen.last_tick is not None
    assert abs(seen.last_tick.timestamp() - time.time()) < 60


def test_a_lookout_forgets_what_it_saw_when_it_cannot_look(store: Store, monkeypatch: pytest.MonkeyPatch):
    settings = Settings(sweep_seconds=1)
    here = Lookout(store.database, settings)
    assert here.seen() is None, "it has not looked yet"
    here._look()
    assert here.seen() == look(store)
    monkeypatch.setattr(lookout, "MISSED", 0)
    assert here.seen() is None, "that was too long ago: the database hangs"
    monkeypatch.undo()
    away = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing")
    monkeypatch.setattr(here, "_database", away)
    with pytest.raises(StorageError):
        here._look()
    assert here.seen() is None
    away.close()
