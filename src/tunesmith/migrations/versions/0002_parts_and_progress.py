"""Rows that a job counts to another part than the frozen one, and what its evaluation is doing."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("moved", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("jobs", sa.Column("doing", sa.JSON(none_as_null=True), nullable=True))
