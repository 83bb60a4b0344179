"""The settings of one retention rule: ``[[retention]]`` in a settings file."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inturn.models.content import checked_pattern
from inturn.models.cron import Cron, checked_cron, checked_timezone

if TYPE_CHECKING:
    from inturn.models.store.rules import Rule

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
EXPIRING = {
    "read batches": "batch_days",
    "unread batches": "unread_batch_days",
    "old deliveries": "delivery_days",
    "past spending": "spending_days",
    "old receipts": "receipt_days",
}
"""What expires besides sessions, as receipts call it (no rule has a space in its name), and the setting that says when."""
TICK_DAYS = 30
"""The same of ``old ticks``. The last one of each stays, and nothing is decided by those before."""
RESERVED = ("default", "own", "older-than", "erasure", "discard")
"""What receipts call removals that no configured rule asked for."""
DAY_SECONDS = 86400.0

Days = Annotated[float, Field(ge=0, le=365_000)]


class RetentionSettings(BaseModel):
    """Which sessions it covers, and when they, or what was said in them, are removed. Of several rules that would cover a
    session, the first does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(description="What receipts and commands call it.")
    match: str = Field(
        default="*", min_length=1, description="Session IDs: * is any characters, ? any one. Default all."
    )
    labels: dict[str, str] = Field(default={}, description="Labels that a session has, all of them. Default any.")
    model: str = Field(default="*", min_length=1, description="provider/model, with * and ?. Default any.")
    kind: Literal["any", "batch", "interactive"] = Field(
        default="any", description="Whether a batch made the session. Default any."
    )
    idle_days: Days | None = Field(default=None, description="Removed after so many days without activity.")
    age_days: Days | None = Field(default=None, description="Removed so many days after it was made, in use or not.")
    more_than: int | None = Field(
        default=None, strict=True, ge=0, lt=2**62, description="Only so many stay: those that were active last."
    )
    forever: bool = Field(default=False, description="Never removed by age or for being idle. Default no.")
    keep: Literal["nothing", "metadata"] = Field(
        default="nothing", description="What stays of a session; metadata: all but what was said. Default nothing."
    )
    archive: str = Field(
        default="", repr=False, description="Directory or URL that transcripts are written to before. Default none."
    )
    cron: str | None = Field(
        default=None,
        description="When it is carried out: minute, hour, day, month, weekday. Default with each cleanup.",
    )
    timezone: str | None = Field(default=None, description="Where it is that time: an IANA name. Default UTC.")
    allow_remove_all: bool = Field(
        default=False, description="Whether it may cover every session and keep none of them. Default no."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(
                f"a rule's name is 1 to 60 letters, digits and . _ - and none of {', '.join(RESERVED)}, which receipts use"
            )
        return name

    @field_validator("match", "model")
    @classmethod
    def _plain(cls, pattern: str) -> str:
        """Several stars are one."""
        return re.sub(r"\*+", "*", pattern)

    @field_validator("match")
    @classmethod
    def _possible(cls, match: str) -> str:
        return checked_pattern(match)

    @field_validator("archive")
    @classmethod
    def _absolute(cls, archive: str) -> str:
        """Tied to a place: beat may have been started in another directory than who reads this."""
        return archive if not archive or "://" in archive else str(Path(archive).expanduser().absolute())

    @field_validator("cron", mode="before")
    @classmethod
    def _check_cron(cls, cron: object) -> str | None:
        return None if cron is None else checked_cron(cron, "UTC", datetime.now(UTC)).expression

    @field_validator("timezone", mode="before")
    @classmethod
    def _check_timezone(cls, timezone: object) -> str | None:
        return None if timezone is None else checked_timezone(timezone)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        limits = [limit for limit in (self.idle_days, self.age_days, self.more_than) if limit is not None]
        if self.forever and self.keep != "nothing":
            raise ValueError(
                f"rule {self.name!r} keeps its sessions for ever, and says that of a session only {self.keep} is kept: say "
                "when the rest goes (idle_days, age_days, more_than) and leave forever out, or leave keep out"
            )
        if self.forever and (limits or self.archive or self.cron):
            raise ValueError(f"rule {self.name!r} keeps its sessions for ever: leave its other limits out, or forever")
        if self.timezone and not self.cron:
            raise ValueError(
                f"rule {self.name!r} has a timezone, but no cron to be read in it: add one, or leave it out"
            )
        if not self.forever and not limits:
            raise ValueError(
                f"rule {self.name!r} says nothing of when: give it idle_days, age_days, more_than, or forever = true"
            )
        if 0 in limits and self.covers == EVERYTHING and not self.allow_remove_all:
            raise ValueError(
                f"rule {self.name!r} would remove {self._what} there is: say which ones (match, labels, model, kind), or "
                "set allow_remove_all = true"
            )
        return self

    @property
    def _what(self) -> str:
        return "every session" if self.keep == "nothing" else "what was said in every session"

    def hides(self, other: Self) -> bool:
        """Whether the other one never applies behind this one, as far as that is easily told."""
        return (
            includes(self.match, other.match)
            and includes(self.model, other.model)
            and self.labels.items() <= other.labels.items()
            and self.kind in ("any", other.kind)
        )

    @property
    def covers(self) -> tuple[Any, ...]:
        """What it says of which sessions; equal for rules that cover the same ones."""
        return self.match, tuple(sorted(self.labels.items())), self.model, self.kind

    def moments(self) -> Cron | None:
        """When it is carried out; None: with each cleanup."""
        return None if self.cron is None else Cron(self.cron, self.timezone or "UTC")

    def rule(self) -> "Rule":
        """As the store knows it."""
        from inturn.models.states import Kept
        from inturn.models.store.rules import Rule  # brings SQLAlchemy, which who only looks at settings does not need

        return Rule(
            name=self.name,
            match=self.match,
            model=self.model,
            labels=dict(self.labels),
            from_batch=None if self.kind == "any" else self.kind == "batch",
            idle_seconds=None if self.idle_days is None else self.idle_days * DAY_SECONDS,
            age_seconds=None if self.age_days is None else self.age_days * DAY_SECONDS,
            more_than=self.more_than,
            archive=self.archive,
            keep=Kept(self.keep),
        )


def includes(pattern: str, other: str) -> bool:
    """Whether a pattern is the other one, or all that begins like it."""
    start = pattern.removesuffix("*")
    is_prefix = pattern != start and not {"*", "?"} & set(start)
    return pattern == other or (is_prefix and other.startswith(start))


EVERYTHING = ("*", (), "*", "any")


def checked_rules(rules: Sequence[RetentionSettings]) -> None:
    """Raises: ValueError: two have one name, or one can never apply."""
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two rules are named {twice!r}: give each a name of its own")
    for place, rule in enumerate(rules):
        for before in rules[:place]:
            if before.hides(rule):
                raise ValueError(
                    f"rule {rule.name!r} never applies: {before.name!r}, which comes before it, covers all of its sessions, "
                    "and the first rule that covers one counts. Put it first, or take one of them out"
                )
