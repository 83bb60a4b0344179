"""Usage and budgets as a client says them, on both databases."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from inturn import Client, InvalidInputError, SessionNotFoundError
from inturn.budget_settings import BudgetSettings
from inturn.models.states import AttemptOutcome, TurnState
from inturn.models.store.budgets import spend
from inturn.models.tables import ATTEMPTS, TURNS
from inturn.settings import Settings
from tests.integration.stores import Store


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[Client]:
    url = store.database.url.render_as_string(hide_password=False)
    budgets = [BudgetSettings(scope="session", usd=1.0)]
    with Client(Settings(home=tmp_path / "home", database_url=url, budgets=budgets)) as client:
        yield client


def test_a_client_says_what_was_used(client: Client, store: Store):
    store.session("ann", labels={"team": "legal"})
    started = store.answer("ann")
    store.change(ATTEMPTS, ATTEMPTS.c.number == 1, model="m/m", input_tokens=1, output_tokens=2, price=0.5)
    [record] = client.usage("session", since=datetime.now(UTC) - timedelta(hours=1), labels={"team": "legal"})
    assert (record.key, record.attempts, record.input_tokens, record.output_tokens, record.price) == (
        "ann",
        1,
        1,
        2,
        0.5,
    )
    assert [each.key for each in client.usage()] == ["m/m"]
    assert client.usage(session_id="ann") == client.usage()
    assert client.usage(prefix="b") == []
    store.write(spend, [((f"session:{started.session_id}", True), 0.75, 3)])
    [standing] = client.budgets()
    assert (standing.whose, standing.usd, standing.budget.usd) == ("ann", 0.75, 1.0)


def test_what_cannot_be_asked_for_is_said(client: Client):
    for wrong in ({"by": "month"}, {"since": datetime.now(UTC).replace(tzinfo=None)}, {"labels": {"team": 1}}):
        asked: dict[str, Any] = wrong
        with pytest.raises(InvalidInputError):
            client.usage(**asked)
    with pytest.raises(SessionNotFoundError):
        client.usage(session_id="nobody")


def test_a_turn_tells_each_of_its_attempts(client: Client, store: Store):
    session = store.session("ann")
    store.send("ann")
    store.settle(store.start(session), outcome=AttemptOutcome.SAFE, state=TurnState.QUEUED, error_type="rate_limited")
    under_way = store.start(session)
    store.change(
        ATTEMPTS, ATTEMPTS.c.number == 1, model="m/m", estimated=True, price=0.5, price_table="t", status_code=429
    )
    store.change(TURNS, TURNS.c.number == 1, input_tokens=7, output_tokens=8, price=0.5)
    turn = client.get_turn(under_way.turn_id)
    first, second = turn.get_attempts()
    assert (first.number, first.model, first.outcome, first.status_code) == (1, "m/m", AttemptOutcome.SAFE, 429)
    assert (first.estimated, first.price, first.price_table) == (True, 0.5, "t")
    assert (second.number, second.outcome, second.ended_at, second.estimated) == (2, None, None, False)
    assert (turn.attempts, turn.input_tokens, turn.output_tokens, turn.price) == (2, 7, 8, 0.5)
