"""The state machine: everything that users, workers, clocks and chance do to the store, and how every story ends."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from sqlalchemy import text

from inturn.models.states import UNFINISHED, Lane
from inturn.models.store import halting, lanes
from inturn.models.store.sending import WhenBusy
from inturn.workers.provider import Reply
from tests.integration.state_machine.crew import SOON, Crew
from tests.integration.state_machine.story import KEYS, LANES, PICKS, WHEN_BUSY, Verb, act, chosen
from tests.integration.state_machine.users import Users
from tests.integration.state_machine.workers_in_steps import House, Worker

LEASE_OVER, LONG = 25.0, 100.0
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class StoreMachine(Users, Crew):
    @act(5, seconds=st.sampled_from([SOON, SOON, LEASE_OVER, LONG]))
    def time_passes(self, seconds: float) -> None:
        self.house.clock.pass_by(seconds)

    @act(1, seconds=st.sampled_from([-LONG, -SOON, SOON, LONG]))
    def somebody_sets_the_clock(self, seconds: float) -> None:
        self.house.clock.jump(seconds)

    @act(
        15,
        when=lambda self: self.house.database.dialect == "postgresql" and self.visitors(),
        one=PICKS,
        other=st.integers(0, 8),
        order=st.sampled_from(["before", "before", "behind", "without"]),
        key=KEYS,
        pick=PICKS,
        lane=LANES,
        busy=WHEN_BUSY,
    )
    def two_meet(self, one: int, other: int, order: str, key: str, pick: int, lane: Lane, busy: WhenBusy) -> None:
        """One runs into the locks of the other, which has done everything but commit: mostly about a session that a ledger
        is about to settle.
        """
        worker = chosen(self.visitors(), one)
        settled = [it for it in worker.ledger.settling() if it in self.seen.conversations]
        key = self.seen.conversations[chosen(settled, pick)].session.key if settled else key
        ledger, verbs = (
            (f"ledger of {worker.name}", self.committing(worker)),
            self.meeting(worker, key, pick, lane, busy),
        )
        ahead, behind = chosen(verbs, other), chosen(verbs, one) if order == "without" else ledger
        if order == "behind":
            ahead, behind = behind, ahead
        if ahead is behind:
            return  # nobody meets himself
        note(f"{ahead[0]} meets {behind[0]}")
        for told in meet(self.house, ahead[1], behind[1]):
            told()

    def meeting(self, but: Worker, key: str, pick: int, lane: Lane, busy: WhenBusy) -> list[tuple[str, Verb]]:
        """What can be done by several at once, with its name."""
        verbs: list[tuple[str, Verb]] = [
            (when, self.sending(key, f"prompt {next(self.prompts)}", lane=lane, when_busy=when))
            for when in ("enqueue", busy)
        ]
        it = self.active(key)
        if it is not None and it.turns:
            verbs.append(("cancel", self.cancelling(it.id, chosen(list(it.turns), pick))))
            verbs.append(("cancel the last", self.cancelling(it.id, max(it.turns))))
        verbs += [(f"ledger of {each.name}", self.committing(each)) for each in self.visitors() if each is not but]
        for worker in self.workers[:1]:
            verbs += [("sweep", self.sweeping(worker)), ("heartbeat", self.beating(worker))]
        return [*verbs, ("rescue", self.rescuing), ("delete", self.removing(key))]

    def rescuing(self) -> Callable[[], None]:
        self.house.take_over()
        return lambda: None

    def committing(self, worker: Worker) -> Verb:
        return lambda: worker.transact(worker.ledger.take(9))

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None and hasattr(self, "workers"):
                self.everything_heals()
        finally:
            for worker in getattr(self, "workers", ()):
                worker.end()

    def everything_heals(self) -> None:
        """All that work now are killed; a new worker finishes everything, with no help but time."""
        for worker in list(self.workers):
            worker.crash()
        if len(self.told.prompts) % 2:
            self.house.crashed.clear()  # nobody can tell that they are dead, and only their leases say so
        self.workers.clear()
        for lane in self.seen.paused:
            lanes.resume(self.house.database, Lane(lane))
        self.house.clock.pass_by(LONG)
        worker = Worker(self.house, f"worker-{next(self.names)}")
        self.workers.append(worker)
        for _ in range(60):
            self.a_round_of_work(worker)
            if not any(it.of(*UNFINISHED) for it in self.seen.conversations.values()):
                break
            self.house.clock.pass_by(self.house.settings.lease_seconds / 4)
        for it in self.seen.conversations.values():
            assert not it.of(*UNFINISHED), f"never finished: {it}"

    def a_round_of_work(self, worker: Worker) -> None:
        worker.hints.clear()
        for it in self.seen.conversations.values():
            if it.is_halted and it.is_active:
                halting.resume_halted(self.house.database, it.session.key)
        worker.sweep.run()
        self.everything_holds()
        for hint in list(worker.hints):
            worker.take_hint(hint.lane, hint.session_id)
        while worker.ledger.has_visits or worker.calls:
            while worker.ledger.has_visits:
                worker.transact(worker.ledger.take(9))()
                self.everything_holds()
            for call in list(worker.calls):
                self.told.replies[call.started.session_id, call.started.number].add("at last")
                call.answer.set_result(Reply("at last"))
            worker.go_on()


def meet(house: House, first: Verb, second: Verb) -> list[Callable[[], Any]]:
    """Both done, in the order in which the database let them; returns what is left to do of each."""

    def guarded() -> Callable[[], Any]:
        house.gate.guard()
        try:
            return first()
        finally:
            house.gate.done()

    with ThreadPoolExecutor(2) as threads:
        try:
            ahead = threads.submit(guarded)
            assert house.gate.reached.wait(20)
            behind = threads.submit(second)
            while not behind.done() and not is_blocked(house):
                time.sleep(0.001)
        finally:
            house.gate.open()
        done = [ahead.result(20), behind.result(20)]
    house.gate.close()
    return done


def is_blocked(house: House) -> bool:
    with house.database.reading() as db:
        return bool(db.execute(text(BLOCKED)).scalar())
