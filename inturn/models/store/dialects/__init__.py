"""The working verbs' SQL: on PostgreSQL one or two statements a verb, on SQLite, which refuses UPDATE inside WITH, a few."""

TURNS_BY_TOKENS = 200
"""How many turns are read, for as many of them to be shown as fit, where a session counts its context in tokens only."""
