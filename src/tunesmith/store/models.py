"""The catalogue of tuned models: names, versions, and which of them a name answers with."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Table

from tunesmith import schema
from tunesmith.errors import (
    UnknownModel,
)
from tunesmith.jobs import JobStatus
from tunesmith.names import model_key
from tunesmith.schema import (
    NAME_TAKEN,
    jobs,
    models,
    sealed,
)
from tunesmith.store.opened import OpenedStore
from tunesmith.store.rows import (
    NEAR,
    free_name,
    insert_model,
    move_line,
    must_be_sound,
    row_of,
    save,
)


class Models(OpenedStore):
    """The catalogue of tuned models."""

    def all_models(self) -> list[Any]:
        """Every model, the oldest first. Damaged ones are named and left out."""
        return self._sound_rows(models, sa.select(models).order_by(models.c.created_at))

    def model_names(self) -> list[str]:
        """Names of the newest models, to find the one that was meant."""
        with self._reading() as c:
            return list(
                c.scalars(sa.select(models.c.name).order_by(models.c.created_at.desc()).limit(NEAR))
            )

    def add_model(self, model: Mapping[str, Any]) -> None:
        """A model that no job of this store made."""
        with self._engine.begin() as c:
            name = free_name(c, model["name"])
            added = {
                "created_at": self._wall(),
                "home": self.home,
                **model,
                "name": name,
                "model_key": model_key(name),
            }
            insert_model(c, added, "", True)

    def version(self, line: str, number: int | None = None) -> Any | None:
        """The version of this number in a line, by default the one that its name answers with."""
        which = models.c.is_current if number is None else models.c.version == number
        with self._reading() as c:
            row = c.execute(sa.select(models).where(models.c.line == line, which)).first()
        return None if row is None else must_be_sound(models, row)

    def promote(self, model_id: str) -> None:
        """Let the name of the model's line answer with this version."""
        with self._engine.begin() as c:
            line = c.scalar(sa.select(models.c.line).where(models.c.id == model_id))
            if line is not None:
                move_line(c, line, model_id)

    def drop_model(self, model_id: str) -> dict[str, Any]:
        """Take a model out of the catalogue, and give its row; where its line's name answered with
        it, the last version that is left does. Its job no longer holds its name."""
        with self._engine.begin() as c:
            row = c.execute(
                models.delete().where(models.c.id == model_id).returning(*models.c)
            ).one_or_none()
            if row is None:  # another process was first
                raise UnknownModel(name=model_id, closest="(it was removed meanwhile)")
            left = c.scalar(
                sa.select(models.c.id)
                .where(models.c.line == row.line)
                .order_by(models.c.version.desc())
                .limit(1)
            )
            if row.is_current and left is not None:
                move_line(c, row.line, left)
            job = c.execute(sa.select(jobs).where(jobs.c.id == row.job_id)).one_or_none()
            if job is not None and not schema.damage(jobs, job._mapping):
                save(c, job, model_key=f"dropped/{job.id}")
        return dict(row._mapping)

    def put_back(self, table: Table, row: Mapping[str, Any]) -> bool:
        """A row that was taken out, where nothing has its place by now."""
        with self._engine.begin() as c:
            if c.execute(sa.select(table.c.id).where(table.c.id == row["id"])).first() is not None:
                return False
            job = c.execute(sa.select(jobs).where(jobs.c.id == row.get("job_id"))).one_or_none()
            if job is None:
                row = {**row, "job_id": None}
            if table is models:
                holders = sa.select(jobs.c.id).where(
                    jobs.c.model_key == row["model_key"], NAME_TAKEN, jobs.c.id != row["job_id"]
                )
                if c.execute(holders.limit(1)).first() is not None:
                    return False
                taken = (models.c.model_key == row["model_key"]) | (
                    (models.c.line == row["line"]) & (models.c.version == row["version"])
                )
                if c.execute(sa.select(models.c.id).where(taken)).first() is not None:
                    return False
                has_current = (
                    c.scalar(
                        sa.select(models.c.id).where(
                            models.c.line == row["line"], models.c.is_current
                        )
                    )
                    is not None
                )
                row = {**row, "is_current": not has_current or row["is_current"]}
            c.execute(table.insert().values(sealed(table, row)))
            if table is models and row["is_current"]:
                move_line(c, row["line"], row["id"])
            if (
                job is not None
                and not schema.damage(jobs, job._mapping)
                and job.model_key.startswith("dropped/")
            ):
                save(c, job, model_key=row["model_key"])
        return True

    def put_back_status(self, job_id: str, status: JobStatus) -> None:
        """A job that was cancelled for want of its rows waits as before."""
        with self._engine.begin() as c:
            row = row_of(c, job_id, lock=True)
            if row.status == JobStatus.CANCELLED.value:
                save(c, row, status=status.value, finished_at=None)

    def model(self, key: str) -> Any | None:
        """The model under this key; a bare name also finds database.schema.name where only one ends
        so."""
        with self._reading() as c:
            found = c.execute(sa.select(models).where(models.c.model_key == key)).one_or_none()
            if found is None and "." not in key:
                ends = c.execute(
                    sa.select(models)
                    .where(models.c.model_key.endswith("." + key, autoescape=True))
                    .limit(2)
                ).all()
                found = ends[0] if len(ends) == 1 else None
        return None if found is None else must_be_sound(models, found)
