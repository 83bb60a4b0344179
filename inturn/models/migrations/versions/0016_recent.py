"""What processes did lately, for who watches; and indexes of what fails and of what is spent now."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("worker_processes", sa.Column("recent", sa.JSON(), nullable=True))
    failed = sa.text("state = 'failed'")
    op.create_index("ix_turns_failed", "turns", ["finished_at"], postgresql_where=failed, sqlite_where=failed)
    op.create_index(
        "ix_attempts_started",
        "attempts",
        ["started_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    )
