"""What a model is shown: as many turns as fit, what becomes of the rest, and what is learned about how long a token is."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inturn.models.states import Lane, Overflow
from inturn.models.store.working import SUMMED_UP, Said, Started
from inturn.workers.context import (
    BYTES_A_TOKEN,
    MESSAGE_BYTES,
    PART_BYTES,
    REPLY_TOKENS,
    SUMMARISE,
    Context,
    Plan,
    TooMuch,
    weight_of,
)
from inturn.workers.provider import ToolSpec

MODEL = "a/x"
EVERYTHING = 1000
"""A window that no test fills."""


class Known:
    """How many tokens models take."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes

    def context_tokens(self, model: str) -> int | None:
        return self.sizes.get(model.partition("/")[2])


def turn(number: int, size: int = 100) -> tuple[int, list[Said]]:
    """One whose two messages have so many bytes each."""
    said = f"{number}.".ljust(size, "x")[: max(size, 1)]
    return number, [{"role": "user", "content": said}, {"role": "assistant", "content": said}]


def started(*history: tuple[int, list[Said]], **how: Any) -> Started:
    said = [{"role": "user", "content": "hello"}]
    asked: dict[str, Any] = {"window": EVERYTHING, "history": history} | how
    return replace(Started(17, "s", 1, len(history) + 1, 1, 0, 0, Lane.CHAT, MODEL, {}, said), **asked)


def planned(turn: Started, context: Context | None = None, tools: tuple[ToolSpec, ...] = ()) -> Plan:
    plan = (context or Context()).plan(turn, tools)
    assert isinstance(plan, Plan)
    return plan


def numbers(plan: Plan) -> list[int]:
    """The turns that are shown, each of them with all of its messages."""
    said = [message["content"] for message in plan.messages if message["content"][0].isdigit()]
    assert said[::2] == said[1::2], "half a turn is shown"
    return [int(one.partition(".")[0]) for one in said[::2]]


EACH = weight_of(turn(1)[1])
PROMPT = weight_of(started().prompt)


def tokens_for(turns: int, more: int = 0) -> int:
    """Just enough for the prompt and so many turns."""
    return math.ceil((PROMPT + turns * EACH + more) / BYTES_A_TOKEN)


def test_without_any_limit_everything_that_was_read_is_shown() -> None:
    plan = planned(started(*map(turn, range(1, 8))))
    assert numbers(plan) == [1, 2, 3, 4, 5, 6, 7]
    assert plan.messages[-1] == {"role": "user", "content": "hello"}
    assert plan.weight == PROMPT + 7 * EACH
    assert (plan.can_shrink, plan.sums_up_to) == (True, None)
    assert not planned(started()).can_shrink


@pytest.mark.parametrize(
    ("tokens", "shown"), [(tokens_for(2), [4, 5]), (tokens_for(3) - 1, [4, 5]), (tokens_for(3), [3, 4, 5])]
)
def test_the_newest_turns_are_shown_that_fit_into_the_sessions_tokens(tokens: int, shown: list[int]) -> None:
    plan = planned(started(*map(turn, range(1, 6)), context_tokens=tokens))
    assert numbers(plan) == shown
    assert plan.tokens <= tokens + 1


def test_a_long_turn_hides_all_before_it_rather_than_leave_a_gap() -> None:
    history = [turn(1), turn(2, 5000), turn(3), turn(4)]
    assert numbers(planned(started(*history, context_tokens=tokens_for(3)))) == [3, 4]


def test_the_prompt_is_shown_whatever_it_takes() -> None:
    long = [{"role": "user", "content": "y" * 9000}]
    plan = planned(started(turn(1), prompt=long, context_tokens=10))
    assert plan.messages == long
    assert not plan.can_shrink, "there is nothing left to be left out"


def test_the_model_takes_what_its_provider_says_less_the_reply() -> None:
    def shown(size: int, **options: int) -> int:
        context = Context(Known(y=1), Known(x=size))
        return len(numbers(planned(started(*map(turn, range(1, 400)), options=options), context)))

    assert shown(tokens_for(5) + 50, max_tokens=50) == 5
    assert shown(tokens_for(5) + 50, max_completion_tokens=50) == 5
    assert shown(tokens_for(5) + 50, max_tokens=51) == 4
    assert shown(20_000) == (4 * (20_000 - REPLY_TOKENS) - PROMPT) // EACH
    assert shown(2000) == shown(2000, max_tokens=1_000_000) == (4 * 1500 - PROMPT) // EACH, "a quarter, at most"
    assert shown(2000, max_tokens=True) == shown(2000), "that is no number of tokens"


