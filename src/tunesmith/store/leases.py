"""Jobs, as workers see them: claimed under a lease, changed by whoever holds it alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Table
from sqlalchemy.engine import Connection

from tunesmith.errors import (
    LeaseLost,
)
from tunesmith.jobs import MOVES, WORKING, Job, JobStatus
from tunesmith.schema import (
    events,
    jobs,
    metrics,
    row_losses,
    sealed,
    usage,
)
from tunesmith.store.opened import OpenedStore
from tunesmith.store.rows import insert_model, job_of, must_be_sound, replace_rows, save

LEASE_S = 30.0  # six heartbeats; a worker that says nothing for so long has lost its job


class Leases(OpenedStore):
    """Jobs, as workers see them."""

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
                save(
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
                    return save(
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

    def renew(self, job: Job, lease_s: float = LEASE_S) -> JobStatus:
        """Heartbeat: keep the lease and read the state, which tells of a cancel."""
        with self._fenced(job) as (c, row):
            return save(c, row, lease_until=self._clock.now(c) + lease_s).status

    def retry(self, job: Job) -> Job:
        """The next attempt by the same worker, after its child process died."""
        with self._fenced(job) as (c, row):
            return save(c, row, attempt=row.attempt + 1)

    def move(self, job: Job, status: JobStatus, **changes: Any) -> Job:
        """One step in the state machine, by the worker that holds the job. A cancel that came first
        wins."""
        with self._fenced(job) as (c, row):
            before = JobStatus(row.status)
            if not before.is_working or status not in MOVES[before]:
                return job_of(row)
            if status.is_final:
                changes["finished_at"] = self._wall()
            return save(c, row, status=status.value, **changes)

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
                return job_of(row)
            at = self._wall()
            insert_model(c, {"created_at": at, "home": self.home, **model}, version_of, moves)
            c.execute(usage.insert().values(sealed(usage, {"ended_at": at, **used})))
            return save(c, row, status=JobStatus.SUCCEEDED.value, finished_at=at)

    def record(self, job: Job, **changes: Any) -> None:
        """Store facts about the job: progress, losses, decided options."""
        with self._fenced(job) as (c, row):
            save(c, row, **changes)

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
            replace_rows(c, metrics, [{"job_id": job.id, **metric}])
            replace_rows(c, row_losses, [{"job_id": job.id, **r} for r in losses])
            known = {
                k: metric[k]
                for k in ("training_loss", "validation_loss")
                if metric.get(k) is not None
            }
            save(c, row, step=metric["step"], trained_tokens=trained, **known)

    def record_rows(self, job: Job, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rejections or per-row losses; rows recorded before under the same key are replaced."""
        with self._fenced(job) as (c, _):
            replace_rows(c, table, [{"job_id": job.id, **r} for r in rows])

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
                save(c, row, warnings=[*row.warnings, message])

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
            yield c, must_be_sound(jobs, row)
