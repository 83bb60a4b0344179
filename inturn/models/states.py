"""The states a turn, an attempt and a session can be in: what each means, and who moves it on.

Final states are past participles, carry ``finished_at`` (a CHECK) and are never left (a trigger).
"""

from collections.abc import Iterable
from enum import StrEnum


class TurnState(StrEnum):
    """The life of one turn. Waiting for a retry is ``queued`` with ``ready_at`` in the future."""

    QUEUED = "queued"
    """Stored, and waiting for its turn. A worker's ``claim`` moves it on; the sweep re-sends its hint if that was lost."""
    RUNNING = "running"
    """A worker holds the session's lease and an attempt is recorded. ``settle`` moves it on; when the worker dies, the
    sweep puts it back to ``queued`` once the lease has expired."""
    COMPLETED = "completed"
    """The reply is stored."""
    FAILED = "failed"
    """No reply, and no further attempt will be made."""
    CANCELLED = "cancelled"
    """Its user took it back before a reply was stored."""


UNFINISHED = (TurnState.QUEUED, TurnState.RUNNING)
FINAL = (TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED)


POISONED = ("worker_lost", "unstorable", "reply_too_large")
"""Error types of a quarantined turn: its reply kills the process that reads it, cannot be stored, or exhausts memory."""


class AttemptOutcome(StrEnum):
    """How one try at a turn ended. An attempt without an outcome is under way, or its worker died and nobody noticed yet."""

    COMPLETED = "completed"
    SAFE = "safe"
    """The provider did no work for it (refused, 429, 503): repeating costs nothing."""
    AMBIGUOUS = "ambiguous"
    """The provider may have worked on it (timeout after sending, reset, 500): repeating may cost twice."""
    PERMANENT = "permanent"
    """Repeating would fail again (400, 401, 403, 404, 422, a reply that cannot be stored)."""
    CANCELLED = "cancelled"
    LOST = "lost"
    """Its worker died or lost the lease: whether the call was made is not known."""


class SessionState(StrEnum):
    ACTIVE = "active"
    DELETING = "deleting"
    """Being removed: takes no sends, and workers are fenced out. The remover takes its rows away in chunks; if that
    process dies, the sweep finishes."""


class Lane(StrEnum):
    """A class of work with reserved workers; the Celery queue of the same name carries its hints."""

    CHAT = "chat"
    BATCH = "batch"
    MAINTENANCE = "maintenance"


def slots_of(lane: str, served: Iterable[str], slots: int, batch_share: float) -> int:
    """How many slots of a worker that serves these lanes one of them may take: batch leaves some free for chat."""
    if lane != Lane.BATCH or Lane.CHAT not in served:
        return slots
    return max(1, min(slots - 1, int(slots * batch_share)))


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Retention(StrEnum):
    """Which rule says when a session is removed."""

    POLICY = "policy"
    """The configured default."""
    IDLE = "idle"
    """After an idle time of the session's own, in ``retention_seconds``."""
    NEVER = "never"


class Kept(StrEnum):
    """What is left of a session that a rule of retention has dealt with."""

    NOTHING = "nothing"
    METADATA = "metadata"
    """Its rows, with states, times and what was used; nothing of what was said."""


class Overflow(StrEnum):
    """What becomes of a session's history once it is more than its model may be shown."""

    TRUNCATE = "truncate"
    """The oldest turns are left out, whole."""
    FAIL = "fail"
    """The turn fails, before its call."""
    SUMMARISE = "summarise"
    """The model first writes a summary of the older turns, which is stored and shown in their place."""


class BatchState(StrEnum):
    """The life of a batch, by the names of OpenAI's. The last four are final, and carry ``finished_at``; only
    ``retry`` brings one back to work.
    """

    VALIDATING = "validating"
    """Its lines were checked and are being stored; those that are stored run. Whoever submits it moves it on, or submits it
    again; the sweep fails it a day after the last line came."""
    IN_PROGRESS = "in_progress"
    """All lines are stored. Whoever sees its last line final (the sweep, or who waits for it) moves it on."""
    CANCELLING = "cancelling"
    """Its waiting lines are being cancelled, and its running ones finish. The sweep goes on with that."""
    FINALIZING = "finalizing"
    """All lines are final, and are being counted; a sweep that finds one counts again."""
    COMPLETED = "completed"
    """Every line was tried: some may have failed."""
    FAILED = "failed"
    """Its submission was given up half way."""
    EXPIRED = "expired"
    """Its completion window was over before all lines were tried."""
    CANCELLED = "cancelled"


BATCH_FINAL = (BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED)


class DeliveryState(StrEnum):
    """The life of one webhook."""

    PENDING = "pending"
    """To be sent once ``ready_at`` has come, by any process that runs the crew."""
    DELIVERED = "delivered"
    FAILED = "failed"
    """No further attempt is made, unless it is asked for."""


class Misfire(StrEnum):
    """What becomes of a schedule's runs that nobody was there to fire."""

    SKIP = "skip"
    """They are left out."""
    ONCE = "once"
    """The latest of them is fired, for all."""
    ALL = "all"
    """Each of them is fired, the latest hundred at most."""


class ProcessKind(StrEnum):
    WORKER = "worker"
    BEAT = "beat"
