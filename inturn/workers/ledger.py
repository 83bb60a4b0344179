"""The ledger: gathers what many turns want of the database at the same moment into one transaction (group commit).

SQL is most of a turn's cost, and most of that is per statement and per commit. So the slots never talk to the database:
each leaves its transition here and waits; one thread takes all that has gathered while the last transaction was under
way, and commits it as one. Between two transactions it lets some time pass, for more to gather: a small part of what
calls take, and less where many wait. A turn alone pays no wait, as nothing else is under way.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.exc import DBAPIError

from inturn.models.database import Database
from inturn.models.errors import StorageError
from inturn.models.failpoints import reached
from inturn.models.states import AttemptOutcome, TurnState
from inturn.models.store import working
from inturn.models.store.budgets import Budget, spend
from inturn.models.store.webhooks import Hook, announce_turns, wanting_turns
from inturn.models.store.working import Claim, Held, Settlement, Started, spent_by, within_budgets

logger = logging.getLogger(__name__)

GAP_SHARE = 0.05
"""Nobody feels a wait for company that is as short a part of what a call takes."""
CROWD = 50
"""So many visits wait for no more: by then the fixed cost of a transaction is shared."""
REMEMBERED = 0.05
"""How much of the known length of a call each new one is: the last twenty count most."""
RETRY_SECONDS = (0.1, 2.0)
"""The first and the longest pause between two tries to reach a database that is gone."""
UNSTORABLE = "unstorable"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a visit: was the settled session still held, what was started, and what the settled turn is now."""

    kept: bool
    started: Started | None
    becomes: TurnState | None = None


@dataclass(slots=True)
class Visit:
    """A slot at the ledger: an attempt to settle, a claim for the next turn, or both in one go."""

    settlement: Settlement | None
    claim: Claim | None
    done: asyncio.Future[Answer]
    since: float
    """When it came, by the monotonic clock."""
    answer: Answer | None = None
    tried: bool = False
    """A transaction with it failed with its outcome unknown: it may be in the database already."""


