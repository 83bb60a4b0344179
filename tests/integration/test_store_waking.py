"""When a session is ready: ``not_before``, lanes, and who is told, on both databases."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from inturn.models.clock import now
from inturn.models.states import Lane, TurnState
from inturn.models.store import sending, sweeping, waking
from inturn.models.tables import LANE_PAUSES, LEASES, TURNS
from inturn.settings import Settings
from inturn.workers.maintenance import Sweep
from tests.integration.stores import Store, meet

HOUR = timedelta(hours=1)


def come(store: Store, session: int, number: int) -> None:
    """The time that a turn waited for comes."""
    store.change(TURNS, (TURNS.c.session_id == session) & (TURNS.c.number == number), ready_at=now(-1))
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now(-1))


def test_a_turn_does_not_run_before_its_time(store: Store):
    session = store.session()
    sent = store.send(not_before=HOUR)
    assert not sent.hint
    turn, lease = store.turn(session), store.lease(session)
    assert lease.ready_at == turn.ready_at
    assert abs(turn.ready_at - turn.created_at - HOUR) < timedelta(seconds=1)
    assert lease.hinted_at is None, "so that the sweep tells somebody when it is due"
    assert store.claim(session) is None
    assert store.claim() is None
    assert store.write(sweeping.unhinted, Lane.CHAT, 0.0, 10) == []
    come(store, session, 1)
    assert [ready.session_id for ready in store.write(sweeping.unhinted, Lane.CHAT, 5.0, 10)] == [session]
    assert store.start(session).number == 1


def test_a_moment_is_one_in_every_timezone_and_the_past_is_now(store: Store):
    session, other = store.session(), store.session("other")
    moment = datetime.now(UTC).replace(microsecond=123456) + HOUR
    store.send(not_before=moment.astimezone(datetime.now().astimezone().tzinfo))
    assert store.turn(session).ready_at == moment
    assert store.send("other", not_before=datetime(1970, 1, 1, tzinfo=UTC)).hint
    assert abs(store.turn(other).ready_at - store.turn(other).created_at) < timedelta(seconds=1)


def test_later_turns_wait_behind_one_that_waits_for_its_time(store: Store):
    session = store.session()
    store.send(not_before=HOUR)
    store.change(LEASES, LEASES.c.session_id == session, hinted_at=now(-60))
    assert not store.send(lane=Lane.BATCH).hint, "it is not the next one, however old the hint"
    lease = store.lease(session)
    assert (lease.later, lease.lane) == (True, Lane.CHAT)
    assert store.claim(session) is None
    assert store.claim(lane=Lane.BATCH) is None
    come(store, session, 1)
    store.settle(store.start(session))
    assert store.start(lane=Lane.BATCH).number == 2


def test_a_turn_behind_a_running_one_waits_for_its_time(store: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    assert not store.send(not_before=HOUR).hint
    store.send()
    assert store.lease(session).ready_at is None, "its owner sees to it"
    store.settle(started)
    assert store.lease(session).ready_at == store.turn(session, 2).ready_at
    assert store.claim(session) is None


def test_a_send_with_a_time_that_meets_the_settlement_keeps_to_it(store: Store, other: Store):
    session = store.session()
    store.send()
    started = store.start(session)
    sent = meet(lambda: store.settle(started), store, lambda: other.send(not_before=HOUR))
    assert not sent.hint
    assert store.lease(session).ready_at == store.turn(session, 2).ready_at
    sending.cancel(store.database, session, 2)
    store.send()
    started = store.start(session)
    assert meet(lambda: store.send(not_before=HOUR), store, lambda: other.settle(started))
    assert store.lease(session).ready_at == store.turn(session, 4).ready_at
    assert store.claim(session) is None


def test_cancelling_a_turn_that_waits_for_its_time_lets_the_next_one_run(store: Store):
    session = store.session()
    store.send(not_before=HOUR)
    store.send()
    store.send(not_before=HOUR)
    found, ready = sending.cancel(store.database, session, 1)
    assert (found, ready) == (TurnState.QUEUED, waking.Ready(session, "s", Lane.CHAT))
    assert store.lease(session).is_ready
    found, ready = sending.cancel(store.database, session, 2)
    assert (found, ready) == (TurnState.QUEUED, None), "the next one is not due: nobody is told"
    assert store.lease(session).later


def test_cancelling_what_comes_next_just_when_a_turn_ends_leaves_the_session_to_the_one_after(
    store: Store, other: Store
):
    session = store.session()
    store.send()
    store.send(not_before=HOUR, lane=Lane.BATCH)
    store.send()
    started = store.start(session)
    assert meet(lambda: sending.cancel(store.database, session, 2), store, lambda: other.settle(started))
    assert (store.lease(session).is_ready, store.lease(session).lane) == (True, Lane.CHAT)
    assert store.start(session).number == 3


def test_a_rescued_session_whose_next_turn_is_not_due_waits(store: Store):
    session = store.session()
    store.send()
    store.send(not_before=HOUR)
    store.start(session)
    sending.cancel(store.database, session, 1)
    store.expire(session)
    assert store.rescue_expired() == [], "nobody is told yet"
    assert store.lease(session).later
    come(store, session, 2)
    assert [ready.session_id for ready in store.write(sweeping.unhinted, Lane.CHAT, 0.0, 10)] == [session]


def test_a_sessions_lane_is_that_of_its_next_turn(store: Store):
    session = store.session()
    assert [store.send(lane=lane).lane for lane in (Lane.BATCH, Lane.CHAT)] == [Lane.BATCH] * 2
    assert store.claim(session) is None
    first = store.start(lane=Lane.BATCH)
    store.send(lane=Lane.BATCH)
    store.settle(first)
    assert store.lease(session).lane == Lane.CHAT
    assert store.claim(lane=Lane.BATCH) is None
    second = store.start()
    store.settle(second, TurnState.QUEUED, delay_seconds=0)
    assert store.claim(lane=Lane.BATCH) is None, "a retry keeps its lane"
    store.settle(store.start())
    assert store.start(lane=Lane.BATCH).number == 3


def due(store: Store, within: float = 60.0) -> list[Lane]:
    with store.database.reading() as db:
        return waking.newly_due(db, within)


def test_lanes_in_which_a_turn_has_just_become_due(store: Store):
    ids = {key: store.session(key) for key in ("told", "far", "scheduled", "owned", "batch")}
    store.send("told")
    store.send("far", not_before=HOUR)
    store.send("owned")
    store.start(ids["owned"])
    store.send("owned", not_before=timedelta(seconds=5))
    store.send("scheduled", not_before=HOUR)
    store.send("batch", lane=Lane.BATCH, not_before=HOUR)
    assert due(store) == [], "what was told of, is far off, or owned does not count"
    come(store, ids["scheduled"], 1)
    come(store, ids["batch"], 1)
    assert due(store) == [Lane.CHAT, Lane.BATCH]
    store.write(lambda db: db.execute(insert(LANE_PAUSES).values(lane=Lane.BATCH, paused_at=now())))
    assert due(store) == [Lane.CHAT], "a paused lane starts nothing"
    store.change(LEASES, LEASES.c.session_id == ids["scheduled"], halted_by=1)
    assert due(store) == [], "nor does a halted session"


def test_who_looks_tells_once(store: Store):
    told: list[int] = []
    settings = Settings(sweep_seconds=20, lease_seconds=20)
    sweep = Sweep(
        store.database, settings, lambda ready: told.append(ready.session_id), lambda lane: 0, lambda turns: ()
    )
    session = store.session()
    store.send(not_before=HOUR)
    sweep.look()
    assert told == []
    come(store, session, 1)
    sweep.look()
    sweep.look()
    assert told == [session]
