"""JobStore: the only code that writes SQL about jobs and models. SQLite by default, PostgreSQL by URL.

Its schema is that of the newest revision in migrations/; an older store is brought up to it in one transaction when it is opened, and
a newer one is refused. SQLite runs with the rollback journal and synchronous=FULL: releases 3.7.0 to 3.51.2 can lose a commit in WAL
mode when two connections checkpoint at once. Every change by a worker names its attempt (the fencing number) in the WHERE; zero rows
changed means that another worker has taken over (LeaseLost). Leases are told by the boot clock, which no clock step moves.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text
from sqlalchemy.engine import Connection

from tunesmith import catalog, durable
from tunesmith.errors import (
    IdempotencyConflict,
    InvalidSetting,
    JobAlreadyFinished,
    JobNotInState,
    LeaseLost,
    MissingExtra,
    StoreTooNew,
    StoreUnavailable,
    UnknownJob,
    closest,
)
from tunesmith.jobs import MOVES, WORKING, Job, JobStatus, Options, ResolvedOptions, model_key, with_suffix

MIGRATIONS, REVISION = "tunesmith:migrations", "0002"  # where the revisions are, and the newest of them
LEASE_S = 30.0  # six heartbeats; a worker that says nothing for so long has lost its job

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)

jobs = Table(
    "jobs", metadata,
    Column("id", String, primary_key=True),
    Column("sequence", Integer, nullable=False),
    Column("name", String, nullable=False),
    Column("model_key", String, nullable=False),
    Column("task", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("training_data", Text, nullable=False),
    Column("validation_data", Text, nullable=False),
    Column("options", _JSON, nullable=False),
    Column("resolved", _JSON),
    Column("base", _JSON, nullable=False),
    Column("template", _JSON, nullable=False),
    Column("data_digest", String, nullable=False),
    Column("status", String, nullable=False),
    Column("step", Integer, nullable=False, default=0),
    Column("total_steps", Integer, nullable=False, default=0),
    Column("rows", _JSON, nullable=False),
    Column("input_tokens", Integer, nullable=False, default=0),
    Column("trained_tokens", Integer, nullable=False, default=0),
    Column("training_loss", Float),
    Column("validation_loss", Float),
    Column("stopped_by", String, nullable=False, default=""),
    Column("quote", _JSON),
    Column("used", _JSON),
    Column("certificate", _JSON),
    Column("verdict", _JSON),
    Column("moved", _JSON),
    Column("doing", _JSON),
    Column("warnings", _JSON, nullable=False),
    Column("error", _JSON),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("owner", String, nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("holder", String, nullable=False, default=""),
    Column("boot", String, nullable=False, default=""),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("idempotency_key", String, unique=True),
    Column("request_digest", String, nullable=False, default=""),
)  # fmt: skip
_NAME_TAKEN = sa.text("status NOT IN ('FAILED', 'CANCELLED')")
Index("one_job_per_name", jobs.c.model_key, unique=True, sqlite_where=_NAME_TAKEN, postgresql_where=_NAME_TAKEN)

metrics = Table(
    "metrics", metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("training_loss", Float),
    Column("validation_loss", Float),
    Column("learning_rate", Float),
    Column("grad_norm", Float),
    Column("tokens", Integer),
    Column("tokens_per_second", Float),
    Column("seconds", Float),
)  # fmt: skip
rejections = Table(
    "rejections", metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("part", String, primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("reason", String, nullable=False),
    Column("detail", Text, nullable=False),
    Column("context", Text, nullable=False),
)  # fmt: skip
row_losses = Table(
    "row_losses", metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("part", String, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("loss", Float),
    Column("tokens", Integer, nullable=False),
)  # fmt: skip
models = Table(
    "models", metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("model_key", String, nullable=False, unique=True),
    Column("line", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("is_current", Boolean, nullable=False),
    Column("job_id", ForeignKey("jobs.id")),
    Column("base_model", String, nullable=False),
    Column("base", _JSON, nullable=False),
    Column("task", String, nullable=False),
    Column("method", String, nullable=False),
    Column("folder", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("verdict", _JSON),
    Column("created_at", Float, nullable=False),
    Column("owner", String, nullable=False),
    sa.UniqueConstraint("line", "version"),
)  # fmt: skip
usage = Table(
    "usage", metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("model", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("job_id", String),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("credits", Float, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=False),
)  # fmt: skip
events = Table(
    "events", metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("level", String, nullable=False),
    Column("message", Text, nullable=False),
)  # fmt: skip
_revision = Table("alembic_version", sa.MetaData(), Column("version_num", String(32), primary_key=True))
TABLES = {t.name: t for t in (jobs, metrics, rejections, row_losses, models, usage, events)}


class BootClock:
    """Seconds since this machine started: leases of a store on one machine. `boot` tells two starts apart."""

    def __init__(self) -> None:
        file = Path("/proc/sys/kernel/random/boot_id")
        self.boot = file.read_text().strip() if file.exists() else ""

    def now(self, c: Connection) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) if self.boot else time.time()


class DatabaseClock:
    """The database server's own clock: leases of a store that several machines share."""

    boot = "database"

    def now(self, c: Connection) -> float:
        return float(c.scalar(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))) or 0.0)


