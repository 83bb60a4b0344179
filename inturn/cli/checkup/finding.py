"""What a check-up finds: one line of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RUNBOOK = "docs/runbook.md#"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check-up. ``note`` is good to know, ``warn`` worth a look; ``fail`` keeps inturn from working.

    Attributes:
        check: a name that stays, for programs; by default the subject.
        see: where more is written about it.
        more: figures, for programs.
    """

    state: Literal["ok", "note", "warn", "fail"]
    subject: str
    sentence: str
    check: str = field(default="", compare=False)
    see: str = field(default="", compare=False)
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        known = {"check": self.check or self.subject, "state": self.state, "subject": self.subject}
        return {**known, "sentence": self.sentence, "see": self.see or None, **self.more}
