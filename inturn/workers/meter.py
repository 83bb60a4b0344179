"""Who counts what happens in a process: what it tells with its heartbeat; all else only where its metrics are on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inturn.models.database import Database
from inturn.models.states import FINAL, TurnState
from inturn.models.store.presence import Process
from inturn.models.store.receipts import Removal
from inturn.models.store.sweeping import Rescued
from inturn.models.store.working import Settlement, Started
from inturn.workers.lately import Lately
from inturn.workers.queues import Hints


@dataclass(frozen=True, slots=True)
class Sources:
    """What a process is asked for when somebody reads its metrics.

    Attributes:
        databases: whose connections are counted. The first of them is asked about the deployment.
        heartbeat_age: how many seconds ago its heartbeat was stored.
        leases_held: how many there are now.
        call_soon: has a call made by the loop that its turns run on; where there is none, at once.
    """

    process: Process
    databases: Sequence[Database]
    hints: Hints
    heartbeat_age: Callable[[], float]
    leases_held: Callable[[], int] = lambda: 0
    call_soon: Callable[[Callable[[], object]], object] = lambda call: call()


class Meter:
    """Counts what the process did lately, and nothing else (``telemetry.py`` does). Told by several threads."""

    def __init__(self) -> None:
        self.lately = Lately()

    def serve(self, sources: Sources) -> None:
        """Let the metrics be read by HTTP. Where that cannot be, the log says why, and the process goes on."""

    def stop(self) -> None:
        """Serve no longer."""

    def claimed(self, started: Started, *, goes_on: bool) -> None:
        """A slot has a turn. ``goes_on``: it had the session before, so nobody waited for a worker."""

    def called(self, model: str, seconds: float) -> None:
        """A call to a model is over, whatever came of it."""

    def refused(self, model: str, error_type: str) -> None:
        """It ended in an error of its provider."""

    def settled(self, started: Started, settlement: Settlement | None, becomes: TurnState | None) -> None:
        """An attempt is settled, and its turn is this now; None: the lease was lost, and nothing was stored."""
        if settlement is None or becomes is None:
            return
        if tokens := (settlement.input_tokens or 0) + (settlement.output_tokens or 0):
            self.lately.spent(settlement.price or 0.0, tokens)
        if becomes in FINAL:
            self.lately.ended(started.lane, becomes)

    def committed(self, visits: int, seconds: float) -> None:
        """The ledger has stored what so many visits wanted."""

    def rescued(self, rescued: Rescued) -> None:
        """The sweep has taken over leases."""
        for state, _, lane in rescued.ended:
            self.lately.ended(lane, state)

    def removed(self, removal: Removal) -> None:
        """A cleanup has removed a session."""

    def cleaned_up(self, *, went_well: bool) -> None:
        """A cleanup is over."""
