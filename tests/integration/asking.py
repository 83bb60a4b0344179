"""Asking the model server through ``Providers``: every type of provider, whole and streamed."""

import asyncio
import json
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr

from inturn.models.content import storable
from inturn.workers.provider import Prompt, ProviderError, Providers, Reply, ToolSpec
from inturn.workers.providers import BUILDERS
from ops.chaos.model import Call, ModelServer

KEY = "sk-of-the-tests-0123456789"
MODEL = "local/gpt-test"
WAYS = [pytest.param((type_, streams), id=f"{type_}-{'streamed' if streams else 'whole'}")
        for type_ in ("openai", "anthropic") for streams in (False, True)]  # fmt: skip
"""All types of provider that speak HTTP, and both ways to ask each of them."""
ADD = ToolSpec(
    "add", "Adds two numbers.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
)
NOW = ToolSpec("now", "Says what time it is.", {})
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """A provider's settings; ``streams`` is how it is asked here."""

    base_url: str
    type: str = "openai"
    streams: bool = False
    key: str = KEY
    api_key_env: str = "KEY_OF_THE_TESTS"
    api_key_header: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    deadline_seconds: float | None = None

    def api_key(self) -> SecretStr | None:
        return SecretStr(self.key) if self.key else None

    def model_name(self, model: str) -> str:
        return self.models.get(model, model)

    def context_tokens(self, model: str) -> int | None:
        return None


def prompt(text: str, *, key: str = "1.1", **options: Any) -> Prompt:
    return Prompt("", [{"role": "user", "content": text}], options, key)


def told(**directive: Any) -> str:
    """A prompt that tells the server what to do."""
    return f"Please !{json.dumps(directive)}"


class Asker:
    """Asks, and keeps what it was told."""

    def __init__(self, providers: Providers, *, streams: bool) -> None:
        self.providers = providers
        self._streams = streams
        self.told: list[str] = []

    async def ask(self, asked: Prompt, *, model: str = MODEL) -> Reply:
        told: list[str] = []
        try:
            reply = await self.providers.reply(model, asked, told.append if self._streams else None)
        finally:
            self.told = told
            assert all(piece and storable(piece) == piece for piece in told)
        assert "".join(told) == reply.content if self._streams else not told
        return reply


def with_providers(config: Config, work: Callable[[Asker], Awaitable[T]], *, deadline: float = 5) -> T:
    async def main() -> T:
        providers = Providers({"local": config}, BUILDERS, deadline_seconds=deadline)
        try:
            return await work(Asker(providers, streams=config.streams))
        finally:
            await providers.aclose()

    return asyncio.run(main())


def ask(config: Config, asked: Prompt, *, model: str = MODEL, deadline: float = 5) -> Reply:
    return with_providers(config, lambda asker: asker.ask(asked, model=model), deadline=deadline)


def pieces(config: Config, asked: Prompt) -> list[str]:
    """What is told of a reply."""

    async def hear(asker: Asker) -> list[str]:
        await asker.ask(asked)
        return asker.told

    return with_providers(config, hear)


def failure(config: Config, asked: Prompt, *, model: str = MODEL, deadline: float = 5) -> ProviderError:
    return failure_after(config, asked, model=model, deadline=deadline)[0]


def failure_after(
    config: Config, asked: Prompt, *, model: str = MODEL, deadline: float = 5
) -> tuple[ProviderError, str]:
    """How it fails, and what was told before."""

    async def fail(asker: Asker) -> tuple[ProviderError, str]:
        with pytest.raises(ProviderError) as caught:
            await asker.ask(asked, model=model)
        return caught.value, "".join(asker.told)

    error, before = with_providers(config, fail, deadline=deadline)
    assert len(error.message) <= 500
    assert error.message.isprintable()
    assert KEY not in "".join([repr(error), *traceback.format_exception(error)])
    assert error.__cause__ is None  # those of aiohttp hold the request's headers
    assert error.__context__ is None or error.__suppress_context__
    return error, before


def calls_of(server: ModelServer, key: str) -> list[Call]:
    return [call for call in server.calls() if call.key == key]


async def begun(server: ModelServer, key: str) -> Call:
    for _ in range(100):
        if calls := calls_of(server, key):
            return calls[0]
        await asyncio.sleep(0.02)
    raise AssertionError("the server was not asked")


def ended(server: ModelServer, key: str) -> Call:
    """The one call with this key, once the server is done with it."""
    for _ in range(100):
        [call] = calls_of(server, key)
        if call.end is not None:
            return call
        time.sleep(0.02)
    raise AssertionError("the server still works on it")
