"""JobStore: the only code that writes SQL about jobs and models. SQLite by default, PostgreSQL by
URL.

Its schema is that of the newest revision in migrations/; an older store is brought up to it in one
transaction when it is opened, and a newer one is refused. SQLite runs with the rollback journal and
synchronous=FULL: releases 3.7.0 to 3.51.2 can lose a commit in WAL mode when two connections
checkpoint at once. Every change by a worker names its attempt (the fencing number) in the WHERE;
zero rows changed means that another worker has taken over (LeaseLost). Leases are told by the boot
clock, which no clock step moves.
"""

import hashlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Table
from sqlalchemy.engine import Connection

from tunesmith import catalog, durable, schema
from tunesmith.errors import (
    DamagedRow,
    IdempotencyConflict,
    InvalidSetting,
    JobAlreadyFinished,
    JobHasModel,
    JobNotInState,
    LeaseLost,
    MissingExtra,
    Notice,
    StoreTooNew,
    StoreUnavailable,
    UnknownJob,
    UnknownModel,
    closest,
)
from tunesmith.jobs import MOVES, WORKING, Job, JobStatus
from tunesmith.names import model_key, with_suffix
from tunesmith.options import Decided, Options
from tunesmith.schema import (
    NAME_TAKEN,
    SEALED,
    events,
    jobs,
    metrics,
    models,
    rejections,
    row_losses,
    sealed,
    usage,
)

LEASE_S = 30.0  # six heartbeats; a worker that says nothing for so long has lost its job
PAGE = 1000  # rows that are held at once when a table is read through
OPENING = 0x74756E65  # of the lock under which a store is made, in PostgreSQL
NEAR = 500  # names among which the closest one is looked for


