"""The batch lane leaves slots to chat, and its hints where they are meanwhile."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from inturn.models.states import Lane
from inturn.workers import shares as module
from inturn.workers.shares import OpenLanes, Shares

ALL = [str(lane) for lane in Lane]


@pytest.mark.parametrize(
    ("lanes", "slots", "batch_share", "limit"),
    [(ALL, 10, 0.8, 8), (ALL, 1000, 0.5, 500), (ALL, 2, 0.9, 1), (ALL, 1, 0.8, 1), (ALL, 3, 0.1, 1), (ALL, 10, 1.0, 9)],
)
def test_batch_takes_its_share_and_no_more(lanes: list[str], slots: int, batch_share: float, limit: int):
    shares = Shares()
    shares.share_out(lanes, slots, batch_share)
    with ExitStack() as taken:
        for _ in range(limit):
            assert shares.is_open(Lane.BATCH)
            taken.enter_context(shares.slot(Lane.BATCH))
        assert not shares.is_open(Lane.BATCH)
        assert shares.is_open(Lane.CHAT)
    assert shares.is_open(Lane.BATCH)


@pytest.mark.parametrize("lanes", [["batch"], ["batch", "maintenance"], ["chat"]])
def test_a_worker_that_serves_one_of_them_has_no_limit(lanes: list[str]):
    shares = Shares()
    shares.share_out(lanes, 2, 0.5)
    with shares.slot(Lane.BATCH), shares.slot(Lane.BATCH), shares.slot(Lane.BATCH):
        assert shares.is_open(Lane.BATCH)


def test_queues_of_a_full_lane_are_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "shares", shares := Shares())
    shares.share_out(ALL, 2, 0.5)
    cycle = OpenLanes()
    cycle.update(ALL)
    assert cycle.consume(3) == ALL
    with shares.slot(Lane.BATCH):
        assert cycle.consume(3) == ["chat", "maintenance"]
    cycle.rotate("chat")
    assert cycle.consume(3) == ["batch", "maintenance", "chat"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def looked(shares: Shares, clock: SimpleNamespace, wait: float, looks: int) -> int:
    """So many looks, each after a wait of this length; returns how many slots batch may take then."""
    for _ in range(looks):
        clock.now += module.LOOK_SECONDS
        shares.felt(wait)
    return shares._limits[Lane.BATCH]


def test_batch_gives_way_while_chat_waits_for_the_ledger(clock: SimpleNamespace):
    shares = Shares()
    shares.share_out(ALL, 1000, 0.8)
    with ExitStack() as taken:
        for _ in range(800):
            taken.enter_context(shares.slot(Lane.BATCH))
        assert looked(shares, clock, wait=5.0, looks=3) == 800, "nobody else is there"
        with shares.slot(Lane.CHAT):
            assert looked(shares, clock, wait=0.1, looks=3) == 800, "nobody would notice"
            assert looked(shares, clock, wait=0.3, looks=1) == 680
            assert not shares.is_open(Lane.BATCH)
            assert not shares.may_go_on(Lane.BATCH)
            assert looked(shares, clock, wait=0.3, looks=100) == 40, "it is never starved"
        assert looked(shares, clock, wait=0.3, looks=1) == 40, "the next chat turn is expected"
        clock.now += module.CHAT_SECONDS
        assert looked(shares, clock, wait=0.3, looks=19) == 800


def test_one_long_wait_between_two_looks_counts(clock: SimpleNamespace):
    shares = Shares()
    shares.share_out(ALL, 100, 0.8)
    with shares.slot(Lane.CHAT), ExitStack() as taken:
        for _ in range(80):
            taken.enter_context(shares.slot(Lane.BATCH))
        looked(shares, clock, wait=0.0, looks=1)
        shares.felt(0.4)
        assert looked(shares, clock, wait=0.0, looks=1) == 68
        assert looked(shares, clock, wait=0.0, looks=1) == 72