class Ledger:
    """One per worker process.

    Args:
        database: with a connection of the ledger's own (``Database.dedicated``).
        owner: this process, as its leases name it.
        lease_seconds: how long a lease lasts without a heartbeat.
        context_turns: how many completed turns a model is shown where the session does not say.
        budgets: what may be spent.
        hooks: who may want to be told of turns that end.
        gap_seconds: the shortest time between two transactions: gathering more makes each turn cheaper. Where calls are
            quick it is less: a part of what they take (``GAP_SHARE``).
        on_settled: told, in the ledger's thread, each settlement that was stored.
        on_waited: told, in the loop, how many seconds the first of those waited that are answered together.
        on_committed: told, in the ledger's thread, how many visits a transaction was for, and the seconds that it took.
    """

    def __init__(
        self,
        database: Database,
        owner: str,
        *,
        lease_seconds: float,
        context_turns: int,
        gap_seconds: float,
        on_settled: Callable[[Settlement], None],
        on_waited: Callable[[float], None] = lambda seconds: None,
        on_committed: Callable[[int, float], None] = lambda visits, seconds: None,
        budgets: Sequence[Budget] = (),
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.database, self.owner = database, owner
        self._lease_seconds, self._context_turns, self._gap_seconds = lease_seconds, context_turns, gap_seconds
        self._on_settled, self._on_waited, self._on_committed = on_settled, on_waited, on_committed
        self._budgets = budgets
        self._told = wanting_turns(hooks)
        self._call_seconds = 0.0
        self.handing_out: dict[int, int] = {}
        """Session and token of each claim that is committed, and whose slot does not know of it yet."""
        self._waiting: deque[Visit] = deque()
        self._called, self._crowded = threading.Event(), threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="inturn-ledger", daemon=True)

    def start(self) -> None:
        """Open the connection and prepare the statements, so that the first turn does not wait for that."""
        self._transact([])
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Commit what is waiting, and end."""
        self._stopping = True
        self._called.set()
        self._crowded.set()
        self._thread.join(timeout)

    async def visit(self, settlement: Settlement | None, claim: Claim | None) -> Answer:
        """Settle an attempt, claim the next turn, or both in one transaction. A settlement's visit returns when it is
        committed, or when somebody else holds its session; it waits for as long as the database is away.
        """
        done = self.submit(settlement, claim)
        try:
            return await done
        except asyncio.CancelledError:
            if done.done() and not done.cancelled():
                self.handed_out(done.result().started)  # to nobody: its lease is an orphan's now
            raise

    def submit(self, settlement: Settlement | None, claim: Claim | None) -> asyncio.Future[Answer]:
        """``visit`` for a slot that may be gone before it is answered. Called in the pool's loop."""
        visit = Visit(settlement, claim, asyncio.get_running_loop().create_future(), time.monotonic())
        self._waiting.append(visit)
        if not self._called.is_set():
            self._called.set()
        if len(self._waiting) == CROWD:
            self._crowded.set()
        return visit.done

    def handed_out(self, started: Started | None) -> None:
        """The slot knows of its claim, or will never."""
        if started is not None and self.handing_out.get(started.session_id) == started.token:
            del self.handing_out[started.session_id]

    def note_call(self, seconds: float) -> None:
        """How long a call took, by which the ledger paces itself."""
        self._call_seconds += REMEMBERED * (seconds - self._call_seconds)

    def _run(self) -> None:
        while True:
            self._called.wait()
            self._called.clear()
            visits = self._gathered()
            if visits:
                next_at = time.monotonic() + min(self._gap_seconds, GAP_SHARE * self._call_seconds)
                self._carry_out(visits)
                self._deliver(visits)
                if not self._stopping:
                    self._crowded.wait(max(0.0, next_at - time.monotonic()))
            elif self._stopping:
                return

    def _gathered(self) -> list[Visit]:
        self._crowded.clear()
        visits = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if visits or self._stopping:
            self._called.set()  # look once more before sleeping: one may have come in between
        return visits

    def _deliver(self, visits: Sequence[Visit]) -> None:
        """All answers in one call into the loop, as waking it is what costs."""
        loop = visits[0].done.get_loop()
        begun = [visit.answer.started for visit in visits if visit.answer is not None]
        self.handing_out |= {started.session_id: started.token for started in begun if started is not None}
        try:
            loop.call_soon_threadsafe(self._answer, visits)
        except RuntimeError:  # the loop is closed: the process ends, and nobody waits any more
            return

    def _answer(self, visits: Sequence[Visit]) -> None:
        """In the loop, so that what the loop itself takes is felt as well."""
        self._on_waited(time.monotonic() - visits[0].since)
        for visit in visits:
            answer = visit.answer or Answer(kept=False, started=None)
            if visit.done.done():
                self.handed_out(answer.started)
            else:
                visit.done.set_result(answer)

    def _carry_out(self, visits: Sequence[Visit]) -> None:
        """Commit together; if that fails, one by one, so that one that cannot be stored fails alone."""
        try:
            self._transact(visits)
        except Exception as error:  # noqa: BLE001 - whatever it was, each on its own will show
            logger.warning("action=ledger_split visits=%d reason=%r", len(visits), type(error).__name__)
            for visit in visits:
                visit.tried = visit.tried or isinstance(error, StorageError)
                self._carry_out_alone(visit)

    def _carry_out_alone(self, visit: Visit) -> None:
        """Until it is stored: a reply that was paid for is not given up because the database is away."""
        pause = RETRY_SECONDS[0]
        while True:
            try:
                return self._transact([visit])
            except StorageError as error:
                visit.tried = True
                if visit.settlement is None:
                    logger.warning("action=claim_failed reason=%s", error)
                    return None
                logger.warning("action=settle_retried turn=%s reason=%s", turn_of(visit.settlement), error)
            except DBAPIError as error:
                if visit.settlement is None or visit.settlement.error_type == UNSTORABLE:
                    return logger.exception("action=ledger_refused")
                visit.settlement = unstorable(visit.settlement, error)
                continue
            except Exception:  # noqa: BLE001
                # A mistake of ours must not stop the thread that all turns pass through; the lease runs out by itself.
                return logger.exception("action=ledger_failed")
            if self._stopping:
                return None
            time.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])

    def _transact(self, visits: Sequence[Visit]) -> None:
        settling = [visit.settlement for visit in visits if visit.settlement is not None]
        claiming = [visit.claim for visit in visits if visit.claim is not None]
        began = time.monotonic()
        with self.database.writing() as db:
            stored, going_on, taken_back = set[Held](), set[Claim](), set[Held]()
            if settling:
                stored, going_on, taken_back = working.settle(db, self.owner, self._lease_seconds, settling, claiming)
                reached("release.before_recheck")
            in_doubt = [visit.settlement for visit in visits if visit.tried and visit.settlement is not None]
            kept = stored | working.settled_before(db, in_doubt)
            started = working.claim(db, self.owner, self._lease_seconds, self._context_turns, claiming, going_on)
            if self._told:
                # What is found to be settled before was told then.
                over = (each for each in settling if each.held in stored and each.state is not TurnState.QUEUED)
                announce_turns(db, self._told, [(each.session_id, each.number) for each in over])
            if self._budgets:
                # What is found to be settled before was counted then.
                spend(db, spent_by(each for each in settling if each.held in stored))
                started = within_budgets(db, self._budgets, started)
            if settling:
                reached("settle.before_commit")
        if visits:
            self._on_committed(len(visits), time.monotonic() - began)
        if settling:
            reached("settle.after_commit")
        if any(started):
            reached("claim.after_commit")
        given = iter(started)
        for visit in visits:
            found, settled = next(given) if visit.claim is not None else None, visit.settlement
            if settled is None or settled.held not in kept:
                visit.answer = Answer(False, found)
                continue
            visit.answer = Answer(True, found, TurnState.CANCELLED if settled.held in taken_back else settled.state)
            self._on_settled(settled)


def turn_of(settlement: Settlement) -> str:
    return f"{settlement.session_id}.{settlement.number}"


def unstorable(settlement: Settlement, error: Exception) -> Settlement:
    """The failure that a reply ends as when no database takes it: asking for it again would cost the same again."""
    logger.error("action=reply_unstorable turn=%s reason=%s", turn_of(settlement), type(error).__name__)
    return replace(
        settlement,
        state=TurnState.FAILED,
        outcome=AttemptOutcome.PERMANENT,
        reply=None,
        steps=(),
        summary=None,
        error_type=UNSTORABLE,
        error_message="the database refuses the reply's text",
        retryable=False,
        request_id=None,
    )