class BootClock:
    """Seconds since this machine started: leases of a store on one machine. `boot` tells two starts
    apart."""

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
    """`home` is the identity of the home that asks (durable.open_home): it claims its own jobs and
    no others."""

    def __init__(
        self,
        url: str,
        clock: BootClock | DatabaseClock | None = None,
        wall: Callable[[], float] = time.time,
        *,
        home: str = "",
    ) -> None:
        self.home, self._url = home, url
        self.is_read_only = False
        try:
            parsed = sa.make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                parsed = self._file(parsed, Path(parsed.database))
            self._engine = sa.create_engine(parsed, json_deserializer=schema.lenient)
        except sa.exc.ArgumentError:
            allowed = "it is a URL such as postgresql+psycopg://user@host/name"
            raise InvalidSetting(name="TUNESMITH_STORE", value=url, allowed=allowed) from None
        except ModuleNotFoundError:
            raise MissingExtra(what="a store in PostgreSQL", extra="postgresql") from None
        on_one_machine = self._engine.dialect.name == "sqlite"
        self._clock, self._wall = (
            clock or (BootClock() if on_one_machine else DatabaseClock()),
            wall,
        )
        sa.event.listen(self._engine, "handle_error", self._unavailable)
        if on_one_machine:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._open()

    def _file(self, url: sa.URL, file: Path) -> sa.URL:
        """SQLite's file, made where it is missing; one that cannot be written is opened for
        reading."""
        if file.exists() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
            self.is_read_only = True
            return url.set(database=f"file:{quote(str(file))}", query={"mode": "ro", "uri": "true"})
        durable.make_folder(file.parent)
        with durable.typed_errors(file):
            os.close(durable.open_private(file))
        return url

    def _open(self) -> None:
        revision = schema.revision_table
        with self._reading() as c:
            found = (
                c.scalar(sa.select(revision.c.version_num))
                if sa.inspect(c).has_table(revision.name)
                else None
            )
        if found == schema.REVISION:
            return
        with self._alone() as c:
            tables = sa.inspect(c).get_table_names()
            if not tables:
                schema.metadata.create_all(c)
                revision.create(c)
                c.execute(revision.insert().values(version_num=schema.REVISION))
                return
            found = (
                c.scalar(sa.select(revision.c.version_num)) if revision.name in tables else "none"
            )
            if found != schema.REVISION and not _upgrade(c, found):
                raise StoreTooNew(
                    store=self._engine.url.render_as_string(), found=found, known=schema.REVISION
                )

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """A transaction of which one runs at a time, also on a server, where two could make the
        same table or row at once."""
        with self._engine.begin() as c:
            if self._engine.dialect.name == "postgresql":
                c.execute(sa.select(sa.func.pg_advisory_xact_lock(OPENING)))
            yield c

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A transaction that takes no write lock."""
        with self._engine.connect().execution_options(reads=True) as c, c.begin():
            yield c

    def _unavailable(self, context: sa.ExceptionContext) -> None:
        """What the disk, the server or a lock held for too long says becomes an error of ours; a
        wrong statement stays what it is."""
        error = context.original_exception
        is_broken = type(error) in (sqlite3.OperationalError, sqlite3.DatabaseError) and (
            "syntax" not in str(error) or "malformed" in str(error)
        )
        if is_broken or isinstance(error, UnicodeDecodeError) or _is_lost_server(error):
            raise StoreUnavailable(reason=str(error).strip(), store=self.place()) from error

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # ------------------------------------------------------------ jobs, as users see them

    def add(self, job: Job, idempotency_key: str | None = None) -> Job:
        """Accept a job. A taken name gets a suffix; a repeated idempotency key gives the job it
        made before, where all that was asked and the rows are the same."""
        request = _request_digest(job)
        with self._engine.begin() as c:
            if (
                self._engine.dialect.name == "postgresql"
            ):  # creates take turns, as SQLite's transactions do anyway
                c.execute(sa.text("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"))
            if idempotency_key is not None:
                before = c.execute(
                    sa.select(jobs).where(jobs.c.idempotency_key == idempotency_key)
                ).one_or_none()
                if before is not None:
                    _must_be_sound(jobs, before)
                    if before.request_digest != request:
                        raise IdempotencyConflict(key=idempotency_key, id=before.id)
                    return _job(before)
            job = replace(job, name=_free_name(c, job.name), home=self.home)
            c.execute(
                jobs.insert().values(
                    sealed(
                        jobs,
                        dict(
                            id=job.id,
                            name=job.name,
                            model_key=model_key(job.name),
                            task=job.task,
                            base_model=job.base_model,
                            sequence=_next(c, jobs.c.sequence),
                            home=self.home,
                            training_data=job.training_data,
                            validation_data=job.validation_data,
                            options=job.options.to_json(),
                            base=dict(job.base),
                            template=dict(job.template),
                            data_digest=job.data_digest,
                            status=job.status.value,
                            rows=dict(job.rows),
                            warnings=list(job.warnings),
                            created_at=job.created_at,
                            owner=job.owner,
                            idempotency_key=idempotency_key,
                            request_digest=request,
                        ),
                    )
                )
            )
        return job

    def find_request(self, idempotency_key: str) -> Job | None:
        with self._reading() as c:
            row = c.execute(
                sa.select(jobs).where(jobs.c.idempotency_key == idempotency_key)
            ).one_or_none()
        return _job(row) if row else None

    def get(self, job_id: str) -> Job:
        """UnknownJob, or DamagedRow where its row cannot be believed."""
        with self._reading() as c:
            return _job(_row(c, job_id))

    def all_jobs(
        self, statuses: Collection[JobStatus] = (), newest: int | None = None
    ) -> list[Job]:
        """All jobs, or those in some states, or the newest so many of them; the newest last.
        Damaged ones are named and left out."""
        query = _in(statuses).order_by(jobs.c.sequence.desc()).limit(newest)
        return [_job(r) for r in self._sound_rows(jobs, query)][::-1]

    def jobs_in_pages(self, statuses: Collection[JobStatus] = ()) -> Iterator[Job]:
        """All jobs, the oldest first, no more than a page of them in memory."""
        query = _in(statuses).order_by(jobs.c.sequence).limit(max(1, PAGE // 10))
        page = self._read(jobs, query)
        while page:
            yield from map(_job, self._sound(jobs, page))
            page = self._read(jobs, query.where(jobs.c.sequence > page[-1].sequence))

    def states(self) -> dict[str, tuple[str, JobStatus, str]]:
        """Name, state and home of every job, by its id; no document is read."""
        with self._reading() as c:
            found = c.execute(sa.select(jobs.c.id, jobs.c.name, jobs.c.status, jobs.c.home)).all()
        known = set(JobStatus)
        return {
            r.id: (r.name, JobStatus(r.status) if r.status in known else JobStatus.FAILED, r.home)
            for r in found
        }

    def count_jobs(self, statuses: Collection[JobStatus] = ()) -> int:
        with self._reading() as c:
            return int(c.scalar(_in(statuses).with_only_columns(sa.func.count(jobs.c.id))) or 0)

    def request_cancel(self, job_id: str) -> Job:
        """A waiting job is cancelled now; a working one is told by its next heartbeat. Cancelling
        twice is one cancel."""
        with self._engine.begin() as c:
            row = _row(c, job_id, lock=True)
            status = JobStatus(row.status)
            if status in (JobStatus.CANCELLED, JobStatus.CANCELLING):
                return _job(row)
            if status.is_final:
                raise JobAlreadyFinished(id=job_id, status=status)
            after = JobStatus.CANCELLING if status.is_working else JobStatus.CANCELLED
            ended = {} if after is JobStatus.CANCELLING else {"finished_at": self._wall()}
            return _save(c, row, status=after.value, **ended)

    def request_pause(self, job_id: str) -> Job:
        """A training job gives its worker back by the next heartbeat; what was done up to its last
        checkpoint stays."""
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
            return _save(c, row, status=after.value)

    def delete_job(self, job_id: str) -> None:
        """Remove a job that has ended, or whose row is damaged, with all that was recorded of it;
        what it used stays counted.

        JobNotInState before its end, JobHasModel while the catalogue has its model.
        """
        with self._engine.begin() as c:
            try:
                row = _row(c, job_id, lock=True)
                if not JobStatus(row.status).is_final:
                    raise JobNotInState(
                        id=job_id,
                        status=row.status,
                        needed="at its end (SUCCEEDED, FAILED, CANCELLED)",
                    )
            except DamagedRow:
                pass
            if (
                name := c.scalar(sa.select(models.c.name).where(models.c.job_id == job_id))
            ) is not None:
                raise JobHasModel(id=job_id, name=name)
            for table in (metrics, rejections, row_losses, events):
                c.execute(table.delete().where(table.c.job_id == job_id))
            c.execute(jobs.delete().where(jobs.c.id == job_id))

    # ------------------------------------------------------------ jobs, as workers see them

    def claim(self, holder: str, lease_s: float = LEASE_S) -> Job | None:
        """Take this home's oldest job that waits, or whose worker is gone; its attempt number grows
        by one.

        `holder` names this machine's one worker: what it held before, it held in an earlier life,
        so it is free at once.
        """
        with self._engine.begin() as c:
            now = self._clock.now(c)
            mine, lost = jobs.c.home == self.home, self._lost(holder, now)
            cancelled = sa.select(jobs).where(
                mine, lost, jobs.c.status == JobStatus.CANCELLING.value
            )
            for row in self._sound(jobs, c.execute(cancelled.with_for_update(skip_locked=True))):
                _save(
                    c,
                    row,
                    status=JobStatus.CANCELLED.value,
                    attempt=row.attempt + 1,
                    finished_at=self._wall(),
                )
            free = (mine, lost | (jobs.c.status == JobStatus.PENDING.value))
            for job_id in c.scalars(
                sa.select(jobs.c.id).where(*free).order_by(jobs.c.sequence)
            ).all():
                still = (
                    sa.select(jobs)
                    .where(jobs.c.id == job_id, *free)
                    .with_for_update(skip_locked=True)
                )
                for row in self._sound(jobs, c.execute(still)):
                    status = (
                        JobStatus.VALIDATING.value
                        if row.status == JobStatus.PENDING.value
                        else row.status
                    )
                    return _save(
                        c,
                        row,
                        status=status,
                        attempt=row.attempt + 1,
                        holder=holder,
                        boot=self._clock.boot,
                        lease_until=now + lease_s,
                        started_at=row.started_at or self._wall(),
                    )
        return None

    def _lost(self, holder: str, now: float) -> sa.ColumnElement[bool]:
        """Jobs that nobody alive holds."""
        free = (
            (jobs.c.holder == holder)
            | (jobs.c.boot != self._clock.boot)
            | (jobs.c.lease_until < now)
        )
        return jobs.c.status.in_([s.value for s in WORKING]) & free

    def has_work(self) -> bool:
        """Whether this home's worker would find anything: a waiting job, or one that somebody holds
        (perhaps no longer)."""
        return self._has([*WORKING, JobStatus.PENDING])

    def has_waiting(self) -> bool:
        return self._has([JobStatus.PENDING])

    def _has(self, statuses: Collection[JobStatus]) -> bool:
        with self._reading() as c:
            return (
                c.scalar(
                    _in(statuses)
                    .where(jobs.c.home == self.home)
                    .with_only_columns(jobs.c.id)
                    .limit(1)
                )
                is not None
            )

    def renew(self, job: Job, lease_s: float = LEASE_S) -> JobStatus:
        """Heartbeat: keep the lease and read the state, which tells of a cancel."""
        with self._fenced(job) as (c, row):
            return _save(c, row, lease_until=self._clock.now(c) + lease_s).status

    def retry(self, job: Job) -> Job:
        """The next attempt by the same worker, after its child process died."""
        with self._fenced(job) as (c, row):
            return _save(c, row, attempt=row.attempt + 1)

    def move(self, job: Job, status: JobStatus, **changes: Any) -> Job:
        """One step in the state machine, by the worker that holds the job. A cancel that came first
        wins."""
        with self._fenced(job) as (c, row):
            before = JobStatus(row.status)
            if not before.is_working or status not in MOVES[before]:
                return _job(row)
            if status.is_final:
                changes["finished_at"] = self._wall()
            return _save(c, row, status=status.value, **changes)

    def succeed(
        self,
        job: Job,
        model: Mapping[str, Any],
        used: Mapping[str, Any],
        *,
        version_of: str = "",
        moves: bool = False,
    ) -> Job:
        """The compare-and-set that makes a model appear: EVALUATING and still ours, or nothing
        happens.

        `version_of` is the key of the line that it joins (else it begins one), `moves` whether that
        name answers with it from now on.
        """
        with self._fenced(job) as (c, row):
            if row.status != JobStatus.EVALUATING.value:
                return _job(row)
            at = self._wall()
            _add_model(c, {"created_at": at, "home": self.home, **model}, version_of, moves)
            c.execute(usage.insert().values(sealed(usage, {"ended_at": at, **used})))
            return _save(c, row, status=JobStatus.SUCCEEDED.value, finished_at=at)

    def record(self, job: Job, **changes: Any) -> None:
        """Store facts about the job: progress, losses, decided options."""
        with self._fenced(job) as (c, row):
            _save(c, row, **changes)

    def record_step(
        self,
        job: Job,
        metric: Mapping[str, Any],
        losses: Sequence[Mapping[str, Any]] = (),
        trained: int = 0,
    ) -> None:
        """A recorded step, the rows' losses up to it and the job's progress, in one commit; a step
        run again replaces its first record."""
        with self._fenced(job) as (c, row):
            _replace_rows(c, metrics, [{"job_id": job.id, **metric}])
            _replace_rows(c, row_losses, [{"job_id": job.id, **r} for r in losses])
            known = {
                k: metric[k]
                for k in ("training_loss", "validation_loss")
                if metric.get(k) is not None
            }
            _save(c, row, step=metric["step"], trained_tokens=trained, **known)

    def record_rows(self, job: Job, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rejections or per-row losses; rows recorded before under the same key are replaced."""
        with self._fenced(job) as (c, _):
            _replace_rows(c, table, [{"job_id": job.id, **r} for r in rows])

    def warn(self, job: Job, message: str, level: str = "warn") -> None:
        """An event; a warning is also shown with the job, once."""
        with self._fenced(job) as (c, row):
            c.execute(
                events.insert().values(
                    sealed(
                        events, dict(job_id=job.id, at=self._wall(), level=level, message=message)
                    )
                )
            )
            if level == "warn" and message not in row.warnings:
                _save(c, row, warnings=[*row.warnings, message])

    @contextmanager
    def _fenced(self, job: Job) -> Iterator[tuple[Connection, Any]]:
        with self._engine.begin() as c:
            row = c.execute(
                sa.select(jobs)
                .where(jobs.c.id == job.id, jobs.c.attempt == job.attempt)
                .with_for_update()
            ).one_or_none()
            if row is None:
                raise LeaseLost(id=job.id, attempt=job.attempt)
            yield c, _must_be_sound(jobs, row)

    # ------------------------------------------------------------ models, usage, tables

    def all_models(self) -> list[Any]:
        """Every model, the oldest first. Damaged ones are named and left out."""
        return self._sound_rows(models, sa.select(models).order_by(models.c.created_at))

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

    def jobs_with_models(self) -> set[str]:
        """Also those of damaged rows."""
        with self._reading() as c:
            return set(c.scalars(sa.select(models.c.job_id)))

    def model_names(self) -> list[str]:
        """Names of the newest models, to find the one that was meant."""
        with self._reading() as c:
            return list(
                c.scalars(sa.select(models.c.name).order_by(models.c.created_at.desc()).limit(NEAR))
            )

    def add_model(self, model: Mapping[str, Any]) -> None:
        """A model that no job of this store made."""
        with self._engine.begin() as c:
            name = _free_name(c, model["name"])
            added = {
                "created_at": self._wall(),
                "home": self.home,
                **model,
                "name": name,
                "model_key": model_key(name),
            }
            _add_model(c, added, "", True)

    def version(self, line: str, number: int | None = None) -> Any | None:
        """The version of this number in a line, by default the one that its name answers with."""
        which = models.c.is_current if number is None else models.c.version == number
        with self._reading() as c:
            row = c.execute(sa.select(models).where(models.c.line == line, which)).first()
        return None if row is None else _must_be_sound(models, row)

    def promote(self, model_id: str) -> None:
        """Let the name of the model's line answer with this version."""
        with self._engine.begin() as c:
            line = c.scalar(sa.select(models.c.line).where(models.c.id == model_id))
            _move_line(c, line, model_id)

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
                _move_line(c, row.line, left)
            job = c.execute(sa.select(jobs).where(jobs.c.id == row.job_id)).one_or_none()
            if job is not None and not schema.damage(jobs, job._mapping):
                _save(c, job, model_key=f"dropped/{job.id}")
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
                _move_line(c, row["line"], row["id"])
            if (
                job is not None
                and not schema.damage(jobs, job._mapping)
                and job.model_key.startswith("dropped/")
            ):
                _save(c, job, model_key=row["model_key"])
        return True

    def put_back_status(self, job_id: str, status: JobStatus) -> None:
        """A job that was cancelled for want of its rows waits as before."""
        with self._engine.begin() as c:
            row = _row(c, job_id, lock=True)
            if row.status == JobStatus.CANCELLED.value:
                _save(c, row, status=status.value, finished_at=None)

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
        return None if found is None else _must_be_sound(models, found)

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
        return _shown(found[0]) if found else None

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
            asked, mine, after, size or (max(1, PAGE // 10) if asked is jobs else PAGE)
        )
        found = []
        for row in rows:
            if why := schema.damage(asked, row):
                _leave_out(_damaged(asked, _name_of(asked, row), why))
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

    # ------------------------------------------------------------ homes

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

    def place(self) -> str:
        """The store's URL, without its password."""
        return sa.make_url(self._url).render_as_string()

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
                            .values(_resealed(table, row, home=self.home))
                        )

    # ------------------------------------------------------------ damage

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
                rows, last = self._rows_after(table, sa.true(), last, PAGE)
            except StoreUnavailable as e:
                yield _damaged(table, "of an unknown place", str(e.fields["reason"]))
                return
            is_first = False
            for row in rows:
                if why := schema.damage(table, row):
                    yield _damaged(table, _name_of(table, row), why)

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

    def _sound_rows(self, table: Table, query: Any) -> list[Any]:
        """The rows of a query that can be believed; the others are named and left out."""
        return list(self._sound(table, self._read(table, query)))

    def _read(self, table: Table, query: Any) -> list[Any]:
        try:
            with self._reading() as c:
                return list(c.execute(query).all())
        except StoreUnavailable as e:
            if "malformed" not in str(e.fields["reason"]):
                raise
        return self._one_by_one(table, query)

    def _one_by_one(self, table: Table, query: Any) -> list[Any]:
        """The rows of a query from a file that is damaged in places."""
        keys: list[Any] = list(table.primary_key)
        found: list[Any] = []
        with self._reading() as c:
            named = c.execute(query.with_only_columns(*keys)).all()
        for key in named:
            try:
                with self._reading() as c:
                    found += c.execute(
                        sa.select(table).where(*(k == v for k, v in zip(keys, key, strict=True)))
                    ).all()
            except StoreUnavailable as e:
                _leave_out(_damaged(table, str(key[0]), str(e.fields["reason"])))
        return found

    def _sound(self, table: Table, rows: Iterable[Any]) -> Iterator[Any]:
        for row in list(rows):
            if why := schema.damage(table, row._mapping):
                _leave_out(_damaged(table, _name_of(table, row._mapping), why))
            else:
                yield row


