"""What an attempt is settled as: pure functions from what was started and what came of it."""

import hashlib
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inturn.models.states import AttemptOutcome, Role, TurnState
from inturn.models.store.lines import EXPIRED, EXPIRED_SENTENCE
from inturn.models.store.opening import REPLY
from inturn.models.store.working import Settlement, Started, Step, Summary
from inturn.workers.cell import CellDiedError
from inturn.workers.context import Plan, TooMuch
from inturn.workers.provider import Reply

logger = logging.getLogger(__name__)

RAISED_SECONDS = 300.0
"""How often a turn that waits for a budget looks whether somebody has raised it meanwhile."""


def idempotency_key(started: Started, sums_up_to: int | None = None) -> str:
    """The same for every attempt at a call, and another one in every other deployment: a provider that saw it before
    answers with what it answered then. A turn's next round, another model, and less history are other calls; and so is
    one for a summary, of which another worker may have thought that none was due.
    """
    said = started.prompt[0]["content"]
    call = f"{started.model}\0{started.rounds}\0{started.room}" + ("" if sums_up_to is None else f"\0{sums_up_to}")
    return hashlib.sha256(f"{started.key}\0{started.turn_id}\0{said}\0{call}".encode()).hexdigest()[:32]


def ended(started: Started, state: TurnState, outcome: AttemptOutcome | None, **more: Any) -> Settlement:
    """``more``: by the names of a settlement's fields."""
    return Settlement(
        started.session_id,
        started.token,
        started.number,
        started.attempts,
        state,
        outcome,
        accounts=started.accounts,
        **more,
    )


def answered(started: Started, reply: Reply) -> Settlement:
    return ended(
        started,
        TurnState.COMPLETED,
        AttemptOutcome.COMPLETED,
        reply=reply.content,
        reply_data={"tool_calls": as_written(reply)} if reply.tool_calls else None,
        place=REPLY + started.steps,
        request_id=reply.request_id,
        finish_reason=reply.finish_reason,
    )


def as_written(reply: Reply) -> list[dict[str, Any]]:
    """The calls of a reply, as OpenAI writes them."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.tool_calls
    ]


def went_round(started: Started, reply: Reply, said: Sequence[str]) -> Settlement:
    """The model wants tools called, and here is what they said: both are stored at once, and it is asked again."""
    results = (
        Step(Role.TOOL, result, {"tool_call_id": call.id, "name": call.name})
        for call, result in zip(reply.tool_calls, said, strict=True)
    )
    return ended(
        started,
        TurnState.QUEUED,
        AttemptOutcome.COMPLETED,
        place=REPLY + started.steps,
        steps=(Step(Role.ASSISTANT, reply.content, {"tool_calls": as_written(reply)}), *results),
        request_id=reply.request_id,
    )


def went_round_too_often(started: Started, reply: Reply, most: int) -> Settlement:
    return ended(
        started,
        TurnState.FAILED,
        AttemptOutcome.PERMANENT,
        error_type="too_many_tool_rounds",
        error_message=f"{started.model} called tools in {most} rounds (max_tool_rounds), and wants more of them: raise it, "
        "or say in the system message when it is to answer",
        retryable=False,
        request_id=reply.request_id,
    )


def summed_up(started: Started, reply: Reply, upto: int) -> Settlement:
    """The summary is stored, and the turn goes on under it."""
    return ended(
        started,
        TurnState.QUEUED,
        AttemptOutcome.COMPLETED,
        summary=Summary(upto, reply.content),
        request_id=reply.request_id,
    )


def held_back(started: Started) -> Settlement:
    """A budget is used up: no call is made."""
    assert started.exceeded is not None
    sentence, budget = started.exceeded.sentence, started.exceeded.budget
    if budget.waits:
        left = started.exceeded.seconds
        wait = random.uniform(1.0, 1.1) * (RAISED_SECONDS if left is None else min(left, RAISED_SECONDS))
        return ended(started, TurnState.QUEUED, None, delay_seconds=wait, waits_for=sentence)
    advice = "Raise it, or set its on_budget to wait" if budget.daily else "Raise it"  # for ever is no time to wait
    return ended(
        started,
        TurnState.FAILED,
        None,
        error_type="budget_used_up",
        error_message=f"{sentence}; no call was made. {advice}",
        retryable=True,
    )


def too_late(started: Started) -> Settlement:
    """Its batch's completion window is over: no call is made."""
    return ended(started, TurnState.FAILED, None, error_type=EXPIRED, error_message=EXPIRED_SENTENCE, retryable=True)


def too_much(started: Started, found: TooMuch) -> Settlement:
    return ended(
        started,
        TurnState.FAILED,
        None,
        error_type="context_overflow",
        error_message=f"the history has some {found.tokens:,} tokens and {found.room:,} may be shown to {started.model}, "
        "and the session is to fail then (overflow); no call was made. Begin a new session, or one with "
        "overflow='truncate' or 'summarise'",
        retryable=False,
    )


def moved_on(settlement: Settlement, chain: Sequence[str]) -> Settlement:
    """The next model of the chain is asked, at once."""
    return replace(
        settlement, state=TurnState.QUEUED, delay_seconds=0.0, model=chain[0], fallbacks=list(chain[1:]), retryable=None
    )


def shrunk(settlement: Settlement, plan: Plan) -> Settlement:
    """The same again, with half as much of it."""
    return replace(settlement, state=TurnState.QUEUED, delay_seconds=0.0, room=max(1, plan.tokens // 2), retryable=None)


def unsummed(settlement: Settlement) -> Settlement:
    """No summary is to be had, now or later: the turn goes on without what it was to be of."""
    return replace(settlement, state=TurnState.QUEUED, delay_seconds=0.0, cuts=True, retryable=None)


def with_partial(settlement: Settlement, heard: str | None) -> Settlement:
    """What was heard of a reply that was cut off is kept where its users can read it. No model is shown it."""
    return settlement if settlement.outcome is AttemptOutcome.COMPLETED else replace(settlement, partial=heard)


def stopped(started: Started, max_attempts: int) -> Settlement:
    """What becomes of a turn whose worker is stopped during its call: it waits again, if it may be called again."""
    if started.tries < max_attempts:
        return ended(started, TurnState.QUEUED, AttemptOutcome.LOST)
    return ended(
        started,
        TurnState.FAILED,
        AttemptOutcome.LOST,
        error_type="stopped",
        error_message=f"its worker was stopped during the last of {max_attempts} attempts",
        retryable=True,
    )


def quarantined(started: Started, error: CellDiedError) -> Settlement:
    """The failure that a turn ends as whose reply kills whoever reads it."""
    logger.error("action=turn_quarantined session=%s turn=%s reason=%s", started.key, started.turn_id, error)
    return ended(
        started,
        TurnState.FAILED,
        AttemptOutcome.LOST,
        error_type="worker_lost",
        error_message=f"{started.rescues} workers died during this turn's calls, and the process that then made its call "
        f"for it alone {error}: the reply is taken for the reason, and the turn is not tried again by itself: "
        f"`inturn turn retry {started.turn_id}` does",
        retryable=True,
    )
