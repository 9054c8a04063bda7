"""The task `causal_lm` is called `text_generation`. Rows that are damaged stay as they are, for
their seals to tell."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

from tunesmith.schema import damage, jobs, models, seal_of

revision, down_revision = "0004", "0003"

OLD, NEW = "causal_lm", "text_generation"


def upgrade() -> None:
    c = op.get_bind()
    for table in (jobs, models):
        there = {found["name"] for found in sa.inspect(c).get_columns(table.name)}
        columns = [column for column in table.columns if column.name in there]
        for (key,) in c.execute(sa.select(table.c.id)).all():
            row = c.execute(sa.select(*columns).where(table.c.id == key)).one()
            if changes := _renamed(table, {**dict.fromkeys(table.c.keys()), **row._mapping}):
                c.execute(table.update().where(table.c.id == key).values(changes))


def _renamed(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in a row. One without a seal, of an older store, is sealed after this."""
    if row["seal"] and damage(table, row):
        return {}
    changes: dict[str, Any] = {}
    if row["task"] == OLD:
        changes["task"] = NEW
    if isinstance(row["base"], dict) and row["base"].get("task") == OLD:
        changes["base"] = {**row["base"], "task": NEW}
    if changes and row["seal"]:
        changes["seal"] = seal_of(table, {**row, **changes}, is_read=True)
    return changes