def _leave_out(error: DamagedRow) -> None:
    warnings.warn(str(error), Notice, stacklevel=2)


def _damaged(table: Table, row: str, reason: str) -> DamagedRow:
    return DamagedRow(table=table.name, row=row, reason=reason)


def _name_of(table: Table, row: Mapping[Any, Any]) -> str:
    return " ".join(str(row[k.name]) for k in table.primary_key)


def _must_be_sound(table: Table, row: Any) -> Any:
    if why := schema.damage(table, row._mapping):
        raise _damaged(table, _name_of(table, row._mapping), why)
    return row


def _shown(row: Any) -> dict[str, Any]:
    found = row._asdict()
    found.pop("seal")
    return found  # type: ignore[no-any-return]


def _in(statuses: Collection[JobStatus]) -> Any:
    """Jobs in some states; without any, all."""
    query = sa.select(jobs)
    return query.where(jobs.c.status.in_([s.value for s in statuses])) if statuses else query


def _resealed(table: Table, row: Any, **changes: Any) -> dict[str, Any]:
    return {**changes, "seal": schema.seal_of(table, {**row._mapping, **changes})}


def _save(c: Connection, row: Any, **changes: Any) -> Job:
    """Change a job's row as it was read in this transaction, and give the job as it stands then."""
    c.execute(jobs.update().where(jobs.c.id == row.id).values(_resealed(jobs, row, **changes)))
    return _job(_row(c, row.id))


