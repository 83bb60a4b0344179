"""The working verbs' SQL: on PostgreSQL one or two statements a verb, on SQLite, which refuses UPDATE inside WITH, a few."""

from typing import NamedTuple

TURNS_BY_TOKENS = 200
"""How many turns are read, for as many of them to be shown as fit, where a session counts its context in tokens only."""


class Verdict(NamedTuple):
    """What became of a settlement: is its session kept in hand, and was its turn cancelled instead of waiting again?"""

    goes_on: bool
    taken_back: bool
