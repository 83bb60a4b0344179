"""The first schema."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString, UTCDateTime

revision = "0001"
down_revision = None

FINAL_IS_FINAL = {
    "sqlite": (
        """
CREATE TRIGGER turns_final_is_final BEFORE UPDATE OF state ON turns
WHEN OLD.finished_at IS NOT NULL AND NEW.state <> OLD.state
BEGIN SELECT RAISE(ABORT, 'a final turn is never left'); END""",
    ),
    "postgresql": (
        """
CREATE FUNCTION inturn_final_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'a final turn is never left' USING ERRCODE = 'check_violation'; END $$""",
        """
CREATE TRIGGER turns_final_is_final BEFORE UPDATE OF state ON turns FOR EACH ROW
WHEN (OLD.finished_at IS NOT NULL AND NEW.state <> OLD.state) EXECUTE FUNCTION inturn_final_is_final()""",
    ),
}


def upgrade() -> None:
    removals()
    sessions()
    sessions_indexes()
    ticks()
    worker_processes()
    attempts()
    leases()
    leases_indexes()
    messages()
    turns()
    turns_indexes()
    for statement in FINAL_IS_FINAL[op.get_bind().dialect.name]:
        op.execute(statement)


def removals() -> None:
    op.create_table(
        "removals",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column("session_key", AutoString(length=200), nullable=False),
        sa.Column("rule", AutoString(length=200), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("last_activity_at", UTCDateTime(), nullable=False),
        sa.Column("removed_at", UTCDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_removals")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_removals_removed_at"), "removals", ["removed_at"], unique=False)


def sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(always=False), nullable=False
        ),
        sa.Column(
            "key",
            sa.String(length=200).with_variant(sa.String(length=200, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("model", AutoString(length=200), nullable=False),
        sa.Column("system_turn", sa.Integer(), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("context_turns", sa.Integer(), nullable=True),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("retention", sa.String(length=20), nullable=False),
        sa.Column("retention_seconds", sa.Float(), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("next_turn", sa.Integer(), nullable=False),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.Column("last_activity_at", UTCDateTime(), nullable=False),
        sa.CheckConstraint(
            "(retention = 'idle') = (retention_seconds IS NOT NULL)", name=op.f("ck_sessions_retention_has_its_time")
        ),
        sa.CheckConstraint("retention IN ('policy', 'idle', 'never')", name=op.f("ck_sessions_retention_known")),
        sa.CheckConstraint("state IN ('active', 'deleting')", name=op.f("ck_sessions_state_known")),
        sa.CheckConstraint("next_turn >= 1", name=op.f("ck_sessions_next_turn_counts_up")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("key", name=op.f("uq_sessions_key")),
        sqlite_autoincrement=True,
    )


def sessions_indexes() -> None:
    op.create_index(
        "ix_sessions_deleting",
        "sessions",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state = 'deleting'"),
        sqlite_where=sa.text("state = 'deleting'"),
    )
    op.create_index(op.f("ix_sessions_last_activity_at"), "sessions", ["last_activity_at"], unique=False)


def ticks() -> None:
    op.create_table(
        "ticks",
        sa.Column("name", AutoString(length=60), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("fired_at", UTCDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", "slot", name=op.f("pk_ticks")),
    )


def worker_processes() -> None:
    op.create_table(
        "worker_processes",
        sa.Column("id", AutoString(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("host", AutoString(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("lanes", AutoString(length=200), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("version", AutoString(length=40), nullable=False),
        sa.Column("started_at", UTCDateTime(), nullable=False),
        sa.Column("heartbeat_at", UTCDateTime(), nullable=False),
        sa.CheckConstraint("kind IN ('worker', 'beat')", name=op.f("ck_worker_processes_kind_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker_processes")),
    )


def attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column(
            "session_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("turn_number", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("started_at", UTCDateTime(), nullable=False),
        sa.Column("ended_at", UTCDateTime(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("error_type", AutoString(length=60), nullable=True),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("request_id", AutoString(length=200), nullable=True),
        sa.Column("input_tokens", sa.Integer(), nullable=True),
        sa.Column("output_tokens", sa.Integer(), nullable=True),
        sa.Column("price", sa.Float(), nullable=True),
        sa.Column("price_table", AutoString(length=60), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('completed', 'safe', 'ambiguous', 'permanent', 'cancelled', 'lost')",
            name=op.f("ck_attempts_outcome_known"),
        ),
        sa.CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name=op.f("ck_attempts_ended_has_an_outcome")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_attempts_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "turn_number", "number", name=op.f("pk_attempts")),
    )


def leases() -> None:
    op.create_table(
        "leases",
        sa.Column(
            "session_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("owner", AutoString(length=200), nullable=True),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", UTCDateTime(), nullable=True),
        sa.Column("ready_at", UTCDateTime(), nullable=True),
        sa.Column("lane", sa.String(length=20), nullable=False),
        sa.Column("hinted_at", UTCDateTime(), nullable=True),
        sa.CheckConstraint("lane IN ('chat', 'batch', 'maintenance')", name=op.f("ck_leases_lane_known")),
        sa.CheckConstraint("(owner IS NULL) = (expires_at IS NULL)", name=op.f("ck_leases_owner_has_until")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_leases_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_leases")),
    )


def leases_indexes() -> None:
    op.create_index(
        "ix_leases_owner",
        "leases",
        ["owner"],
        unique=False,
        postgresql_where=sa.text("owner IS NOT NULL"),
        sqlite_where=sa.text("owner IS NOT NULL"),
    )
    op.create_index(
        "ix_leases_ready",
        "leases",
        ["lane", "ready_at"],
        unique=False,
        postgresql_where=sa.text("owner IS NULL AND ready_at IS NOT NULL"),
        sqlite_where=sa.text("owner IS NULL AND ready_at IS NOT NULL"),
    )


def messages() -> None:
    op.create_table(
        "messages",
        sa.Column(
            "session_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("turn_number", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.CheckConstraint("role IN ('system', 'user', 'assistant', 'tool')", name=op.f("ck_messages_role_known")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_messages_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "turn_number", "position", name=op.f("pk_messages")),
    )


def turns() -> None:
    op.create_table(
        "turns",
        sa.Column(
            "session_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("lane", sa.String(length=20), nullable=False),
        sa.Column("model", AutoString(length=200), nullable=False),
        sa.Column("system_turn", sa.Integer(), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("idempotency_key", AutoString(length=200), nullable=True),
        sa.Column("ready_at", UTCDateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("ambiguous", sa.Integer(), nullable=False),
        sa.Column("rescues", sa.Integer(), nullable=False),
        sa.Column("retry_of", sa.Integer(), nullable=True),
        sa.Column("cancel_requested_at", UTCDateTime(), nullable=True),
        sa.Column("error_type", AutoString(length=60), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_status", sa.Integer(), nullable=True),
        sa.Column("error_retryable", sa.Boolean(), nullable=True),
        sa.Column("input_tokens", sa.Integer(), nullable=True),
        sa.Column("output_tokens", sa.Integer(), nullable=True),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.Column("started_at", UTCDateTime(), nullable=True),
        sa.Column("finished_at", UTCDateTime(), nullable=True),
        sa.CheckConstraint("(state = 'failed') = (error_type IS NOT NULL)", name=op.f("ck_turns_failed_has_a_reason")),
        sa.CheckConstraint(
            "(state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_turns_final_is_finished"),
        ),
        sa.CheckConstraint("lane IN ('chat', 'batch', 'maintenance')", name=op.f("ck_turns_lane_known")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'completed', 'failed', 'cancelled')", name=op.f("ck_turns_state_known")
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_turns_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "number", name=op.f("pk_turns")),
        sa.UniqueConstraint("session_id", "idempotency_key", name=op.f("uq_turns_session_id_idempotency_key")),
    )


def turns_indexes() -> None:
    op.create_index(
        "ix_turns_cancel_requested",
        "turns",
        ["cancel_requested_at"],
        unique=False,
        postgresql_where=sa.text("cancel_requested_at IS NOT NULL AND finished_at IS NULL"),
        sqlite_where=sa.text("cancel_requested_at IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_index(
        "ix_turns_queued",
        "turns",
        ["session_id", "number"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
        sqlite_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "uq_turns_running",
        "turns",
        ["session_id"],
        unique=True,
        postgresql_where=sa.text("state = 'running'"),
        sqlite_where=sa.text("state = 'running'"),
    )
