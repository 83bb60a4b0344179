"""The trace that a turn was sent in: queue and workers carry it on."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("turns", sa.Column("trace", sa.JSON(), nullable=True))
