"""What a check-up finds of webhooks: secrets that are missing here, and deliveries that somebody should look at."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from inturn.cli.checkup.finding import Finding
from inturn.models.errors import SettingsError

if TYPE_CHECKING:
    from inturn.models.database import Database
    from inturn.settings import Settings

LATE_SECONDS = 3600.0


def check_secrets(settings: "Settings") -> Iterator[Finding]:
    for webhook in settings.webhooks:
        try:
            webhook.secret()
        except SettingsError as error:
            yield Finding(
                "warn", "webhooks", f"{error}. Workers and beats that lack it send nothing to {webhook.name!r}"
            )


def check_deliveries(settings: "Settings", database: "Database") -> Iterator[Finding]:
    """What failed, and what waits for longer than an hour."""
    from inturn.models.store.webhooks import backlog

    known, found = {webhook.name for webhook in settings.webhooks}, backlog(database, LATE_SECONDS)
    if found.failed:
        yield Finding(
            "warn",
            "webhooks",
            f"deliveries that failed: {found.failed}. `inturn webhook list --state failed` says why, and `inturn webhook "
            "redeliver --failed` sends them anew",
        )
    for name, number in found.late.items():
        why = "" if name in known else ", which is not in the settings here (nobody sends it who lacks it)"
        yield Finding(
            "warn",
            "webhooks",
            f"deliveries to {name!r}{why} that wait for more than an hour: {number}. `inturn webhook list --state pending` "
            "says why",
        )
