"""Which home a row belongs to, and where homes are."""

import os
from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy import Table

from tunesmith import schema
from tunesmith.schema import (
    jobs,
    models,
)
from tunesmith.store.opened import OpenedStore
from tunesmith.store.rows import resealed


class Homes(OpenedStore):
    """Whose rows are whose."""

    def own_ids(self, table: Table) -> set[str]:
        """Ids of the jobs or models that are this home's, or whose row cannot say whose they
        are."""
        with self._reading() as c:
            own = set(c.scalars(sa.select(table.c.id).where(table.c.home == self.home)))
            others = c.execute(sa.select(table).where(table.c.home != self.home)).all()
        return own | {r.id for r in others if schema.damage(table, r._mapping)}

    def own_snapshots(self) -> set[str]:
        """Digests of the frozen rows of this home's jobs."""
        with self._reading() as c:
            return set(c.scalars(sa.select(jobs.c.data_digest).where(jobs.c.home == self.home)))

    def register(self, place: str) -> None:
        """From now on the store knows this home, and where it is."""
        homes = schema.homes
        if self.last_place() != place:
            with self._alone() as c:
                c.execute(homes.delete().where(homes.c.id == self.home))
                c.execute(
                    homes.insert().values(
                        id=self.home,
                        place=place,
                        machine=os.uname().nodename,
                        opened_at=self._wall(),
                    )
                )

    def rows_of_others(self, place: str = "") -> list[tuple[str, str]]:
        """Ids of jobs and models that are not this home's, each with its home: all, or those of
        homes that were at `place` and those that a program wrote which did not know homes yet
        (their home is empty)."""
        homes, here = schema.homes, os.uname().nodename
        at = sa.select(homes.c.id).where(homes.c.place == place, homes.c.machine == here)
        found: list[tuple[str, str]] = []
        with self._reading() as c:
            for t in (jobs, models):
                of = sa.true() if not place else (t.c.home == "") | t.c.home.in_(at)
                found += [
                    (r.id, r.home)
                    for r in c.execute(sa.select(t.c.id, t.c.home).where(t.c.home != self.home, of))
                ]
        return found

    def last_place(self) -> str:
        """Where this home was when the store last heard of it; empty where it never did."""
        with self._reading() as c:
            return (
                c.scalar(sa.select(schema.homes.c.place).where(schema.homes.c.id == self.home))
                or ""
            )

    def place_of(self, home: str) -> str:
        """Where a home was when it was last opened, on which machine."""
        with self._reading() as c:
            found = c.execute(
                sa.select(schema.homes).where(schema.homes.c.id == home)
            ).one_or_none()
        return (
            f"{found.place} on {found.machine}"
            if found
            else f"{home or 'unknown'} (never opened with this store)"
        )

    def is_empty(self) -> bool:
        """Whether no job and no model is this home's."""
        with self._reading() as c:
            return not any(
                c.scalar(sa.select(t.c.id).where(t.c.home == self.home).limit(1))
                for t in (jobs, models)
            )

    def take_over(self, ids: Collection[str] | None, former: str = "") -> None:
        """Make rows of another identity this home's: those with these ids, or all of them."""
        with self._engine.begin() as c:
            for table in (jobs, models):
                for row in self._sound(
                    table, c.execute(sa.select(table).where(table.c.home == former))
                ):
                    if ids is None or row.id in ids:
                        c.execute(
                            table.update()
                            .where(table.c.id == row.id)
                            .values(resealed(table, row, home=self.home))
                        )
