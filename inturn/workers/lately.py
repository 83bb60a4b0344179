"""What a process did in the last seconds. It tells with its heartbeat, so that who watches need neither ask nor count."""

import time
from collections import Counter, defaultdict, deque
from threading import Lock

from inturn.models.store.presence import Recent

WINDOW_SECONDS = 10.0
"""What is told is of at least as long, and up to a heartbeat longer: a rate over less would jump."""


class Lately:
    """Counts turns that end, and what attempts cost. Told by several threads."""

    def __init__(self) -> None:
        self._counting = Lock()
        self._turns: Counter[tuple[str, str]] = Counter()
        self._usd, self._tokens = 0.0, 0
        self._told: deque[Recent] = deque([self._total()])

    def ended(self, lane: str, state: str) -> None:
        with self._counting:
            self._turns[lane, state] += 1

    def spent(self, usd: float, tokens: int) -> None:
        with self._counting:
            self._usd, self._tokens = self._usd + usd, self._tokens + tokens

    def recent(self) -> Recent:
        """What to tell now: all since the last time that was long enough ago."""
        with self._counting:
            now = self._total()
        while len(self._told) > 1 and now.seconds - self._told[1].seconds >= WINDOW_SECONDS:
            self._told.popleft()
        before = self._told[0]
        self._told.append(now)
        turns: dict[str, dict[str, int]] = defaultdict(dict)
        for lane, states in now.turns.items():
            for state, many in states.items():
                if more := many - before.turns.get(lane, {}).get(state, 0):
                    turns[lane][state] = more
        seconds = round(now.seconds - before.seconds, 3)
        return Recent(seconds, dict(turns), now.usd - before.usd, now.tokens - before.tokens)

    def _total(self) -> Recent:
        """All since the process began; its ``seconds`` are the monotonic clock's."""
        turns: dict[str, dict[str, int]] = defaultdict(dict)
        for (lane, state), many in self._turns.items():
            turns[lane][state] = many
        return Recent(time.monotonic(), dict(turns), self._usd, self._tokens)
