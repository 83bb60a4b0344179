"""Long work on a database in short steps, so that nobody waits long for one of them."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP_SECONDS = 0.1
"""That a step may take by default: whoever needs what it has locked waits no longer."""
GROWTH = 2.0
"""No step is more than so many times as large as the one before, or smaller than that part of it."""
LEAST = 0.2
"""Of the first step, what the smallest one is: what a step costs whatever its size would only be spent more often."""
LONGEST_REST_SECONDS = 2.0


class Pace:
    """How much is done in one transaction, by how long the one before took; and how long the rest after it is.

    Args:
        size: of the first step, in sessions, turns, or whatever is counted.
        step_seconds: that a step is to take.
        share: of the time, what may be spent on it: asked after each step; default all.

    Attributes:
        size: of the next step.
    """

    def __init__(self, size: int, step_seconds: float = STEP_SECONDS, share: Callable[[], float] = lambda: 1.0) -> None:
        self.size = size
        self._least = max(1, round(size * LEAST))
        self._step_seconds, self._share = step_seconds, share

    def counting(self, size: int) -> "Pace":
        """One like it that counts something else."""
        return Pace(size, self._step_seconds, self._share)

    def step(self, work: Callable[[int], T]) -> T:
        """Do so much of it as ``size`` says, and rest."""
        began = time.monotonic()
        done = work(self.size)
        took = time.monotonic() - began
        growth = max(1 / GROWTH, min(GROWTH, self._step_seconds / max(took, 1e-6)))
        self.size = max(self._least, round(self.size * growth))
        time.sleep(min(took / self._share() - took, LONGEST_REST_SECONDS))
        return done
