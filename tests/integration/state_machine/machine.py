"""The rules of the state machine: everything that users, workers, the sweep, clocks and chance do to the store."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, ClassVar, TypeVar, cast

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from inturn.models.content import storable
from inturn.models.errors import (
    IdempotencyConflictError,
    InturnError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    TurnNotFoundError,
)
from inturn.models.states import FINAL, UNFINISHED, Lane, TurnState
from inturn.models.store import halting, lanes, opening, retention, sending
from inturn.models.store.opening import NewSession
from inturn.models.store.sending import Sent, WhenBusy
from inturn.workers.cell import CellDiedError, NoPlaceError
from inturn.workers.provider import ProviderError, Reply
from tests.integration.state_machine.conversations import (
    PROMPT,
    Caps,
    Conversation,
    Tables,
    broken_rules,
    remember_replies,
)
from tests.integration.state_machine.workers_in_steps import Call, House, Transaction, Worker

T = TypeVar("T")
Verb = Callable[[], Callable[[], Any]]
"""Does its transactions in any thread; what it returns is done afterwards, in the machine's."""

KEYS = st.sampled_from(["a", "b"])
LANES = st.sampled_from([Lane.CHAT, Lane.CHAT, Lane.BATCH])
WHEN_BUSY = st.sampled_from(["enqueue"] * 4 + ["reject", "interrupt", "coalesce"])
LATER = st.sampled_from([None] * 5 + [timedelta(seconds=5), timedelta(seconds=60)])
LEASES_OVER = st.sampled_from([25.0, 8.0])
PICKS = st.integers(0, 5)
"""Which of those that there are, counted round."""
MOST_WORKERS = 3
SOON, LEASE_OVER, LONG = 3.0, 25.0, 100.0

FAILURES = {
    "safe": ProviderError("safe", "refused", "nobody there"),
    "safe, wait": ProviderError("safe", "rate_limited", "not so fast", status_code=429, retry_after=30.0),
    "ambiguous": ProviderError("ambiguous", "timeout", "no answer"),
    "permanent": ProviderError("permanent", "invalid_request", "what", status_code=400),
    "too large": ProviderError("permanent", "reply_too_large", "too much"),
}
FORBIDDEN = (
    ("two turns at once", "UPDATE turns SET state = 'running' WHERE session_id = :id AND state = 'queued'"),
    (
        "an end that is none",
        "UPDATE turns SET state = 'queued', finished_at = NULL, error_type = NULL WHERE session_id = :id",
    ),
    ("an owner for ever", "UPDATE leases SET expires_at = NULL WHERE session_id = :id"),
)


@dataclass(frozen=True, slots=True)
class Act:
    """Something that may happen next, ``weight`` times as often as the rarest."""

    weight: int
    do: Callable[..., None]
    how: st.SearchStrategy[dict[str, Any]]
    is_possible: Callable[[Any], Any]

    def __repr__(self) -> str:
        return self.do.__name__


ACTS: list[Act] = []


def act(weight: int, when: Callable[[Any], Any] = lambda self: True, **how: st.SearchStrategy[Any]) -> Callable[[T], T]:
    """A rule, but for Hypothesis all of them are one: it leaves out most rules of most examples, and of the five that a
    turn needs to be answered one would nearly always be among them.
    """

    def listed(do: T) -> T:
        ACTS.append(Act(weight, cast(Callable[..., None], do), st.fixed_dictionaries(how), when))
        return do

    return listed


class Died(BaseException):
    """A process, in the middle of something."""


def chosen(things: Sequence[T], pick: int) -> T:
    return things[pick % len(things)]


