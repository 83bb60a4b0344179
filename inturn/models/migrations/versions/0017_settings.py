"""Which settings a process runs with, as digests: to tell of one that was started before they were changed."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("worker_processes", sa.Column("settings", sa.JSON(), nullable=True))
