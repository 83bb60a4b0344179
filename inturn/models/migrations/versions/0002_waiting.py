"""What a turn may wait for: joined prompts, halted sessions, paused lanes."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import UTCDateTime

revision = "0002"
down_revision = "0001"

QUARANTINED = sa.text("error_type IN ('worker_lost', 'unstorable', 'reply_too_large')")


def upgrade() -> None:
    # Plain ADD COLUMN: on SQLite anything else makes the table anew, and dropping the old one would cascade.
    op.add_column("turns", sa.Column("merged_into", sa.Integer(), nullable=True))
    op.add_column("sessions", sa.Column("halts", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("leases", sa.Column("halted_by", sa.Integer(), nullable=True))
    op.create_index(
        "ix_turns_quarantined",
        "turns",
        ["finished_at"],
        unique=False,
        postgresql_where=QUARANTINED,
        sqlite_where=QUARANTINED,
    )
    op.create_table(
        "lane_pauses",
        sa.Column("lane", sa.String(length=20), nullable=False),
        sa.Column("paused_at", UTCDateTime(), nullable=False),
        sa.CheckConstraint("lane IN ('chat', 'batch', 'maintenance')", name=op.f("ck_lane_pauses_lane_known")),
        sa.PrimaryKeyConstraint("lane", name=op.f("pk_lane_pauses")),
    )
