"""Calls: who asked to hear a reply while it is written, what was heard of one that was cut off, and what a turn waits
for that went back without a call.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Plain ADD COLUMN, as in 0002. A default that is a constant rewrites no table on PostgreSQL either.
    op.add_column("turns", sa.Column("streams", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("turns", sa.Column("partial", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("waits_for", sa.Text(), nullable=True))
