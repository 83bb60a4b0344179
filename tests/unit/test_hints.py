"""A Redis that keeps a producer waiting is left alone for a while: long by who sends, briefly by who sweeps."""

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from inturn.models.states import Lane
from inturn.models.store.waking import Ready
from inturn.workers import queues
from inturn.workers.queues import BREAKER_SECONDS, REFUSED_SECONDS, SWEEPER_SECONDS, Hints

READY = Ready(7, "session", Lane.CHAT)


class Broker:
    """Celery's app with a Redis that takes so long to say no, on a clock of its own."""

    def __init__(self, takes: float) -> None:
        self.conf = self.settings = SimpleNamespace(has_embedded_broker=False)
        self.now, self.asked, self._takes = 1000.0, 0, takes

    def send_task(self, *words: Any, **how: Any) -> None:
        self.asked += 1
        self.now += self._takes
        raise OperationalError("no")


@pytest.mark.parametrize(
    ("takes", "breaker", "silent"),
    [
        (1.0, BREAKER_SECONDS, BREAKER_SECONDS),
        (1.0, SWEEPER_SECONDS, SWEEPER_SECONDS),
        (0.01, BREAKER_SECONDS, REFUSED_SECONDS),
        (0.01, SWEEPER_SECONDS, REFUSED_SECONDS),
    ],
)
def test_how_long_nothing_is_published(takes: float, breaker: float, silent: float, monkeypatch: pytest.MonkeyPatch):
    broker = Broker(takes)
    monkeypatch.setattr(queues, "time", SimpleNamespace(monotonic=lambda: broker.now))
    hints = Hints(broker, breaker)
    assert not hints.publish(READY, "session")
    for passed, asked in ((silent - 0.5, 1), (0.6, 2)):
        broker.now += passed
        assert not hints.ask("inturn.tidy", 60.0)
        assert broker.asked == asked
    assert hints.failed == 3
