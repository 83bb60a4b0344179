"""Chains of models: who is asked when the one before fails, and who was asked in an attempt."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("fallbacks", sa.JSON(), nullable=True))
    op.add_column("turns", sa.Column("fallbacks", sa.JSON(), nullable=True))
    op.add_column("attempts", sa.Column("model", sa.String(length=200), nullable=True))
