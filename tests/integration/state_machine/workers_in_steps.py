"""Workers that stand still between any two transactions, until they are told to go on.

They are the product's own: its slots, its ledger, its heartbeat and its sweep. Only what moves them is taken away: the
ledger has no thread and commits when told; the pulse and the sweep have no timer; the model answers and its tools come
back when told; and the loop that the slots run in turns only until all of them wait.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import delete

from inturn.models.database import Database
from inturn.models.states import Lane, ProcessKind, TurnState
from inturn.models.store import retention, sweeping, working
from inturn.models.store.presence import Process
from inturn.models.store.waking import Ready
from inturn.models.store.working import Claim, Settlement, Started
from inturn.models.tables import LANE_PAUSES, REMOVALS, SESSIONS, TICKS, WORKER_PROCESSES
from inturn.settings import Settings
from inturn.tools import ToolContext
from inturn.workers import maintenance, turns
from inturn.workers.context import Context
from inturn.workers.costs import Costs
from inturn.workers.ledger import Answer, Ledger, Visit
from inturn.workers.limits import Limits
from inturn.workers.maintenance import Pulse, Sweep
from inturn.workers.prices import Prices
from inturn.workers.provider import OnDelta, Prompt, Reply, ToolCall
from inturn.workers.queues import connect
from inturn.workers.teller import Teller
from inturn.workers.turns import Turns
from tests.integration.state_machine.conversations import Tables, Told, read
from tests.integration.state_machine.shifted_clock import Gate, ShiftedClock

NOBODY_LISTENS = Teller("redis://nobody.invalid", 1)
"""Not started: no turn of these asks to be heard."""


class Unlimited(Limits):
    """Providers have no limits here, and nobody is asked to leave one alone: that would be by another clock."""

    def cool(self, model: str, seconds: float | None) -> None:
        """Tells nobody."""


UNLIMITED = Unlimited({}, connect("redis://nobody.invalid"), workers=lambda: 1, hold_seconds=1)

STEPS_OF_THE_LOOP = 8
"""From an answer to the next visit there are fewer."""


class House:
    """What outlives a worker: the database with its clock, and the models. One for each kind of database."""

    def __init__(self, database: Database, settings: Settings, patches: pytest.MonkeyPatch) -> None:
        self.database, self.settings = database, settings
        self.clock = ShiftedClock(database)
        # As ``Database.dedicated`` does, but with connections for several ledgers.
        sessions = working.ENGINES[database.dialect].SESSION_SETTINGS
        self.ledgers = Database(database.url.render_as_string(hide_password=False), 4, sessions)
        self.gate = Gate()
        for way in self.database, self.ledgers:
            self.clock.rule(way)
            self.gate.put_on(way)
        self.crashed: set[str] = set()
        self.steps = 0
        self.loop = asyncio.new_event_loop()
        patches.setattr(maintenance, "time", self.clock)
        patches.setattr(maintenance, "is_dead", self.crashed.__contains__)
        for most in "MANY_TURNS", "TURNS_A_STEP", "TURNS_A_TRANSACTION":
            patches.setattr(retention, most, 2)
        patches.setattr(turns, "time", self.clock)
        patches.setattr(
            turns, "random", SimpleNamespace(random=lambda: 0.5, uniform=lambda low, high: (low + high) / 2)
        )

    def clear(self) -> None:
        """Empty, and as at the beginning; only ids go on, as nobody may be given a used one."""
        self.clock.reset()
        self.crashed.clear()
        self.told = Told()
        with self.database.writing() as db:
            for table in SESSIONS, LANE_PAUSES, WORKER_PROCESSES, REMOVALS, TICKS:
                db.execute(delete(table))

    def take_over(self) -> list[int]:
        """A sweep of somebody who cannot have seen a clock jump. Returns the sessions that need a hint."""
        caps = maintenance.caps(self.settings)
        rescued = self.database.transact(lambda db: sweeping.rescue_expired(db, caps))
        return [ready.session_id for ready in rescued.ready] if rescued else []

    def look(self) -> Tables:
        return read(self.database)

    def spin(self) -> None:
        """Let every slot go on until it waits for something."""
        for _ in range(STEPS_OF_THE_LOOP):
            self.loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        self.loop.close()
        self.ledgers.close()
        self.database.close()


@dataclass(slots=True, eq=False)
class Call:
    """A model call that waits for its answer."""

    started: Started
    prompt: Prompt
    answer: "asyncio.Future[Reply]"
    is_alone: bool
    """In a process of its own, as it may be what killed others."""


@dataclass(slots=True, eq=False)
class Errands:
    """The calls of one round, whose tools are at work."""

    started: Started
    calls: Sequence[ToolCall]
    results: "asyncio.Future[list[str]]"


class SteppedLedger(Ledger):
    """The ledger without its thread."""

    @property
    def has_visits(self) -> bool:
        return bool(self._waiting)

    def settling(self) -> list[int]:
        """The sessions that it is asked to settle."""
        return [visit.settlement.session_id for visit in self._waiting if visit.settlement is not None]

    def take(self, most: int) -> list[Visit]:
        """Who goes into the next transaction."""
        alone = self._waiting[0].tried
        return [self._waiting.popleft() for _ in range(1 if alone else min(most, self._next_untried()))]

    def _next_untried(self) -> int:
        return next((place for place, visit in enumerate(self._waiting) if visit.tried), len(self._waiting))

    def commit(self, visits: list[Visit]) -> None:
        self._transact(visits)

    def answer(self, visits: list[Visit]) -> None:
        self._answer(visits)

    def doubt(self, visits: list[Visit]) -> None:
        """The connection broke in the commit: whether it came to pass is not known. Each is tried again, alone."""
        for visit in visits:
            visit.answer, visit.tried = None, True
        self._waiting.extendleft(reversed(visits))


@dataclass(slots=True)
class Transaction:
    """What one of the ledger's did."""

    kept: list[Settlement] = field(default_factory=list)
    stale: list[Settlement] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)


