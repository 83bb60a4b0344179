"""The sheet: a file of lines, and what each of them must come to."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inturn.models.states import AttemptOutcome
from ops.chaos.misdeeds import told

MODEL = "server/model"
LONELY = 0.03
"""The share of lines without a session."""
MISBEHAVING = 0.05
"""The share of lines that upset the model, and how: most of those are answered in the end."""
MISDEEDS: tuple[tuple[int, dict[str, Any]], ...] = (
    (4, {"status": 400}),
    (1, {"status": 500}),
    (4, {"status": 500, "times": 1}),
    (4, {"status": 503, "times": 2}),
    (3, {"status": 429, "times": 1, "retry_after": 1}),
    (1, {"act": "close", "times": 1}),
)
CUSTOM_IDS: tuple[Callable[[int], str], ...] = (
    lambda number: f"row-{number}",
    lambda number: f"résumé № {number}",
    lambda number: f'"quoted"\\{number}',
    lambda number: f"{number:08x}-4e0d-8d3a-a1f3-0242ac120002",
)


@dataclass(frozen=True, slots=True)
class SheetLine:
    """One line.

    Attributes:
        number: from 1.
        custom_id: the number, where the line has none.
        session: None: it gets one of its own.
    """

    number: int
    custom_id: str
    session: str | None
    prompt: str

    @property
    def is_hopeless(self) -> bool:
        """Whether the model refuses it whenever it is asked."""
        outcome, times = told(self.prompt)
        return outcome is not None and times == float("inf")

    @property
    def is_refused(self) -> bool:
        """Whether it does so for good, with 400."""
        return self.is_hopeless and told(self.prompt)[0] is AttemptOutcome.PERMANENT


def write(path: Path, run: str, seed: int, lines: int, sessions: int) -> list[SheetLine]:
    """Write a file of lines of so many sessions, shuffled like cards.

    Args:
        run: what session IDs and prompts begin with.
    """
    dice = random.Random(seed)
    sheet = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(1, lines + 1):
            session = None if dice.random() < LONELY else f"{run}-{dice.randrange(sessions)}"
            line, written = deal(dice, run, number, session)
            sheet.append(line)
            file.write(json.dumps(written, ensure_ascii=dice.random() < 0.5) + "\n")
    return sheet


def deal(dice: random.Random, run: str, number: int, session: str | None) -> tuple[SheetLine, dict[str, Any]]:
    """A line, and how it is written: some without a custom ID, some in OpenAI's form."""
    prompt = f"{run} line {number}"
    if dice.random() < MISBEHAVING:
        weights, directives = zip(*MISDEEDS, strict=True)
        prompt += f" !{json.dumps(dice.choices(directives, weights)[0])}"
    written: dict[str, Any]
    if session is None and dice.random() < 0.5:
        custom_id = dice.choice(CUSTOM_IDS)(number)
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
        written = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return SheetLine(number, custom_id, None, prompt), written
    written = {"prompt": prompt} | ({} if session is None else {"session": session})
    if dice.random() < 0.3:
        return SheetLine(number, str(number), session, prompt), written
    custom_id = dice.choice(CUSTOM_IDS)(number)
    return SheetLine(number, custom_id, session, prompt), {"custom_id": custom_id, **written}