def test_of_several_limits_the_smallest_counts_and_of_several_sizes_the_first() -> None:
    context = Context(Known(), Known(x=tokens_for(4) + 4, y=10), Known(x=1, y=10**6))
    history, options = list(map(turn, range(1, 10))), {"max_tokens": 4}
    for context_tokens, room, most in ((None, None, 4), (tokens_for(6), None, 4), (tokens_for(3), None, 3),
                                       (tokens_for(3), tokens_for(2), 2), (None, tokens_for(6), 4)):  # fmt: skip
        asked = started(*history, options=options, context_tokens=context_tokens, room=room)
        assert len(numbers(planned(asked, context))) == most
    assert (context.size("a/x"), context.size("a/y"), context.size("a/z")) == (tokens_for(4) + 4, 10, None)


def test_system_message_and_summary_come_first_and_are_never_left_out() -> None:
    for tokens in (None, 1, tokens_for(1)):
        asked = started(turn(1), turn(2), system="be brief", summary="they met", context_tokens=tokens)
        plan = planned(asked)
        assert plan.messages[0] == {"role": "system", "content": "be brief"}
        assert plan.messages[1] == {"role": "system", "content": f"{SUMMED_UP}\n\nthey met"}
        assert plan.messages[-1]["content"] == "hello"
        preamble = weight_of(asked.preamble)
    assert numbers(planned(replace(asked, context_tokens=tokens_for(1, preamble)))) == [2], "and they take their room"
    assert numbers(planned(replace(asked, context_tokens=tokens_for(1, preamble) - 1))) == []


def test_images_weigh_what_they_cost_and_not_what_their_bytes_do() -> None:
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    said: list[Said] = [{"role": "user", "content": [{"type": "text", "text": "what?"}, url, url]}]
    assert weight_of(said) == MESSAGE_BYTES + 5 + 2 * PART_BYTES
    assert weight_of([{"role": "user", "content": [{"type": "text"}]}]) == MESSAGE_BYTES + PART_BYTES
    images = (1, [*said, {"role": "assistant", "content": "a cat"}])
    room = math.ceil((PROMPT + weight_of(images[1])) / BYTES_A_TOKEN)
    assert len(planned(started(images, context_tokens=room)).messages) == 3
    assert len(planned(started(images, context_tokens=room - 1)).messages) == 1


def test_text_weighs_its_bytes() -> None:
    assert weight_of([{"role": "user", "content": "ab"}]) == MESSAGE_BYTES + 2
    assert weight_of([{"role": "user", "content": "日本"}]) == MESSAGE_BYTES + 6
    assert weight_of([{"role": "user", "content": "\ud800"}]) == MESSAGE_BYTES + 1, "a lone surrogate is weighed, too"


def test_tools_and_their_calls_take_room() -> None:
    tool = ToolSpec("add", "adds numbers", {"type": "object", "properties": {"a": {"type": "integer"}}})
    bare, equipped = planned(started(turn(1))), planned(started(turn(1)), tools=(tool,))
    assert equipped.weight > bare.weight + len("addadds numbers")
    assert numbers(planned(started(turn(1), context_tokens=tokens_for(1)), tools=(tool,))) == []
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    assert weight_of([{"role": "assistant", "content": "", "tool_calls": calls}]) > MESSAGE_BYTES + 60


def test_what_providers_count_moves_the_estimate_of_that_model() -> None:
    context = Context()
    assert context.tokens(MODEL, 4000) == 1001
    for _ in range(20):
        context.learn(MODEL, 20_000, 10_000)
    assert context.bytes_a_token(MODEL) == pytest.approx(2.0, rel=0.01)
    assert context.bytes_a_token("a/y") == BYTES_A_TOKEN, "and of no other"
    for _ in range(20):
        context.learn(MODEL, 60_000, 10_000)
    assert context.bytes_a_token(MODEL) == pytest.approx(6.0, rel=0.01), "what is new counts most"
    context.learn(MODEL, 10**6, 0)
    context.learn(MODEL, 10**6, -3)
    assert context.bytes_a_token(MODEL) == pytest.approx(6.0, rel=0.01)


