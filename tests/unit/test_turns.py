"""A slice's calls: two of one session in one process, as after a pause for longer than the lease."""

import asyncio
from typing import Any, cast

from inturn.models.states import Lane
from inturn.models.store.working import Started
from inturn.settings import Settings
from inturn.workers.ledger import Ledger
from inturn.workers.provider import Prompt, Providers, Reply
from inturn.workers.providers import BUILDERS
from inturn.workers.turns import Turns


class Slow:
    """Replies when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def reply(self, prompt: Prompt) -> Reply:
        await self.go.wait()
        return Reply("late but paid for")

    async def aclose(self) -> None:
        self.go.set()


def started(token: int) -> Started:
    said = [{"role": "user", "content": "hello"}]
    return Started(17, "user-1", token, 1, token, 0, Lane.CHAT, "echo/echo", {}, said)


async def claim_twice() -> tuple[Any, Any, Turns]:
    settings, slow = Settings(), Slow()
    providers = Providers(
        settings.available_providers, {**BUILDERS, "echo": lambda name, config: slow}, deadline_seconds=10
    )
    turns = Turns(settings, cast(Ledger, None), providers, lambda started, delay: None, lambda: False)
    former = asyncio.create_task(turns._attempt(started(token=1)))
    await asyncio.sleep(0)
    latter = asyncio.create_task(turns._attempt(started(token=3)))
    await asyncio.sleep(0.05)
    slow.go.set()
    outcomes = await asyncio.gather(former, latter, return_exceptions=True)
    return outcomes[0], outcomes[1], turns


def test_a_session_claimed_again_breaks_off_the_call_of_the_lost_lease_and_keeps_its_own() -> None:
    former, latter, turns = asyncio.run(claim_twice())
    assert former is None, "its lease is lost: nothing is to be settled"
    assert latter.reply == "late but paid for"
    assert latter.token == 3
    assert turns.calls == {}
