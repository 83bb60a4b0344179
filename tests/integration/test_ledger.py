"""The ledger on both databases: what one reply does to those that are committed together with it."""

import asyncio
import logging

import pytest
from sqlalchemy import text

from inturn.models.states import POISONED, AttemptOutcome, Lane, TurnState
from inturn.models.store.working import Claim, Settlement, Started
from inturn.workers.ledger import CROWD, Answer, Ledger
from tests.integration.stores import WORKER, Store, settlement
from tests.stacks import wait_until

TRIGGER = """
CREATE FUNCTION pick() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.content LIKE 'poison%' THEN RAISE EXCEPTION 'not this one' {}; END IF; RETURN NEW; END $$;
CREATE TRIGGER picky BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION pick()
"""
PICKY = {
    "sqlite": [
        """CREATE TRIGGER picky BEFORE INSERT ON messages WHEN NEW.content LIKE 'poison%'
        BEGIN SELECT RAISE(ABORT, 'not this one'); END"""
    ],
    "postgresql": [
        "ALTER TABLE messages ADD CONSTRAINT picky CHECK (content NOT LIKE 'poison%')",
        TRIGGER.format("USING ERRCODE = 'data_exception'"),
        TRIGGER.format(""),  # "raise_exception", as triggers do that think of no code
        TRIGGER.format("USING ERRCODE = 'program_limit_exceeded'"),
    ],
}
"""Ways in which a database refuses a reply."""


def settle_together(store: Store, settlements: list[Settlement]) -> list[Answer]:
    async def visits() -> list[Answer]:
        ledger = Ledger(
            store.database, WORKER, lease_seconds=30, context_turns=20, gap_seconds=0, on_settled=lambda settled: None
        )
        waiting = [ledger.submit(each, None) for each in settlements]
        ledger.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*waiting), 20)
        finally:
            ledger.stop(5)

    return asyncio.run(visits())


FOREVER = 3600.0


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_visits_wait_for_company_for_a_part_of_what_calls_take(store: Store):
    async def visits() -> None:
        ledger = Ledger(
            store.database, WORKER, lease_seconds=30, context_turns=20, gap_seconds=FOREVER, on_settled=lambda _: None
        )
        ledger.start()

        def come(count: int) -> "asyncio.Future[list[Answer]]":
            return asyncio.gather(*(ledger.submit(None, Claim(Lane.CHAT)) for _ in range(count)))

        try:
            for _ in range(3):
                await asyncio.wait_for(come(1), 20)  # no call was seen yet: nobody waits
            for _ in range(100):
                ledger.note_call(FOREVER)
            await asyncio.wait_for(come(1), 20)  # the last transaction was before that
            few = come(CROWD - 1)
            await asyncio.sleep(0.3)
            assert not few.done()
            await asyncio.wait_for(asyncio.gather(few, come(1)), 20)  # a crowd goes at once
        finally:
            ledger.stop(5)

    asyncio.run(visits())


def start_some(store: Store, *keys: str) -> dict[str, Started]:
    sessions = {key: store.session(key) for key in keys}
    for key in keys:
        store.send(key)
    return {key: store.start(session) for key, session in sessions.items()}


@pytest.mark.parametrize(
    ("migrated_url", "way"), [(name, way) for name, ways in PICKY.items() for way in ways], indirect=["migrated_url"]
)
def test_a_reply_that_the_database_refuses_fails_alone(store: Store, way: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    store.write(lambda db: db.execute(text(way)))
    started = start_some(store, *"abcde")
    secret = "poison, and what was said"
    settlements = [settlement(each, reply=secret if key == "c" else f"reply to {key}") for key, each in started.items()]
    answers = settle_together(store, settlements)
    assert all(answer.kept for answer in answers)
    poisoned = started.pop("c").session_id
    for key, each in started.items():
        assert store.turn(each.session_id).state is TurnState.COMPLETED
        assert store.history(each.session_id)[-1] == (1, "assistant", f"reply to {key}")
    turn = store.turn(poisoned)
    assert (turn.state, turn.error_type, turn.error_retryable) == (TurnState.FAILED, "unstorable", False)
    assert turn.error_type in POISONED
    assert turn.error_message == "the database refuses the reply's text"
    assert store.outcomes(poisoned) == [(1, 1, AttemptOutcome.PERMANENT)]
    assert store.lease(poisoned).owner is None
    assert "action=ledger_split" in caplog.text
    assert "what was said" not in caplog.text


def test_a_failure_that_the_database_refuses_too_is_no_matter_of_the_reply(store: Store):
    """Then nothing of the turn is settled: its lease runs out, and somebody else tries."""
    started = start_some(store, "a", "b")
    first = started["a"].session_id
    forbidden = f"session_id <> {first} OR state = 'running'"
    if store.is_sqlite:
        store.write(
            lambda db: db.execute(
                text(
                    "CREATE TRIGGER frozen BEFORE UPDATE ON turns WHEN NOT (NEW."
                    + forbidden.replace("state", "NEW.state")
                    + ") BEGIN SELECT RAISE(ABORT, 'frozen'); END"
                )
            )
        )
    else:
        store.write(lambda db: db.execute(text(f"ALTER TABLE turns ADD CONSTRAINT frozen CHECK ({forbidden})")))
    answers = settle_together(store, [settlement(each) for each in started.values()])
    assert [answer.kept for answer in answers] == [False, True]
    assert store.turn(first).state is TurnState.RUNNING
    assert store.turn(started["b"].session_id).state is TurnState.COMPLETED


def test_a_claim_that_its_slot_does_not_know_of_yet_is_no_orphan(store: Store):
    session = store.session()
    store.send()

    async def claim() -> dict[int, int]:
        ledger = Ledger(
            store.database, WORKER, lease_seconds=30, context_turns=20, gap_seconds=0, on_settled=lambda settled: None
        )
        ledger.start()
        try:
            visit = asyncio.create_task(ledger.visit(None, Claim(Lane.CHAT)))
            await asyncio.sleep(0)
            wait_until(lambda: store.lease(session).owner == WORKER)  # the loop stands still meanwhile
            wait_until(lambda: ledger.handing_out)
            handing_out = dict(ledger.handing_out)
            answer = await asyncio.wait_for(visit, 20)
            ledger.handed_out(answer.started)
            assert ledger.handing_out == {}
            return handing_out
        finally:
            ledger.stop(5)

    assert asyncio.run(claim()) == {session: store.lease(session).token}


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_claim_whose_slot_is_gone_is_an_orphan(store: Store, is_answered: bool):
    session = store.session()
    store.send()

    async def claim() -> None:
        ledger = Ledger(
            store.database, WORKER, lease_seconds=30, context_turns=20, gap_seconds=0, on_settled=lambda settled: None
        )
        ledger.start()
        try:
            visit = asyncio.create_task(ledger.visit(None, Claim(Lane.CHAT)))
            await asyncio.sleep(0)
            wait_until(lambda: ledger.handing_out)
            if is_answered:
                asyncio.get_running_loop().call_soon(visit.cancel)  # behind the answer
            else:
                visit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await visit
            await asyncio.sleep(0.05)
            assert ledger.handing_out == {}
        finally:
            ledger.stop(5)

    asyncio.run(claim())
    assert store.lease(session).owner == WORKER