@given(true=st.floats(0.3, 30), calls=st.lists(st.integers(20, 100_000), min_size=40, max_size=60))
@settings(max_examples=50, deadline=None)
def test_the_estimate_goes_towards_the_truth_and_arrives(true: float, calls: list[int]) -> None:
    context, away = Context(), [abs(BYTES_A_TOKEN - true)]
    for tokens in calls:
        context.learn(MODEL, round(tokens * true), tokens)
        away.append(abs(context.bytes_a_token(MODEL) - true))
    rounding = 0.5 / min(calls)
    assert all(after <= before + rounding for before, after in itertools.pairwise(away))
    assert away[-1] <= away[0] * 0.05 + rounding


def test_not_all_names_that_somebody_made_up_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inturn.workers.context.REMEMBERED", 10)
    context = Context(Known(y=7))
    for number in range(25):
        planned(replace(started(turn(1)), model=f"a/made-up-{number}"), context)
        context.learn(f"a/made-up-{number}", 100, 50)
    assert len(context._known) <= 10
    assert len(context._counted) <= 10
    assert context.size("a/y") == 7


def test_a_first_short_call_does_not_say_all() -> None:
    context = Context()
    context.learn(MODEL, 40, 1)
    assert context.bytes_a_token(MODEL) < 7


def test_who_is_to_fail_fails_and_says_how_much_it_was() -> None:
    asked = started(*map(turn, range(1, 6)), overflow=Overflow.FAIL)
    assert isinstance(Context().plan(replace(asked, context_tokens=tokens_for(5))), Plan)
    plan = Context().plan(replace(asked, context_tokens=tokens_for(5) - 1))
    assert plan == TooMuch(int((PROMPT + 5 * EACH) / BYTES_A_TOKEN) + 1, tokens_for(5) - 1)
    assert isinstance(Context().plan(asked), Plan), "nobody knows of a limit"
    assert isinstance(Context().plan(replace(asked, history=(), context_tokens=1)), Plan), "its prompt is no history"


def summarising(*history: tuple[int, list[Said]], **how: Any) -> Started:
    return started(*history, overflow=Overflow.SUMMARISE, **how)


def test_a_summary_is_due_when_the_window_is_full_and_half_of_it_is_kept() -> None:
    assert planned(summarising(*map(turn, range(1, 7)), window=6)).sums_up_to is None
    plan = planned(summarising(*map(turn, range(1, 8)), window=6))
    assert plan.sums_up_to == 4
    assert not [message for message in plan.messages if message["content"] == "hello"], "the prompt is not in it"
    system, asked = plan.messages
    assert system == {"role": "system", "content": SUMMARISE}
    assert asked["role"] == "user"
    for number in range(1, 5):
        assert f"user: {number}.xxx" in asked["content"]
        assert f"assistant: {number}.xxx" in asked["content"]
    assert "5.xxx" not in asked["content"]
    kept = planned(summarising(*map(turn, range(5, 8)), window=6, summary="1 to 4"))
    assert (numbers(kept), kept.sums_up_to) == ([5, 6, 7], None)


def test_a_summary_is_due_when_the_room_is_full_and_half_of_it_is_kept() -> None:
    room = tokens_for(6)
    assert planned(summarising(*map(turn, range(1, 7)), context_tokens=room)).sums_up_to is None
    assert planned(summarising(*map(turn, range(1, 8)), context_tokens=room)).sums_up_to == 4


def test_a_summary_takes_up_the_one_before_it() -> None:
    asked = planned(summarising(*map(turn, range(5, 12)), window=6, summary="they met")).messages[1]["content"]
    assert asked.startswith("Summary of what was said before:\nthey met\n\nuser: 5.xxx")


