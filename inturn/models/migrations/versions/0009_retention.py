"""Rules of retention: holds with their reasons, and receipts by run."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import UTCDateTime

revision = "0009"
down_revision = "0008"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for column in (
        sa.Column("hold_reason", sa.Text(), nullable=True),
        sa.Column("held_by", sa.String(length=200), nullable=True),
        sa.Column("held_at", UTCDateTime(), nullable=True),
    ):
        op.add_column("sessions", column)
    op.create_index(op.f("ix_sessions_created_at"), "sessions", ["created_at"])
    own = sa.text("retention = 'idle'")
    op.create_index(
        "ix_sessions_own_retention", "sessions", ["last_activity_at"], postgresql_where=own, sqlite_where=own
    )
    op.add_column("removals", sa.Column("run_id", sa.BigInteger(), nullable=True))
    op.add_column("removals", sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index(op.f("ix_removals_session_key"), "removals", ["session_key"])
    op.create_table(
        "removal_runs",
        sa.Column("id", BIG, sa.Identity(always=False), nullable=False),
        sa.Column("rule", sa.String(length=200), nullable=False),
        sa.Column("asked_by", sa.String(length=200), nullable=False),
        sa.Column("began_at", UTCDateTime(), nullable=False),
        sa.Column("ended_at", UTCDateTime(), nullable=True),
        sa.Column("sessions", sa.Integer(), server_default="0", nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in ("turns", "messages", "bytes")
        ),
        sa.Column("archive", sa.Text(), nullable=True),
        sa.Column("checksum", sa.String(length=64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_removal_runs")),
        sqlite_autoincrement=True,
    )
