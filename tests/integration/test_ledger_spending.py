"""What budgets count in the ledger's transactions, and whom they hold back, on both databases."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import Connection, select

from inturn.models.clock import now
from inturn.models.errors import StorageError
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store.budgets import Budget
from inturn.models.store.working import Claim, Settlement, Started
from inturn.models.tables import LEASES, SPENDING, TURNS
from inturn.workers.ledger import Answer, Ledger
from inturn.workers.settlements import held_back
from tests.integration.stores import WORKER, Store, settlement

TOKENS = Budget("tokens", "label:team", daily=True, usd=None, tokens=100, waits=False)
ACCOUNT = ("label:team=legal", True)


def visit(
    store: Store, *visits: tuple[Settlement | None, Claim | None], of: Sequence[Budget] = (TOKENS,)
) -> list[Answer]:
    """All in one transaction, if nothing goes wrong."""

    async def made() -> list[Answer]:
        ledger = Ledger(
            store.database, WORKER, lease_seconds=30, context_turns=20, gap_seconds=0, budgets=of,
            on_settled=lambda settled: None,
        )  # fmt: skip
        waiting = [ledger.submit(*each) for each in visits]
        ledger.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*waiting), 20)
        finally:
            ledger.stop(5)

    return asyncio.run(made())


def spent(store: Store) -> list[tuple[str, float, int]]:
    with store.database.reading() as db:
        found = db.execute(select(SPENDING).order_by(SPENDING.c.scope))
        return [(row.scope, row.usd, row.tokens) for row in found]


def began(store: Store, session: int) -> Started:
    (answer,) = visit(store, (None, Claim(Lane.CHAT, session)))
    assert answer.started is not None
    return answer.started


def legal(store: Store, key: str = "s", turns: int = 1) -> int:
    session = store.session(key, labels={"team": "legal"})
    for _ in range(turns):
        store.send(key)
    return session


def paid(started: Started, state: TurnState = TurnState.COMPLETED, tokens: int = 30, **how: object) -> Settlement:
    used = {"input_tokens": tokens - 10, "output_tokens": 10, "price": 0.5, "accounts": started.accounts}
    return settlement(started, state, **(used | how))


@contextmanager
def unanswered_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One commit arrives, and its answer does not."""
    writing, lost = store.database.writing, [1]

    @contextmanager
    def losing() -> Iterator[Connection]:
        with writing() as db:
            yield db
        if lost and lost.pop():
            raise StorageError("the connection was lost at the commit")

    def opened() -> AbstractContextManager[Connection]:
        return losing()

    with monkeypatch.context() as patch:
        patch.setattr(store.database, "writing", opened)
        yield


def test_an_attempt_is_counted_in_the_transaction_that_settles_it(store: Store):
    session = legal(store)
    started = began(store, session)
    assert started.accounts == (ACCOUNT,)
    assert spent(store) == []
    (answer,) = visit(store, (paid(started), None))
    assert answer.kept
    assert spent(store) == [("label:team=legal", 0.5, 30)]


def test_who_lost_its_lease_counts_nothing(store: Store):
    started = began(store, legal(store))
    store.expire(started.session_id)
    assert store.rescue_expired() == [started.session_id]
    (answer,) = visit(store, (paid(started), None))
    assert not answer.kept
    assert spent(store) == []


def test_a_commit_whose_answer_was_lost_counts_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    started = began(store, legal(store))
    monkeypatch.setattr(Ledger, "start", lambda ledger: ledger._thread.start())
    with unanswered_commit(store, monkeypatch):
        (answer,) = visit(store, (paid(started), None))
    assert answer.kept
    assert store.turn(started.session_id).state is TurnState.COMPLETED
    assert spent(store) == [("label:team=legal", 0.5, 30)]


def test_a_commit_that_did_not_arrive_counts_when_it_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch):
    started = began(store, legal(store))
    writing, refused = store.database.writing, [1]

    @contextmanager
    def refusing() -> Iterator[Connection]:
        with writing() as db:
            yield db
            if refused and refused.pop():
                raise StorageError("the connection was lost before the commit")

    monkeypatch.setattr(Ledger, "start", lambda ledger: ledger._thread.start())
    with monkeypatch.context() as patch:
        patch.setattr(store.database, "writing", refusing)
        (answer,) = visit(store, (paid(started), None))
    assert answer.kept
    assert spent(store) == [("label:team=legal", 0.5, 30)]


