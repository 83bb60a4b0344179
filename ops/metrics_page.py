"""The table of ``docs/metrics.md``, made from the definitions: ``python -m ops.metrics_page`` writes it anew."""

import re
from pathlib import Path

from inturn.workers.telemetry import DEFINITIONS, Definition

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- /metrics -->\n"


def table() -> str:
    rows = ["| metric | type | labels | |", "|---|---|---|---|", *map(row, DEFINITIONS)]
    return "\n".join(rows) + "\n"


def row(what: Definition) -> str:
    labels = ", ".join(f"`{label}`" for label in what.labels)
    return f"| `{what.name}` | {what.kind} | {labels} | {what.help} |"


def rewritten(page: str) -> str:
    """The page with the table of today. Raises: ValueError: it has no place for it."""
    made, places = re.subn(f"{BEGIN}.*?{END}", lambda _: BEGIN + table() + END, page, flags=re.DOTALL)
    if places != 1:
        raise ValueError(
            f"{PAGE.name} has {places} places for the table: write {BEGIN.strip()} and {END.strip()} around one"
        )
    return made


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
