"""Who tells the way of a turn, from ``send`` to the stored reply: nobody, unless traces are on; then ``spans.py`` does."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from inturn.models.states import TurnState
    from inturn.models.store.reading import TurnRecord
    from inturn.models.store.working import Settlement, Started
    from inturn.workers.provider import OnDelta, Prompt, Reply, ToolCall

T = TypeVar("T")


class Span:
    """A stretch of the way, for a ``with``. This one is told to nobody.

    Attributes:
        trace: what is stored with a turn, so that its worker goes on with it; None: nothing.
    """

    trace: Mapping[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def sent(self, turn: "TurnRecord") -> None:
        """A prompt is stored."""

    def sent_together(self, many: int, batch: str = "") -> None:
        """So many of them are."""

    def hearing(self, tell: "OnDelta | None") -> "OnDelta | None":
        """For who makes the call: whom to tell of a reply's pieces."""
        return tell

    def answered(self, reply: "Reply") -> None:
        """A model has."""

    def came_back(self, result: str, error: str) -> None:
        """A tool has; ``error``: what kind of, if it failed."""

    def ended(self, settlement: "Settlement | None", becomes: "TurnState | None") -> None:
        """An attempt is stored, and its turn is this now; None: the lease was lost, and nothing was stored."""

    def drop(self) -> None:
        """Nothing came of it: it is not told of."""

    def within(self, work: Callable[[], T]) -> Callable[[], T]:
        """For a thread: the work, which then is a part of this."""
        return work


NOTHING = Span()


class Tracer:
    """Tells nobody. Used by several threads."""

    def send(self, lane: str, session: str = "") -> Span:
        """A prompt is accepted."""
        return NOTHING

    def send_many(self, lane: str) -> Span:
        """Prompts are accepted together, or a batch."""
        return NOTHING

    def process(self, started: "Started") -> Span:
        """A worker works on a turn: one attempt, with all that belongs to it."""
        return NOTHING

    def chat(self, started: "Started", prompt: "Prompt") -> Span:
        """A model is called."""
        return NOTHING

    def tool(self, call: "ToolCall", *, is_known: bool) -> Span:
        """A tool is run. The name of one that is not known is the model's text."""
        return NOTHING

    def store(self, settlement: "Settlement | None") -> Span:
        """What came of an attempt is stored."""
        return NOTHING

    def stop(self) -> None:
        """Send what is left to be sent, for a moment."""
