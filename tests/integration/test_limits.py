"""Limits that all workers share, on a real Redis: two of ``Limits`` stand for two workers."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from inturn.models.states import Lane
from inturn.workers import limits
from inturn.workers.limits import Ask, Limits
from inturn.workers.queues import connect
from ops.servers import RedisServer

HOLD_SECONDS = 20.0
_names = count()


@dataclass(frozen=True)
class Limited:
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None
    chat_share: float = 0.0


@dataclass
class Fleet:
    """Two workers and a provider that nobody else asks."""

    workers: tuple[Limits, ...]
    provider: str

    def ask(self, turn: int, *, lane: Lane = Lane.BATCH, tokens: int = 0) -> Ask:
        return Ask(f"{self.provider}/model", f"1.{turn}", lane, tokens)

    def of(self, turn: int) -> Limits:
        return self.workers[turn % len(self.workers)]

    async def wait(self, turn: int, **how: Any) -> float:
        return await self.of(turn).wait(self.ask(turn, **how))

    def end(self, turn: int, *, counted: int | None = None, **how: Any) -> None:
        self.of(turn).ended(self.ask(turn, **how), 0.01, counted)

    async def called_at(self, turn: int, **how: Any) -> float:
        """As a turn does: asks, and comes again when it is told to, until it may call. Returns the moment."""
        wait = await self.wait(turn, **how)
        while wait:
            await asyncio.sleep(wait)
            wait = await self.wait(turn, **how)
        return time.monotonic()


Fleets = Callable[..., Any]


@pytest.fixture
def fleet(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Fleets:
    """None of its turns waits where it is: they tell for how long they would."""
    monkeypatch.setattr(limits, "NEAR_SECONDS", 0)

    @contextmanager
    def working(limited: Limited | None = None, hold_seconds: float = HOLD_SECONDS) -> Iterator[Fleet]:
        provider = f"provider{next(_names)}"
        workers = tuple(
            Limits({provider: limited or Limited()}, connect(redis.url), workers=lambda: 2, hold_seconds=hold_seconds)
            for _ in range(2)
        )
        for worker in workers:
            worker.start()
        yield Fleet(workers, provider)
        for worker in workers:
            worker.stop()

    return working


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def all_called(fleet: Fleet, turns: int, **how: Any) -> list[float]:
    return sorted(await asyncio.gather(*(fleet.called_at(turn, **how) for turn in range(turns))))


def test_all_workers_together_keep_to_the_rate(fleet: Fleets):
    with fleet(Limited(requests_per_minute=1200)) as working:
        began = time.monotonic()
        moments = run(all_called(working, 60))
    # 20 a second, and half a second's worth at once at the beginning.
    for place, moment in enumerate(moments):
        assert place + 1 <= 20 * (moment - began + 0.5) + 1, f"call {place + 1} after {moment - began:.3f} s"


def test_a_moment_is_reserved_once_and_kept(fleet: Fleets):
    with fleet(Limited(requests_per_minute=60)) as working:

        async def asked() -> list[float]:
            return [await working.wait(turn) for turn in (0, 1, 2, 2, 2)]

        first, second, *third = run(asked())
    assert first == 0
    assert 0.3 < second <= 0.5, "a call a second, and half a second ahead of it"
    assert 1.0 < third[2] <= third[1] <= third[0] <= 1.5


def test_who_would_wait_for_long_reserves_nothing(fleet: Fleets):
    with fleet(Limited(requests_per_minute=6)) as working:

        async def asked() -> list[float]:
            return [await working.wait(turn) for turn in range(20)]

        waits = run(asked())
    assert waits[:7] == pytest.approx([0, *(10 * turn - 0.5 for turn in range(1, 7))], abs=0.5)
    assert all(30 <= wait <= 60 for wait in waits[7:])


def test_chat_has_a_share_of_its_own(fleet: Fleets):
    with fleet(Limited(requests_per_minute=600, chat_share=0.5)) as working:

        async def asked() -> tuple[float, float]:
            batch = [await working.wait(turn) for turn in range(100)]
            chat = [await working.wait(turn, lane=Lane.CHAT) for turn in range(100, 105)]
            return max(batch), max(chat)

        batch, chat = run(asked())
    assert 8 < batch < 10, "a hundred at ten a second: chat's half is lent"
    assert chat < 1.0, "five at five a second, beside all of them"


def test_a_moment_that_is_near_is_waited_for(fleet: Fleets, monkeypatch: pytest.MonkeyPatch):
    with fleet(Limited(requests_per_minute=600)) as working:

        async def asked() -> list[float]:
            monkeypatch.setattr(limits, "NEAR_SECONDS", 0.25)
            return list(await asyncio.gather(*(working.wait(turn) for turn in range(0, 20, 2))))

        waits = run(asked())
    assert waits[:8] == [0] * 8, "half a second's at once, and those whose moment was near"
    assert all(wait > 0.25 for wait in waits[8:])


def test_tokens_are_counted_as_the_provider_counts_them(fleet: Fleets):
    with fleet(Limited(tokens_per_minute=60_000)) as working:

        async def asked() -> tuple[float, float, float]:
            first = await working.wait(0, tokens=1000)
            working.end(0, tokens=1000, counted=5000)
            await asyncio.sleep(0.2)
            later = await working.wait(2, tokens=1000)
            return first, later, await working.wait(4, tokens=1000)

        first, later, last = run(asked())
    assert first == 0
    assert 3.5 < later <= 4.5, "a thousand a second, less half a second: the first took five of them"
    assert 0.9 < last - later < 1.1


def test_so_many_calls_at_once_and_no_more(fleet: Fleets):
    with fleet(Limited(max_in_flight=3)) as working:

        async def asked() -> list[list[float]]:
            first = [await working.wait(turn) for turn in range(5)]
            working.end(0)
            await asyncio.sleep(0.1)
            return [first, [await working.wait(turn) for turn in (3, 4)]]

        first, second = run(asked())
    assert [wait == 0 for wait in first] == [True, True, True, False, False]
    assert [wait == 0 for wait in second] == [True, False]


def test_batch_leaves_places_to_chat(fleet: Fleets):
    with fleet(Limited(max_in_flight=4, chat_share=0.5)) as working:

        async def asked() -> list[bool]:
            batch = [await working.wait(turn) == 0 for turn in range(3)]
            return [*batch, await working.wait(9, lane=Lane.CHAT) == 0]

        assert run(asked()) == [True, True, False, True]


def test_the_calls_of_a_dead_worker_count_no_longer(fleet: Fleets):
    with fleet(Limited(max_in_flight=1), hold_seconds=0.3) as working:

        async def asked() -> list[bool]:
            first = [await working.wait(turn) == 0 for turn in range(2)]
            await asyncio.sleep(0.4)
            return [*first, await working.wait(1) == 0]

        assert run(asked()) == [True, False, True]


@pytest.mark.parametrize("limited", [Limited(), Limited(requests_per_minute=6000)], ids=["unlimited", "limited"])
def test_who_is_told_to_leave_it_alone_tells_everybody(fleet: Fleets, limited: Limited):
    with fleet(limited) as working:

        async def asked() -> tuple[float, float]:
            mine, others = await working.wait(0), await working.wait(1)
            working.end(0)
            working.of(0).cool(f"{working.provider}/model", 30.0)
            await asyncio.sleep(2 * limits.LOOK_SECONDS)
            return mine + others, await working.wait(3)

        before, after = run(asked())
    assert before == 0
    assert 25 < after < 45


def test_without_redis_each_keeps_to_its_part(fleet: Fleets, redis: RedisServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "AWAY_SECONDS", 60)
    redis.freeze()
    try:
        with fleet(Limited(requests_per_minute=1200)) as working:

            async def asked() -> float:
                first = await working.wait(0), await working.wait(1)
                began = time.monotonic()
                moments = await all_called(working, 40)
                assert max(first) == 0
                return moments[-1] - began

            assert run(asked()) > 40 / 20 * 0.9
    finally:
        redis.thaw()
    with fleet(Limited(requests_per_minute=60)) as working:
        assert run(working.wait(0)) == 0


def test_a_worker_that_stops_gives_its_places_back_first(fleet: Fleets):
    with fleet(Limited(max_in_flight=1)) as working:
        assert run(working.wait(0)) == 0
        working.end(0)
        working.of(0).stop()
        assert run(working.wait(1)) == 0


def test_a_mistake_in_counting_leaves_nobody_waiting_for_ever(fleet: Fleets, monkeypatch: pytest.MonkeyPatch):
    with fleet(Limited(max_in_flight=1)) as working:
        monkeypatch.setattr(working.of(0), "_asked", lambda *_: 1 / 0)
        assert run(working.wait(0)) == limits.LOOK_SECONDS
        monkeypatch.undo()
        assert run(working.wait(0)) == 0
