"""Which home a row belongs to, a seal on every row, and indexes for what large stores ask. Seals
are written after it (schema.seal_all)."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"

SMALL = ("metrics", "rejections", "row_losses", "usage", "events")


def upgrade() -> None:
    for table in ("jobs", "models"):
        op.add_column(table, sa.Column("home", sa.String(), nullable=False, server_default=""))
        op.add_column(table, sa.Column("seal", sa.String(), nullable=True))
    for table in SMALL:
        op.add_column(table, sa.Column("seal", sa.BigInteger(), nullable=True))
    op.create_table(
        "homes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("machine", sa.String(), nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobs_in_order", "jobs", ["sequence"])
    op.create_index("jobs_by_status", "jobs", ["status", "sequence"])
    op.create_index("jobs_of_a_home", "jobs", ["home", "status", "sequence"])
    op.create_index("ix_models_job_id", "models", ["job_id"])
