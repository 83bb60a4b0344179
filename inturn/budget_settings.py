"""The settings of one budget: ``[[budgets]]`` in a settings file."""

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from inturn.models.store.budgets import Budget

SCOPE = re.compile(r"all|session|label:[^=]+(=.+)?", re.DOTALL)

Dollars = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, lt=2**62)]


class BudgetSettings(BaseModel):
    """What may be spent, by whom, and what becomes of turns once it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(max_length=100)] = Field(
        default="", description="What messages call it. Default its scope."
    )
    scope: str = Field(
        default="all",
        description="Who spends it together: all, session (each by itself), label:team (each value by itself) or "
        "label:team=legal. Default all.",
    )
    period: Literal["day", "ever"] = Field(
        default="day", description="Anew each day (UTC), or once and for ever. Default day."
    )
    usd: Dollars | None = Field(default=None, description="US dollars. Default no limit.")
    tokens: Tokens | None = Field(default=None, description="Tokens of prompts and replies. Default no limit.")
    on_budget: Literal["fail", "wait"] = Field(
        default="fail", description="What turns do when it is used up: fail, or wait for the next day. Default fail."
    )

    @field_validator("scope")
    @classmethod
    def _check_scope(cls, scope: str) -> str:
        if not SCOPE.fullmatch(scope):
            raise ValueError("a scope is all, session, label:NAME (each value by itself) or label:NAME=VALUE")
        return scope

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.usd is None and self.tokens is None:
            raise ValueError("a budget limits something: give it usd, tokens, or both")
        if self.on_budget == "wait" and self.period == "ever":
            raise ValueError(
                'turns that wait for a budget of period "ever" would wait for ever: set on_budget to "fail", or period to '
                '"day"'
            )
        return self

    def budget(self) -> "Budget":
        """As the store knows it."""
        from inturn.models.store.budgets import (
            Budget,  # brings SQLAlchemy, which who only looks at settings does not need
        )

        return Budget(
            name=self.name or self.scope,
            scope=self.scope,
            daily=self.period == "day",
            usd=self.usd,
            tokens=self.tokens,
            waits=self.on_budget == "wait",
        )
