"""What workers do, and what is done to them."""

from collections.abc import Callable
from datetime import timedelta

from hypothesis import strategies as st

from inturn.models.content import storable
from inturn.models.states import FINAL, Lane, TurnState
from inturn.workers.cell import CellDiedError, NoPlaceError
from inturn.workers.provider import ProviderError, Reply, ToolCall
from tests.integration.rounds import dangling
from tests.integration.state_machine.story import LANES, LEASES_OVER, PICKS, Story, Verb, act, chosen
from tests.integration.state_machine.workers_in_steps import Transaction, Worker

MOST_WORKERS = 3
SOON = 3.0
RARELY = st.sampled_from([False] * 5 + [True])
FAILURES = {
    "safe": ProviderError("safe", "refused", "nobody there"),
    "safe, wait": ProviderError("safe", "rate_limited", "not so fast", status_code=429, retry_after=30.0),
    "ambiguous": ProviderError("ambiguous", "timeout", "no answer"),
    "permanent": ProviderError("permanent", "invalid_request", "what", status_code=400),
    "too large": ProviderError("permanent", "reply_too_large", "too much"),
}
ANSWERS = st.sampled_from(["reply"] * 4 + ["tools"] * 3 + ["NUL", *FAILURES, "too large"])


class Crew(Story):
    @act(2, when=lambda self: len(self.workers) < MOST_WORKERS)
    def a_worker_starts(self) -> None:
        self.workers.append(Worker(self.house, f"worker-{next(self.names)}"))

    @act(15, when=lambda self: self.workers and self.ready(), pick=PICKS, session=PICKS, withdraws=RARELY)
    def a_hint_arrives(self, pick: int, session: int, withdraws: bool) -> None:
        worker, it = chosen(self.workers, pick), chosen(self.ready(), session)
        if withdraws:
            worker.withdraw(Lane(it.lease.lane), it.id, SOON)
        else:
            worker.take_hint(Lane(it.lease.lane), it.id)

    @act(2, when=lambda self: self.workers, pick=PICKS, lane=LANES, session=st.sampled_from([0, 1, None]))
    def a_hint_comes_late(self, pick: int, lane: Lane, session: int | None) -> None:
        """Or twice, or its session is gone: the slot takes what there is."""
        known = list(self.seen.conversations)
        chosen(self.workers, pick).take_hint(lane, chosen(known, session) if known and session is not None else None)

    @act(
        20,
        when=lambda self: self.visitors(),
        pick=PICKS,
        most=st.sampled_from([1, 2, 9]),
        told=st.sampled_from([True] * 5 + [False]),
    )
    def the_ledger_commits(self, pick: int, most: int, told: bool) -> None:
        worker = chosen(self.visitors(), pick)
        visits = worker.ledger.take(most)
        doubtful = any(visit.tried for visit in visits)
        self.check_transaction(worker, worker.transact(visits, told)(), doubtful)

    @act(2, when=lambda self: self.visitors(), pick=PICKS)
    def the_ledger_is_undone(self, pick: int) -> None:
        """Its transaction was rolled back, and it cannot know."""
        worker = chosen(self.visitors(), pick)
        worker.ledger.doubt(worker.ledger.take(9))

    def check_transaction(self, worker: Worker, done: Transaction, doubtful: bool) -> None:
        """What a worker was told is so, and who had lost his lease changed nothing."""
        before, now = self.seen.conversations, self.look().conversations
        for each in done.kept:
            lease = before[each.session_id].lease if each.session_id in before else None
            held = lease is not None and (lease.owner, lease.token) == (worker.name, each.token)
            assert held or doubtful, f"{worker.name} settled {each} under the lease {lease}"
        for each in done.stale:
            lease = before[each.session_id].lease if each.session_id in before else None
            assert lease is None or (lease.owner, lease.token) != (worker.name, each.token), f"{each} was thrown away"
        kept = {each.session_id for each in done.kept}
        for started in done.started:
            it, was = now[started.session_id], before[started.session_id]
            assert not was.is_halted, f"{started} was claimed while its session was halted"
            assert started.lane not in self.seen.paused, f"{started} was claimed in a paused lane"
            assert was.lease.owner is None or started.session_id in kept
            assert it.is_active
            first = next(turn for turn in was.turns.values() if it.turns[turn.number].state not in FINAL)
            assert (started.number, it.turns[started.number].state) == (first.number, TurnState.RUNNING)
            shown = [said["content"] for said in started.messages]
            wanted = it.shown(started.number, self.house.settings.context_turns)
            assert shown == wanted, f"a model is to be shown {wanted}, and got {shown}"
            assert dangling(started.messages) == []
            assert (started.attempts, started.token) == (it.turns[started.number].attempts, it.lease.token)
            if started.session_id not in kept:
                due = was.turns[started.number].ready_at
                assert due - timedelta(seconds=0.1) <= self.house.clock.now(), "too early"
        self.nothing_changed(but=[*kept, *(each.session_id for each in done.started), *self.claimable_for_nothing()])

    def claimable_for_nothing(self) -> list[int]:
        """Sessions that a claim takes and lets go: their waiting turn was cancelled."""
        return [it.id for it in self.seen.conversations.values() if it.lease.owner is None and it.lowest() is None]

    @act(16, when=lambda self: self.calls(), pick=PICKS, how=ANSWERS, tools=st.sampled_from([1, 2]))
    def a_model_answers(self, pick: int, how: str, tools: int) -> None:
        worker, call = chosen(self.calls(), pick)
        started = call.started
        if call.is_alone and how in ("safe", "permanent"):
            # A process of its own is not to be had; or it is killed by what it reads.
            self.told.calls[started.session_id, started.number] -= how == "safe"
            call.answer.set_exception(NoPlaceError() if how == "safe" else CellDiedError("died"))
        elif how in FAILURES:
            call.answer.set_exception(FAILURES[how])
        elif how == "tools":
            wish = f"wish of {started.turn_id}, attempt {started.attempts}"
            self.told.steps[started.session_id, started.number].add(wish)
            idents = (f"{started.turn_id}-{started.attempts}-{number}" for number in range(tools))
            calls = tuple(ToolCall(ident, "note", "{}") for ident in idents)
            call.answer.set_result(Reply(wish, 1, 1, tool_calls=calls))
        else:
            reply = f"reply to {started.turn_id}, attempt {started.attempts}" + ("\x00" if how == "NUL" else "")
            self.told.replies[started.session_id, started.number].add(storable(reply))
            call.answer.set_result(Reply(reply, 1, 1))
        worker.go_on()

    @act(10, when=lambda self: self.errands(), pick=PICKS)
    def tools_come_back(self, pick: int) -> None:
        worker, errands = chosen(self.errands(), pick)
        started = errands.started
        said = [f"result of {call.id}" for call in errands.calls]
        self.told.steps[started.session_id, started.number].update(said)
        errands.results.set_result(said)
        worker.go_on()

    @act(4, when=lambda self: any(worker.slots for worker in self.workers), pick=PICKS, slot=PICKS)
    def a_slot_is_stopped(self, pick: int, slot: int) -> None:
        """Celery revokes the task, or the worker has no time left to wait for its reply."""
        worker = chosen([worker for worker in self.workers if worker.slots], pick)
        chosen(worker.slots, slot).cancel()
        worker.go_on()

    @act(1, when=lambda self: self.workers, pick=PICKS, draining=st.sampled_from([True, False, False]))
    def a_worker_drains(self, pick: int, draining: bool) -> None:
        chosen(self.workers, pick).draining = draining

    def beating(self, worker: Worker) -> Verb:
        def act() -> Callable[[], None]:
            worker.pulse._next_beat = 0.0
            worker.pulse.run()
            return worker.go_on

        return act

    @act(4, when=lambda self: self.workers, pick=PICKS)
    def a_heart_beats(self, pick: int) -> None:
        worker = chosen(self.workers, pick)
        self.beating(worker)()()
        settings, now = self.house.settings, self.look().conversations
        for it in now.values():
            if it.lease.owner == worker.name:
                left = (it.lease.expires_at - self.house.clock.now()).total_seconds()
                assert left > settings.lease_seconds / 2, f"{left} seconds are left to {it.lease}"
        for started in worker.at_work():
            it = now[started.session_id]
            held = (it.lease.owner, it.lease.token) == (worker.name, started.token)
            assert held, "a call of a lost lease goes on"
            assert it.turns[started.number].cancel_requested_at is None, "a call that was taken back goes on"

    def sweeping(self, worker: Worker) -> Verb:
        def act() -> Callable[[], None]:
            worker.sweep.run()
            return lambda: None

        return act

    @act(4, when=lambda self: self.workers, pick=PICKS, queued=st.sampled_from([0, 1]))
    def a_worker_sweeps(self, pick: int, queued: int) -> None:
        worker = chosen(self.workers, pick)
        worker.hints.clear()
        worker.queued.update(dict.fromkeys(Lane, queued))
        self.sweeping(worker)()()
        moment, takes_over = self.house.clock.now(), self.house.clock.monotonic() >= worker.sweep._wait_until
        told = {hint.session_id for hint in worker.hints}
        for it in self.look().conversations.values():
            assert it.is_active, "a removal was not finished"
            lease = it.lease
            if lease.owner is not None:
                assert not takes_over or lease.expires_at >= moment - timedelta(seconds=1), f"{lease} has run out"
            elif (lowest := it.lowest()) is not None:
                assert lowest.cancel_requested_at is None, "nobody took it back"
                waits = it.is_halted or lease.lane in self.seen.paused or lease.ready_at > moment - timedelta(seconds=1)
                assert waits or queued or it.id in told, f"nobody is told that {lease} is ready"

    @act(3, when=lambda self: any(it.lease.owner for it in self.seen.conversations.values()), seconds=LEASES_OVER)
    def workers_stand_still(self, seconds: float) -> None:
        """Frozen for longer than their leases, which a beat takes back that has just started."""
        self.house.clock.pass_by(seconds)
        taken = self.house.take_over()
        moment = self.house.clock.now()
        for it in self.look().conversations.values():
            assert it.lease.owner is None or it.lease.expires_at > moment
        self.nothing_changed(but=[*taken, *(it.id for it in self.seen.conversations.values() if it.lease.owner)])

    @act(2, when=lambda self: self.workers, pick=PICKS)
    def a_worker_is_killed(self, pick: int) -> None:
        worker = chosen(self.workers, pick)
        self.workers.remove(worker)
        worker.crash()
