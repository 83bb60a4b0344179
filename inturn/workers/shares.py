"""How a worker's slots are shared out among its lanes: the batch lane leaves some free, so that chat never waits for one.

A lane that has taken its share is not asked for more: its hints stay in Redis, for this worker later or for another one
now. Kombu asks a cycle which queues it shall read next, and ``OpenLanes`` is ours.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu.utils.scheduling import round_robin_cycle

from inturn.models.states import Lane, slots_of

CHAT_SECONDS = 30.0
"""How long after a chat turn the next one is expected."""
BEARABLE_SECONDS = 0.15
"""The longest wait for the ledger at which a person notices nothing; there are two in a turn."""
LOOK_SECONDS = 0.5
LESS, STEPS_BACK = 0.85, 20
"""Batch's share shrinks by a part, and comes back in equal steps: quick to give way, slow to return."""


class Shares:
    """The slots of one process, as its lanes have taken them.

    The batch lane may take a share of them. Where it alone would keep the process so busy that chat waits for its turn in
    the ledger, it gets less for as long as chat is there, and its share back afterwards.
    """

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        self._share = 0
        self._taken: Counter[str] = Counter()
        self._chat_until = self._next_look = self._longest_wait = 0.0

    def share_out(self, lanes: Iterable[str], slots: int, batch_share: float) -> None:
        """Keep slots free of batch, where chat is served beside it; one slot is always its own."""
        served = set(lanes)
        self._share = slots_of(Lane.BATCH, served, slots, batch_share)
        self._limits = {Lane.BATCH: self._share} if {Lane.CHAT, Lane.BATCH} <= served else {}

    @contextmanager
    def slot(self, lane: Lane) -> Iterator[None]:
        """A slot that works for this lane."""
        self._taken[lane] += 1
        try:
            yield
        finally:
            self._taken[lane] -= 1
            if lane is Lane.CHAT:
                self._chat_until = time.monotonic() + CHAT_SECONDS

    def is_open(self, lane: str) -> bool:
        """Whether the lane may take another slot. The hub thread asks."""
        return lane not in self._limits or self._taken[lane] < self._limits[lane]

    def may_go_on(self, lane: Lane) -> bool:
        """Whether a slot of this lane may begin another turn, or has to be given back."""
        return lane not in self._limits or self._taken[lane] <= self._limits[lane]

    def felt(self, seconds: float) -> None:
        """A slot has waited for the ledger for so long. The loop thread says so, all the time."""
        self._longest_wait = max(self._longest_wait, seconds)
        now = time.monotonic()
        if now < self._next_look or not self._limits:
            return
        self._next_look = now + LOOK_SECONDS
        has_chat = self._taken[Lane.CHAT] > 0 or now < self._chat_until
        if has_chat and self._longest_wait > BEARABLE_SECONDS:
            limit = int(min(self._limits[Lane.BATCH], self._taken[Lane.BATCH]) * LESS)
        else:
            limit = self._limits[Lane.BATCH] + max(1, self._share // STEPS_BACK)
        self._limits[Lane.BATCH] = min(self._share, max(1, self._share // STEPS_BACK, limit))
        self._longest_wait = 0.0


shares = Shares()
"""Of this process: kombu makes its cycles itself, and hands them nothing."""


class OpenLanes(round_robin_cycle):
    """Which queues to read next: in turns, without those whose lane has taken its share."""

    def consume(self, n: int) -> list[Any]:
        """Up to ``n`` of them; a message that is on its way already still comes."""
        return [queue for queue in self.items[:n] if shares.is_open(queue)]
