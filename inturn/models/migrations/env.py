"""Alembic's way in: it works on the connection, and in the transaction, that ``upgrade`` hands over."""

from alembic import context

from inturn.models.rows import Row

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Row.metadata, transaction_per_migration=False
)
context.run_migrations()
