"""Providers of other people's: what ``Providers`` makes of whatever they do."""

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inturn.models.content import storable
from inturn.workers.provider import (
    CALLS_LIMIT,
    REPLY_LIMIT,
    OnDelta,
    Prompt,
    ProviderConfig,
    ProviderError,
    Providers,
    Reply,
    ToolCall,
)
from inturn.workers.providers import BUILDERS
from tests.integration.asking import KEY, NOW, Config, prompt

Deed = Callable[[OnDelta], Reply]


class Oddity:
    """A provider of somebody else's."""

    def __init__(self, deed: Deed) -> None:
        self._deed = deed
        self.closed = 0

    async def reply(self, asked: Prompt, on_delta: OnDelta | None = None) -> Reply:
        return self._deed(on_delta or (lambda piece: None))

    async def aclose(self) -> None:
        self.closed += 1
        raise OSError("already gone")


def ask_oddity(deed: Deed, on_delta: OnDelta | None = None, *, is_broken: bool = False) -> tuple[Reply, Oddity]:
    built: list[Oddity] = []

    def build(name: str, config: ProviderConfig) -> Oddity:
        if is_broken:
            raise RuntimeError(KEY)
        built.append(Oddity(deed))
        return built[-1]

    async def twice() -> Reply:
        providers = Providers({"odd": Config("", type="odd")}, {**BUILDERS, "odd": build}, deadline_seconds=5)
        assert built == []
        try:
            await providers.reply("odd/m", prompt("Hello"))
            return await providers.reply("odd/m", prompt("Hello"), on_delta)
        finally:
            await providers.aclose()

    reply = asyncio.run(twice())
    [oddity] = built
    return reply, oddity


def replying(content: str, *pieces: str) -> Deed:
    def reply(tell: OnDelta) -> Reply:
        for piece in pieces:
            tell(piece)
        return Reply(content)

    return reply


def failing(error: Exception) -> Deed:
    def fail(tell: OnDelta) -> Reply:
        raise error

    return fail


def heard(deed: Deed) -> tuple[list[str], str]:
    """What is told of a reply, and what it is in the end."""
    told: list[str] = []
    reply, _ = ask_oddity(deed, told.append)
    return told, reply.content


def test_a_type_of_provider_can_be_added() -> None:
    reply, oddity = ask_oddity(replying("Hello yourself"))
    assert reply.content == "Hello yourself"
    assert oddity.closed == 1


def test_a_mistake_in_a_provider_is_told_by_its_place() -> None:
    with pytest.raises(ProviderError) as caught:
        ask_oddity(failing(KeyError(KEY)))
    assert (caught.value.kind, caught.value.error_type) == ("ambiguous", "provider_bug")
    assert "KeyError in test_provider_others.py, line " in caught.value.message
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_so_is_one_in_making_it() -> None:
    with pytest.raises(ProviderError) as caught:
        ask_oddity(replying("Hello"), is_broken=True)
    assert caught.value.error_type == "provider_bug"
    assert KEY not in caught.value.message


@pytest.mark.parametrize("character", ["a", "東"])
def test_the_cap_holds_for_every_provider(character: str) -> None:
    fits = REPLY_LIMIT // len(character.encode())
    assert len(ask_oddity(replying(character * fits))[0].content) == fits
    with pytest.raises(ProviderError) as caught:
        ask_oddity(replying(character * (fits + 1)))
    assert caught.value.error_type == "reply_too_large"


# What is told while a reply arrives


def test_what_is_not_told_in_pieces_is_told_as_one() -> None:
    assert heard(replying("Hello \ud83d")) == (["Hello \ufffd"], "Hello \ufffd")


def test_the_reply_is_what_was_told() -> None:
    assert heard(replying("something else", "Hel", "", "lo")) == (["Hel", "lo"], "Hello")


@given(st.lists(st.text(st.characters(codec=None) | st.sampled_from("\x00\ud83d\ude00"), max_size=4), max_size=6))
def test_the_pieces_can_be_stored_and_add_up(pieces: list[str]) -> None:
    told, content = heard(replying("nothing was told", *pieces))
    assert all(piece and storable(piece) == piece for piece in told)
    assert "".join(told) == content == (storable("".join(pieces)) or "nothing was told")


def test_the_cap_holds_for_the_sum_of_the_pieces() -> None:
    told: list[str] = []
    with pytest.raises(ProviderError) as caught:
        ask_oddity(replying("Hello", "x" * REPLY_LIMIT, "y"), told.append)
    assert (caught.value.kind, caught.value.error_type) == ("permanent", "reply_too_large")
    assert told == ["x" * REPLY_LIMIT]


def test_a_provider_that_will_not_hear_of_the_cap_is_held_to_it() -> None:
    def deaf(tell: OnDelta) -> Reply:
        for piece in ("x" * REPLY_LIMIT, "y", "z"):
            try:
                tell(piece)
            except ProviderError:
                continue
        return Reply("Hello")

    with pytest.raises(ProviderError) as caught:
        ask_oddity(deaf, lambda piece: None)
    assert caught.value.error_type == "reply_too_large"


def test_nothing_is_told_after_the_end() -> None:
    tells: list[OnDelta] = []

    def keep(tell: OnDelta) -> Reply:
        tells.append(tell)
        tell("Hello")
        return Reply("Hello")

    told: list[str] = []
    ask_oddity(keep, told.append)
    tells[-1](" again")
    assert told == ["Hello"]


# Tools


def calling(*calls: ToolCall, content: str = "") -> Reply:
    """What is made of a reply that calls tools, where one was offered."""

    async def reply() -> Reply:
        builders = {"odd": lambda name, config: Oddity(lambda tell: Reply(content, tool_calls=calls))}
        providers = Providers({"odd": Config("", type="odd")}, builders, deadline_seconds=5)
        return await providers.reply("odd/m", replace(prompt("Hello"), tools=(NOW,)))

    return asyncio.run(reply())


def test_the_calls_of_every_provider_can_be_stored() -> None:
    assert calling(ToolCall("i\x00", "now", "\ud83d")).tool_calls == (ToolCall("i\ufffd", "now", "\ufffd"),)


def test_calls_that_nobody_asked_for_are_left_out() -> None:
    reply, _ = ask_oddity(lambda tell: Reply("Hello", tool_calls=(ToolCall("i", "now", "{}"),)))
    assert (reply.content, reply.tool_calls) == ("Hello", ())


def test_the_cap_holds_for_content_and_calls_together() -> None:
    half = "x" * (REPLY_LIMIT // 2)
    assert len(calling(ToolCall("i", "n", half[2:]), content=half).tool_calls) == 1
    with pytest.raises(ProviderError) as caught:
        calling(ToolCall("i", "n", half[1:]), content=half)
    assert caught.value.error_type == "reply_too_large"
    with pytest.raises(ProviderError) as caught:
        calling(*[ToolCall("i", "n", "{}")] * (CALLS_LIMIT + 1))
    assert caught.value.error_type == "bad_reply"
