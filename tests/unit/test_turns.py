"""A slice's calls: two of one session in one process, as after a pause for longer than the lease; those made in cells."""

import asyncio
import gc
import weakref
from dataclasses import replace
from typing import Any, cast

import pytest

from inturn.models.states import POISONED, AttemptOutcome, Lane, TurnState
from inturn.models.store.working import Settlement, Started
from inturn.settings import Settings
from inturn.workers.cell import CellDiedError, Cells, NoPlaceError
from inturn.workers.context import Context
from inturn.workers.costs import Costs
from inturn.workers.ledger import Answer, Ledger
from inturn.workers.limits import Limits
from inturn.workers.prices import Prices
from inturn.workers.provider import OnDelta, Prompt, ProviderError, Providers, Reply
from inturn.workers.providers import BUILDERS
from inturn.workers.queues import connect
from inturn.workers.teller import Teller
from inturn.workers.toolbox import Toolbox
from inturn.workers.turns import Turns

TELLER = Teller("redis://nobody.invalid", 1)
"""Not started: none of these turns is to be told, and so nobody asks where that is."""
LIMITS = Limits({}, connect("redis://nobody.invalid"), workers=lambda: 1, hold_seconds=1)


class Slow:
    """Replies when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        await self.go.wait()
        return Reply("late but paid for")

    async def aclose(self) -> None:
        self.go.set()


class Notebook:
    """All that a call wants of the ledger."""

    def note_call(self, seconds: float) -> None:
        assert seconds >= 0


def turns_of(settings: Settings, providers: Providers, ledger: Any = None, limits: Limits = LIMITS) -> Turns:
    context = Context()
    return Turns(
        settings,
        ledger or cast(Ledger, Notebook()),
        providers,
        lambda started, delay: None,
        lambda: False,
        TELLER,
        limits,
        toolbox=Toolbox([], 1),
        context=context,
        costs=Costs(Prices({}), context),
    )


def started(token: int, rescues: int = 0) -> Started:
    said = [{"role": "user", "content": "hello"}]
    return Started(17, "user-1", token, 1, token, 0, rescues, Lane.CHAT, "echo/echo", {}, said)


async def claim_twice() -> tuple[Any, Any, Turns]:
    settings, slow = Settings(), Slow()
    providers = Providers(
        settings.available_providers, {**BUILDERS, "echo": lambda name, config: slow}, deadline_seconds=10
    )
    turns = turns_of(settings, providers)
    former = asyncio.create_task(turns._answer(started(token=1)))
    await asyncio.sleep(0)
    latter = asyncio.create_task(turns._answer(started(token=3)))
    await asyncio.sleep(0.05)
    slow.go.set()
    outcomes = await asyncio.gather(former, latter, return_exceptions=True)
    return outcomes[0], outcomes[1], turns


def test_a_session_claimed_again_breaks_off_the_call_of_the_lost_lease_and_keeps_its_own() -> None:
    former, latter, turns = asyncio.run(claim_twice())
    assert former is None, "its lease is lost: nothing is to be settled"
    assert latter.reply == "late but paid for"
    assert latter.token == 3
    assert turns.calls == {}


class Body:
    """What a provider has read."""


class Failing:
    """Fails with its hands full."""

    def __init__(self) -> None:
        self.read: weakref.ref[Body] | None = None

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        body = Body()
        self.read = weakref.ref(body)
        await asyncio.sleep(0)
        raise ProviderError("ambiguous", "bad_reply", "this is no reply")

    async def aclose(self) -> None:
        return


def test_what_a_failed_call_has_read_goes_with_it_and_not_when_the_collector_comes() -> None:
    async def fail() -> Failing:
        settings, failing = Settings(), Failing()
        providers = Providers(
            settings.available_providers, {**BUILDERS, "echo": lambda name, config: failing}, deadline_seconds=10
        )
        turns = turns_of(settings, providers)
        settlement = await turns._answer(started(token=1))
        assert settlement is not None
        assert settlement.error_type == "bad_reply"
        await asyncio.sleep(0)
        return failing

    gc.disable()
    try:
        failing = asyncio.run(fail())
        assert failing.read is not None
        assert failing.read() is None
    finally:
        gc.enable()


class Cell:
    """Ends as it is told to; everybody else must leave it alone."""

    def __init__(self, end: Exception | None) -> None:
        self.end = end
        self.asked = 0

    async def reply(self, model: str, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        self.asked += 1
        if self.end:
            raise self.end
        return Reply("from the cell")


def settled(cell: Cell, rescues: int) -> Settlement | None:
    async def attempt() -> Settlement | None:
        settings = Settings(max_rescues=3)
        providers = Providers(settings.available_providers, BUILDERS, deadline_seconds=10)
        turns = turns_of(settings, providers)
        turns.cells = cast(Cells, cell)
        settlement = await turns._answer(started(token=1, rescues=rescues))
        assert turns.calls == {}
        return settlement

    return asyncio.run(attempt())


@pytest.mark.parametrize(("rescues", "asked"), [(2, 0), (3, 1), (4, 1)])
def test_a_turn_that_was_rescued_too_often_is_tried_in_a_cell(rescues: int, asked: int) -> None:
    cell = Cell(None)
    settlement = settled(cell, rescues)
    assert cell.asked == asked
    assert settlement is not None
    assert settlement.outcome is AttemptOutcome.COMPLETED
    assert (settlement.reply == "from the cell") == bool(asked)


def test_while_all_cells_are_taken_no_attempt_is_counted() -> None:
    settlement = settled(Cell(NoPlaceError()), 3)
    assert settlement is not None
    assert (settlement.state, settlement.outcome, settlement.error_type) == (TurnState.QUEUED, None, None)
    assert 2 <= settlement.delay_seconds <= 6


def test_a_turn_whose_cell_died_is_quarantined() -> None:
    settlement = settled(Cell(CellDiedError("was killed by SIGSEGV")), 3)
    assert settlement is not None
    assert (settlement.state, settlement.outcome) == (TurnState.FAILED, AttemptOutcome.LOST)
    assert settlement.error_type in POISONED
    assert settlement.retryable
    assert settlement.error_message is not None
    assert "was killed by SIGSEGV" in settlement.error_message
    assert settlement.error_message.startswith("3 workers died")
    assert settlement.error_message.endswith("not tried again by itself: `inturn turn retry 17.1` does")


def test_a_cell_that_did_not_start_is_tried_again() -> None:
    settlement = settled(Cell(ProviderError("safe", "cell_not_started", "no room")), 3)
    assert settlement is not None
    assert (settlement.state, settlement.outcome) == (TurnState.QUEUED, AttemptOutcome.SAFE)


class Kept(Notebook):
    """A ledger that is handed something and keeps it."""

    def __init__(self) -> None:
        self.settlements: list[Settlement] = []

    def submit(self, settlement: Settlement, claim: object) -> "asyncio.Future[Answer]":
        self.settlements.append(settlement)
        return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(("attempts", "state", "error_type"), [(1, "queued", None), (5, "failed", "stopped")])
def test_a_slot_that_is_stopped_in_a_call_hands_the_turn_back(
    attempts: int, state: str, error_type: str | None
) -> None:
    async def stop() -> Kept:
        kept, settings = Kept(), Settings(max_attempts=5)
        providers = Providers(
            settings.available_providers, {**BUILDERS, "echo": lambda name, config: Slow()}, deadline_seconds=10
        )
        turns = turns_of(settings, providers, kept)
        slot = asyncio.create_task(turns._answer(replace(started(token=1), attempts=attempts)))
        await asyncio.sleep(0.05)
        slot.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slot
        assert turns.held == {}
        return kept

    (settlement,) = asyncio.run(stop()).settlements
    assert (settlement.state, settlement.error_type) == (state, error_type)
    assert settlement.outcome is AttemptOutcome.LOST, "it was sent, and nobody knows what came of it"


class Handing(Kept):
    """A ledger that has one turn to give."""

    def __init__(self, turn: Started) -> None:
        super().__init__()
        self._answers = [Answer(kept=True, started=turn), Answer(kept=True, started=None)]
        self.handed: list[Started | None] = []

    async def visit(self, settlement: Settlement | None, claim: object) -> Answer:
        return self._answers.pop(0)

    def handed_out(self, started: Started | None) -> None:
        self.handed.append(started)


class Full(Limits):
    """A provider without a place, for as long as anybody waits for one."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def ask(self, started: Started, tokens: int) -> Any:
        return None

    async def wait(self, ask: object) -> float:
        self.asked.set()
        await asyncio.Event().wait()
        return 0.0


def test_a_turn_that_waits_for_its_place_is_held_until_its_slot_is_stopped() -> None:
    async def wait() -> None:
        settings, turn = Settings(), started(token=7)
        providers = Providers(settings.available_providers, BUILDERS, deadline_seconds=10)
        ledger, limits = Handing(turn), Full()
        turns = turns_of(settings, providers, ledger, limits)
        slot = asyncio.create_task(turns.work(Lane.CHAT, 17))
        await asyncio.wait_for(limits.asked.wait(), 10)
        assert turns.held == {17: 7}, "the heartbeat would take it for an orphan"
        assert ledger.handed == [turn]
        slot.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slot
        assert turns.held == {}

    asyncio.run(wait())
