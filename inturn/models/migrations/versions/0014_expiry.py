"""Receipts of what expires besides sessions, and the index that finds deliveries which are over."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("removal_runs", sa.Column("rows", sa.BigInteger(), server_default="0", nullable=False))
    over = sa.text("finished_at IS NOT NULL")
    op.create_index(
        "ix_webhook_deliveries_finished",
        "webhook_deliveries",
        ["finished_at"],
        postgresql_where=over,
        sqlite_where=over,
    )