class StoreMachine(RuleBasedStateMachine):
    house: ClassVar[House]
    """Given by the test."""

    @initialize(context=st.sampled_from([None, 1]), halts=st.booleans())
    def begin(self, context: int | None, halts: bool) -> None:
        house = self.house
        house.clear()
        settings = house.settings
        self.caps = Caps(settings.max_attempts, settings.max_ambiguous_attempts, settings.max_rescues)
        self.told = house.told
        self.names, self.prompts = count(1), count(1)
        self.workers: list[Worker] = []
        self.fresh: Tables | None = None
        for key in "ab":
            opening.create_session(house.database, NewSession(key, "echo/echo", context_turns=context, halts=halts))
        self.seen = house.look()
        self.a_worker_starts()

    # What is there to choose from.

    def look(self) -> Tables:
        """The tables as this step has made them."""
        if self.fresh is None:
            self.fresh = self.house.look()
        return self.fresh

    def active(self, key: str) -> Conversation | None:
        it = self.seen.keys().get(key)
        return it if it is not None and it.is_active else None

    def turn_places(self) -> list[tuple[int, int]]:
        return [(it.id, number) for it in self.seen.conversations.values() if it.is_active for number in it.turns]

    def calls(self) -> list[tuple[Worker, Call]]:
        return [(worker, call) for worker in self.workers for call in worker.calls]

    def visitors(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.ledger.has_visits]

    @invariant()
    def everything_holds(self) -> None:
        now = self.look()
        remember_replies(self.seen, now, self.told)
        broken = list(broken_rules(self.seen, now, self.told, self.caps))
        assert not broken, "\n".join(broken)
        for worker in self.workers:
            sessions = [call.started.session_id for call in worker.calls]
            assert len(sessions) == len(set(sessions)), f"{worker.name} makes two calls at once for one of {sessions}"
        self.seen, self.fresh = now, None

    def nothing_changed(self, but: Sequence[int] = ()) -> None:
        before, now = self.seen.conversations, self.look().conversations
        changed = [it for it in before.keys() | now.keys() if it not in but and before.get(it) != now.get(it)]
        assert not changed, f"sessions {changed} were changed from {before} to {now}"

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        possible = [act for act in BY_WEIGHT for _ in range(act.weight) if act.is_possible(self)]
        chosen = data.draw(st.sampled_from(possible), label="act")
        how = data.draw(chosen.how, label="how")
        chosen.do(self, **how)

    # Users.

    @act(
        2,
        when=lambda self: len(self.seen.conversations) < 2,
        key=KEYS,
        context=st.sampled_from([None, 0, 1]),
        halts=st.booleans(),
    )
    def create(self, key: str, context: int | None, halts: bool) -> None:
        taken = self.active(key)
        try:
            new = NewSession(key, "echo/echo", context_turns=context, halts=halts)
            made = opening.create_session(self.house.database, new)
        except SessionExistsError:
            assert taken is not None
            return self.nothing_changed()
        assert taken is None
        assert all(made > earlier for earlier, _ in self.told.prompts), "ids are never used again"

    @act(1, key=KEYS, words=st.sampled_from(["be brief", "be verbose", ""]))
    def instruct(self, key: str, words: str) -> None:
        if self.active(key) is not None:
            opening.resume_session(self.house.database, key, system_message=words)

    def sending(self, key: str, prompt: str, idempotency_key: str | None = None, **how: Any) -> Verb:
        def act() -> Callable[[], Sent | InturnError]:
            try:
                sent = sending.send(self.house.database, key, prompt, idempotency_key=idempotency_key, **how)
            except (SessionNotFoundError, SessionBusyError, IdempotencyConflictError) as refusal:
                error = refusal
                return lambda: error
            return lambda: self.accepted(sent, prompt, idempotency_key)

        return act

    def accepted(self, sent: Sent, prompt: str, idempotency_key: str | None) -> Sent:
        place = (sent.session_id, sent.number)
        assert self.told.prompts.setdefault(place, prompt) == prompt
        if idempotency_key is not None:
            assert self.told.keys.setdefault((sent.session_id, idempotency_key), sent.number) == sent.number
        return sent

    @act(11, key=KEYS, idempotency_key=st.sampled_from([None, None, "k"]), lane=LANES, when_busy=WHEN_BUSY, later=LATER)
    def send(
        self, key: str, idempotency_key: str | None, lane: Lane, when_busy: WhenBusy, later: timedelta | None
    ) -> None:
        it, prompt = self.active(key), f"prompt {next(self.prompts)}"
        got = self.sending(key, prompt, idempotency_key, lane=lane, when_busy=when_busy, not_before=later)()()
        if it is None:
            assert isinstance(got, SessionNotFoundError)
        elif isinstance(got, IdempotencyConflictError):
            assert (it.id, idempotency_key) in self.told.keys
        elif when_busy == "reject" and it.of(*UNFINISHED):
            assert isinstance(got, SessionBusyError)
        else:
            assert (got.session_id, got.number) == (it.id, it.session.next_turn)
            self.check_overtaken(it, got, when_busy)
            assert got.hint or later or it.lease.owner is not None or it.lease.ready_at is not None, "nobody is told"
        self.nothing_changed(but=[it.id] if it and isinstance(got, Sent) else [])

    def check_overtaken(self, before: Conversation, sent: Sent, when_busy: WhenBusy) -> None:
        now = self.look().conversations[before.id]
        fates = {"interrupt": (TurnState.CANCELLED, None), "coalesce": (TurnState.CANCELLED, sent.number)}
        for turn in before.of(TurnState.QUEUED):
            mine = now.turns[turn.number]
            assert (mine.state, mine.merged_into) == fates.get(when_busy, (TurnState.QUEUED, None))
        for turn in before.of(TurnState.RUNNING):
            asked = now.turns[turn.number].cancel_requested_at
            assert asked is not None if when_busy == "interrupt" else asked == turn.cancel_requested_at

    @act(2, when=lambda self: self.told.keys, pick=PICKS)
    def send_again(self, pick: int) -> None:
        """The first answer was lost on the way."""
        (session, key), number = chosen(list(self.told.keys.items()), pick)
        it = self.seen.conversations.get(session)
        if it is not None and it.is_active:
            got = self.sending(it.session.key, self.told.prompts[session, number], key)()()
            assert (got.number, got.hint) == (number, False)
            self.nothing_changed()

    def cancelling(self, session: int, number: int) -> Verb:
        def act() -> Callable[[], TurnState | None]:
            try:
                found, _ = sending.cancel(self.house.database, session, number)
            except TurnNotFoundError:
                return lambda: None
            return lambda: found

        return act

    @act(4, when=lambda self: self.turn_places(), pick=PICKS, last=st.booleans())
    def cancel(self, pick: int, last: bool) -> None:
        session, number = chosen(self.turn_places()[:: -1 if last else 1], pick)
        before = self.seen.conversations[session].turns[number]
        found = self.cancelling(session, number)()()
        now = self.look().conversations[session].turns[number]
        assert found == before.state
        if found == TurnState.QUEUED:
            assert now.state == TurnState.CANCELLED
        elif found == TurnState.RUNNING:
            assert now.state == TurnState.RUNNING
            assert now.cancel_requested_at is not None
        self.nothing_changed(but=[] if found in FINAL else [session])

    def removing(self, key: str) -> Verb:
        def act() -> Callable[[], None]:
            try:
                retention.remove(self.house.database, key)
            except SessionNotFoundError:
                pass
            return lambda: None

        return act

    @act(1, when=lambda self: self.seen.conversations, key=KEYS, dies=st.booleans())
    def delete(self, key: str, dies: bool) -> None:
        it = self.seen.keys().get(key)

        def die(*_: Any) -> None:
            raise Died

        with pytest.MonkeyPatch.context() as patches:
            if dies:
                patches.setattr(retention, "take_away", die)
            try:
                self.removing(key)()()
            except Died:
                note("the remover died")
                assert not self.look().keys()[key].is_active
                return
        assert key not in self.look().keys()
        self.nothing_changed(but=[it.id] if it else [])

    @act(1, key=KEYS, held=st.booleans())
    def hold(self, key: str, held: bool) -> None:
        if self.active(key) is not None:
            opening.hold(self.house.database, key, held)
            assert self.look().keys()[key].session.held == held

    @act(1, idle_seconds=st.sampled_from([0.0, 10.0]))
    def clean_up(self, idle_seconds: float) -> None:
        oldest = self.house.clock.now() - timedelta(seconds=idle_seconds)
        idle = [
            it.id for it in self.seen.conversations.values()
            if it.is_active and not it.session.held and not it.of(*UNFINISHED) and it.session.last_activity_at < oldest
        ]  # fmt: skip
        removed = retention.remove_expired(self.house.database, idle_seconds)
        assert sorted(it.session_id for it in removed) == sorted(self.seen.conversations[it].session.key for it in idle)
        assert not set(idle) & self.look().conversations.keys()
        self.nothing_changed(but=idle)

    @act(1, lane=LANES)
    def pause_or_resume(self, lane: Lane) -> None:
        if lane in self.seen.paused:
            lanes.resume(self.house.database, lane)
        else:
            lanes.pause(self.house.database, lane)
        assert (lane in self.look().paused) != (lane in self.seen.paused)

    @act(3, when=lambda self: any(it.is_halted for it in self.seen.conversations.values()), key=KEYS)
    def continue_halted(self, key: str) -> None:
        if self.active(key) is not None:
            halting.resume_halted(self.house.database, key)
            assert not self.look().keys()[key].is_halted

    @act(1, when=lambda self: self.seen.conversations, pick=PICKS, what=st.sampled_from(FORBIDDEN))
    def somebody_meddles(self, pick: int, what: tuple[str, str]) -> None:
        """The tables refuse what must never be, whoever asks."""
        name, statement = what
        it = chosen(list(self.seen.conversations.values()), pick)
        applies = {
            "two turns at once": len(it.of(*UNFINISHED)) > 1,
            "an end that is none": it.of(*FINAL),
            "an owner for ever": it.lease.owner is not None,
        }
        if applies[name]:
            with self.house.database.engine.connect() as db, pytest.raises(DBAPIError):
                db.execute(text(statement), {"id": it.id})
                raise AssertionError(f"the tables allow {name}")

    # Workers.

    @act(2, when=lambda self: len(self.workers) < MOST_WORKERS)
    def a_worker_starts(self) -> None:
        self.workers.append(Worker(self.house, f"worker-{next(self.names)}"))

    @act(
        15,
        when=lambda self: self.workers,
        pick=PICKS,
        lane=LANES,
        session=st.sampled_from([0, 1, None]),
        withdraws=st.sampled_from([False] * 4 + [True]),
    )
    def a_hint_arrives(self, pick: int, lane: Lane, session: int | None, withdraws: bool) -> None:
        """For a session, or (its session is gone) for any."""
        worker, known = chosen(self.workers, pick), list(self.seen.conversations.values())
        named = None
        if known and session is not None:
            it = chosen(known, session)
            named, lane = it.id, Lane(it.lease.lane)
        if withdraws:
            worker.withdraw(lane, named, SOON)
        else:
            worker.take_hint(lane, named)

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
            assert not was.is_halted and not it.is_halted
            assert started.lane not in self.seen.paused
            assert was.lease.owner is None or started.session_id in kept
            assert it.is_active
            first = next(turn for turn in was.turns.values() if it.turns[turn.number].state not in FINAL)
            assert (started.number, it.turns[started.number].state) == (first.number, TurnState.RUNNING)
            shown = [said["content"] for said in started.messages]
            assert shown == it.shown(started.number, self.house.settings.context_turns)
            assert (started.attempts, started.token) == (it.turns[started.number].attempts, it.lease.token)
            if started.session_id not in kept:
                assert was.lowest().ready_at - timedelta(seconds=0.1) <= self.house.clock.now(), "too early"
        self.nothing_changed(but=[*kept, *(each.session_id for each in done.started), *self.claimable_for_nothing()])

    def claimable_for_nothing(self) -> list[int]:
        """Sessions that a claim takes and lets go: their waiting turn was cancelled."""
        return [it.id for it in self.seen.conversations.values() if it.lease.owner is None and it.lowest() is None]

    @act(16, when=lambda self: self.calls(), pick=PICKS, how=st.sampled_from(["reply"] * 6 + ["NUL", *FAILURES]))
    def a_model_answers(self, pick: int, how: str) -> None:
        worker, call = chosen(self.calls(), pick)
        started = call.started
        if call.is_alone and how in ("safe", "permanent"):
            # A process of its own is not to be had; or it is killed by what it reads.
            self.told.calls[started.session_id, started.number] -= how == "safe"
            call.answer.set_exception(NoPlaceError() if how == "safe" else CellDiedError("died"))
        elif how in FAILURES:
            call.answer.set_exception(FAILURES[how])
        else:
            reply = f"reply to {started.turn_id}, attempt {started.attempts}" + ("\x00" if how == "NUL" else "")
            self.told.replies[started.session_id, started.number].add(storable(reply))
            call.answer.set_result(Reply(reply, 1, 1))
        worker.go_on()

    @act(1, when=lambda self: any(worker.slots for worker in self.workers), pick=PICKS, slot=PICKS)
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
        for call in worker.calls:
            it = now[call.started.session_id]
            assert (it.lease.owner, it.lease.token) == (worker.name, call.started.token), (
                "a call of a lost lease goes on"
            )
            assert it.turns[call.started.number].cancel_requested_at is None, "a call that was taken back goes on"

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
            elif it.lowest() is not None:
                assert it.lowest().cancel_requested_at is None, "nobody took it back"
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

    # Clocks, and chance.

    @act(5, seconds=st.sampled_from([SOON, SOON, LEASE_OVER, LONG]))
    def time_passes(self, seconds: float) -> None:
        self.house.clock.pass_by(seconds)

    @act(1, seconds=st.sampled_from([-LONG, -SOON, SOON, LONG]))
    def somebody_sets_the_clock(self, seconds: float) -> None:
        self.house.clock.jump(seconds)

    @act(
        12,
        when=lambda self: self.house.database.dialect == "postgresql",
        first=st.integers(0, 6),
        second=st.integers(0, 6),
        key=KEYS,
        pick=PICKS,
        lane=LANES,
        busy=WHEN_BUSY,
    )
    def two_meet(self, first: int, second: int, key: str, pick: int, lane: Lane, busy: WhenBusy) -> None:
        """The second runs into the locks of the first, which has done everything but commit."""
        verbs = self.meeting(key, pick, lane, busy)
        ahead, behind = chosen(verbs, first), chosen(verbs, second)
        if ahead[0] != behind[0] or ahead[0] == "enqueue":
            note(f"{ahead[0]} meets {behind[0]}")
            for told in meet(self.house, ahead[1], behind[1]):
                told()

    def meeting(self, key: str, pick: int, lane: Lane, busy: WhenBusy) -> list[tuple[str, Verb]]:
        """What can be done by several at once, with its name."""
        verbs: list[tuple[str, Verb]] = [
            (when, self.sending(key, f"prompt {next(self.prompts)}", lane=lane, when_busy=when))
            for when in ("enqueue", busy)
        ]
        if places := self.turn_places():
            verbs += [
                ("cancel", self.cancelling(*chosen(places, pick))),
                ("cancel the last", self.cancelling(*places[-1])),
            ]
        for worker in self.visitors():
            verbs.append((f"ledger of {worker.name}", self.committing(worker)))
        for worker in self.workers[:1]:
            verbs += [("sweep", self.sweeping(worker)), ("heartbeat", self.beating(worker))]
        return [*verbs, ("delete", self.removing(key))]

    def committing(self, worker: Worker) -> Verb:
        return lambda: worker.transact(worker.ledger.take(9))

    # The end of every story.

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


BY_WEIGHT = sorted(ACTS, key=lambda act: -act.weight)
"""Hypothesis prefers what stands first."""


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


BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
assert PROMPT
