"""One session's slice of turns: claim and start, call, settle and release, again.

A task takes the session that its hint names, works off its waiting turns, then goes on with other ready sessions of the
lane until nothing is ready or its slice is used up. So many turns share one message, and no lane starves another.
"""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from inturn.models.failpoints import reached
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store.working import Claim, Settlement, Started
from inturn.settings import Settings
from inturn.workers.cell import CellDiedError, Cells, NoPlaceError
from inturn.workers.ledger import Answer, Ledger
from inturn.workers.limits import Limits
from inturn.workers.provider import Prompt, ProviderError, Providers, Reply
from inturn.workers.retries import Again, decide
from inturn.workers.shares import shares
from inturn.workers.teller import Teller, Telling

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
    task: "asyncio.Task[Reply]"
    stop: Stop | None = None

    def break_off(self, stop: Stop) -> None:
        self.stop = self.stop or stop
        self.task.cancel()


class Turns:
    """The turns that this process works on. Everything here runs in the pool's loop.

    Args:
        hint_soon: told, with lane, session and delay in seconds, when a session's next hint is due.
        draining: whether the worker is stopping: the reply in hand is finished, and nothing new is begun.
        teller: tells replies while they arrive, where somebody may listen.
        limits: of providers, which all workers keep to together.
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
    ) -> None:
        self.settings, self.ledger, self.providers, self.teller = settings, ledger, providers, teller
        self.limits = limits
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
        answer = await self.ledger.visit(None, Claim(lane, session_id))
        while answer.started is not None:
            started, turns = answer.started, turns + 1
            try:
                settlement = await self._permitted(started)
            except Exception:
                self._let_go(started)  # nobody works on it: the heartbeat finds its lease to be an orphan's
                self.teller.forget(started)
                raise
            more = turns < most and time.monotonic() < until and not self._draining() and shares.may_go_on(lane)
            answer = await self._settle(started, settlement, Claim(lane, started.session_id) if more else None)
            if not more:
                self._hint_soon(started, 0.0)
        return turns

    async def _permitted(self, started: Started) -> Settlement | None:
        """The attempt, if the limits of its provider leave room for it; otherwise it is withdrawn, and the turn waits."""
        ask = self.limits.ask(started)
        if wait := await self.limits.wait(ask):
            back = ended(started, TurnState.QUEUED, None, delay_seconds=wait)
            return replace(back, waits_for=self.limits.said_of(ask))
        began, settlement = time.monotonic(), None
        try:
            settlement = await self._attempt(started)
            return settlement
        finally:
            self.ledger.note_call(time.monotonic() - began)
            self.limits.ended(ask, time.monotonic() - began, counted_tokens(settlement))

    async def _attempt(self, started: Started) -> Settlement | None:
        """Make the call that is on record, and say how it ended; None if the session is somebody else's now."""
        if (former := self.calls.get(started.session_id)) is not None:
            # After a pause for longer than the lease this very process may have claimed the session again.
            self._break_off(former, Stop.LOST)
        self.held[started.session_id] = started.token
        reached("start.after_commit")
        telling = self.teller.begin(started) if started.streams else None
        try:
            return with_partial(await self._call(started, telling), telling)
        except asyncio.CancelledError:
            # The slot itself is being stopped. Its turn goes back at once, and nobody is left to wait for the answer.
            self._let_go(started)
            self.ledger.submit(with_partial(stopped(started, self.settings.max_attempts), telling), None)
            raise

    async def _call(self, started: Started, telling: Telling | None) -> Settlement | None:
        prompt = Prompt(started.model, started.messages, started.options, idempotency_key(started))
        # Workers died over it as often as is allowed: if its reply was the reason, the next to go is a cell.
        asked = self.cells if started.rescues >= self.settings.effective_max_rescues else self.providers
        call = Call(started, asyncio.get_running_loop().create_task(asked.reply(started.model, prompt, telling)))
        self.calls[started.session_id] = call
        try:
            reply = await call.task
        except ProviderError as error:
            # Through this frame and the task in it, its traceback would hold the error itself and all that was read.
            error.__traceback__ = None
            return self._failed(started, error)
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
        return answered(started, reply)

    def _failed(self, started: Started, error: ProviderError) -> Settlement:
        outcome = AttemptOutcome(error.kind)
        if error.error_type == "rate_limited":
            self.limits.cool(started.model, error.retry_after)
        verdict = decide(
            error.kind,
            attempts=started.attempts,
            ambiguous=started.ambiguous + (outcome is AttemptOutcome.AMBIGUOUS),
            max_attempts=self.settings.max_attempts,
            max_ambiguous=self.settings.max_ambiguous_attempts,
            retry_after=error.retry_after,
            base=self.settings.retry_base_seconds,
            cap=self.settings.retry_cap_seconds,
            draw=random.random(),
        )
        again = isinstance(verdict, Again)
        logger.info(
            "action=attempt_failed session=%s turn=%s attempt=%d error=%s again=%s",
            started.key, started.turn_id, started.attempts, error.error_type, again,
        )  # fmt: skip
        return Settlement(
            session_id=started.session_id,
            token=started.token,
            number=started.number,
            attempt=started.attempts,
            state=TurnState.QUEUED if again else TurnState.FAILED,
            outcome=outcome,
            delay_seconds=verdict.delay if isinstance(verdict, Again) else 0.0,
            error_type=error.error_type,
            error_message=error.message,
            status_code=error.status_code,
            retryable=outcome is not AttemptOutcome.PERMANENT,
        )

    async def _settle(self, started: Started, settlement: Settlement | None, claim: Claim | None) -> Answer:
        answer = await self.ledger.visit(settlement, claim)
        self._let_go(started)
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


