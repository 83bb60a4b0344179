"""Long work on a database in short steps, so that nobody waits long for one of them."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

GROWTH = 2.0
"""A step is at most so many times as large as the one before, and no smaller than its reciprocal."""


class Pace:
    """How much is done in one transaction, by how long the ones before took; and how long the rest after it is.

    Args:
        step_seconds: that a step is to take.
        size: of the first step, in whatever is counted.
        most: the largest step.
        share: of the time, what may be spent on it: asked after each step; default all.
    """

    def __init__(self, step_seconds: float, size: int, most: int, share: Callable[[], float] = lambda: 1.0) -> None:
        self.size = min(size, most)
        self._step_seconds, self._most, self._share = step_seconds, most, share

    def step(self, work: Callable[[int], T]) -> T:
        """Do so much of it as ``size`` says, and rest."""
        began = time.monotonic()
        done = work(self.size)
        took = time.monotonic() - began
        growth = self._step_seconds / max(took, 1e-6)
        self.size = max(1, min(self._most, round(self.size * max(1 / GROWTH, min(GROWTH, growth)))))
        time.sleep(took / self._share() - took)
        return done