class JobStore:
    def __init__(self, url: str, clock: BootClock | DatabaseClock | None = None, wall: Callable[[], float] = time.time) -> None:
        try:
            parsed = sa.make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                durable.make_folder(Path(parsed.database).parent)
                with durable.typed_errors(Path(parsed.database)):
                    os.close(durable.open_private(Path(parsed.database)))
            self._engine = sa.create_engine(parsed)
        except sa.exc.ArgumentError:
            allowed = "it is a URL such as postgresql+psycopg://user@host/name"
            raise InvalidSetting(name="TUNESMITH_STORE", value=url, allowed=allowed) from None
        except ModuleNotFoundError:
            raise MissingExtra(what="a store in PostgreSQL", extra="postgresql") from None
        on_one_machine = self._engine.dialect.name == "sqlite"
        self._clock, self._wall = clock or (BootClock() if on_one_machine else DatabaseClock()), wall
        sa.event.listen(self._engine, "handle_error", self._unavailable)
        if on_one_machine:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        self._open()

    def _open(self) -> None:
        with self._engine.begin() as c:
            tables = sa.inspect(c).get_table_names()
            if not tables:
                metadata.create_all(c)
                _revision.create(c)
                c.execute(_revision.insert().values(version_num=REVISION))
                return
            found = c.scalar(sa.select(_revision.c.version_num)) if "alembic_version" in tables else "none"
            if found != REVISION and not _upgrade(c, found):
                raise StoreTooNew(store=self._engine.url.render_as_string(), found=found, known=REVISION)

    def _unavailable(self, context: sa.ExceptionContext) -> None:
        """What the disk, the server or a lock held for too long says becomes an error of ours; a wrong statement stays what it is."""
        error = context.original_exception
        is_broken = type(error) in (sqlite3.OperationalError, sqlite3.DatabaseError) and "syntax" not in str(error)
        if is_broken or _is_lost_server(error):
            raise StoreUnavailable(reason=str(error).strip(), store=self._engine.url.render_as_string()) from error

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # ------------------------------------------------------------ jobs, as users see them

    def add(self, job: Job, idempotency_key: str | None = None, content: str = "") -> Job:
        """Accept a job. A taken name gets a suffix; a repeated idempotency key gives the job it made before, where all that was asked
        and the rows (`content`: their digest) are the same."""
        request = _request_digest(job, content)
        with self._engine.begin() as c:
            if self._engine.dialect.name == "postgresql":  # creates take turns, as SQLite's transactions do anyway
                c.execute(sa.text("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"))
            if idempotency_key is not None:
                before = c.execute(sa.select(jobs).where(jobs.c.idempotency_key == idempotency_key)).one_or_none()
                if before is not None:
                    if before.request_digest != request:
                        raise IdempotencyConflict(key=idempotency_key, id=before.id)
                    return _job(before)
            job = replace(job, name=_free_name(c, job.name))
            c.execute(jobs.insert().values(
                id=job.id, name=job.name, model_key=model_key(job.name), task=job.task, base_model=job.base_model,
                sequence=sa.select(sa.func.coalesce(sa.func.max(jobs.c.sequence), 0) + 1).scalar_subquery(),
                training_data=job.training_data, validation_data=job.validation_data, options=job.options.to_json(),
                base=dict(job.base), template=dict(job.template), data_digest=job.data_digest, status=job.status.value,
                rows=dict(job.rows), warnings=list(job.warnings), created_at=job.created_at, owner=job.owner,
                idempotency_key=idempotency_key, request_digest=request,
            ))  # fmt: skip
        return job

    def find_request(self, idempotency_key: str) -> Job | None:
        with self._engine.begin() as c:
            row = c.execute(sa.select(jobs).where(jobs.c.idempotency_key == idempotency_key)).one_or_none()
        return _job(row) if row else None

    def get(self, job_id: str) -> Job:
        with self._engine.begin() as c:
            return _job(_row(c, job_id))

    def all_jobs(self, statuses: Collection[JobStatus] = (), newest: int | None = None) -> list[Job]:
        """All jobs, or those in some states, or the newest so many of them; the newest last."""
        query = sa.select(jobs).order_by(jobs.c.sequence.desc()).limit(newest)
        if statuses:
            query = query.where(jobs.c.status.in_([s.value for s in statuses]))
        with self._engine.begin() as c:
            return [_job(r) for r in c.execute(query)][::-1]

    def count_jobs(self, statuses: Collection[JobStatus] = ()) -> int:
        query = sa.select(sa.func.count()).select_from(jobs)
        if statuses:
            query = query.where(jobs.c.status.in_([s.value for s in statuses]))
        with self._engine.begin() as c:
            return int(c.scalar(query) or 0)

    def request_cancel(self, job_id: str) -> Job:
        """A waiting job is cancelled now; a working one is told by its next heartbeat. Cancelling twice is one cancel."""
        with self._engine.begin() as c:
            row = _row(c, job_id, lock=True)
            status = JobStatus(row.status)
            if status in (JobStatus.CANCELLED, JobStatus.CANCELLING):
                return _job(row)
            if status.is_final:
                raise JobAlreadyFinished(id=job_id, status=status)
            after = JobStatus.CANCELLING if status.is_working else JobStatus.CANCELLED
            ended = {} if after is JobStatus.CANCELLING else {"finished_at": self._wall()}
            c.execute(jobs.update().where(jobs.c.id == row.id).values(status=after.value, **ended))
            return _job(_row(c, job_id))

    def request_pause(self, job_id: str) -> Job:
        """A training job gives its worker back by the next heartbeat; what was done up to its last checkpoint stays."""
        return self._switch(job_id, JobStatus.RUNNING, JobStatus.PAUSED)

    def resume(self, job_id: str) -> Job:
        """A paused job waits for a worker again."""
        return self._switch(job_id, JobStatus.PAUSED, JobStatus.PENDING)

    def _switch(self, job_id: str, before: JobStatus, after: JobStatus) -> Job:
        """From one state to another on a user's word; asking twice is asking once."""
        with self._engine.begin() as c:
            row = _row(c, job_id, lock=True)
            if row.status == after.value:
                return _job(row)
            if row.status != before.value:
                raise JobNotInState(id=job_id, status=row.status, needed=before.value)
            c.execute(jobs.update().where(jobs.c.id == row.id).values(status=after.value))
            return _job(_row(c, job_id))

    # ------------------------------------------------------------ jobs, as workers see them

    def claim(self, holder: str, lease_s: float = LEASE_S) -> Job | None:
        """Take the oldest job that waits, or whose worker is gone; its attempt number grows by one.

        `holder` names this machine's one worker: what it held before, it held in an earlier life, so it is free at once.
        """
        with self._engine.begin() as c:
            now = self._clock.now(c)
            lost = self._lost(holder, now)
            c.execute(
                jobs.update()
                .where(lost, jobs.c.status == JobStatus.CANCELLING.value)
                .values(status=JobStatus.CANCELLED.value, attempt=jobs.c.attempt + 1, finished_at=self._wall())
            )
            waiting = sa.select(jobs).where(lost | (jobs.c.status == JobStatus.PENDING.value)).order_by(jobs.c.sequence).limit(1)
            row = c.execute(waiting.with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            status = JobStatus.VALIDATING.value if row.status == JobStatus.PENDING.value else row.status
            c.execute(
                jobs.update().where(jobs.c.id == row.id).values(
                    status=status, attempt=row.attempt + 1, holder=holder, boot=self._clock.boot,
                    lease_until=now + lease_s, started_at=row.started_at or self._wall(),
                )
            )  # fmt: skip
            return _job(_row(c, row.id))

    def _lost(self, holder: str, now: float) -> sa.ColumnElement[bool]:
        """Jobs that nobody alive holds."""
        free = (jobs.c.holder == holder) | (jobs.c.boot != self._clock.boot) | (jobs.c.lease_until < now)
        return jobs.c.status.in_([s.value for s in WORKING]) & free

    def has_work(self) -> bool:
        """Whether a worker would find anything: a waiting job, or one that somebody holds (perhaps no longer)."""
        wanted = [s.value for s in WORKING] + [JobStatus.PENDING.value]
        with self._engine.begin() as c:
            return bool(c.scalar(sa.select(sa.func.count()).select_from(jobs).where(jobs.c.status.in_(wanted))))

    def has_waiting(self) -> bool:
        with self._engine.begin() as c:
            return bool(c.scalar(sa.select(sa.func.count()).select_from(jobs).where(jobs.c.status == JobStatus.PENDING.value)))

    def renew(self, job: Job, lease_s: float = LEASE_S) -> JobStatus:
        """Heartbeat: keep the lease and read the state, which tells of a cancel."""
        with self._fenced(job) as (c, row):
            c.execute(jobs.update().where(jobs.c.id == job.id).values(lease_until=self._clock.now(c) + lease_s))
            return JobStatus(row.status)

    def retry(self, job: Job) -> Job:
        """The next attempt by the same worker, after its child process died."""
        with self._fenced(job) as (c, row):
            c.execute(jobs.update().where(jobs.c.id == job.id).values(attempt=row.attempt + 1))
            return _job(_row(c, job.id))

    def move(self, job: Job, status: JobStatus, **changes: Any) -> Job:
        """One step in the state machine, by the worker that holds the job. A cancel that came first wins."""
        with self._fenced(job) as (c, row):
            before = JobStatus(row.status)
            if not before.is_working or status not in MOVES[before]:
                return _job(row)
            if status.is_final:
                changes["finished_at"] = self._wall()
            c.execute(jobs.update().where(jobs.c.id == job.id).values(status=status.value, **changes))
            return _job(_row(c, job.id))

    def succeed(self, job: Job, model: Mapping[str, Any], used: Mapping[str, Any], *, version_of: str = "", moves: bool = False) -> Job:
        """The compare-and-set that makes a model appear: EVALUATING and still ours, or nothing happens.

        `version_of` is the key of the line that it joins (else it begins one), `moves` whether that name answers with it from now on.
        """
        with self._fenced(job) as (c, row):
            if row.status != JobStatus.EVALUATING.value:
                return _job(row)
            at = self._wall()
            _add_model(c, {"created_at": at, **model}, version_of, moves)
            c.execute(usage.insert().values(ended_at=at, **used))
            c.execute(jobs.update().where(jobs.c.id == job.id).values(status=JobStatus.SUCCEEDED.value, finished_at=at))
            return _job(_row(c, job.id))

    def record(self, job: Job, **changes: Any) -> None:
        """Store facts about the job: progress, losses, decided options."""
        with self._fenced(job) as (c, _):
            c.execute(jobs.update().where(jobs.c.id == job.id).values(**changes))

    def record_step(self, job: Job, metric: Mapping[str, Any], losses: Sequence[Mapping[str, Any]] = (), trained: int = 0) -> None:
        """A recorded step, the rows' losses up to it and the job's progress, in one commit; a step run again replaces its first record."""
        with self._fenced(job) as (c, _):
            _replace_rows(c, metrics, [{"job_id": job.id, **metric}])
            _replace_rows(c, row_losses, [{"job_id": job.id, **r} for r in losses])
            known = {k: metric[k] for k in ("training_loss", "validation_loss") if metric.get(k) is not None}
            c.execute(jobs.update().where(jobs.c.id == job.id).values(step=metric["step"], trained_tokens=trained, **known))

    def record_rows(self, job: Job, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rejections or per-row losses; rows recorded before under the same key are replaced."""
        with self._fenced(job) as (c, _):
            _replace_rows(c, table, [{"job_id": job.id, **r} for r in rows])

    def warn(self, job: Job, message: str, level: str = "warn") -> None:
        """An event; a warning is also shown with the job, once."""
        with self._fenced(job) as (c, row):
            c.execute(events.insert().values(job_id=job.id, at=self._wall(), level=level, message=message))
            if level == "warn" and message not in row.warnings:
                c.execute(jobs.update().where(jobs.c.id == job.id).values(warnings=[*row.warnings, message]))

    @contextmanager
    def _fenced(self, job: Job) -> Iterator[tuple[Connection, Any]]:
        with self._engine.begin() as c:
            row = c.execute(sa.select(jobs).where(jobs.c.id == job.id, jobs.c.attempt == job.attempt).with_for_update()).one_or_none()
            if row is None:
                raise LeaseLost(id=job.id, attempt=job.attempt)
            yield c, row

    # ------------------------------------------------------------ models, usage, tables

    def all_models(self) -> list[Any]:
        with self._engine.begin() as c:
            return list(c.execute(sa.select(models).order_by(models.c.created_at)))

    def add_model(self, model: Mapping[str, Any]) -> None:
        """A model that no job of this store made."""
        with self._engine.begin() as c:
            name = _free_name(c, model["name"])
            _add_model(c, {"created_at": self._wall(), **model, "name": name, "model_key": model_key(name)}, "", True)

    def version(self, line: str, number: int | None = None) -> Any | None:
        """The version of this number in a line, by default the one that its name answers with."""
        which = models.c.is_current if number is None else models.c.version == number
        with self._engine.begin() as c:
            return c.execute(sa.select(models).where(models.c.line == line, which)).one_or_none()

    def promote(self, model_id: str) -> None:
        """Let the name of the model's line answer with this version."""
        with self._engine.begin() as c:
            line = c.scalar(sa.select(models.c.line).where(models.c.id == model_id))
            _move_line(c, line, model_id)

    def drop_model(self, model_id: str) -> None:
        """Take a model out of the catalogue; where its line's name answered with it, the last version that is left does."""
        with self._engine.begin() as c:
            row = c.execute(models.delete().where(models.c.id == model_id).returning(models.c.line, models.c.is_current)).one()
            left = c.scalar(sa.select(models.c.id).where(models.c.line == row.line).order_by(models.c.version.desc()).limit(1))
            if row.is_current and left is not None:
                _move_line(c, row.line, left)

    def model(self, key: str) -> Any | None:
        """The model under this key; a bare name also finds database.schema.name where only one ends so."""
        with self._engine.begin() as c:
            found = c.execute(sa.select(models).where(models.c.model_key == key)).one_or_none()
            if found is None and "." not in key:
                ends = c.execute(sa.select(models).where(models.c.model_key.endswith("." + key, autoescape=True))).all()
                found = ends[0] if len(ends) == 1 else None
        return found

    def add_usage(self, **facts: Any) -> None:
        with self._engine.begin() as c:
            c.execute(usage.insert().values(**facts))

    def last_metric(self, job_id: str) -> dict[str, Any] | None:
        with self._engine.begin() as c:
            row = c.execute(sa.select(metrics).where(metrics.c.job_id == job_id).order_by(metrics.c.step.desc()).limit(1)).one_or_none()
        return dict(row._mapping) if row else None

    def rows(self, table: str, job_id: str | None = None) -> list[dict[str, Any]]:
        """A table of the store as it is, for the SQL views and the exports."""
        query = sa.select(TABLES[table])
        if job_id is not None and table == "jobs":
            query = query.where(jobs.c.id == job_id)
        elif job_id is not None:
            query = query.where(TABLES[table].c.job_id == job_id)
        with self._engine.begin() as c:
            return [dict(r._mapping) for r in c.execute(query.order_by(*TABLES[table].primary_key))]


def _upgrade(c: Connection, found: str | None) -> bool:
    """Bring an older store to REVISION in the open transaction; False where its revision is not among ours."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    config.attributes["connection"] = c
    if found not in {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}:
        return False
    command.upgrade(config, REVISION)
    return True


def _is_lost_server(error: BaseException | None) -> bool:
    """psycopg's class for a server that is gone, full or does not answer; psycopg may not be installed."""
    return any(f"{k.__module__}.{k.__name__}" == "psycopg.OperationalError" for k in type(error).__mro__)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, not by the driver
    for pragma in ("busy_timeout=30000", "journal_mode=DELETE", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _row(c: Connection, job_id: str, lock: bool = False) -> Any:
    job_id = job_id.encode("utf-8", "backslashreplace").decode()  # an id that is no text names no job
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = c.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise UnknownJob(id=job_id, closest=closest(job_id, c.scalars(sa.select(jobs.c.id))))
    return row


def _add_model(c: Connection, model: Mapping[str, Any], version_of: str, moves: bool) -> None:
    if not version_of:
        c.execute(models.insert().values(**model, line=model["model_key"], version=1, is_current=True))
        return
    c.execute(sa.select(models.c.id).where(models.c.line == version_of).with_for_update()).all()  # versions of a line take turns
    last = c.scalar(sa.select(sa.func.max(models.c.version)).where(models.c.line == version_of)) or 0
    c.execute(models.insert().values(**model, line=version_of, version=last + 1, is_current=False))
    if moves:
        _move_line(c, version_of, model["id"])


def _move_line(c: Connection, line: Any, model_id: str) -> None:
    c.execute(models.update().where(models.c.line == line).values(is_current=models.c.id == model_id))


def _free_name(c: Connection, name: str) -> str:
    """The name itself, or with the first suffix that is free. The names of base models are taken."""
    taken = {*c.scalars(sa.select(jobs.c.model_key).where(_NAME_TAKEN)), *c.scalars(sa.select(models.c.model_key)), *catalog.entries()}
    if model_key(name) not in taken:
        return name
    return next(n for i in range(2, len(taken) + 3) if model_key(n := with_suffix(name, f"_{i}")) not in taken)


def _replace_rows(c: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    if c.dialect.name == "sqlite":
        c.execute(table.insert().prefix_with("OR REPLACE"), rows)
        return
    from sqlalchemy.dialects.postgresql import insert

    statement = insert(table)
    keys = [k.name for k in table.primary_key]
    c.execute(statement.on_conflict_do_update(
        index_elements=keys, set_={k: statement.excluded[k] for k in rows[0] if k not in keys}
    ), rows)  # fmt: skip


def _request_digest(job: Job, content: str) -> str:
    asked = [job.name, job.base_model, job.training_data, job.validation_data, job.options.to_json(), content]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _job(row: Any) -> Job:
    return Job(
        id=row.id, name=row.name, base_model=row.base_model, task=row.task, training_data=row.training_data,
        validation_data=row.validation_data, options=Options.parse(row.options),
        resolved=ResolvedOptions.from_json(row.resolved) if row.resolved else None, status=JobStatus(row.status),
        step=row.step, total_steps=row.total_steps, rows=row.rows, input_tokens=row.input_tokens,
        trained_tokens=row.trained_tokens, training_loss=row.training_loss, validation_loss=row.validation_loss, stopped_by=row.stopped_by,
        quote=row.quote, used=row.used, certificate=row.certificate,
        verdict=row.verdict, moved=row.moved or {}, doing=row.doing,
        warnings=tuple(row.warnings), error=row.error, created_at=row.created_at,
        started_at=row.started_at, finished_at=row.finished_at, attempt=row.attempt, owner=row.owner,
        data_digest=row.data_digest, template=row.template, base=row.base,
    )  # fmt: skip