def idempotency_key(started: Started) -> str:
    """The same for every attempt of a turn, and another one in every other deployment: a provider that saw it before
    answers with what it answered then.
    """
    said = started.messages[-1]["content"]
    return hashlib.sha256(f"{started.key}\0{started.turn_id}\0{said}".encode()).hexdigest()[:32]


def ended(
    started: Started, state: TurnState, outcome: AttemptOutcome | None, *, delay_seconds: float = 0.0
) -> Settlement:
    return Settlement(
        started.session_id,
        started.token,
        started.number,
        started.attempts,
        state,
        outcome,
        delay_seconds=delay_seconds,
    )


def counted_tokens(settlement: Settlement | None) -> int | None:
    """Of prompt and reply, by the provider; None where it did not say."""
    if settlement is None or settlement.input_tokens is None or settlement.output_tokens is None:
        return None
    return settlement.input_tokens + settlement.output_tokens


def with_partial(settlement: Settlement | None, telling: Telling | None) -> Settlement | None:
    """What was heard of a reply that was cut off is kept where its users can read it. No model is shown it."""
    if settlement is None or telling is None or settlement.state is TurnState.COMPLETED:
        return settlement
    return replace(settlement, partial=telling.text)


def stopped(started: Started, max_attempts: int) -> Settlement:
    """What becomes of a turn whose worker is stopped during its call: it waits again, if it may be called again."""
    if started.attempts < max_attempts:
        return ended(started, TurnState.QUEUED, AttemptOutcome.LOST)
    return replace(
        ended(started, TurnState.FAILED, AttemptOutcome.LOST),
        error_type="stopped",
        error_message=f"its worker was stopped during the last of {max_attempts} attempts",
        retryable=True,
    )


def quarantined(started: Started, error: CellDiedError) -> Settlement:
    """The failure that a turn ends as whose reply kills whoever reads it."""
    logger.error("action=turn_quarantined session=%s turn=%s reason=%s", started.key, started.turn_id, error)
    return replace(
        ended(started, TurnState.FAILED, AttemptOutcome.LOST),
        error_type="worker_lost",
        error_message=f"{started.rescues} workers died during this turn's calls, and the process that then made its call "
        f"for it alone {error}: the reply is taken for the reason, and the turn is not tried again by itself: "
        f"`inturn turn retry {started.turn_id}` does",
        retryable=True,
    )


def answered(started: Started, reply: Reply) -> Settlement:
    return Settlement(
        session_id=started.session_id,
        token=started.token,
        number=started.number,
        attempt=started.attempts,
        state=TurnState.COMPLETED,
        outcome=AttemptOutcome.COMPLETED,
        reply=reply.content,
        request_id=reply.request_id,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
    )
