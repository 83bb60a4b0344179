"""What a process tells of its last seconds: all that ended in them, and nothing twice as fast as it was."""

import pytest

from inturn.models.store.presence import Recent
from inturn.workers.lately import Lately


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr("inturn.workers.lately.time.monotonic", lambda: self.now)


def test_a_window_is_of_ten_seconds_and_a_heartbeat_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    counted = Lately()
    told = []
    for _ in range(12):  # one turn a second, a heartbeat every five
        for _ in range(5):
            clock.now += 1
            counted.ended("chat", "completed")
        told.append(counted.recent())
    assert [one.seconds for one in told[:2]] == [5.0, 10.0]
    assert {one.seconds for one in told[2:]} == {10.0}
    assert all(one.ended() / one.seconds == pytest.approx(1.0) for one in told)


def test_what_ended_is_told_by_lane_and_state_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    counted = Lately()
    counted.ended("chat", "completed")
    counted.ended("chat", "failed")
    counted.ended("batch", "failed")
    counted.spent(0.5, 100)
    clock.now += 5
    recent = counted.recent()
    assert recent == Recent(5.0, {"chat": {"completed": 1, "failed": 1}, "batch": {"failed": 1}}, 0.5, 100)
    assert (recent.ended(), recent.ended("chat"), recent.ended("chat", "failed"), recent.ended(None, "failed")) == (
        3,
        2,
        1,
        2,
    )
    for _ in range(4):
        clock.now += 5
        recent = counted.recent()
    assert recent == Recent(10.0)


def test_what_another_version_told_is_no_reason_to_fail() -> None:
    assert Recent.of(None) is None
    assert Recent.of({"seconds": 3.0, "unheard_of": 1}) is None
    assert Recent.of({"seconds": 3.0, "turns": {}, "usd": 0.0, "tokens": 0}) == Recent(3.0)
