"""The crew of one worker process: comes on duty after the pool has started, and leaves after its last task has ended."""

import asyncio
import gc
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from celery import bootsteps
from celery.worker.components import Pool

from inturn.models import migrations
from inturn.models.database import Database, has_wal_reset_bug
from inturn.models.errors import InturnError
from inturn.models.states import Lane, ProcessKind, TurnState
from inturn.models.store import presence, working
from inturn.models.store.working import Settlement, Started
from inturn.workers.app import InturnApp, broker_url, make_app
from inturn.workers.children import refusals
from inturn.workers.context import Configured, Context
from inturn.workers.costs import Costs
from inturn.workers.events import Announcer, Bell
from inturn.workers.home import LOG_SECONDS, OwnLog
from inturn.workers.ledger import Ledger
from inturn.workers.limits import Limits
from inturn.workers.live import heard
from inturn.workers.maintenance import LOOK_SECONDS, Pulse, Round, Sweep, describe_process
from inturn.workers.meter import Sources
from inturn.workers.metering import make_meter
from inturn.workers.pool import TaskPool
from inturn.workers.prices import Prices
from inturn.workers.provider import Providers
from inturn.workers.providers import BUILDERS
from inturn.workers.queues import CANCELS, SWEEPER_SECONDS, Hints, connect, queued
from inturn.workers.shares import shares
from inturn.workers.teller import Teller
from inturn.workers.toolbox import Toolbox
from inturn.workers.tracing import make_tracer
from inturn.workers.turns import Turns
from inturn.workers.watch import Watch
from inturn.workers.webhooks.courier import Courier, couriers

logger = logging.getLogger(__name__)

T = TypeVar("T")

LISTEN_SECONDS = 0.5
TOO_TALKATIVE = ("httpx", "celery.app.trace", "celery.worker.strategy")
"""A line or two at INFO for every call and for every hint: a tenth of what a turn costs. Addresses are nobody's business."""
NEW_OBJECTS = 50_000
"""How many more objects there must be before Python looks for unreachable cycles among them. A turn in flight is some
hundred objects that live for a second: Python's own 700 had it look through thousands of turns' objects all the time,
for nothing, which was half of the worker's CPU at 2,000 in flight.
"""

_on_duty: "list[Crew]" = []


def on_duty() -> "Crew":
    """The crew of this process. Raises: RuntimeError."""
    if not _on_duty:
        raise RuntimeError("no crew is on duty in this process: tasks of inturn run in a worker (`inturn worker`)")
    return _on_duty[-1]


