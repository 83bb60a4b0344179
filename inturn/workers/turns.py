"""One session's slice of turns: claim and start, call, settle and release, again.

A task takes the session that its hint names, works off its waiting turns, then goes on with other ready sessions of the
lane until nothing is ready or its slice is used up. So many turns share one message, and no lane starves another.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from inturn.models.failpoints import reached
from inturn.models.states import POISONED, AttemptOutcome, Lane, Overflow, TurnState
from inturn.models.store.working import Claim, Settlement, Started
from inturn.settings import Settings
from inturn.tools import ToolContext
from inturn.workers.cell import CellDiedError, Cells, NoPlaceError
from inturn.workers.context import Context, Plan, TooMuch
from inturn.workers.costs import Costs, tokens_of
from inturn.workers.ledger import Answer, Ledger
from inturn.workers.limits import Ask, Limits
from inturn.workers.meter import Meter
from inturn.workers.provider import FailureKind, Prompt, ProviderError, Providers, Reply, ToolSpec
from inturn.workers.retries import Again, GiveUp, decide
from inturn.workers.settlements import (
    answered,
    ended,
    held_back,
    idempotency_key,
    moved_on,
    quarantined,
    shrunk,
    stopped,
    summed_up,
    too_late,
    too_much,
    unsummed,
    went_round,
    went_round_too_often,
    with_partial,
)
from inturn.workers.shares import shares
from inturn.workers.teller import Teller, Telling
from inturn.workers.toolbox import Toolbox
from inturn.workers.tracer import Tracer

logger = logging.getLogger(__name__)

PLACE_SECONDS = (2.0, 6.0)
"""How long a turn waits that found all cells taken: at random, so that many who wait do not come back together."""


class Stop(Enum):
    """Why a call is broken off."""

    CANCELLED = auto()
    """Its user took the turn back: it is settled as cancelled."""
    LOST = auto()
    """Somebody else holds the session now: nothing is settled, as nothing could be."""


@dataclass(slots=True)
class Call:
    """A model call under way."""

    started: Started
    task: "asyncio.Task[Settlement]"
    stop: Stop | None = None

    def break_off(self, stop: Stop) -> None:
        self.stop = self.stop or stop
        self.task.cancel()


@dataclass(frozen=True, slots=True)
class Round:
    """One call, and all that it is made with."""

    started: Started
    plan: Plan
    tools: tuple[ToolSpec, ...]
    ask: Ask


class Turns:
    """The turns that this process works on. Everything here runs in the pool's loop.

    Args:
        hint_soon: told, with lane, session and delay in seconds, when a session's next hint is due.
        draining: whether the worker is stopping: the reply in hand is finished, and nothing new is begun.
        teller: tells replies while they arrive, where somebody may listen.
        limits: of providers, which all workers keep to together.
        toolbox: what models may call.
        context: what they are shown.
        costs: what they cost.
        meter: counts what becomes of them.
        tracer: tells their ways.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        providers: Providers,
        hint_soon: Callable[[Started, float], None],
        draining: Callable[[], bool],
        teller: Teller,
        limits: Limits,
        *,
        toolbox: Toolbox,
        context: Context,
        costs: Costs,
        meter: Meter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings, self.ledger, self.providers, self.teller = settings, ledger, providers, teller
        self.limits, self.toolbox, self.context, self.costs = limits, toolbox, context, costs
        self.meter, self.tracer = meter or Meter(), tracer or Tracer()
        self.cells = Cells(settings)
        self._hint_soon, self._draining = hint_soon, draining
        self.calls: dict[int, Call] = {}
        """By session: what runs now."""
        self.held: dict[int, int] = {}
        """Session and token of every lease that a slot of this process knows itself to hold."""

    async def work(self, lane: Lane, session_id: int | None) -> int:
        """One slice. Returns how many turns it worked on."""
        # At random, or all who began together would go back into the queue together.
        part, turns = random.uniform(0.5, 1.0), 0
        until, most = time.monotonic() + self.settings.slice_seconds * part, self.settings.slice_turns * part
        if self._draining():
            return turns
        answer, before = await self.ledger.visit(None, Claim(lane, session_id)), 0
        while answer.started is not None:
            started, turns = answer.started, turns + 1
            self.meter.claimed(started, goes_on=started.session_id == before)
            before = started.session_id
            # At once: a plan and a place within a limit may take longer than the heartbeat leaves to leases of nobody.
            self.held[started.session_id] = started.token
            self.ledger.handed_out(started)
            with self.tracer.process(started) as way:
                try:
                    settlement = await self._answer(started)
                except asyncio.CancelledError:
                    self._let_go(started)
                    raise
                except Exception:
                    self._let_go(started)  # nobody works on it: the heartbeat finds its lease to be an orphan's
                    self.teller.forget(started)
                    raise
                more = turns < most and time.monotonic() < until and not self._draining() and shares.may_go_on(lane)
                answer = await self._settle(started, settlement, Claim(lane, started.session_id) if more else None)
                way.ended(settlement, answer.becomes)
            if not more:
                self._hint_soon(started, 0.0)
        return turns

    async def _answer(self, started: Started) -> Settlement | None:
        """What comes of the attempt on record: a call, if nothing speaks against it."""
        if started.is_late:
            return too_late(started)
        if started.exceeded is not None:
            return held_back(started)
        try:
            tools = self.toolbox.specs(started.tools) if started.tools else ()
        except ProviderError as error:
            return self._failed(started, error, None)
        plan = self.context.plan(started, tools)
        if isinstance(plan, TooMuch):
            chain = self._chain(started)
            return moved_on(ended(started, TurnState.QUEUED, None), chain) if chain else too_much(started, plan)
        ask = self.limits.ask(started, plan.tokens)
        if wait := await self.limits.wait(ask):
            return self._put_off(started, ask, wait)
        return await self._attempt(Round(started, plan, tools, ask))

    def _put_off(self, started: Started, ask: Ask, wait: float) -> Settlement:
        """No call now: the attempt is withdrawn. A model that wants a pause is passed over, where there is another."""
        if self.limits.is_cooling(ask.model) and (chain := self._chain(started)):
            return moved_on(ended(started, TurnState.QUEUED, None), chain)
        return replace(ended(started, TurnState.QUEUED, None, delay_seconds=wait), waits_for=self.limits.said_of(ask))

    async def _attempt(self, round_: Round) -> Settlement | None:
        """Make the call that is on record, and say how it ended; None if the session is somebody else's now."""
        started = round_.started
        if (former := self.calls.get(started.session_id)) is not None:
            # After a pause for longer than the lease this very process may have claimed the session again.
            self._break_off(former, Stop.LOST)
        self.held[started.session_id] = started.token
        reached("start.after_commit")
        # What a model writes for itself is told to nobody.
        telling = self.teller.begin(started) if started.streams and round_.plan.sums_up_to is None else None
        try:
            settlement = await self._call(round_, telling)
        except asyncio.CancelledError:
            # The slot itself is being stopped. Its turn goes back at once, and nobody is left to wait for the answer.
            self._let_go(started)
            last = self._told(round_, stopped(started, self.settings.max_attempts), telling)
            answer = self.ledger.submit(last, None)
            answer.add_done_callback(lambda done: self.meter.settled(started, last, done.result().becomes))
            raise
        return None if settlement is None else self._told(round_, settlement, telling)

    def _told(self, round_: Round, settlement: Settlement, telling: Telling | None) -> Settlement:
        """With what was heard of it, and what it has cost."""
        heard = settlement if telling is None else with_partial(settlement, telling.text)
        return self.costs.counted(round_.started, round_.plan, heard)

    async def _call(self, round_: Round, telling: Telling | None) -> Settlement | None:
        started = round_.started
        call = Call(started, asyncio.get_running_loop().create_task(self._ask(round_, telling)))
        self.calls[started.session_id] = call
        try:
            settlement = await call.task
        except ProviderError as error:
            # Through this frame and the task in it, its traceback would hold the error itself and all that was read.
            error.__traceback__ = None
            return self._failed(started, error, round_.plan)
        except NoPlaceError:
            return ended(started, TurnState.QUEUED, None, delay_seconds=random.uniform(*PLACE_SECONDS))
        except CellDiedError as error:
            return quarantined(started, error)
        except asyncio.CancelledError:
            if call.stop is Stop.LOST:
                return None
            if call.stop is Stop.CANCELLED:
                return ended(started, TurnState.CANCELLED, AttemptOutcome.CANCELLED)
            call.task.cancel()
            raise
        finally:
            if self.calls.get(started.session_id) is call:
                del self.calls[started.session_id]
        reached("call.after_response")
        return settlement

    async def _ask(self, round_: Round, telling: Telling | None) -> Settlement:
        """The call itself, and what the model wants done. A task of its own, which a cancel breaks off."""
        started, plan = round_.started, round_.plan
        reply = await self._reply(round_, telling)
        if plan.sums_up_to is not None:
            settlement = summed_up(started, reply, plan.sums_up_to)
        elif not reply.tool_calls or (not started.tools and started.options.get("tools")):
            settlement = answered(started, reply)  # calls of tools that an option offered are for who sent the prompt
        elif tool_rounds(started) >= self.settings.max_tool_rounds:
            settlement = went_round_too_often(started, reply, self.settings.max_tool_rounds)
        else:
            context = ToolContext(started.key, started.turn_id, idempotency_key(started), started.model)
            settlement = went_round(started, reply, await self.toolbox.run(reply.tool_calls, context, started.tools))
        return self.costs.with_figures(started, settlement, reply)

    async def _reply(self, round_: Round, telling: Telling | None) -> Reply:
        started, plan, began, counted = round_.started, round_.plan, time.monotonic(), None
        options = started.options if plan.sums_up_to is None else {}
        tools = round_.tools if plan.sums_up_to is None else ()
        key = idempotency_key(started, plan.sums_up_to)
        prompt = Prompt(started.model, plan.messages, options, key, tools)
        # Workers died over it as often as is allowed: if its reply was the reason, the next to go is a cell.
        asked = self.cells if started.rescues >= self.settings.effective_max_rescues else self.providers
        try:
            with self.tracer.chat(started, prompt) as call:
                reply = await asked.reply(started.model, prompt, call.hearing(telling))
                call.answered(reply)
            counted = tokens_of(reply)
            return reply
        except ProviderError as error:
            counted = tokens_of(error)
            self.meter.refused(started.model, error.error_type)
            raise
        finally:
            took = time.monotonic() - began
            self.ledger.note_call(took)
            self.meter.called(started.model, took)
            self.limits.ended(round_.ask, took, counted)

    def _failed(self, started: Started, error: ProviderError, plan: Plan | None) -> Settlement:
        """What becomes of a turn whose call failed; without a plan none was made, as it could not be."""
        outcome = AttemptOutcome(error.kind) if plan is not None else None
        if error.error_type == "rate_limited":
            self.limits.cool(started.model, error.retry_after)
        verdict = self._verdict(started, error)
        logger.info(
            "action=attempt_failed session=%s turn=%s attempt=%d model=%s error=%s again=%s",
            started.key, started.turn_id, started.attempts, started.model, error.error_type, isinstance(verdict, Again),
        )  # fmt: skip
        settlement = ended(
            started,
            TurnState.QUEUED if isinstance(verdict, Again) else TurnState.FAILED,
            outcome,
            delay_seconds=verdict.delay if isinstance(verdict, Again) else 0.0,
            error_type=error.error_type,
            error_message=error.message,
            status_code=error.status_code,
            retryable=outcome is not None and outcome is not AttemptOutcome.PERMANENT,
        )
        return self.costs.with_figures(started, self._otherwise(started, settlement, error, plan), error)

    def _otherwise(
        self, started: Started, settlement: Settlement, error: ProviderError, plan: Plan | None
    ) -> Settlement:
        """What failed may go better with less of it, or with another model, while attempts are left."""
        if plan is None or error.error_type in POISONED or not isinstance(self._verdict(started, error, "safe"), Again):
            return settlement
        too_long = error.error_type == "context_length_exceeded"
        if too_long and started.room is None and plan.can_shrink and started.overflow is not Overflow.FAIL:
            return shrunk(settlement, plan)
        if chain := self._chain(started):
            return moved_on(settlement, chain)
        gave_up = settlement.state is TurnState.FAILED
        return unsummed(settlement) if gave_up and plan.sums_up_to is not None else settlement

    def _verdict(self, started: Started, error: ProviderError, instead: FailureKind | None = None) -> Again | GiveUp:
        """What a failure like this means for the turn; ``instead``: taking a permanent one to be of that kind."""
        kind = instead if instead is not None and error.kind == "permanent" else error.kind
        return decide(
            kind,
            attempts=started.tries,
            ambiguous=started.ambiguous + (error.kind == "ambiguous"),
            max_attempts=self.settings.max_attempts,
            max_ambiguous=self.settings.max_ambiguous_attempts,
            retry_after=error.retry_after,
            base=self.settings.retry_base_seconds,
            cap=self.settings.retry_cap_seconds,
            draw=random.random(),
        )

    def _chain(self, started: Started) -> list[str]:
        """The models that may be asked when this one fails."""
        if started.fallbacks is not None:
            return started.fallbacks
        provider = self.settings.available_providers.get(started.model.partition("/")[0])
        return [model for model in provider.fallbacks if model != started.model] if provider is not None else []

    async def _settle(self, started: Started, settlement: Settlement | None, claim: Claim | None) -> Answer:
        with self.tracer.store(settlement):
            answer = await self.ledger.visit(settlement, claim)
        self._let_go(started)
        self.meter.settled(started, settlement, answer.becomes)
        self.teller.forget(started)  # unless what came of it is stored, and its end told
        if settlement is not None and not answer.kept:
            logger.warning("action=lease_lost session=%s turn=%s: nothing was stored", started.key, started.turn_id)
        if settlement is not None and settlement.state is TurnState.QUEUED:
            self._hint_soon(started, settlement.delay_seconds)
        return answer

    def _let_go(self, started: Started) -> None:
        if self.held.get(started.session_id) == started.token:
            del self.held[started.session_id]

    def take_back(self, session_id: int, number: int) -> None:
        """Break off the call of this turn, if it is under way: its user wants it back."""
        call = self.calls.get(session_id)
        if call is not None and call.started.number == number:
            self._break_off(call, Stop.CANCELLED)

    def lose(self, session_id: int, token: int) -> None:
        """Break off the call that was made under this lease, if it is still under way, and no later one."""
        call = self.calls.get(session_id)
        if call is not None and call.started.token == token:
            self._break_off(call, Stop.LOST)

    def _break_off(self, call: Call, stop: Stop) -> None:
        logger.info(
            "action=call_broken_off session=%s turn=%s why=%s", call.started.key, call.started.turn_id, stop.name
        )
        call.break_off(stop)


def tool_rounds(started: Started) -> int:
    return sum("tool_calls" in message for message in started.prompt)
