"""Jobs, as users see them."""

from collections.abc import Collection, Iterator
from dataclasses import replace

import sqlalchemy as sa

from tunesmith.errors import (
    DamagedRow,
    IdempotencyConflict,
    JobAlreadyFinished,
    JobHasModel,
    JobNotInState,
)
from tunesmith.jobs import WORKING, Job, JobStatus
from tunesmith.names import model_key
from tunesmith.schema import (
    events,
    jobs,
    metrics,
    models,
    predictions,
    rejections,
    row_losses,
    sealed,
)
from tunesmith.store.opened import OpenedStore
from tunesmith.store.rows import (
    free_name,
    in_states,
    job_of,
    must_be_sound,
    next_in,
    request_digest,
    row_of,
    save,
)


class Jobs(OpenedStore):
    """Jobs, as users see them."""

    def add(self, job: Job, idempotency_key: str | None = None, content: str = "") -> Job:
        """Accept a job. A taken name gets a suffix; a repeated idempotency key gives the job it
        made before, where all that was asked and the rows (`content`: their digest) are the
        same."""
        request = request_digest(job, content)
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
                    must_be_sound(jobs, before)
                    if before.request_digest != request:
                        raise IdempotencyConflict(key=idempotency_key, id=before.id)
                    return job_of(before)
            job = replace(job, name=free_name(c, job.name), home=self.home)
            known = {
                **job.to_row(),
                "model_key": model_key(job.name),
                "sequence": next_in(c, jobs.c.sequence),
                "idempotency_key": idempotency_key,
                "request_digest": request,
            }
            c.execute(jobs.insert().values(sealed(jobs, known)))
        return job

    def find_request(self, idempotency_key: str) -> Job | None:
        with self._reading() as c:
            row = c.execute(
                sa.select(jobs).where(jobs.c.idempotency_key == idempotency_key)
            ).one_or_none()
        return job_of(row) if row else None

    def get(self, job_id: str) -> Job:
        """UnknownJob, or DamagedRow where its row cannot be believed."""
        with self._reading() as c:
            return job_of(row_of(c, job_id))

    def all_jobs(
        self, statuses: Collection[JobStatus] = (), newest: int | None = None
    ) -> list[Job]:
        """All jobs, or those in some states, or the newest so many of them; the newest last.
        Damaged ones are named and left out."""
        query = in_states(statuses).order_by(jobs.c.sequence.desc()).limit(newest)
        return [job_of(r) for r in self._sound_rows(jobs, query)][::-1]

    def jobs_in_pages(self, statuses: Collection[JobStatus] = ()) -> Iterator[Job]:
        """All jobs, the oldest first, no more than a page of them in memory."""
        query = in_states(statuses).order_by(jobs.c.sequence).limit(max(1, self.page_size // 10))
        page = self._read(jobs, query)
        while page:
            yield from map(job_of, self._sound(jobs, page))
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
            return int(
                c.scalar(in_states(statuses).with_only_columns(sa.func.count(jobs.c.id))) or 0
            )

    def request_cancel(self, job_id: str) -> Job:
        """A waiting job is cancelled now; a working one is told by its next heartbeat. Cancelling
        twice is one cancel."""
        with self._engine.begin() as c:
            row = row_of(c, job_id, lock=True)
            status = JobStatus(row.status)
            if status in (JobStatus.CANCELLED, JobStatus.CANCELLING):
                return job_of(row)
            if status.is_final:
                raise JobAlreadyFinished(id=job_id, status=status)
            after = JobStatus.CANCELLING if status.is_working else JobStatus.CANCELLED
            ended = {} if after is JobStatus.CANCELLING else {"finished_at": self._wall()}
            return save(c, row, status=after.value, **ended)

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
            row = row_of(c, job_id, lock=True)
            if row.status == after.value:
                return job_of(row)
            if row.status != before.value:
                raise JobNotInState(id=job_id, status=row.status, needed=before.value)
            return save(c, row, status=after.value)

    def delete_job(self, job_id: str) -> None:
        """Remove a job that has ended, or whose row is damaged, with all that was recorded of it;
        what it used stays counted.

        JobNotInState before its end, JobHasModel while the catalogue has its model.
        """
        with self._engine.begin() as c:
            try:
                row = row_of(c, job_id, lock=True)
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
            for table in (metrics, rejections, row_losses, predictions, events):
                c.execute(table.delete().where(table.c.job_id == job_id))
            c.execute(jobs.delete().where(jobs.c.id == job_id))

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
                    in_states(statuses)
                    .where(jobs.c.home == self.home)
                    .with_only_columns(jobs.c.id)
                    .limit(1)
                )
                is not None
            )

    def jobs_with_models(self) -> set[str]:
        """Also those of damaged rows."""
        with self._reading() as c:
            return set(c.scalars(sa.select(models.c.job_id)))
