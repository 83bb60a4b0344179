"""What calls cost, what was spent of budgets, and what removed sessions had used."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("turns", sa.Column("price", sa.Float(), nullable=True))
    op.add_column("attempts", sa.Column("estimated", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "spending",
        sa.Column("scope", sa.String(length=500), nullable=False),
        sa.Column("slot", sa.String(length=10), nullable=False),
        sa.Column("usd", sa.Float(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "slot", name=op.f("pk_spending")),
    )
    counts = ("attempts", "completed", "unpriced", "estimated", "uncounted", "input_tokens", "output_tokens")
    op.create_table(
        "past_usage",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in counts),
        sa.Column("price", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("day", "model", name=op.f("pk_past_usage")),
    )