def test_the_attempt_that_uses_a_budget_up_is_seen_by_who_starts_in_the_same_transaction(store: Store):
    first, second = (legal(store, key) for key in ("a", "b"))
    started = began(store, first)
    settled, claimed = visit(store, (paid(started, tokens=100), None), (None, Claim(Lane.CHAT, second)))
    assert settled.kept
    assert claimed.started is not None
    assert claimed.started.exceeded is not None
    assert claimed.started.exceeded.spent_tokens == 100
    assert claimed.started.exceeded.sentence.startswith("budget 'tokens' of 100 tokens a day for team=legal is used up")


def test_a_turn_that_is_held_back_leaves_no_attempt_and_costs_nothing(store: Store):
    session = legal(store, turns=2)
    started = began(store, session)
    (answer,) = visit(store, (paid(started, tokens=100), Claim(Lane.CHAT, session)))
    held = answer.started
    assert held is not None
    assert held.number == 2
    visit(store, (held_back(held), None))
    turn = store.turn(session, 2)
    assert (turn.state, turn.error_type, turn.error_retryable, turn.attempts) == (
        TurnState.FAILED, "budget_used_up", True, 0,
    )  # fmt: skip
    assert (turn.started_at, turn.input_tokens) == (None, None)
    assert store.outcomes(session) == [(1, 1, "completed")]
    assert spent(store) == [("label:team=legal", 0.5, 100)]


def test_what_is_advised_against_a_budget_that_is_used_up_can_be_done(store: Store):
    session = legal(store, turns=2)
    (answer,) = visit(store, (paid(began(store, session), tokens=100), Claim(Lane.CHAT, session)))
    held = answer.started
    assert held is not None
    assert held.exceeded is not None
    for daily, advice in (True, ". Raise it, or set its on_budget to wait"), (False, " was made. Raise it"):
        exceeded = replace(held.exceeded, budget=replace(held.exceeded.budget, daily=daily))
        assert str(held_back(replace(held, exceeded=exceeded)).error_message).endswith(advice)


def test_a_turn_that_waits_for_its_budget_goes_on_once_the_day_is_over(store: Store):
    waits = replace(TOKENS, waits=True)
    session = legal(store, turns=2)
    visit(store, (paid(began(store, session), tokens=100), None), of=[waits])
    (answer,) = visit(store, (None, Claim(Lane.CHAT, session)), of=[waits])
    held = answer.started
    assert held is not None
    settled = held_back(held)
    assert 0 < settled.delay_seconds <= 330
    visit(store, (settled, None), of=[waits])
    turn, lease = store.turn(session, 2), store.lease(session)
    assert (turn.state, turn.attempts, turn.error_message, turn.not_before) == (
        TurnState.QUEUED, 0, None, turn.ready_at,
    )  # fmt: skip
    assert not lease.is_ready
    store.change(SPENDING, SPENDING.c.slot != "", slot="2026-01-01")
    store.change(TURNS, TURNS.c.number == 2, ready_at=now())
    store.change(LEASES, LEASES.c.session_id == session, ready_at=now())
    (answer,) = visit(store, (None, Claim(Lane.CHAT, session)), of=[waits])
    assert answer.started is not None
    assert (answer.started.exceeded, answer.started.attempts) == (None, 1)


def test_attempts_of_every_end_are_counted_and_withdrawn_ones_are_not(store: Store):
    ends = {
        "completed": (TurnState.COMPLETED, AttemptOutcome.COMPLETED),
        "round": (TurnState.QUEUED, AttemptOutcome.COMPLETED),
        "again": (TurnState.QUEUED, AttemptOutcome.AMBIGUOUS),
        "failed": (TurnState.FAILED, AttemptOutcome.PERMANENT),
        "cancelled": (TurnState.CANCELLED, AttemptOutcome.CANCELLED),
        "lost": (TurnState.QUEUED, AttemptOutcome.LOST),
    }
    for key, (state, outcome) in ends.items():
        started = began(store, legal(store, key))
        visit(store, (paid(started, state, tokens=11, outcome=outcome, estimated=outcome != "completed"), None))
    assert spent(store) == [("label:team=legal", 3.0, 66)]
    withdrawn = began(store, legal(store, "withdrawn"))
    visit(store, (settlement(withdrawn, TurnState.QUEUED, outcome=None, accounts=withdrawn.accounts), None))
    assert spent(store) == [("label:team=legal", 3.0, 66)]
    assert store.outcomes(withdrawn.session_id) == []
