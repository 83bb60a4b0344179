"""The outbox of webhooks, on both databases: what is announced, taken, settled, listed, sent anew and removed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, update

from inturn.models.clock import now
from inturn.models.errors import DeliveryNotFoundError
from inturn.models.pace import Pace
from inturn.models.states import BatchState, DeliveryState, TurnState
from inturn.models.store import expiry, webhooks
from inturn.models.store.expiry import Expiry
from inturn.models.store.sweeping import Caps, rescue_expired
from inturn.models.store.webhooks import Hook, Outcome, WebhookDelivery
from inturn.models.store.working import Settlement
from inturn.models.tables import BATCHES, TURNS, WEBHOOK_DELIVERIES
from inturn.workers.ledger import Ledger
from tests.integration.stores import WORKER, Store, settlement
from tests.integration.test_ledger_spending import unanswered_commit

TURNS_ENDS = Hook("turns", frozenset({"turn.completed", "turn.failed"}))
FAILURES = Hook("failures", frozenset({"turn.failed", "batch.failed"}))
BATCHES_ENDS = Hook("batches", frozenset({"batch.completed", "batch.failed"}))
HOLD = 60.0


def deliveries(store: Store, **which: Any) -> list[WebhookDelivery]:
    return webhooks.list_deliveries(store.database, **{"limit": 100} | which)


def announce(store: Store, subject: str = "1.1", event: str = "turn.failed", *hooks: Hook) -> None:
    store.write(webhooks.announce, hooks or [FAILURES], event, subject, "{}")


def take(store: Store, hook: str = "failures", limit: int = 10) -> list[WebhookDelivery]:
    return store.write(webhooks.take, hook, HOLD, limit)


def settle(store: Store, taken: WebhookDelivery, state: DeliveryState, **how: Any) -> bool:
    return store.write(webhooks.settle, taken, Outcome(state, **how))


def make_due(store: Store) -> None:
    store.change(WEBHOOK_DELIVERIES, WEBHOOK_DELIVERIES.c.state == "pending", ready_at=now(-1))


def ledgered(store: Store, *visits: Settlement, hooks: list[Hook]) -> None:
    """Settled by a ledger, all in one transaction if nothing goes wrong."""

    async def settled() -> None:
        ledger = Ledger(
            store.database, WORKER, lease_seconds=30, context_turns=20, gap_seconds=0, hooks=hooks,
            on_settled=lambda settlement: None,
        )  # fmt: skip
        waiting = [ledger.submit(each, None) for each in visits]
        ledger.start()
        try:
            await asyncio.wait_for(asyncio.gather(*waiting), 20)
        finally:
            ledger.stop(5)

    asyncio.run(settled())


def test_an_event_is_stored_for_every_webhook_that_wants_it(store: Store) -> None:
    announce(store, "1.1", "turn.failed", TURNS_ENDS, FAILURES, BATCHES_ENDS)
    announce(store, "1.2", "turn.completed", TURNS_ENDS, FAILURES, BATCHES_ENDS)
    found = deliveries(store)
    assert {(one.subject, one.webhook) for one in found} == {("1.1", "turns"), ("1.1", "failures"), ("1.2", "turns")}
    assert {one.state for one in found} == {DeliveryState.PENDING}
    assert len({one.event_id for one in found}) == 2, "one of each event, whoever is told"


def test_a_turn_is_announced_when_it_is_final_and_with_nothing_that_was_said(store: Store) -> None:
    ids = [store.session(key) for key in "abc"]
    for key in "abc":
        store.send(key, "a secret prompt")
    first, second, third = (store.start(session) for session in ids)
    used = {"input_tokens": 7, "output_tokens": 3, "price": 0.25}
    ledgered(
        store,
        settlement(first, TurnState.COMPLETED, reply="a secret reply", **used),
        settlement(second, TurnState.FAILED, error_message="a secret error"),
        settlement(third, TurnState.QUEUED, delay_seconds=60.0),
        hooks=[TURNS_ENDS, FAILURES],
    )
    by_name = {(one.webhook, one.event): one for one in deliveries(store)}
    assert set(by_name) == {("turns", "turn.completed"), ("turns", "turn.failed"), ("failures", "turn.failed")}
    completed = json.loads(by_name["turns", "turn.completed"].body)
    moment = datetime.fromisoformat(completed.pop("timestamp"))
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)
    assert completed == {
        "type": "turn.completed",
        "data": {
            "turn_id": first.turn_id, "session_id": "a", "state": "completed", "model": "echo/echo", "error_type": None,
        } | used,
    }  # fmt: skip
    failed = json.loads(by_name["failures", "turn.failed"].body)["data"]
    assert (failed["turn_id"], failed["error_type"], failed["price"]) == (second.turn_id, "http_500", None)
    assert not any("secret" in one.body for one in deliveries(store))


def test_lines_of_a_batch_cancelled_turns_and_lost_leases_are_not_announced(store: Store, other: Store) -> None:
    ids = [store.session(key) for key in "abc"]
    for key in "abc":
        store.send(key)
    line, cancelled, lost = (store.start(session) for session in ids)
    store.change(TURNS, TURNS.c.session_id == line.session_id, batch_id=1, line=1, custom_id="x")
    store.expire(lost.session_id)
    assert other.rescue_expired() == [lost.session_id]
    ledgered(store, settlement(line), settlement(cancelled, TurnState.CANCELLED), settlement(lost), hooks=[TURNS_ENDS])
    assert store.turn(line.session_id).state is TurnState.COMPLETED
    assert deliveries(store) == []


def test_nothing_is_looked_at_where_nobody_wants_turns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: object) -> None:
        raise AssertionError("somebody looked")

    monkeypatch.setattr("inturn.workers.ledger.announce_turns", called)
    store.session("a")
    store.send("a")
    ledgered(store, settlement(store.start()), hooks=[BATCHES_ENDS])
    assert store.turn(1).state is TurnState.COMPLETED


def test_after_a_commit_of_unknown_outcome_a_turn_is_announced_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [store.session(key) for key in "ab"]
    for key in "ab":
        store.send(key)
    started = [store.start(session) for session in ids]
    monkeypatch.setattr(Ledger, "start", lambda ledger: ledger._thread.start())  # its first transaction holds nothing
    with unanswered_commit(store, monkeypatch):
        ledgered(store, *map(settlement, started), hooks=[TURNS_ENDS])
    assert sorted(one.subject for one in deliveries(store)) == sorted(each.turn_id for each in started)


def test_a_turn_that_its_worker_took_with_it_is_announced_by_who_finds_it(store: Store) -> None:
    session = store.session()
    store.send()
    store.start(session)
    store.expire(session)
    store.write(rescue_expired, Caps(attempts=1, rescues=3), [TURNS_ENDS, BATCHES_ENDS])
    assert store.write(rescue_expired, Caps(attempts=1, rescues=3), [TURNS_ENDS]) is None
    (found,) = deliveries(store)
    assert (found.event, found.subject) == ("turn.failed", f"{session}.1")
    assert json.loads(found.body)["data"]["error_type"] == "worker_lost"


@pytest.mark.parametrize("state", [BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED])
def test_a_batch_is_announced_with_its_counts(store: Store, state: BatchState) -> None:
    counts = {"total": 9, "completed": 4, "failed": 3, "cancelled": 2, "expired": 0}
    row = {
        "key": "batch-0123456789abcdef", "name": "reviews", "fingerprint": "f", "how": {}, "input_tokens": 0, "state": state,
        "output_tokens": 0, "discards": False, "aborts": False, **counts,
    }  # fmt: skip
    batch = store.write(
        lambda db: db.execute(
            insert(BATCHES).values(created_at=now(), stored_at=now(), finished_at=now(), **row).returning(BATCHES.c.id)
        ).scalar_one()
    )
    store.write(webhooks.announce_batch, [BATCHES_ENDS, TURNS_ENDS], batch)
    if state is BatchState.EXPIRED:
        assert deliveries(store) == []
        return
    (found,) = deliveries(store)
    assert (found.webhook, found.event, found.subject) == ("batches", f"batch.{state}", row["key"])
    body = json.loads(found.body)
    assert body["type"] == f"batch.{state}"
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
    assert body["data"] == {"batch_id": row["key"], "name": "reviews", "state": state, **counts}


def test_what_one_process_has_taken_another_one_does_not_get(store: Store, other: Store) -> None:
    for number in range(5):
        announce(store, f"1.{number}")
    mine, theirs = take(store, limit=3), take(other)
    assert [one.subject for one in mine] == ["1.0", "1.1", "1.2"]
    assert [one.subject for one in theirs] == ["1.3", "1.4"]
    assert {one.attempts for one in (*mine, *theirs)} == {1}
    assert take(store) == []
    with store.database.reading() as db:
        assert not webhooks.is_due(db, "failures")


def test_webhooks_do_not_stand_in_each_others_way(store: Store) -> None:
    announce(store, "1.1", "turn.failed", TURNS_ENDS, FAILURES)
    assert [one.webhook for one in take(store, "turns")] == ["turns"]
    assert [one.webhook for one in take(store, "failures")] == ["failures"]
    assert take(store, "nobody") == []


def test_what_nobody_settled_is_taken_again_under_the_same_id(store: Store, other: Store) -> None:
    announce(store)
    (first,) = take(store)
    make_due(store)
    (second,) = take(other)
    assert (second.event_id, second.attempts) == (first.event_id, 2)
    assert not settle(store, first, DeliveryState.FAILED), "its attempt is not the last one any more"
    assert settle(other, second, DeliveryState.DELIVERED, status_code=200)
    assert not settle(other, second, DeliveryState.FAILED)
    (found,) = deliveries(store)
    assert (found.state, found.status_code, found.finished_at is not None) == (DeliveryState.DELIVERED, 200, True)


def test_what_failed_waits_before_it_is_taken_again(store: Store) -> None:
    announce(store)
    (taken,) = take(store)
    message = {"status_code": 500, "error_message": "it answered 500"}
    assert settle(store, taken, DeliveryState.PENDING, delay_seconds=300.0, **message)
    assert take(store) == []
    (found,) = deliveries(store)
    assert (found.state, found.status_code, found.error_message) == (DeliveryState.PENDING, 500, "it answered 500")
    assert timedelta(seconds=200) < found.ready_at - found.created_at < timedelta(seconds=400)
    make_due(store)
    assert [one.attempts for one in take(store)] == [2]


def test_deliveries_are_listed_newest_first_and_by_pages(store: Store) -> None:
    for number in range(7):
        announce(store, f"1.{number}", "turn.failed" if number % 2 else "turn.completed", TURNS_ENDS)
    found = deliveries(store)
    assert [one.subject for one in found] == [f"1.{number}" for number in reversed(range(7))]
    page = deliveries(store, limit=3)
    assert page == found[:3]
    assert deliveries(store, limit=3, before=page[-1].id) == found[3:6]
    assert [one.subject for one in deliveries(store, event="turn.failed")] == ["1.5", "1.3", "1.1"]
    assert [one.id for one in deliveries(store, subject="1.4")] == [found[2].id]
    settle(store, take(store, "turns", limit=1)[0], DeliveryState.FAILED)
    assert [one.subject for one in deliveries(store, state=DeliveryState.FAILED)] == ["1.0"]
    assert len(deliveries(store, state=DeliveryState.PENDING)) == 6


def test_sent_anew(store: Store) -> None:
    for number in range(3):
        announce(store, f"1.{number}")
    failed, delivered, _ = taken = take(store)
    for one, state in zip(taken, (DeliveryState.FAILED, DeliveryState.DELIVERED, DeliveryState.FAILED), strict=True):
        settle(store, one, state)
    webhooks.redeliver(store.database, delivered.id)
    (again,) = take(store)
    assert (again.event_id, again.attempts) == (delivered.event_id, 1)
    assert webhooks.redeliver_failed(store.database) == 2
    assert webhooks.redeliver_failed(store.database) == 0
    assert failed.event_id in {one.event_id for one in take(store)}
    with pytest.raises(DeliveryNotFoundError, match="no webhook delivery 99"):
        webhooks.redeliver(store.database, 99)


def test_the_backlog(store: Store) -> None:
    for number in range(4):
        announce(store, f"1.{number}", "turn.failed", FAILURES, TURNS_ENDS)
    settle(store, take(store, limit=1)[0], DeliveryState.FAILED)
    assert webhooks.backlog(store.database, 3600) == webhooks.Backlog(1, {})
    store.write(lambda db: db.execute(update(WEBHOOK_DELIVERIES).values(created_at=now(-7200))))
    assert webhooks.backlog(store.database, 3600) == webhooks.Backlog(1, {"failures": 3, "turns": 4})


def test_old_ones_are_removed_and_what_waits_is_kept(store: Store) -> None:
    for number in range(5):
        announce(store, f"1.{number}")
    for one in take(store, limit=4):
        settle(store, one, DeliveryState.DELIVERED)
    store.change(WEBHOOK_DELIVERIES, WEBHOOK_DELIVERIES.c.subject != "1.3", created_at=now(-9999))
    old = (WEBHOOK_DELIVERIES.c.state == "delivered") & (WEBHOOK_DELIVERIES.c.subject != "1.3")
    store.change(WEBHOOK_DELIVERIES, old, finished_at=now(-9999))
    assert expiry.remove(store.database, Expiry("old deliveries", 3600), 0, Pace(2)) == 3
    assert [one.subject for one in deliveries(store)] == ["1.4", "1.3"]


def test_what_nobody_sends_any_more_is_removed_in_the_end(store: Store) -> None:
    """Of a webhook that is no longer in the settings. One that is tried again and again has a later time."""
    for number in range(3):
        announce(store, f"1.{number}")
    store.change(WEBHOOK_DELIVERIES, WEBHOOK_DELIVERIES.c.id > 0, created_at=now(-9999))
    store.change(WEBHOOK_DELIVERIES, WEBHOOK_DELIVERIES.c.subject == "1.0", ready_at=now(-9999))
    assert expiry.count_due(store.database, Expiry("old deliveries", 3600)) == 1
    assert expiry.remove(store.database, Expiry("old deliveries", 3600), 0, Pace(2)) == 1
    assert [one.subject for one in deliveries(store)] == ["1.2", "1.1"]
