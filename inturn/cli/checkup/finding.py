"""What a check-up finds: one line of it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check-up. ``note`` is good to know, ``warn`` worth a look; ``fail`` keeps inturn from working."""

    state: Literal["ok", "note", "warn", "fail"]
    subject: str
    sentence: str