def _upgrade(c: Connection, found: str | None) -> bool:
    """Bring an older store to REVISION in the open transaction; False where its revision is not
    among ours."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", schema.MIGRATIONS)
    config.attributes["connection"] = c
    if found not in {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}:
        return False
    command.upgrade(config, schema.REVISION)
    if (found or "") < schema.SEALED_SINCE:  # in later ones a row without a seal is a damaged one
        schema.seal_all(c)
    return True


def _is_lost_server(error: BaseException | None) -> bool:
    """psycopg's class for a server that is gone, full or does not answer; psycopg may not be
    installed."""
    return any(
        f"{k.__module__}.{k.__name__}" == "psycopg.OperationalError" for k in type(error).__mro__
    )


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, not by the driver
    connection.text_factory = lambda data: data.decode(
        errors="replace"
    )  # damage is told by the row's seal
    for pragma in (
        "busy_timeout=30000",
        "journal_mode=DELETE",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(c: Connection) -> None:
    c.exec_driver_sql("BEGIN" if c.get_execution_options().get("reads") else "BEGIN IMMEDIATE")


def _row(c: Connection, job_id: str, lock: bool = False) -> Any:
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
    return _must_be_sound(jobs, row)


def _add_model(c: Connection, model: Mapping[str, Any], version_of: str, moves: bool) -> None:
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
    version = _next(c, models.c.version, models.c.line == version_of)
    c.execute(
        models.insert().values(
            sealed(models, {**model, "line": version_of, "version": version, "is_current": False})
        )
    )
    if moves:
        _move_line(c, version_of, model["id"])


def _next(c: Connection, column: Any, where: Any = None) -> int:
    """One more than the largest number of a column, whatever damage put beside it."""
    query = sa.select(column).order_by(column.desc()).limit(NEAR)
    found = c.scalars(query if where is None else query.where(where)).all()
    return max((n for n in found if isinstance(n, int) and n < 2**53), default=0) + 1


def _move_line(c: Connection, line: Any, model_id: str) -> None:
    for row in c.execute(sa.select(models).where(models.c.line == line)).all():
        if row.is_current != (row.id == model_id) and not schema.damage(models, row._mapping):
            c.execute(
                models.update()
                .where(models.c.id == row.id)
                .values(_resealed(models, row, is_current=row.id == model_id))
            )


def _free_name(c: Connection, name: str) -> str:
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


def _replace_rows(c: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
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


def _request_digest(job: Job) -> str:
    asked = [
        job.name,
        job.base_model,
        job.training_data,
        job.validation_data,
        job.options.to_json(),
        job.data_digest,
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _job(row: Any) -> Job:
    return Job(
        id=row.id,
        name=row.name,
        base_model=row.base_model,
        task=row.task,
        training_data=row.training_data,
        validation_data=row.validation_data,
        options=Options.parse(row.options),
        resolved=Decided.from_json(row.resolved) if row.resolved else None,
        status=JobStatus(row.status),
        step=row.step,
        total_steps=row.total_steps,
        rows=row.rows,
        input_tokens=row.input_tokens,
        trained_tokens=row.trained_tokens,
        training_loss=row.training_loss,
        validation_loss=row.validation_loss,
        stopped_by=row.stopped_by,
        quote=row.quote,
        used=row.used,
        certificate=row.certificate,
        verdict=row.verdict,
        moved=row.moved or {},
        doing=row.doing,
        warnings=tuple(row.warnings),
        error=row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        owner=row.owner,
        data_digest=row.data_digest,
        template=row.template,
        base=row.base,
        home=row.home,
    )
