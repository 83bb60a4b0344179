"""The producers' log: what inturn promised them, and what they asked of it. One of the books that are compared."""

from dataclasses import dataclass, field
from enum import StrEnum


class Population(StrEnum):
    """What a session is there for; it says which fates its turns may have."""

    PLAIN = "plain"
    """Every prompt must be answered."""
    MISBEHAVING = "misbehaving"
    """The model server does what the prompts tell it."""
    MEDDLED = "meddled"
    """Turns are cancelled, interrupted and merged."""
    DOOMED = "doomed"
    """Deleted in the middle of everything, and made again under the same ID."""
    ERASED = "erased"
    """Like a doomed one, together with all that have its label or the beginning of its ID."""
    EXPIRING = "expiring"
    """A rule of retention removes it whenever it may."""
    FILED = "filed"
    """Like an expiring one, and is archived before."""
    STRIPPED = "stripped"
    """A rule of retention removes what was said in it whenever it may, and nothing else."""
    HELD = "held"
    """Like an expiring one, and exempted from that: every prompt must be answered."""
    KEPT = "kept"
    """A rule keeps it for ever: every prompt must be answered."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A prompt that ``send`` returned for.

    Attributes:
        seconds: how long the ``send`` took that returned.
        at: Unix time when it did.
        when_busy: what was asked for if there are unfinished turns before it.
        not_before: Unix time before which no model may be asked.
    """

    session: int
    number: int
    prompt: str
    seconds: float
    at: float = 0.0
    population: Population = Population.PLAIN
    when_busy: str = "enqueue"
    not_before: float = 0.0

    @property
    def turn(self) -> tuple[int, int]:
        return self.session, self.number


@dataclass(frozen=True, slots=True)
class Refused:
    """A ``send`` that ended with a StorageError; it is repeated under the same idempotency key."""

    prompt: str
    seconds: float
    at: float
    reason: str


@dataclass(slots=True)
class Cancel:
    """A turn that somebody asked to take back; ``confirmed`` once it was seen cancelled."""

    session: int
    number: int
    at: float
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    """A session that is gone.

    Attributes:
        session: its surrogate id, which nobody else ever gets.
        canary: a text that nothing but its prompts held.
        at: Unix time when it was seen gone.
        expired: whether a rule of retention removed it, rather than its user.
        since: Unix time from which on somebody tried to make it. It may be there at once, and the answer be lost.
    """

    session: int
    key: str
    canary: str
    at: float
    expired: bool = False
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Hold:
    """For how long whichever session had this ID was surely held, in Unix time."""

    key: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Guest:
    """A session that was imported out of an archive, under an ID that is none of the run's, with so many turns."""

    key: str
    turns: int


@dataclass
class Log:
    """All of it, in the order in which it came back; threads append.

    Attributes:
        run: what the IDs of the run's sessions begin with; the database may hold others.
    """

    run: str = ""
    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    cancels: list[Cancel] = field(default_factory=list)
    deleted: list[Deleted] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    guests: list[Guest] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    """What the SDK said and may not say, as sentences: another turn for the same idempotency key, say."""
