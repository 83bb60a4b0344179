"""What a prompt does that does not wait behind the others: it interrupts them, or takes them along.

The caller holds the locks of the session and of its lease, so that nothing is claimed or settled meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, LargeBinary, cast, func, select, update

from inturn.models.clock import now
from inturn.models.content import PARTS_LIMIT, PROMPT_LIMIT, parts_size
from inturn.models.errors import InvalidPromptError
from inturn.models.states import TurnState
from inturn.models.store.opening import PROMPT
from inturn.models.tables import MESSAGES, TURNS

BLANK_LINE = "\n\n"
"""Between two prompts that were joined."""
Prompted = tuple[str, dict[str, Any] | None]
"""A prompt's text, and its parts if it is more than that."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A prompt with those that waited before it.

    Attributes:
        not_before: the latest time that any of those was put off to.
        streams: whether the reply to any of those was to be told while it arrives.
        is_next: whether no turn waits before it any more.
    """

    prompt: str
    not_before: datetime | None
    streams: bool
    data: dict[str, Any] | None = None
    """Its parts, if it is more than text."""
    is_next: bool = False


def interrupt(db: Connection, session_id: int) -> bool:
    """Cancel the turns that wait, and ask for the running one back. Returns whether its worker is to be told."""
    mine = TURNS.c.session_id == session_id
    db.execute(
        update(TURNS)
        .where(mine, TURNS.c.state == TurnState.QUEUED)
        .values(state=TurnState.CANCELLED, finished_at=now(), cancel_requested_at=now())
    )
    flagged = db.execute(
        update(TURNS)
        .where(mine, TURNS.c.state == TurnState.RUNNING, TURNS.c.cancel_requested_at.is_(None))
        .values(cancel_requested_at=now())
    )
    return flagged.rowcount > 0


def join(db: Connection, session_id: int, number: int, new: Joined) -> Joined:
    """End the turns that wait: they are answered in turn ``number``. One that waits between two rounds has its tools' work
    behind it, and is left to itself as if it were running; so is a line of a batch, whose result somebody reads by itself.

    Raises:
        InvalidPromptError: all of them together are larger than a prompt may be.
    """
    by_itself = (TURNS.c.steps > 0) | TURNS.c.batch_id.is_not(None)
    waiting = (TURNS.c.session_id == session_id) & (TURNS.c.state == TurnState.QUEUED) & ~by_itself
    _check_size(db, waiting, new.prompt)
    prompts = [*_prompts(db, waiting), (new.prompt, new.data)]
    data = _joined_parts(prompts)
    ended = db.execute(
        update(TURNS)
        .where(waiting)
        .values(state=TurnState.CANCELLED, finished_at=now(), merged_into=number)
        .returning(TURNS.c.ready_at, TURNS.c.attempts, TURNS.c.streams)
    ).all()
    put_off = [row.ready_at for row in ended if row.attempts == 0]
    joined = BLANK_LINE.join(prompt for prompt, _ in prompts)
    waits = select(TURNS.c.number).where(TURNS.c.session_id == session_id, TURNS.c.state == TurnState.QUEUED)
    is_next = db.execute(waits.limit(1)).first() is None
    return Joined(joined, max(put_off, default=None), any(row.streams for row in ended), data, is_next)


def _joined_parts(prompts: Sequence[Prompted]) -> dict[str, Any] | None:
    """The parts of all of them in order, texts as parts; None if there are only texts.

    Raises:
        InvalidPromptError: they are too large together.
    """
    if not any(data for _, data in prompts):
        return None
    parts = [part for text, data in prompts for part in (data or {"parts": [{"type": "text", "text": text}]})["parts"]]
    if (size := parts_size(parts)) > PARTS_LIMIT:
        raise InvalidPromptError(
            f"joined with those that wait, the prompt's parts have {size:,} bytes, and {PARTS_LIMIT:,} (4 MiB) are the "
            "limit (an image grows by a third as base64); nothing was stored. when_busy='enqueue' sends it by itself"
        )
    return {"parts": parts}


def with_joined(db: Connection, session_id: int, number: int, prompt: str) -> str:
    """The prompt as ``join`` stored it for this turn, with those that were joined into it."""
    joined = (TURNS.c.session_id == session_id) & (TURNS.c.merged_into == number)
    return BLANK_LINE.join([*(prompt for prompt, _ in _prompts(db, joined)), prompt])


def _prompts(db: Connection, whose: ColumnElement[bool]) -> list[Prompted]:
    said = select(MESSAGES.c.content, MESSAGES.c.data).join_from(TURNS, MESSAGES, _prompt_of()).where(whose)
    return [(row.content, row.data) for row in db.execute(said.order_by(TURNS.c.number))]


def _prompt_of() -> ColumnElement[bool]:
    mine = (MESSAGES.c.session_id == TURNS.c.session_id) & (MESSAGES.c.turn_number == TURNS.c.number)
    return mine & (MESSAGES.c.position == PROMPT)


def _check_size(db: Connection, waiting: ColumnElement[bool], prompt: str) -> None:
    """In SQL, before anything is loaded: a thousand long prompts may wait."""
    content = MESSAGES.c.content
    of_one = func.octet_length(content) if db.dialect.name == "postgresql" else func.length(cast(content, LargeBinary))
    row = db.execute(
        select(func.count().label("prompts"), func.coalesce(func.sum(of_one), 0).label("bytes"))
        .join_from(TURNS, MESSAGES, _prompt_of())
        .where(waiting)
    ).one()
    own = len(prompt.encode())
    together = own + row.bytes + row.prompts * len(BLANK_LINE)
    if row.prompts and together > PROMPT_LIMIT:
        raise InvalidPromptError(
            f"the prompt has {own:,} bytes, joined with the {row.prompts:,} that wait it has {together:,}, and "
            f"{PROMPT_LIMIT:,} (256 KiB) are the limit; nothing was stored. when_busy='enqueue' sends it by itself"
        )
