"""The lines of a batch, as they come in and as they come out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from inturn.models.states import Role, TurnState

EXPIRED = "batch_expired"
"""Error type of a line whose batch's completion window was over before a call could be made."""
EXPIRED_SENTENCE = (
    "its batch's completion window was over before a call could be made: `inturn batch retry` sends it again"
)

SESSION_DELETED = "session_deleted"
"""Error type of a line whose session was deleted before its result was read."""


CONTENT_REMOVED = "content_removed"
"""Error type of a line whose reply retention removed before its result was read."""
CONTENT_REMOVED_SENTENCE = "retention removed what was said in its session, and kept what it used"


@dataclass(frozen=True, slots=True)
class Utterance:
    """A message that a line brings along: of the history before its prompt, or of what follows it.

    Attributes:
        content: its text; of parts that are none, with a mark for each.
        data: what is no text, as ``messages.data`` keeps it: ``parts``, ``tool_calls``, ``tool_call_id``, ``name``.
    """

    role: Role
    content: str
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no prompt.

    Attributes:
        line: its number in the file, from 1; blank lines count.
        custom_id: its own, or its number where it has none or none that can be read.
        code: ``invalid_json_line``, ``missing_field``, ...
        message: what is wrong with it, with the value, and what to do.
    """

    line: int
    custom_id: str
    code: str
    message: str


@dataclass(
    slots=True
)  # not frozen: with so many fields that makes it six times as slow to make, and there are millions
class Line:
    """A prompt of a batch, checked, as it will be stored.

    Attributes:
        line: its number in the file, from 1; blank lines count.
        custom_id: its own, or its number.
        prompt: its text; see ``checked_content``.
        data: its parts, if it is more than text.
        session: the ID of a session, which is made if there is none; None: one of its own, ``<batch>:<line>``.
        model: ``provider/model``; None: the session's, or for a new one the batch's.
        system: the system message from here on; None: the one in force, or for a new session the batch's.
        options: for the provider, with this turn.
        labels: of the session, if it is made.
        history: what was said before; only where ``session`` is None.
        follows: what was said since the prompt, such as results of tools.
    """

    line: int
    custom_id: str
    prompt: str
    data: dict[str, Any] | None = None
    session: str | None = None
    model: str | None = None
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Utterance, ...] = ()
    follows: tuple[Utterance, ...] = ()


class LineResult(NamedTuple):
    """What became of a line.

    Attributes:
        line: its number in the file, from 1.
        state: of its turn, ``failed`` also where its reply was removed; None: it has none.
        session_id, turn_id, model: None, where it has no turn.
        reply: None, unless the turn is completed.
        finish_reason: why the model stopped, in the provider's word; None: it did not say.
        error_type: None, where there is a reply; ``batch_cancelled`` and ``batch_expired``, where no call was made.
        error_status: the provider's HTTP status, where it refused.
        price: in US dollars; None: nobody knows.
        tool_calls: what the model wants called, as OpenAI writes it, where its options offered tools; None: nothing.
    """

    line: int
    custom_id: str
    state: TurnState | None
    session_id: str | None
    turn_id: str | None
    model: str | None
    reply: str | None
    finish_reason: str | None
    error_type: str | None
    error_message: str | None
    error_status: int | None
    input_tokens: int | None
    output_tokens: int | None
    price: float | None
    attempts: int
    finished_at: datetime
    tool_calls: list[dict[str, Any]] | None = None


class LineSet:
    """Numbers of lines, at one bit for each up to the highest: 125 kB for a million."""

    __slots__ = ("_bits", "_count")

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, line: int) -> bool:
        place = line >> 3
        return place < len(self._bits) and self._bits[place] >> (line & 7) & 1 == 1

    def add(self, line: int) -> bool:
        """Whether it is new."""
        place, bit = line >> 3, 1 << (line & 7)
        bits = self._bits
        if place >= len(bits):
            bits.extend(bytes(max(place + 1 - len(bits), len(bits) >> 3)))
        elif bits[place] & bit:
            return False
        bits[place] |= bit
        self._count += 1
        return True

    def discard(self, line: int) -> bool:
        """Whether it was there."""
        if line not in self:
            return False
        self._bits[line >> 3] ^= 1 << (line & 7)
        self._count -= 1
        return True

    def clear(self) -> None:
        self._bits.clear()
        self._count = 0
