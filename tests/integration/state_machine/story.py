"""What the rules have in common: the state of the story, what must hold after every step, and how the next one is chosen."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, ClassVar, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from inturn.models.states import Lane
from inturn.models.store import opening
from inturn.models.store.opening import NewSession
from tests.integration.state_machine.conversations import (
    Caps,
    Conversation,
    Tables,
    broken_rules,
    remember_replies,
)
from tests.integration.state_machine.workers_in_steps import Call, Errands, House, Worker

T = TypeVar("T")
Verb = Callable[[], Callable[[], Any]]
"""Does its transactions in any thread; what it returns is done afterwards, in the machine's."""

KEYS = st.sampled_from(["a", "b"])
LANES = st.sampled_from([Lane.CHAT, Lane.CHAT, Lane.BATCH])
WHEN_BUSY = st.sampled_from(["enqueue"] * 7 + ["reject", "interrupt", "coalesce"])
LATER = st.sampled_from([None] * 8 + [timedelta(seconds=5), timedelta(seconds=60)])
LEASES_OVER = st.sampled_from([25.0, 8.0])
PICKS = st.integers(0, 5)
"""Which of those that there are, counted round."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that may happen next, ``weight`` times as often as the rarest."""

    weight: int
    do: Callable[..., None]
    how: st.SearchStrategy[dict[str, Any]]
    is_possible: Callable[[Any], Any]

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(self.do.__name__)


ACTS: list[Act] = []


@cache
def by_weight() -> list[Act]:
    """Heaviest first, as Hypothesis prefers what stands first."""
    return sorted(ACTS, key=lambda act: -act.weight)


def act(weight: int, when: Callable[[Any], Any] = lambda self: True, **how: st.SearchStrategy[Any]) -> Callable[[T], T]:
    """A rule, but for Hypothesis all of them are one: it leaves out most rules of most examples, and of the five that a
    turn needs to be answered one would nearly always be among them.
    """

    def listed(do: T) -> T:
        ACTS.append(Act(weight, cast(Callable[..., None], do), st.fixed_dictionaries(how), when))
        return do

    return listed


def chosen(things: Sequence[T], pick: int) -> T:
    return things[pick % len(things)]


class Story(RuleBasedStateMachine):
    house: ClassVar[House]
    """Given by the test."""
    narrowed: ClassVar[frozenset[str]] = frozenset()
    """The only acts that are played; empty: all."""

    @initialize(
        context=st.sampled_from([None, 1]),
        halts=st.sampled_from([True, True, False]),
        caps=st.sampled_from([Caps(2, 2, 1), Caps(3, 1, 1), Caps(3, 2, 2)]),
    )
    def begin(self, context: int | None, halts: bool, caps: Caps) -> None:
        house, self.caps = self.house, caps
        house.clear()
        changes = zip(("max_attempts", "max_ambiguous_attempts", "max_rescues"), astuple(caps), strict=True)
        house.settings = house.settings.model_copy(update=dict(changes))
        self.told = house.told
        self.names, self.prompts = count(1), count(1)
        self.workers: list[Worker] = []
        self.fresh: Tables | None = None
        for key in "ab":
            opening.create_session(house.database, NewSession(key, "echo/echo", context_turns=context, halts=halts))
        self.seen = house.look()
        self.workers.append(Worker(house, f"worker-{next(self.names)}"))

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

    def ready(self) -> list[Conversation]:
        """Those that somebody may be told about."""
        moment = self.house.clock.now()
        return [
            it for it in self.seen.conversations.values()
            if it.lease.owner is None and it.lease.ready_at is not None and it.lease.ready_at <= moment
        ]  # fmt: skip

    def calls(self) -> list[tuple[Worker, Call]]:
        return [(worker, call) for worker in self.workers for call in worker.calls]

    def errands(self) -> list[tuple[Worker, Errands]]:
        return [(worker, errands) for worker in self.workers for errands in worker.errands]

    def visitors(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.ledger.has_visits]

    @invariant()
    def everything_holds(self) -> None:
        now = self.look()
        remember_replies(self.seen, now, self.told)
        broken = list(broken_rules(self.seen, now, self.told, self.caps))
        assert not broken, "\n".join(broken)
        for worker in self.workers:
            sessions = [started.session_id for started in worker.at_work()]
            assert len(sessions) == len(set(sessions)), f"{worker.name} makes two calls at once for one of {sessions}"
        self.seen, self.fresh = now, None

    def nothing_changed(self, but: Sequence[int] = ()) -> None:
        before, now = self.seen.conversations, self.look().conversations
        changed = [it for it in before.keys() | now.keys() if it not in but and before.get(it) != now.get(it)]
        assert not changed, f"sessions {changed} were changed from {before} to {now}"

    def acts(self) -> list[Act]:
        return [act for act in by_weight() if not self.narrowed or act.do.__name__ in self.narrowed]

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        possible = [each for act in self.acts() if act.is_possible(self) for each in [act] * act.weight]
        chosen = data.draw(st.sampled_from(possible), label="act")
        how = data.draw(chosen.how, label="how")
        chosen.do(self, **how)
        self.house.steps += 1