class Worker:
    """One worker process."""

    def __init__(self, house: House, name: str) -> None:
        self.house, self.name = house, name
        self.calls: list[Call] = []
        self.errands: list[Errands] = []
        self.slots: list[asyncio.Task[Any]] = []
        self.draining = False
        self.hints: list[Ready] = []
        self.queued: dict[Lane, int] = dict.fromkeys(Lane, 0)
        settings = house.settings
        self.process = Process(name, ProcessKind.WORKER, "here", 1, "chat,batch", 10, "0")
        self.ledger = SteppedLedger(
            house.ledgers, name, lease_seconds=settings.lease_seconds, context_turns=settings.context_turns,
            gap_seconds=settings.ledger_gap_seconds, on_settled=lambda _: None,
        )  # fmt: skip
        asked: Any = self
        context = Context()
        self.turns = Turns(
            settings, self.ledger, asked, lambda *_: None, lambda: self.draining, NOBODY_LISTENS, UNLIMITED,
            toolbox=asked, context=context, costs=Costs(Prices({}), context),
        )  # fmt: skip
        self.turns.cells = self  # type: ignore[assignment]
        self.sweep = Sweep(house.database, settings, self.hints.append, self.queued.__getitem__, lambda turns: ())
        self.pulse = Pulse(
            house.database, settings, self.process, lambda: dict(self.turns.held), self._lost, self._cancelled
        )
        self.beat()

    def _lost(self, leases: Collection[tuple[int, int]]) -> None:
        for lease in leases:
            self.turns.lose(*lease)

    def _cancelled(self, places: Collection[tuple[int, int]]) -> None:
        for place in places:
            self.turns.take_back(*place)

    def _spawn(self, work: Any) -> None:
        self.slots.append(self.house.loop.create_task(work))
        self.go_on()

    def go_on(self) -> None:
        self.house.spin()
        for slot in self.slots:
            if slot.done() and not slot.cancelled():
                slot.result()  # a mistake in the product is the test's failure
        self.slots = [slot for slot in self.slots if not slot.done()]
        self.calls = [call for call in self.calls if not call.answer.done()]
        self.errands = [errands for errands in self.errands if not errands.results.done()]

    def at_work(self) -> list[Started]:
        """What models are asked for now, or tools do."""
        return [*(call.started for call in self.calls), *(errands.started for errands in self.errands)]

    def take_hint(self, lane: Lane, session_id: int | None) -> None:
        """A task comes in; its slot goes to the ledger."""
        self._spawn(self.turns.work(lane, session_id))

    def withdraw(self, lane: Lane, session_id: int | None, delay_seconds: float) -> None:
        """A slot that claims, finds that no call can be made now, and takes the attempt back."""

        async def think_better_of_it() -> None:
            answer: Answer = await self.ledger.visit(None, Claim(lane, session_id))
            if (it := answer.started) is not None:
                self.turns.held[it.session_id] = it.token
                taken_back = Settlement(
                    it.session_id, it.token, it.number, it.attempts, TurnState.QUEUED, None, delay_seconds=delay_seconds
                )
                await self.ledger.visit(taken_back, None)
                if self.turns.held.get(it.session_id) == it.token:
                    del self.turns.held[it.session_id]

        self._spawn(think_better_of_it())

    async def reply(self, model: str, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """What the slots take for the providers, and for the cells."""
        started = self._asking()
        self.house.told.calls[started.session_id, started.number] += 1
        call = Call(
            started,
            prompt,
            self.house.loop.create_future(),
            started.rescues >= self.house.settings.effective_max_rescues,
        )
        self.calls.append(call)
        return await call.answer

    async def run(self, calls: Sequence[ToolCall], context: ToolContext, allowed: Collection[str]) -> list[str]:
        """What the slots take for the toolbox."""
        errands = Errands(self._asking(), calls, self.house.loop.create_future())
        self.errands.append(errands)
        return await errands.results

    def _asking(self) -> Started:
        """Whose call this is."""
        mine = asyncio.current_task()
        return next(call.started for call in self.turns.calls.values() if call.task is mine)

    def transact(self, visits: list[Visit], answered: bool = True) -> Callable[[], Transaction]:
        """Commit. What is returned gives the answers to the slots, or (not ``answered``) leaves them in doubt."""
        self.ledger.commit(visits)

        def deliver() -> Transaction:
            done = Transaction()
            for visit in visits:
                assert visit.answer is not None
                if visit.settlement is not None:
                    (done.kept if visit.answer.kept else done.stale).append(visit.settlement)
                if visit.answer.started is not None:
                    done.started.append(visit.answer.started)
            if answered:
                self.ledger.answer(visits)
            else:
                self.ledger.doubt(visits)
            self.go_on()
            return done

        return deliver

    def commit_all(self) -> None:
        """Until no slot has anything to store."""
        while self.ledger.has_visits:
            self.transact(self.ledger.take(9))()

    def beat(self) -> None:
        """A heartbeat, and a look at what users want back."""
        self.pulse._next_beat = 0.0
        self.pulse.run()
        self.go_on()

    def crash(self) -> None:
        """SIGKILL: whatever it would have done is not done."""
        self.house.crashed.add(self.name)
        self.end()

    def end(self) -> None:
        for slot in self.slots:
            slot.cancel()
        self.house.spin()
