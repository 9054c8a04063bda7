"""What a row of the store says, and how it is changed: always with a new seal."""

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Table
from sqlalchemy.engine import Connection

from tunesmith import catalog, schema
from tunesmith.errors import (
    DamagedRow,
    Notice,
    UnknownJob,
    closest,
)
from tunesmith.jobs import Job, JobStatus
from tunesmith.names import model_key, with_suffix
from tunesmith.schema import (
    NAME_TAKEN,
    jobs,
    models,
    sealed,
)

NEAR = 500  # names among which the closest one is looked for


def leave_out(error: DamagedRow) -> None:
    warnings.warn(str(error), Notice, stacklevel=2)


def damaged_row(table: Table, row: str, reason: str) -> DamagedRow:
    return DamagedRow(table=table.name, row=row, reason=reason)


def name_of(table: Table, row: Mapping[Any, Any]) -> str:
    return " ".join(str(row[k.name]) for k in table.primary_key)


def must_be_sound(table: Table, row: sa.Row[Any]) -> sa.Row[Any]:
    if why := schema.damage(table, row._mapping):
        raise damaged_row(table, name_of(table, row._mapping), why)
    return row


def shown(row: sa.Row[Any]) -> dict[str, Any]:
    found = row._asdict()
    found.pop("seal")
    return found


def in_states(statuses: Collection[JobStatus]) -> sa.Select[Any]:
    """Jobs in some states; without any, all."""
    query = sa.select(jobs)
    return query.where(jobs.c.status.in_([s.value for s in statuses])) if statuses else query


def resealed(table: Table, row: sa.Row[Any], **changes: Any) -> dict[str, Any]:
    return {**changes, "seal": schema.seal_of(table, {**row._mapping, **changes})}


def save(c: Connection, row: sa.Row[Any], **changes: Any) -> Job:
    """Change a job's row as it was read in this transaction, and give the job as it stands then."""
    c.execute(jobs.update().where(jobs.c.id == row.id).values(resealed(jobs, row, **changes)))
    return job_of(row_of(c, row.id))


def row_of(c: Connection, job_id: str, lock: bool = False) -> sa.Row[Any]:
    job_id = job_id.encode(
        "utf-8", "backslashreplace"
    ).decode()  # an id that is no text names no job
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = c.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        newest = c.scalars(sa.select(jobs.c.id).order_by(jobs.c.sequence.desc()).limit(NEAR)).all()
        alike = c.scalars(
            sa.select(jobs.c.id)
            .where(jobs.c.id.startswith(job_id[:11], autoescape=True))
            .limit(NEAR)
        ).all()
        raise UnknownJob(id=job_id, closest=closest(job_id, {*newest, *alike}))
    return must_be_sound(jobs, row)


def insert_model(c: Connection, model: Mapping[str, Any], version_of: str, moves: bool) -> None:
    if not version_of:
        c.execute(
            models.insert().values(
                sealed(
                    models, {**model, "line": model["model_key"], "version": 1, "is_current": True}
                )
            )
        )
        return
    c.execute(
        sa.select(models.c.id).where(models.c.line == version_of).with_for_update()
    ).all()  # versions of a line take turns
    version = next_in(c, models.c.version, models.c.line == version_of)
    c.execute(
        models.insert().values(
            sealed(models, {**model, "line": version_of, "version": version, "is_current": False})
        )
    )
    if moves:
        move_line(c, version_of, model["id"])


def next_in(
    c: Connection, column: sa.Column[int], where: sa.ColumnElement[bool] | None = None
) -> int:
    """One more than the largest number of a column, whatever damage put beside it."""
    query = sa.select(column).order_by(column.desc()).limit(NEAR)
    found = c.scalars(query if where is None else query.where(where)).all()
    return max((n for n in found if isinstance(n, int) and n < 2**53), default=0) + 1


def move_line(c: Connection, line: str, model_id: str) -> None:
    for row in c.execute(sa.select(models).where(models.c.line == line)).all():
        if row.is_current != (row.id == model_id) and not schema.damage(models, row._mapping):
            c.execute(
                models.update()
                .where(models.c.id == row.id)
                .values(resealed(models, row, is_current=row.id == model_id))
            )


def free_name(c: Connection, name: str) -> str:
    """The name itself, or with the first suffix that is free. The names of base models are
    taken."""
    places = (
        (jobs.c.model_key, NAME_TAKEN),
        (models.c.model_key, sa.true()),
        (models.c.line, sa.true()),
    )

    def is_taken(key: str) -> bool:
        return key in catalog.entries() or any(
            c.scalar(sa.select(k).where(k == key, also).limit(1)) is not None for k, also in places
        )

    if not is_taken(key := model_key(name)):
        return name
    stem = key[: max(1, len(key) - len("_99999"))]  # a name at its limit is cut for its suffix
    taken = {
        t
        for k, also in places
        for t in c.scalars(sa.select(k).where(k.startswith(stem, autoescape=True), also))
    } | {*catalog.entries()}
    return next(
        n
        for i in range(2, len(taken) + 3)
        if model_key(n := with_suffix(name, f"_{i}")) not in taken
    )


def replace_rows(c: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    rows = [sealed(table, r) for r in rows]
    if c.dialect.name == "sqlite":
        c.execute(table.insert().prefix_with("OR REPLACE"), rows)
        return
    from sqlalchemy.dialects.postgresql import insert

    statement = insert(table)
    keys = [k.name for k in table.primary_key]
    c.execute(
        statement.on_conflict_do_update(
            index_elements=keys, set_={k: statement.excluded[k] for k in rows[0] if k not in keys}
        ),
        rows,
    )


def request_digest(job: Job, content: str) -> str:
    asked = [
        job.name,
        job.base_model,
        job.training_data,
        job.validation_data,
        job.options.to_json(),
        content,
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def job_of(row: sa.Row[Any]) -> Job:
    return Job.from_row(row._asdict())
