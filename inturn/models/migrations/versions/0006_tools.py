"""Tools, and messages that are more than text."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("tools", sa.JSON(), nullable=True))
    op.add_column("turns", sa.Column("rounds", sa.Integer(), server_default="0", nullable=False))
    op.add_column("turns", sa.Column("steps", sa.Integer(), server_default="0", nullable=False))
    op.add_column("messages", sa.Column("data", sa.JSON(), nullable=True))
