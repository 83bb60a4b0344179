"""Budgets, and what attempts are counted as that nobody counted for us, on both kinds of deployment.

Echo counts words, and the model server messages and words: so many tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inturn import Client, Turn, TurnCancelledError, TurnFailedError
from inturn.models.states import TurnState
from inturn.models.store.situation import Code
from ops.chaos.model import Call
from tests.acceptance.conftest import KINDS, make_deployment
from tests.acceptance.deployment import SLOTS, Deployment
from tests.stacks import wait_until

REPLY_SECONDS = 30
WORKERS = 3
TEAM, NIGHT, CROWD = 60, 40, 400
YESTERDAY = "2026-01-01"

BUDGETS: list[dict[str, Any]] = [
    {"name": "team", "scope": "label:team", "tokens": TEAM},
    {"name": "night", "scope": "label:night", "tokens": NIGHT, "on_budget": "wait"},
    {"name": "raised", "scope": "label:raised", "tokens": NIGHT, "on_budget": "wait"},
    {"name": "crowd", "scope": "label:crowd", "tokens": CROWD, "period": "ever"},
    {"name": "books", "scope": "label:books", "tokens": 10**9, "usd": 10**6},
]

Calls = Callable[[str], list[Call]]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module", params=KINDS)
def budgeted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, providers: dict[str, Any]
) -> Iterator[Deployment]:
    """Three workers. Each test spends for values of labels of its own."""
    quick = providers | {"quick": providers["server"] | {"deadline_seconds": 1}}
    for deployment in make_deployment(request, tmp_path_factory, quick, budgets=BUDGETS, max_ambiguous_attempts=1):
        deployment.start(WORKERS)
        yield deployment


@pytest.fixture
def client(budgeted: Deployment) -> Iterator[Client]:
    with budgeted.client() as client:
        yield client


def used(turn: Turn) -> int:
    turn.refresh()
    return (turn.input_tokens or 0) + (turn.output_tokens or 0)


def spent(client: Client, whose: str) -> int:
    """As counted for the budget."""
    return sum(each.tokens for each in client.budgets() if each.whose == whose)


def use_up(client: Client, name: str, **labels: str) -> int:
    """Talk until the budget of the label is used up; returns what that took."""
    most = {"team": TEAM, "night": NIGHT, "raised": NIGHT}[next(iter(labels))]
    session, tokens = client.create_session(f"{name}-talk", labels=labels), 0
    while tokens < most:
        turn = session.send("hello")
        turn.wait(REPLY_SECONDS)
        assert used(turn) > 0
        tokens += used(turn)
    return tokens


def refused(turn: Turn) -> TurnFailedError:
    with pytest.raises(TurnFailedError) as caught:
        turn.wait(REPLY_SECONDS)
    assert caught.value.error_type == "budget_used_up"
    assert caught.value.retryable
    turn.refresh()
    assert (turn.attempts, turn.get_attempts(), turn.started_at, turn.input_tokens) == (0, [], None, None)
    return caught.value


def ready_now(deployment: Deployment, turn: Turn) -> None:
    """Its moment has come."""
    session, _, number = turn.id.partition(".")
    then = "'2026-01-01 00:00:00.000000'"
    deployment.change(
        f"UPDATE turns SET ready_at = {then} WHERE session_id = :session AND number = :number",
        session=int(session), number=int(number),
    )  # fmt: skip
    deployment.change(
        f"UPDATE leases SET ready_at = {then} WHERE session_id = :session AND owner IS NULL", session=int(session)
    )


def test_who_has_used_its_budget_up_is_answered_no_more_and_others_are(client: Client, name: str, calls: Calls):
    tokens = use_up(client, name, team=name)
    assert spent(client, f"team={name}") == tokens
    session = client.create_session(name, model="server/model", labels={"team": name})
    turn = session.send(f"{name} once more")
    said = str(refused(turn))
    assert f"budget 'team' of {TEAM} tokens a day for team={name} is used up ({tokens} spent)" in said
    assert "on_budget" in said
    refused(client.get_session(f"{name}-talk").send(f"{name} once more", stream=True))
    assert calls(name) == [], "nobody was called"
    assert spent(client, f"team={name}") == tokens
    for labels in ({"team": f"{name}-other"}, {"other": name}, {}):
        other = client.create_session(labels=labels, model="server/model")
        assert other.send_and_wait("hello", timeout=REPLY_SECONDS).turn == 1


def test_a_budget_of_a_day_is_there_again_the_next_one(budgeted: Deployment, client: Client, name: str):
    use_up(client, name, team=name)
    session = client.get_session(f"{name}-talk")
    turn = session.send("once more")
    refused(turn)
    scope = f"label:team={name}"
    budgeted.change("UPDATE spending SET slot = :day WHERE scope = :scope", day=YESTERDAY, scope=scope)
    assert spent(client, f"team={name}") == 0
    again = turn.retry()
    again.wait(REPLY_SECONDS)
    assert spent(client, f"team={name}") == used(again)
    rows = budgeted.query("SELECT slot FROM spending WHERE scope = :scope", scope=scope)
    assert len(rows) == 2


def test_a_session_that_is_deleted_gives_nothing_back(client: Client, name: str):
    tokens = use_up(client, name, team=name)
    client.delete_session(f"{name}-talk")
    refused(client.create_session(name, labels={"team": name}).send("hello"))
    assert spent(client, f"team={name}") == tokens


def test_three_workers_together_overshoot_by_what_was_in_flight(client: Client, name: str):
    sessions = [
        client.create_session(f"{name}-{number}", labels={"crowd": name}, options={"latency": [0.02, 0.1]})
        for number in range(40)
    ]
    turns = [session.send("hello you") for _ in range(5) for session in sessions]
    ends = {turn.id: turn for turn in turns}
    wait_until(lambda: all(turn.refresh().state in ("completed", "failed") for turn in ends.values()), REPLY_SECONDS)
    answered = [turn for turn in turns if turn.state is TurnState.COMPLETED]
    held_back = [turn for turn in turns if turn.state is TurnState.FAILED]
    tokens = sum(map(used, answered))
    largest = max(map(used, answered))
    assert CROWD <= tokens <= CROWD + WORKERS * SLOTS * largest
    assert len(held_back) > 0, "all were answered: nothing was tested"
    assert {(turn.attempts, turn.error.error_type if turn.error else None) for turn in held_back} == {
        (0, "budget_used_up")
    }
    assert spent(client, f"crowd={name}") == tokens, "each was counted once"


def test_what_is_counted_is_what_attempts_have_used_also_when_a_worker_dies(
    budgeted: Deployment, client: Client, name: str, calls: Calls
):
    sessions = [
        client.create_session(f"{name}-{number}", model="server/model", labels={"books": name}) for number in range(12)
    ]
    turns = [session.send(f'{name} !{{"latency": [0.05, 0.4]}}') for _ in range(4) for session in sessions]
    wait_until(lambda: len(calls(name)) >= 12, REPLY_SECONDS)
    workers = [worker.pid for worker in client.list_workers() if worker.kind == "worker" and worker.alive]
    budgeted.kill(workers[0])
    for turn in turns:
        turn.wait(REPLY_SECONDS)
    attempts = [attempt for turn in turns for attempt in turn.get_attempts()]
    assert sum((each.input_tokens or 0) + (each.output_tokens or 0) for each in attempts) == spent(
        client, f"books={name}"
    )
    assert sum(map(used, turns)) == spent(client, f"books={name}")
    (record,) = client.usage(labels={"books": name})
    assert (record.input_tokens or 0) + (record.output_tokens or 0) == spent(client, f"books={name}")
    budgeted.await_workers(WORKERS)


def test_a_turn_waits_for_its_budget_and_says_so(budgeted: Deployment, client: Client, name: str, calls: Calls):
    """And goes on the next day, or when workers come back with a budget that is larger."""
    tokens = use_up(client, name, night=name)
    session = client.create_session(name, model="server/model", labels={"night": name})
    turns = [session.send(f"{name} {number}") for number in range(2)]

    def waits() -> bool:
        return client.why(name).code is Code.BUDGET

    wait_until(waits, REPLY_SECONDS)
    said = client.why(turns[0].id).sentence
    assert (
        f"turn {turns[0].id} waits, as budget 'night' of {NIGHT} tokens a day for night={name} is used up "
        f"({tokens} spent): it asks again at "
    ) in said
    assert client.why(turns[1].id).code is Code.EARLIER_TURN
    turns[0].refresh()
    assert (turns[0].state, turns[0].attempts, turns[0].started_at, turns[0].error) == (TurnState.QUEUED, 0, None, None)
    assert turns[0].not_before is not None
    assert calls(name) == []

    ready_now(budgeted, turns[0])
    wait_until(lambda: waits() and turns[0].refresh().not_before is not None, REPLY_SECONDS)
    assert calls(name) == [], "it asked, and is to wait on"

    scope = f"label:night={name}"
    budgeted.change("UPDATE spending SET slot = :day WHERE scope = :scope", day=YESTERDAY, scope=scope)
    ready_now(budgeted, turns[0])
    assert turns[0].wait(REPLY_SECONDS).turn == 1
    assert turns[1].wait(REPLY_SECONDS).turn == 2
    assert client.why(name).code is Code.NOTHING_WAITS


def test_a_budget_is_raised_by_workers_that_come_back_with_a_larger_one(budgeted: Deployment, name: str):
    with budgeted.client() as client:
        tokens = use_up(client, name, raised=name)
        turn = client.create_session(name, labels={"raised": name}).send("hello")
        wait_until(lambda: client.why(name).code is Code.BUDGET, REPLY_SECONDS)
    budgeted.stop()
    budgets = [each | {"tokens": tokens + 1} if each["name"] == "raised" else each for each in BUDGETS]
    budgeted.configure(budgeted.providers, budgets=budgets)
    budgeted.start(WORKERS)
    with budgeted.client() as client:
        turn = client.get_turn(turn.id)
        ready_now(budgeted, turn)
        assert turn.wait(REPLY_SECONDS).turn == 1
        assert spent(client, f"raised={name}") == tokens + used(turn)


def books(client: Client, name: str, model: str = "server/model") -> Any:
    return client.create_session(name, model=model, labels={"books": name})


def figures(turn: Turn) -> list[tuple[str | None, bool, bool]]:
    """Of each attempt: how it ended, whether it has figures, and whether they are ours."""
    return [
        (each.outcome, each.input_tokens is not None and each.output_tokens is not None, each.estimated)
        for each in turn.get_attempts()
    ]


def assert_counted(client: Client, name: str, turn: Turn) -> None:
    """The turn is all that was spent, and nothing has a price."""
    attempts = turn.get_attempts()
    assert sum((each.input_tokens or 0) + (each.output_tokens or 0) for each in attempts) == used(turn)
    assert spent(client, f"books={name}") == used(turn)
    assert {each.price for each in attempts} == {turn.price} == {None}
    assert {each.price_table for each in attempts} == {None}


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_provider_counts_is_taken_and_what_it_does_not_is_estimated(client: Client, name: str, stream: bool):
    counted = books(client, name).send(f'{name} !{{"words": 7}}', stream=stream)
    counted.wait(REPLY_SECONDS)
    assert figures(counted) == [("completed", True, False)]
    assert (counted.refresh().input_tokens, counted.output_tokens) == (1, 7)
    assert_counted(client, name, counted)
    silent = f"{name}-silent"
    turn = books(client, silent, f"server/{silent}").send(f'{name} !{{"act": "no_usage"}}', stream=stream)
    reply = turn.wait(REPLY_SECONDS).data.content
    assert figures(turn) == [("completed", True, True)]
    assert turn.refresh().output_tokens == len(reply) // 4 + 1
    assert turn.input_tokens is not None
    assert turn.input_tokens >= len(turn.prompt) // 4
    assert_counted(client, silent, turn)


def test_a_call_that_is_taken_back_is_counted_as_far_as_it_was_heard(client: Client, name: str):
    turn = books(client, name).send(f'{name} !{{"act": "hang_stream"}}', stream=True)
    next(turn.stream(REPLY_SECONDS))
    assert turn.cancel()
    with pytest.raises(TurnCancelledError):
        turn.wait(REPLY_SECONDS)
    assert figures(turn) == [("cancelled", True, True)]
    assert turn.refresh().output_tokens
    assert_counted(client, name, turn)


def test_a_call_that_takes_too_long_is_counted(client: Client, name: str):
    turn = books(client, name, "quick/model").send(f'{name} !{{"act": "hang"}}')
    with pytest.raises(TurnFailedError, match="timeout"):
        turn.wait(REPLY_SECONDS)
    assert figures(turn) == [("ambiguous", True, True)]
    assert (turn.refresh().output_tokens, bool(turn.input_tokens)) == (0, True)
    assert_counted(client, name, turn)


def test_a_call_that_was_turned_away_costs_nothing(client: Client, name: str):
    denied = books(client, name).send(f'{name} !{{"status": 401}}')
    with pytest.raises(TurnFailedError, match="unauthorized"):
        denied.wait(REPLY_SECONDS)
    assert figures(denied) == [("permanent", False, False)]
    assert_counted(client, name, denied)
    busy = books(client, f"{name}-busy").send(f'{name} !{{"status": 503, "times": 1}}')
    busy.wait(REPLY_SECONDS)
    assert figures(busy) == [("safe", False, False), ("completed", True, False)]
    assert_counted(client, f"{name}-busy", busy)


def test_what_is_refused_is_paid_for_all_the_same(client: Client, name: str):
    turn = books(client, name).send(f'{name} !{{"act": "declined"}}')
    with pytest.raises(TurnFailedError, match="refusal"):
        turn.wait(REPLY_SECONDS)
    assert figures(turn) == [("permanent", True, False)]
    assert_counted(client, name, turn)


def test_echo_costs_nothing_and_says_so(client: Client, name: str):
    turn = books(client, name, "echo/echo").send("hello")
    turn.wait(REPLY_SECONDS)
    (attempt,) = turn.get_attempts()
    assert (attempt.price, attempt.price_table, turn.refresh().price) == (0.0, "echo", 0.0)
    assert spent(client, f"books={name}") == used(turn) > 0
