"""A provider's limit over minutes, by a clock of the test: none of it is left, and none is exceeded."""

import itertools
from collections.abc import Iterator, Sequence
from statistics import mean

import pytest
import redis as redis_client

from inturn.models.states import Lane
from ops.bench.limits import a_minute
from ops.servers import RedisServer
from tests.integration.pace import Called, Provider, busiest_minute

A_MINUTE, TURNS = 600, 2000
MOST = 612
"""Two in a hundred more than the limit, which no minute may have."""
LEAST = 588
"""Two in a hundred less, which is the least while turns wait."""


@pytest.fixture
def broker(redis: RedisServer) -> Iterator[redis_client.Redis]:
    redis.flush()
    with redis.client() as client:
        yield client


def batch(provider: Provider, turns: int = TURNS) -> None:
    """All of it within two seconds."""
    for turn in range(turns):
        provider.come(2 * turn / turns, Lane.BATCH)


def chat(provider: Provider, every: float, until: float = 150.0) -> None:
    for moment in itertools.takewhile(lambda at: at < until, itertools.count(10.0, every)):
        provider.come(moment, Lane.CHAT)


def waits(calls: Sequence[Called], lane: Lane = Lane.CHAT) -> list[float]:
    return [call.waited for call in calls if call.lane is lane]


def over_the_run(calls: Sequence[Called]) -> float:
    return a_minute([call.at for call in calls])


def test_batch_alone_uses_all_of_the_limit_to_the_last_turn(broker: redis_client.Redis):
    batch(provider := Provider(broker, requests=A_MINUTE))
    calls = provider.calls()
    assert len(calls) == TURNS
    assert busiest_minute(calls) <= MOST
    assert over_the_run(calls) >= LEAST
    assert mean(call.asks for call in calls) < 4


@pytest.mark.parametrize("every", [1.0, 0.5], ids=["half-the-reserve", "all-of-the-reserve"])
def test_chat_takes_its_reserve_out_of_what_batch_was_promised(broker: redis_client.Redis, every: float):
    batch(provider := Provider(broker, requests=A_MINUTE))
    chat(provider, every)
    calls = provider.calls()
    assert len(calls) == TURNS + 140 / every
    assert busiest_minute(calls) <= MOST
    assert over_the_run(calls) >= LEAST
    assert max(waits(calls)) == 0, "within its reserve chat waits for nobody"
    assert mean(call.asks for call in calls) < 7, "who was promised a moment is put off a few times"


def test_chat_beyond_its_reserve_stands_in_line_with_batch(broker: redis_client.Redis):
    batch(provider := Provider(broker, requests=A_MINUTE))
    chat(provider, every=0.25, until=60.0)
    calls = provider.calls()
    assert busiest_minute(calls) <= MOST
    assert over_the_run(calls) >= LEAST
    assert sum(call.lane is Lane.BATCH for call in calls if call.at < 60) > 300, "half of the limit, at least"


@pytest.mark.parametrize("late", [(0.0, 0.0), (0.1, 1.0)], ids=["punctual", "late"])
def test_turns_that_come_late_lose_little_and_exceed_nothing(broker: redis_client.Redis, late: tuple[float, float]):
    batch(provider := Provider(broker, late, requests=A_MINUTE))
    chat(provider, every=1.0)
    calls = provider.calls()
    assert busiest_minute(calls) <= MOST
    assert over_the_run(calls) >= LEAST


@pytest.mark.parametrize("part", [0.33, 1.0], ids=["one-worker", "all-workers"])
def test_workers_that_stood_still_do_not_catch_up_at_once(broker: redis_client.Redis, part: float):
    batch(provider := Provider(broker, requests=A_MINUTE))
    chat(provider, every=1.0)
    before = provider.calls(until=60.0)
    provider.hold_up(60.0, 80.0, part)
    after = provider.calls()
    assert len(before) + len(after) == TURNS + 140
    assert busiest_minute([*before, *after]) <= MOST
    assert a_minute([call.at for call in after if 85 <= call.at < 145]) >= LEAST
    assert max(call.at for call in after) < (TURNS + 140) / 10 + 20 * part + 5, "no more is lost than that time"


def test_a_limit_of_few_calls_is_kept_to_one_call(broker: redis_client.Redis):
    batch(provider := Provider(broker, requests=6), turns=20)
    chat(provider, every=55.0)
    calls = provider.calls()
    assert busiest_minute(calls) <= 6 + 2, "one at the beginning, one of chat"
    assert calls[-1].at - calls[0].at < 10 * len(calls)
    assert max(waits(calls)) == 0


def test_tokens_are_lent_as_requests_are(broker: redis_client.Redis):
    provider = Provider(broker, tokens=60_000)
    for turn in range(400):
        provider.come(turn / 200, Lane.BATCH, tokens=100 * (1 + turn % 19))
    for turn in range(50):
        provider.come(10.0 + 6 * turn, Lane.CHAT, tokens=1000)
    calls = provider.calls()
    assert len(calls) == 450
    assert 0.98 * 60 <= over_the_run(calls) <= 1.02 * 60, "a thousand tokens each, on average"
    assert max(waits(calls)) == 0


def test_chat_places_in_flight_are_not_lent(broker: redis_client.Redis):
    provider = Provider(broker, flight=10)
    for _ in range(20):
        provider.come(0.0, Lane.BATCH)
    assert len(provider.calls(until=60.0)) == 8
    provider.come(60.0, Lane.CHAT)
    (call,) = [call for call in provider.calls(until=61.0) if call.lane is Lane.CHAT]
    assert call.waited == 0