def test_a_summary_tells_of_images_and_tools() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    said: list[Said] = [
        {"role": "user", "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "2", "tool_call_id": "1", "name": "add"},
        {"role": "assistant", "content": "a cat"},
    ]
    asked = planned(summarising((1, said), turn(2), turn(3), window=2)).messages[1]["content"]
    assert asked.startswith(
        'user: what is it?\n[image_url]\n\nassistant called add with {"a": 1}\n\ntool: 2\n\nassistant: a cat\n\n'
    )


def test_what_goes_into_a_summary_is_whole_and_no_more_than_the_model_takes() -> None:
    room = tokens_for(6)
    plan = planned(summarising(*map(turn, range(1, 20)), context_tokens=room, summary="z" * 500, window=20))
    assert plan.tokens <= room + 1
    assert plan.sums_up_to is not None
    assert 1 <= plan.sums_up_to < 6
    content = plan.messages[1]["content"]
    assert content.count("\n\nuser: ") == content.count("\n\nassistant: ") == plan.sums_up_to
    assert content.endswith("x" * 90), "what it is said to cover is all in it"


def test_a_turn_that_alone_is_too_much_for_a_summary_is_cut() -> None:
    plan = planned(summarising(turn(1, 50_000), turn(2), context_tokens=300))
    assert plan.sums_up_to == 1
    assert plan.tokens <= 300 + 1
    assert "user: 1.xxx" in plan.messages[1]["content"]


def test_a_summary_that_was_too_long_for_the_model_can_be_of_less() -> None:
    asked = summarising(*map(turn, range(1, 21)), window=10)
    plan = planned(asked)
    assert plan.can_shrink
    less = planned(replace(asked, room=plan.tokens // 2))
    assert less.sums_up_to is not None
    assert plan.sums_up_to is not None
    assert less.sums_up_to < plan.sums_up_to
    assert less.tokens <= plan.tokens // 2 + 1


sizes = st.lists(st.integers(0, 3000), max_size=30)
LEAST = round(2 * weight_of([{"role": "system", "content": SUMMARISE}]) / BYTES_A_TOKEN) + MESSAGE_BYTES
"""What is shown for a summary where next to nothing may be shown."""
rooms = st.one_of(st.none(), st.integers(1, 5000))


@given(
    sizes=sizes,
    room=rooms,
    overflow=st.sampled_from(list(Overflow)),
    window=st.integers(1, 40),
    learned=st.integers(1, 12),
)
@example(sizes=[0], room=1, overflow=Overflow.SUMMARISE, window=1, learned=4)
@settings(deadline=None)
def test_the_newest_turns_are_shown_without_a_gap_and_within_the_room(
    sizes: list[int], room: int | None, overflow: Overflow, window: int, learned: int
) -> None:
    context = Context()
    context.learn(MODEL, 100_000 * learned, 100_000)
    history = [turn(number, size) for number, size in enumerate(sizes, 1)]
    most = window * 2 if overflow is Overflow.SUMMARISE else window
    asked = started(*history[-most:], context_tokens=room, overflow=overflow, window=window)
    plan = context.plan(asked)
    if isinstance(plan, TooMuch):
        assert overflow is Overflow.FAIL
        assert plan.tokens >= plan.room == room
        return
    if plan.sums_up_to is not None:
        assert overflow is Overflow.SUMMARISE
        assert plan.sums_up_to in [number for number, _ in asked.history]
        return
    shown = [message for message in plan.messages if message not in asked.prompt]
    newest = [message for _, said in asked.history for message in said]
    assert shown == newest[len(newest) - len(shown) :]
    assert len(shown) % 2 == 0
    assert plan.weight == weight_of(plan.messages)
    if shown and room is not None:
        assert plan.tokens <= room + 1
    assert plan.can_shrink is bool(shown)


@given(sizes=sizes, room=rooms, window=st.integers(1, 40), summary=st.integers(1, 3000), system=st.integers(0, 3000))
@example(sizes=[3000] * 30, room=1, window=40, summary=3000, system=3000)
@settings(deadline=None)
def test_summary_follows_summary_until_the_rest_is_shown_and_each_of_them_gets_further(
    sizes: list[int], room: int | None, window: int, summary: int, system: int
) -> None:
    """As rounds of a turn: what a summary covers is not read again."""
    asked = summarising(*[turn(number, size) for number, size in enumerate(sizes, 1)][-2 * window :], window=window)
    asked = replace(asked, context_tokens=room, system="s" * system)
    context = Context()
    for _ in range(len(asked.history) + 1):
        plan = context.plan(asked)
        assert isinstance(plan, Plan)
        if plan.sums_up_to is None:
            assert len(asked.history) <= window
            assert len(plan.messages) == len(asked.messages), "nothing is left out"
            return
        assert len(plan.messages) == 2
        assert plan.messages[1]["content"]
        assert room is None or plan.tokens <= max(room, LEAST) + 1
        behind = [(number, said) for number, said in asked.history if number > plan.sums_up_to]
        assert len(behind) < len(asked.history)
        asked = replace(asked, history=behind, summary="u" * summary)
    raise AssertionError("it never ends")
