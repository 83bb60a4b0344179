"""Context by tokens, and what becomes of history that is more: left out, refused, or put into a summary."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

IS_SUMMARY = sa.text("position = 999999999")


def upgrade() -> None:
    op.add_column("sessions", sa.Column("context_tokens", sa.Integer(), nullable=True))
    # The CHECK comes with the column, as SQLite takes none later.
    known = sa.CheckConstraint("overflow IN ('truncate', 'fail', 'summarise')", name=op.f("ck_sessions_overflow_known"))
    op.add_column("sessions", sa.Column("overflow", sa.String(20), known, server_default="truncate", nullable=False))
    op.add_column("turns", sa.Column("cuts", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("turns", sa.Column("room", sa.Integer(), nullable=True))
    op.create_index(
        "ix_messages_summary",
        "messages",
        ["session_id", "turn_number"],
        unique=False,
        postgresql_where=IS_SUMMARY,
        sqlite_where=IS_SUMMARY,
    )
