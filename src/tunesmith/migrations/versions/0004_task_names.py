"""The task `causal_lm` is called `text_generation`. Rows that are damaged stay as they are, for
their seals to tell."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from tunesmith.schema import damage, jobs, models, seal_of

revision, down_revision = "0004", "0003"

OLD, NEW = "causal_lm", "text_generation"
PAGE = 500  # rows in memory


def upgrade() -> None:
    c = op.get_bind()
    for table in (jobs, models):
        there = {found["name"] for found in sa.inspect(c).get_columns(table.name)}
        columns = [column for column in table.columns if column.name in there]
        ids = list(c.scalars(sa.select(table.c.id)))
        for i in range(0, len(ids), PAGE):
            changed = []
            for row in _readable(c, columns, table.c.id, ids[i : i + PAGE]):
                changes = _renamed(table, {**dict.fromkeys(table.c.keys()), **row})
                if changes:
                    changed.append({"key": row["id"], **changes})
            if changed:
                c.execute(table.update().where(table.c.id == sa.bindparam("key")), changed)


def _readable(
    c: sa.Connection, columns: Sequence[Any], key: Any, ids: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    """The rows of these ids; where SQLite's own pages are broken, those that can be read."""
    try:
        for row in c.execute(sa.select(*columns).where(key.in_(ids))).all():
            yield dict(row._mapping)
    except sa.exc.DatabaseError:
        if len(ids) > 1 and c.dialect.name == "sqlite":
            for one in ids:
                yield from _readable(c, columns, key, [one])


def _renamed(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row is from now on: task, base and seal. One without a seal, of a store that had none,
    is sealed after this."""
    if row["seal"] and damage(table, row):
        return {}
    base = row["base"]
    if isinstance(base, dict) and base.get("task") == OLD:
        base = {**base, "task": NEW}
    changes: dict[str, Any] = {"task": NEW if row["task"] == OLD else row["task"], "base": base}
    if changes["task"] == row["task"] and base is row["base"]:
        return {}
    seal = seal_of(table, {**row, **changes}, is_read=True) if row["seal"] else None
    return {**changes, "seal": seal}
