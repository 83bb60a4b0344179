"""``[[budgets]]``: what is taken, what is refused, and why."""

import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from inturn.budget_settings import BudgetSettings
from inturn.models.store.budgets import Budget

FILE = """
[[budgets]]
usd = 20.0

[[budgets]]
name = "legal"
scope = "label:team=legal"
period = "ever"
tokens = 1_000_000
usd = 5

[[budgets]]
scope = "session"
usd = 0.5
on_budget = "wait"
"""


def test_budgets_of_a_file():
    budgets = [BudgetSettings(**each).budget() for each in tomllib.loads(FILE)["budgets"]]
    assert budgets == [
        Budget("all", "all", daily=True, usd=20.0, tokens=None, waits=False),
        Budget("legal", "label:team=legal", daily=False, usd=5.0, tokens=1_000_000, waits=False),
        Budget("session", "session", daily=True, usd=0.5, tokens=None, waits=True),
    ]


@pytest.mark.parametrize("scope", ["all", "session", "label:team", "label:team=legal", "label:team=a=b", "label:é=ü ö"])
def test_scopes(scope: str):
    assert BudgetSettings(scope=scope, usd=1).budget().scope == scope


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "a budget limits something: give it usd, tokens, or both"),
        ({"usd": 0}, "greater than 0"),
        ({"usd": -1}, "greater than 0"),
        ({"usd": float("inf")}, "finite"),
        ({"usd": float("nan")}, "finite"),
        ({"tokens": 0}, "greater than or equal to 1"),
        ({"tokens": 1.5}, "integer"),
        ({"usd": 1, "scope": "team"}, "a scope is all, session, label:NAME"),
        ({"usd": 1, "scope": "label:"}, "a scope is all, session, label:NAME"),
        ({"usd": 1, "scope": "label:team="}, "a scope is all, session, label:NAME"),
        ({"usd": 1, "scope": "session:ann"}, "a scope is all, session, label:NAME"),
        ({"usd": 1, "period": "month"}, "'day' or 'ever'"),
        ({"usd": 1, "on_budget": "stop"}, "'fail' or 'wait'"),
        ({"usd": 1, "on_budget": "wait", "period": "ever"}, "would wait for ever"),
        ({"usd": 1, "dollars": 1}, "Extra inputs"),
    ],
)
def test_what_is_refused(values: dict[str, Any], reason: str):
    with pytest.raises(ValidationError, match=reason):
        BudgetSettings(**values)
