"""Sessions of which retention keeps the metadata, and receipts that say so."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import UTCDateTime

revision = "0013"
down_revision = "0012"

CONTENT_IS_LEFT = sa.text("content_removed_at IS NULL OR next_turn > content_removed_to + 1 OR system_turn IS NOT NULL")


def upgrade() -> None:
    op.add_column("sessions", sa.Column("content_removed_at", UTCDateTime(), nullable=True))
    # CHECKs come with their columns, as SQLite takes none later.
    timed = sa.CheckConstraint(
        "content_removed_to = 0 OR content_removed_at IS NOT NULL",
        name=op.f("ck_sessions_content_removed_has_its_time"),
    )
    op.add_column("sessions", sa.Column("content_removed_to", sa.Integer(), timed, server_default="0", nullable=False))
    for name, column in (
        ("ix_sessions_content_active", "last_activity_at"),
        ("ix_sessions_content_created", "created_at"),
    ):
        op.create_index(name, "sessions", [column], postgresql_where=CONTENT_IS_LEFT, sqlite_where=CONTENT_IS_LEFT)
    for table in ("removals", "removal_runs"):
        known = sa.CheckConstraint("kept IN ('nothing', 'metadata')", name=op.f(f"ck_{table}_kept_known"))
        op.add_column(table, sa.Column("kept", sa.String(20), known, server_default="nothing", nullable=False))
