"""The working verbs' SQL: on PostgreSQL one statement a verb, on SQLite, which refuses UPDATE inside WITH, a few."""
