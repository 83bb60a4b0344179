"""What an attempt is counted as: by its provider's figures, or by our estimate where it has used something all the same."""

from dataclasses import replace
from typing import Any

import pytest

from inturn.models.states import AttemptOutcome, Lane, Role, TurnState
from inturn.models.store.working import Settlement, Started, Step, Summary
from inturn.workers.context import Context, Plan
from inturn.workers.costs import WORKED, Costs, tokens_of
from inturn.workers.prices import Price, Prices
from inturn.workers.provider import ProviderError, Reply
from inturn.workers.settlements import ended

SAID: list[dict[str, Any]] = [{"role": "user", "content": "x" * 400}]
STARTED = Started(17, "s", 1, 1, 1, 0, 0, Lane.CHAT, "a/x", {}, SAID)
PLAN = Plan(SAID, 416, 105)


class Dear(Prices):
    """A dollar a token, half of it out of a cache, and two into one."""

    def __init__(self) -> None:
        super().__init__({})

    def price(
        self, model: str, input_tokens: int, output_tokens: int, cache_read_tokens: int = 0, cache_write_tokens: int = 0
    ) -> Price | None:
        usd = input_tokens + output_tokens - cache_read_tokens / 2 + cache_write_tokens
        return Price(float(usd), "dear") if model == "a/x" else None


def counted(settlement: Settlement, started: Started = STARTED, context: Context | None = None) -> Settlement:
    return Costs(Dear(), context or Context()).counted(started, PLAN, settlement)


def end(outcome: AttemptOutcome | None, **how: Any) -> Settlement:
    state = TurnState.COMPLETED if outcome is AttemptOutcome.COMPLETED else TurnState.QUEUED
    return replace(ended(STARTED, state, outcome), **how)


def figures(settlement: Settlement) -> tuple[int | None, int | None, bool, float | None]:
    return settlement.input_tokens, settlement.output_tokens, settlement.estimated, settlement.price


@pytest.mark.parametrize("outcome", AttemptOutcome)
def test_what_a_provider_counted_is_taken_however_the_attempt_ended(outcome: AttemptOutcome) -> None:
    said = ProviderError("permanent", "refusal", "no", input_tokens=7, output_tokens=0)
    found = counted(Costs(Dear(), Context()).with_figures(STARTED, end(outcome), said))
    assert figures(found) == (7, 0, False, 7.0)
    assert found.price_table == "dear"


@pytest.mark.parametrize("outcome", AttemptOutcome)
def test_who_may_have_worked_is_taken_to_have_read_all_and_who_did_not_nothing(outcome: AttemptOutcome) -> None:
    found = figures(counted(end(outcome)))
    assert found == ((105, 0, True, 105.0) if outcome in WORKED else (None, None, False, None))


def test_an_attempt_that_was_withdrawn_costs_nothing() -> None:
    assert figures(counted(end(None))) == (None, None, False, None)


def test_half_the_figures_are_filled_up() -> None:
    completed = AttemptOutcome.COMPLETED
    assert figures(counted(end(completed, input_tokens=104, reply="y" * 40))) == (104, 11, True, 115.0)
    assert figures(counted(end(completed, output_tokens=3, reply="y" * 40))) == (105, 3, True, 108.0)
    assert figures(counted(end(AttemptOutcome.PERMANENT, input_tokens=7))) == (7, 0, True, 7.0)


@pytest.mark.parametrize(
    "how",
    [
        {"reply": "é" * 20},
        {"partial": "y" * 40, "outcome": AttemptOutcome.CANCELLED},
        {"summary": Summary(3, "y" * 40)},
        {"steps": (Step(Role.ASSISTANT, "y" * 40, {}), Step(Role.TOOL, "z" * 4000, {}))},
    ],
    ids=lambda how: next(iter(how)),
)
def test_what_was_written_is_estimated_by_what_was_heard(how: dict[str, Any]) -> None:
    """And not by what a tool said: that was written by nobody who is paid by the token."""
    found = counted(end(how.pop("outcome", AttemptOutcome.COMPLETED), **how))
    assert (found.output_tokens, found.estimated) == (11, True)


def test_what_has_no_price_stays_without_one() -> None:
    found = counted(end(AttemptOutcome.COMPLETED, input_tokens=7, output_tokens=3), replace(STARTED, model="b/y"))
    assert (found.price, found.price_table, found.input_tokens) == (None, None, 7)


def test_only_calls_that_were_answered_teach_how_long_a_token_is() -> None:
    context = Context()
    for outcome in AttemptOutcome:
        if outcome is not AttemptOutcome.COMPLETED:
            counted(end(outcome, input_tokens=416, output_tokens=1), context=context)
    counted(end(AttemptOutcome.COMPLETED, output_tokens=1), context=context)
    assert context.bytes_a_token("a/x") == 4.0
    counted(end(AttemptOutcome.COMPLETED, input_tokens=416, output_tokens=1), context=context)
    assert context.bytes_a_token("a/x") < 4.0


def test_figures_are_those_of_a_reply_or_of_an_error() -> None:
    costs = Costs(Dear(), Context())
    for said in (
        Reply("hello", input_tokens=5, output_tokens=2),
        ProviderError("permanent", "refusal", "no", input_tokens=5, output_tokens=2),
    ):
        found = costs.with_figures(STARTED, end(AttemptOutcome.COMPLETED), said)
        assert (found.input_tokens, found.output_tokens) == (5, 2)
        assert tokens_of(said) == 7
    assert tokens_of(Reply("hello", input_tokens=5)) is None
    assert tokens_of(Reply("hello", output_tokens=5)) is None


def test_what_came_out_of_a_cache_has_a_price_of_its_own() -> None:
    costs, said = Costs(Dear(), Context()), Reply("hello", 100, 10, cache_read_tokens=60, cache_write_tokens=20)
    settled = costs.counted(STARTED, PLAN, costs.with_figures(STARTED, end(AttemptOutcome.COMPLETED), said))
    assert figures(settled) == (100, 10, False, 100 + 10 - 30 + 20)
