"""The working verbs' SQL: on PostgreSQL one or two statements a verb, on SQLite, which refuses UPDATE inside WITH, a few."""