class Crew(bootsteps.StartStopStep):  # type: ignore[misc]
    """Celery starts it after the pool, and stops it before: the last replies still need the ledger."""

    requires = (Pool,)
    label = "inturn's crew"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        app: InturnApp = worker.app
        self.settings = app.settings
        self.database = Database(self.settings.effective_database_url)

    def start(self, worker: Any) -> None:
        """Refuses to run on a schema that is not this program's, and without the tools that it is to have."""
        with refusals():
            migrations.prepare(self.database)
            self.tracer = make_tracer(self.settings, ProcessKind.WORKER)
            self.toolbox = Toolbox(self.settings.tool_modules, self.settings.tool_deadline_seconds, self.tracer)
            self.toolbox.load()
        if self.database.dialect == "sqlite" and has_wal_reset_bug():
            logger.warning("action=sqlite_outdated: `inturn doctor` says why a newer SQLite, or PostgreSQL, is safer")
        for name in TOO_TALKATIVE:
            logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger(name).level))
        self.pool: TaskPool = worker.pool
        lanes = [name for name in worker.app.amqp.queues.consume_from if name in set(Lane)]
        self.process = describe_process(self.settings, ProcessKind.WORKER, lanes, worker.concurrency)
        shares.share_out(lanes, worker.concurrency, self.settings.batch_share)
        self._assemble()
        with refusals():
            self._begin()
        gc.set_threshold(NEW_OBJECTS)
        _on_duty.append(self)

    def _assemble(self) -> None:
        settings = self.settings
        self.meter = make_meter(settings)
        self.announcer = Announcer(broker_url(settings))
        self.hints = Hints(make_app(settings, producer=True), SWEEPER_SECONDS)
        self.broker = connect(broker_url(settings))
        self.ledger = Ledger(
            self.database.dedicated(working.ENGINES[self.database.dialect].SESSION_SETTINGS),
            self.process.id,
            lease_seconds=settings.lease_seconds,
            context_turns=settings.context_turns,
            gap_seconds=settings.ledger_gap_seconds,
            on_settled=self._settled,
            on_waited=shares.felt,
            on_committed=self.meter.committed,
            budgets=[each.budget() for each in settings.budgets],
            hooks=settings.hooks(),
        )
        providers = Providers(
            settings.available_providers, BUILDERS, deadline_seconds=settings.attempt_deadline_seconds
        )
        self.teller = Teller(broker_url(settings), settings.shutdown_grace_seconds)
        self.limits = Limits(
            settings.available_providers,
            connect(broker_url(settings)),
            workers=self._count_workers,
            hold_seconds=settings.shutdown_grace_seconds,
        )
        prices = Prices(settings.available_providers)
        prices.load()
        context = Context(Configured(settings.available_providers), prices)
        self.turns = Turns(
            settings,
            self.ledger,
            providers,
            self._hint_soon,
            lambda: self.pool.draining,
            self.teller,
            self.limits,
            toolbox=self.toolbox,
            context=context,
            costs=Costs(prices, context),
            meter=self.meter,
            tracer=self.tracer,
        )
        self._make_rounds()

    def _make_rounds(self) -> None:
        settings = self.settings
        sweep = Sweep(
            self.database,
            settings,
            lambda ready: self.hints.publish(ready, ready.key),
            lambda lane: queued(self.broker, lane),
            lambda turns: heard(self.broker, turns),
            self.meter,
        )
        pulse = Pulse(self.database, settings, self.process, self._held, self._lost, self._cancelled, self.meter)
        self.pulse = Round("pulse", lambda: settings.cancel_poll_seconds, pulse.run)
        self.rounds: list[Round | Courier] = [
            self.pulse,
            Round("sweep", sweep.pause_seconds, sweep.run),
            Round("look", lambda: LOOK_SECONDS, sweep.look),
            Round("bell", lambda: 0.0, self._listen),
            Round("batches", sweep.pause_seconds, sweep.tend_batches),
            Round("log", lambda: LOG_SECONDS, OwnLog(settings.home).keep_short),
            Round("watch", sweep.pause_seconds, Watch(self.database, settings).run),
            *couriers(self.database, settings.webhooks),
        ]

    def _begin(self) -> None:
        self.database.transact(lambda db: presence.appear(db, self.process))
        self.announcer.start()
        self.teller.start()
        self.limits.start()
        self.ledger.start()
        for member in self.rounds:
            member.start()
        databases = dict.fromkeys((self.database, self.ledger.database))  # on SQLite one and the same
        self.meter.serve(
            Sources(
                self.process,
                list(databases),
                self.hints,
                lambda: self.pulse.age,
                lambda: len(self._held()),
                self.pool.call_soon,
            )
        )

    def stop(self, worker: Any) -> None:
        """Warm: every reply in hand is finished and stored first."""
        self.pool.drain()
        self._leave()

    def terminate(self, worker: Any) -> None:
        """Cold: calls are broken off, and their turns go back at once."""
        self.pool.terminate()
        self._leave()

    def _leave(self) -> None:
        if self not in _on_duty:
            return
        _on_duty.remove(self)
        self.pool.drain(0)
        self._in_loop(self.turns.providers.aclose())
        self.ledger.stop(timeout=10)
        self.ledger.database.close()
        for member in self.rounds:
            member.end()
        self.teller.stop()
        self.limits.stop()
        self.announcer.stop()
        self.meter.stop()
        self.tracer.stop()
        self.database.transact(lambda db: presence.disappear(db, [self.process.id]))
        self.database.close()

    def _in_loop(self, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            self.pool.submit(coroutine).result(timeout=5)
        except (RuntimeError, TimeoutError) as error:
            coroutine.close()
            logger.info("action=providers_not_closed reason=%r", error)

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Do something that waits for the database or for Redis, without holding up the loop."""
        return await asyncio.get_running_loop().run_in_executor(None, work, *args)

    def _settled(self, settlement: Settlement) -> None:
        self.teller.settled(settlement)
        if settlement.state is not TurnState.QUEUED:
            self.announcer.reply_stored(settlement.session_id)

    def _count_workers(self) -> int:
        """Those that are alive, this one with them; just this one where the database does not say."""
        try:
            with self.database.reading() as db:
                known = presence.list_processes(db, self.settings.silent_seconds)
        except InturnError:
            return 1
        return sum(one.alive and one.kind is ProcessKind.WORKER for one in known)

    def _hint_soon(self, started: Started, delay_seconds: float) -> None:
        """From the loop: a timer of this process makes a retry punctual; if the process dies, the sweep sees to it."""
        loop = asyncio.get_running_loop()
        loop.call_later(delay_seconds, self.announcer.soon, lambda: self.hints.publish(started, started.key))

    def _held(self) -> dict[int, int]:
        """Session and token of each lease that a slot holds, or is about to be handed."""
        return {**self.ledger.handing_out, **self.turns.held}

    def _lost(self, leases: Collection[tuple[int, int]]) -> None:
        for session, token in leases:
            self.pool.loop.call_soon_threadsafe(self.turns.lose, session, token)

    def _cancelled(self, turns: Collection[tuple[int, int]]) -> None:
        for session, number in turns:
            self.pool.loop.call_soon_threadsafe(self.turns.take_back, session, number)

    def _listen(self) -> None:
        """Until Redis goes away: every ring makes the pulse look at once for cancelled turns."""
        with Bell(self.broker, CANCELS) as bell:
            while bell.connected and self in _on_duty:
                if bell.wait(LISTEN_SECONDS):
                    self.pulse.wake()
            bell.wait(LISTEN_SECONDS)
