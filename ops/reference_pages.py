"""Tables of the reference that are made from the code: ``python -m ops.reference_pages`` writes them anew."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from inturn.budget_settings import BudgetSettings
from inturn.origins import ENVIRONMENT_PREFIX
from inturn.provider_settings import ProviderSettings
from inturn.retention_settings import RetentionSettings
from inturn.settings import Settings
from inturn.webhook_settings import WebhookSettings
from inturn.workers.telemetry import DEFINITIONS

DOCS = Path(__file__).parents[1] / "docs"
METRICS, SETTINGS = DOCS / "metrics.md", DOCS / "reference" / "settings.md"
DEFAULT = re.compile(r" ?Default:? (.*)$", re.DOTALL)
"""The last sentence of what a setting says of itself."""


def metrics() -> str:
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for what in DEFINITIONS:
        labels = ", ".join(f"`{label}`" for label in what.labels)
        rows.append(f"| `{what.name}` | {what.kind} | {labels} | {what.help} |")
    return "\n".join(rows) + "\n"


def settings() -> str:
    rows = ["| setting, and in the environment | default | |", "|---|---|---|"]
    for name, (about, default) in fields_of(Settings).items():
        rows.append(f"| `{name}`<br>`{ENVIRONMENT_PREFIX}{name.upper()}` | {default} | {about} |")
    return "\n".join(rows) + "\n"


def entries_of(table: type[BaseModel]) -> Callable[[], str]:
    """What an entry of a table of settings has."""

    def entries() -> str:
        rows = [f"| `{name}` | {default} | {about} |" for name, (about, default) in fields_of(table).items()]
        return "\n".join(["| key | default | |", "|---|---|---|", *rows]) + "\n"

    return entries


def fields_of(model: type[BaseModel]) -> Mapping[str, tuple[str, str]]:
    """Of each setting what it is, and its default in words."""
    found = {}
    for name, field in model.model_fields.items():
        said = (field.description or "").replace("|", "\\|")
        about, default = DEFAULT.sub("", said), DEFAULT.search(said)
        words = default[1].removesuffix(".") if default else "needed" if field.is_required() else "none"
        found[name] = about, words
    return found


TABLES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    METRICS: {"metrics": metrics},
    SETTINGS: {
        "settings": settings,
        "providers": entries_of(ProviderSettings),
        "retention": entries_of(RetentionSettings),
        "budgets": entries_of(BudgetSettings),
        "webhooks": entries_of(WebhookSettings),
    },
}
"""By page and the name that stands in the comments around a table."""


def rewritten(page: Path) -> str:
    """A page with the tables of today. Raises: ValueError: it has no place for one."""
    text = page.read_text()
    for name, table in TABLES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        today = (begin + table() + end).replace("\\", r"\\")  # as re.sub reads it
        text, places = re.subn(f"{begin}.*?{end}", today, text, flags=re.DOTALL)
        if places != 1:
            raise ValueError(
                f"{page.name} has {places} places for {name}: write {begin.strip()} and {end.strip()} around one"
            )
    return text


if __name__ == "__main__":
    for page in TABLES:
        page.write_text(rewritten(page))
