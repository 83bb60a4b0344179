"""Chains of models: what a failed attempt is settled as while others may be asked, and once none is left."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inturn.models.states import POISONED, AttemptOutcome, Lane, Overflow, TurnState
from inturn.models.store.working import Settlement, Started
from inturn.settings import Settings
from inturn.workers.limits import Ask, Limits
from inturn.workers.provider import OnDelta, Prompt, ProviderError, Providers, Reply
from inturn.workers.providers import BUILDERS
from inturn.workers.queues import connect
from inturn.workers.settlements import idempotency_key
from tests.unit.test_turns import turns_of

FAILURES = {
    "permanent": ProviderError("permanent", "unauthorized", "the key is refused", status_code=401),
    "safe": ProviderError("safe", "unavailable", "it is down", status_code=503),
    "ambiguous": ProviderError("ambiguous", "timeout", "it took too long"),
}
EARLIER = [(1, [{"role": "user", "content": "hello " * 40}, {"role": "assistant", "content": "hi " * 40}])]
TOO_LONG = ProviderError("permanent", "context_length_exceeded", "it is too long", status_code=400)


class Model:
    """Fails, or answers."""

    def __init__(self, error: ProviderError | None) -> None:
        self.error = error
        self.asked: list[Prompt] = []

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        self.asked.append(prompt)
        if self.error is not None:
            raise self.error
        return Reply("answered")

    async def aclose(self) -> None:
        return


def started(**how: Any) -> Started:
    said = [{"role": "user", "content": "hello"}]
    return replace(Started(17, "user-1", 1, 2, 1, 0, 0, Lane.CHAT, "a/x", {}, said, window=20), **how)


def settings(fallbacks: tuple[str, ...] = (), **how: Any) -> Settings:
    """Five attempts at most, and two of them ambiguous; ``fallbacks`` are those of the provider ``a``."""
    providers = {"a": {"type": "echo", "fallbacks": list(fallbacks)}, "b": {"type": "echo"}}
    return Settings(providers=providers, **how)


def settled(
    turn: Started, model: Model, of: Settings | None = None, cooling: tuple[str, ...] = ()
) -> tuple[Settlement, Limits]:
    async def attempt() -> tuple[Settlement, Limits]:
        limits = Limits({}, connect("redis://nobody.invalid"), workers=lambda: 1, hold_seconds=1)
        for one in cooling:
            limits.cool(one, 60)
        how = of or settings()
        providers = Providers(
            how.available_providers, {**BUILDERS, "echo": lambda name, config: model}, deadline_seconds=10
        )
        settlement = await turns_of(how, providers, limits=limits)._answer(turn)
        assert settlement is not None
        return settlement, limits

    return asyncio.run(attempt())


def fails(error: str | ProviderError, of: Settings | None = None, **how: Any) -> Settlement:
    """What an attempt is settled as that fails so."""
    model = Model(FAILURES[error] if isinstance(error, str) else error)
    settlement, _ = settled(started(**how), model, of)
    assert len(model.asked) == 1
    return settlement


def what(settlement: Settlement) -> tuple[TurnState, str | None, list[str] | None]:
    """What becomes of the turn, and who is asked next, and after that."""
    return settlement.state, settlement.model, settlement.fallbacks


SAME_AGAIN = (TurnState.QUEUED, None, None)
IS_OVER = (TurnState.FAILED, None, None)


@pytest.mark.parametrize("kind", FAILURES)
def test_whatever_fails_moves_on_at_once_while_there_is_a_chain(kind: str) -> None:
    settlement = fails(kind, fallbacks=["b/y", "b/z"])
    assert what(settlement) == (TurnState.QUEUED, "b/y", ["b/z"])
    assert (settlement.outcome, settlement.error_type) == (AttemptOutcome(kind), FAILURES[kind].error_type)
    assert (settlement.delay_seconds, settlement.status_code) == (0.0, FAILURES[kind].status_code)
    assert what(fails(kind, fallbacks=["b/z"])) == (TurnState.QUEUED, "b/z", []), "and then nobody is left"


@pytest.mark.parametrize(("kind", "becomes"), [("permanent", IS_OVER), ("safe", SAME_AGAIN), ("ambiguous", SAME_AGAIN)])
@pytest.mark.parametrize("chain", [[], None])
def test_at_the_end_of_a_chain_a_failure_is_what_it_is_without_one(
    kind: str, becomes: tuple[Any, ...], chain: list[str] | None
) -> None:
    settlement = fails(kind, fallbacks=chain)
    assert what(settlement) == becomes
    assert settlement.error_type == FAILURES[kind].error_type
    assert settlement.retryable is (kind != "permanent")


def test_who_may_have_been_paid_twice_already_is_not_followed_by_anybody() -> None:
    for chain in (["b/y"], []):
        settlement = fails("ambiguous", attempts=2, ambiguous=1, fallbacks=chain)
        assert what(settlement) == IS_OVER
        assert (settlement.outcome, settlement.error_type) == (AttemptOutcome.AMBIGUOUS, "timeout")
    for kind in "permanent", "safe":
        assert what(fails(kind, attempts=3, ambiguous=2, fallbacks=["b/y"])) == (TurnState.QUEUED, "b/y", [])


@pytest.mark.parametrize("kind", FAILURES)
def test_no_chain_is_longer_than_the_attempts_that_are_left(kind: str) -> None:
    assert what(fails(kind, attempts=4, fallbacks=["b/y"])) == (TurnState.QUEUED, "b/y", [])
    settlement = fails(kind, attempts=5, fallbacks=["b/y"])
    assert what(settlement) == IS_OVER
    assert settlement.error_type == FAILURES[kind].error_type
    assert what(fails(kind, attempts=9, rounds=5, fallbacks=["b/y"])) == (TurnState.QUEUED, "b/y", []), (
        "attempts that were answered are none too many"
    )


@pytest.mark.parametrize("error_type", POISONED)
def test_what_kills_or_cannot_be_kept_is_shown_to_nobody_else(error_type: str) -> None:
    settlement = fails(ProviderError("permanent", error_type, "it is poison"), fallbacks=["b/y"])
    assert what(settlement) == IS_OVER
    assert settlement.error_type == error_type


def test_the_chain_of_a_provider_is_for_sessions_that_name_none() -> None:
    of = settings(("b/y", "a/x", "b/z"))
    assert what(fails("permanent", of)) == (TurnState.QUEUED, "b/y", ["b/z"]), "without the one that failed"
    assert what(fails("permanent", of, fallbacks=["b/w"])) == (TurnState.QUEUED, "b/w", [])
    assert what(fails("permanent", of, fallbacks=[])) == IS_OVER, "a list of one model is an answer, too"
    assert what(fails("permanent", of, model="b/y", fallbacks=[])) == IS_OVER


def test_a_model_that_was_told_to_pause_is_passed_over_without_an_attempt() -> None:
    model = Model(None)
    settlement, _ = settled(started(fallbacks=["b/y"]), model, cooling=("a/x",))
    assert what(settlement) == (TurnState.QUEUED, "b/y", [])
    assert (settlement.outcome, settlement.waits_for, settlement.delay_seconds) == (None, None, 0.0)
    assert model.asked == []


def test_where_nobody_else_is_left_a_model_that_pauses_is_waited_for() -> None:
    settlement, _ = settled(started(fallbacks=[]), Model(None), cooling=("a/x",))
    assert what(settlement) == SAME_AGAIN
    assert (settlement.outcome, settlement.waits_for) == (None, "a/x, which asked all workers for a pause (429)")
    assert 50 < settlement.delay_seconds <= 90


def test_a_model_that_has_no_room_just_now_is_waited_for_whoever_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(limits: Limits, ask: Ask) -> float:
        return 7.0

    monkeypatch.setattr(Limits, "wait", full)
    settlement, _ = settled(started(fallbacks=["b/y"]), Model(None))
    assert what(settlement) == SAME_AGAIN
    assert (settlement.outcome, settlement.delay_seconds) == (None, 7.0)


def test_a_429_sends_the_turn_on_and_all_others_past_that_model() -> None:
    busy = ProviderError("safe", "rate_limited", "not so fast", status_code=429, retry_after=30)
    settlement, limits = settled(started(fallbacks=["b/y"]), Model(busy))
    assert what(settlement) == (TurnState.QUEUED, "b/y", [])
    assert settlement.delay_seconds == 0.0, "its pause is no affair of the next one"
    assert limits.is_cooling("a/x")
    assert not limits.is_cooling("b/y")


def test_a_tool_that_is_missing_here_is_missing_for_every_model() -> None:
    model = Model(None)
    settlement, _ = settled(started(tools=("ghost",), fallbacks=["b/y"]), model)
    assert what(settlement) == IS_OVER
    assert (settlement.error_type, settlement.outcome) == ("unknown_tool", None)
    assert model.asked == []


def test_a_prompt_that_is_too_long_is_shown_half_of_it_before_anybody_else_is_asked() -> None:
    settlement = fails(TOO_LONG, fallbacks=["b/y"], history=EARLIER)
    assert what(settlement) == SAME_AGAIN
    assert settlement.room is not None
    assert settlement.outcome is AttemptOutcome.PERMANENT
    again = started(fallbacks=["b/y"], history=EARLIER, room=settlement.room, attempts=2)
    shown = Model(TOO_LONG)
    second, _ = settled(again, shown)
    assert what(second) == (TurnState.QUEUED, "b/y", [])
    assert [message["content"] for message in shown.asked[0].messages] == ["hello"]


def test_a_summary_that_is_too_long_is_asked_for_of_less() -> None:
    """Or its session would be stuck: no later turn has less to be summed up."""
    how: dict[str, Any] = {"history": [*EARLIER, (2, EARLIER[0][1])], "window": 1, "overflow": Overflow.SUMMARISE}
    settlement = fails(TOO_LONG, fallbacks=["b/y"], **how)
    assert what(settlement) == SAME_AGAIN
    assert settlement.room is not None
    assert settlement.summary is None
    assert what(fails(TOO_LONG, fallbacks=["b/y"], room=settlement.room, **how)) == (TurnState.QUEUED, "b/y", [])


def test_a_summary_that_is_not_to_be_had_is_gone_on_without() -> None:
    """Or no later turn of its session would ever be answered."""
    how: dict[str, Any] = {"history": [*EARLIER, (2, EARLIER[0][1])], "window": 1, "overflow": Overflow.SUMMARISE}
    settlement = fails("permanent", fallbacks=[], **how)
    assert (what(settlement), settlement.cuts) == (SAME_AGAIN, True)
    assert not fails("safe", fallbacks=[], **how).cuts, "it may yet be had"
    assert fails("permanent", fallbacks=["b/y"], **how).model == "b/y", "another model may write it"
    assert what(fails("permanent", fallbacks=[], attempts=5, **how)) == IS_OVER
    model = Model(None)
    assert settled(started(cuts=True, **how), model)[0].reply == "answered"
    assert len(model.asked[0].messages) == 3, "the newest turn, and the prompt"


def test_who_has_more_history_than_one_model_takes_asks_the_next() -> None:
    how: dict[str, Any] = {"history": EARLIER, "overflow": Overflow.FAIL, "context_tokens": 10}
    settlement, _ = settled(started(fallbacks=["b/y"], **how), Model(None))
    assert (what(settlement), settlement.outcome) == ((TurnState.QUEUED, "b/y", []), None)
    assert settled(started(fallbacks=[], **how), Model(None))[0].error_type == "context_overflow"


@pytest.mark.parametrize(
    "how",
    [{"history": EARLIER, "overflow": Overflow.FAIL}, {"history": []}, {"history": EARLIER, "attempts": 5}],
    ids=["to fail", "nothing to leave out", "no attempts left"],
)
def test_a_prompt_that_is_too_long_and_cannot_be_less_fails(how: dict[str, Any]) -> None:
    settlement = fails(TOO_LONG, fallbacks=[], **how)
    assert what(settlement) == IS_OVER
    assert (settlement.error_type, settlement.room) == ("context_length_exceeded", None)


def test_the_key_of_a_call_is_one_of_its_model_round_and_room() -> None:
    turn = started()
    assert idempotency_key(turn) == idempotency_key(replace(turn, token=9, attempts=3, ambiguous=1, rescues=1))
    others = [replace(turn, model="b/y"), replace(turn, rounds=1), replace(turn, room=10), replace(turn, number=3)]
    assert len({idempotency_key(one) for one in (turn, *others)}) == 5


def test_a_summary_and_a_reply_are_never_taken_for_one_another() -> None:
    """Whether one is due is estimated, and the next worker may estimate otherwise."""
    turn = started(history=[*EARLIER, (2, EARLIER[0][1])], overflow=Overflow.SUMMARISE)
    keys = []
    for window in (1, 2):
        model = Model(None)
        settlement, _ = settled(replace(turn, window=window), model)
        assert (settlement.summary is not None) == (window == 1)
        keys.append(model.asked[0].key)
    assert keys[1] == idempotency_key(turn)
    assert keys[0] != keys[1]
