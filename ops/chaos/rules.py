"""The rules of retention of a run, and the sessions that each is for: an ID, a label or a model says which."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from inturn.models.states import Kept
from ops.chaos.promises import Population

DAY_SECONDS = 86400.0
SOON_SECONDS, OLD_SECONDS = 1.0, 3.0
"""Retention's shortest time is a second: some sessions are removed between two prompts."""
MOST = 2
FILED = {"keep": "file"}
OWN, ERASURE = "own", "erasure"


@dataclass(frozen=True)
class Group:
    """Sessions that one rule covers, whose IDs say so: ``RUN-NAME-0``.

    Attributes:
        name: the rule's, too.
        says: the rule, as in ``inturn.toml``; empty: the sessions' own times are one.
        how: they are made.
        size: how many there are, beside one that is held; 0: the rule is for none, and takes nothing.
        idle_seconds, age_seconds, most: when the rule comes for them: idle, made so long ago, more than so many.
    """

    name: str
    says: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    size: int = 2
    idle_seconds: float | None = None
    age_seconds: float | None = None
    most: int | None = None

    @property
    def is_kept(self) -> bool:
        return bool(self.says.get("forever"))

    @property
    def is_archived(self) -> bool:
        return "archive" in self.says

    @property
    def is_stripped(self) -> bool:
        """Whether only what was said goes."""
        return self.says.get("keep") == Kept.METADATA

    @property
    def is_timed(self) -> bool:
        """Whether beat carries the rule out at moments of its own, none of which is in a run."""
        return "cron" in self.says

    @property
    def population(self) -> Population:
        if self.is_kept:
            return Population.KEPT
        if self.is_stripped:
            return Population.STRIPPED
        return Population.FILED if self.is_archived else Population.EXPIRING


def idle(name: str, says: dict[str, Any], size: int = 2, **how: Any) -> Group:
    return Group(name, says | {"idle_days": SOON_SECONDS / DAY_SECONDS}, how, size, idle_seconds=SOON_SECONDS)


GROUPS = (
    Group(OWN, how={"retention": timedelta(seconds=SOON_SECONDS)}, size=3, idle_seconds=SOON_SECONDS),
    # By its label it would be for another rule as well, which comes later.
    Group("kept", {"match": "*-kept-*", "forever": True}, how={"labels": FILED}),
    # By its label it would be for another one, too, while it waits for its moment.
    idle("yearly", {"match": "*-yearly-*", "cron": "0 0 29 2 *"}, size=1, labels=FILED),
    Group("few", {"match": "*-few-*", "more_than": MOST}, size=4, most=MOST),
    Group("aged", {"match": "*-aged-*", "age_days": OLD_SECONDS / DAY_SECONDS}, age_seconds=OLD_SECONDS),
    idle("filed", {"labels": FILED, "archive": ""}, labels=FILED),
    idle("brief", {"model": "server/brief"}, model="server/brief"),
    idle("lines", {"match": "*-spoken-*", "kind": "batch"}, size=0),
    idle("spoken", {"match": "*-spoken-*", "kind": "interactive"}, size=1),
    idle("text", {"match": "*-text-*", "keep": "metadata"}),
    idle("idle", {"match": "*-idle-*"}),
)


def retention(archives: Path) -> dict[str, Any]:
    """Settings: the rules, and a cleanup every other second, in small chunks.

    Args:
        archives: a directory.
    """
    rules = [
        {"name": group.name} | group.says | ({"archive": str(archives)} if group.is_archived else {})
        for group in GROUPS
        if group.says
    ]
    return {"retention": rules, "cleanup_interval_seconds": 2, "cleanup_chunk": 2}


def groups_of(rules: Collection[str]) -> list[Group]:
    """Those whose rules a deployment has."""
    return [group for group in GROUPS if not group.says or group.name in rules]


def group_of(run: str, key: str) -> Group | None:
    """Whose a session is, by its ID."""
    name = key.removeprefix(f"{run}-").partition("-")[0]
    return next((group for group in GROUPS if group.name == name), None)
