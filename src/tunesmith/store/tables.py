"""Tables read through, for doors that show them and for those who look for damage."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Table

from tunesmith import schema
from tunesmith.errors import (
    DamagedRow,
    StoreUnavailable,
)
from tunesmith.schema import (
    SEALED,
    jobs,
    metrics,
    sealed,
    usage,
)
from tunesmith.store.opened import OpenedStore
from tunesmith.store.rows import damaged_row, leave_out, name_of, shown


class Tables(OpenedStore):
    """Tables, a page at a time."""

    def add_usage(self, **facts: Any) -> None:
        with self._engine.begin() as c:
            c.execute(usage.insert().values(sealed(usage, facts)))

    def last_metric(self, job_id: str) -> dict[str, Any] | None:
        query = (
            sa.select(metrics)
            .where(metrics.c.job_id == job_id)
            .order_by(metrics.c.step.desc())
            .limit(1)
        )
        found = self._sound_rows(metrics, query)
        return shown(found[0]) if found else None

    def rows(self, table: str, job_id: str | None = None) -> list[dict[str, Any]]:
        """A table of the store, or of one job in it, for exports; damaged rows are told and left
        out."""
        return [row for page in self.pages(table, job_id) for row in page]

    def pages(self, table: str, job_id: str | None = None) -> Iterator[list[dict[str, Any]]]:
        """The same, a page at a time, each in a transaction of its own."""
        last: list[Any] | None = None
        while True:
            page, last = self.page(table, job_id, last)
            yield page
            if last is None:
                return

    def page(
        self, table: str, job_id: str | None, after: Sequence[Any] | None, size: int | None = None
    ) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """The rows of a table that come after a key, in the order of its primary key, and the key
        to go on from: None at the end."""
        asked = SEALED[table]
        mine = (
            sa.true()
            if job_id is None
            else (jobs.c.id if asked is jobs else asked.c.job_id) == job_id
        )
        rows, last = self._rows_after(
            asked,
            mine,
            after,
            size or (max(1, self.page_size // 10) if asked is jobs else self.page_size),
        )
        found = []
        for row in rows:
            if why := schema.damage(asked, row):
                leave_out(damaged_row(asked, name_of(asked, row), why))
            else:
                del row["seal"]
                found.append(row)
        return found, last

    def _rows_after(
        self, table: Table, where: sa.ColumnElement[bool], after: Sequence[Any] | None, size: int
    ) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """Rows as they stand, damaged ones too, that come after a key, and the key to go on
        from."""
        keys, names = list(table.primary_key), table.columns.keys()
        query = sa.select(table).where(where).order_by(*keys).limit(size)
        if after is not None:
            query = query.where(sa.tuple_(*keys) > sa.tuple_(*map(sa.literal, after)))
        with self._reading() as c:
            rows = [dict(zip(names, r, strict=True)) for r in c.execute(query)]
        return rows, [rows[-1][k.name] for k in keys] if len(rows) == size else None

    def damaged(self, tables: Iterable[str] = tuple(SEALED)) -> Iterator[DamagedRow]:
        """Every row that cannot be believed, and what the database itself says of its file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in tables:
                yield from self._damaged_in(SEALED[name])

    def _damaged_in(self, table: Table) -> Iterator[DamagedRow]:
        last, is_first = None, True
        while is_first or last is not None:
            try:
                rows, last = self._rows_after(table, sa.true(), last, self.page_size)
            except StoreUnavailable as e:
                yield damaged_row(table, "of an unknown place", str(e.fields["reason"]))
                return
            is_first = False
            for row in rows:
                if why := schema.damage(table, row):
                    yield damaged_row(table, name_of(table, row), why)

    def is_sound(self, job_id: str) -> bool:
        """Whether a job's row can be believed."""
        with self._reading() as c:
            row = c.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        return row is not None and not schema.damage(jobs, row._mapping)

    def integrity(self) -> str:
        """What SQLite finds wrong with its file, in its words; empty where it is whole."""
        if self._engine.dialect.name != "sqlite":
            return ""
        try:
            with self._reading() as c:
                said = [str(r[0]) for r in c.exec_driver_sql("PRAGMA integrity_check(10)")]
        except StoreUnavailable as e:
            return str(e.fields["reason"])
        return "" if said == ["ok"] else "; ".join(said)
