"""Fine-tuning jobs: created, looked at, stopped, waited for, removed."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import access, catalog, durable, worker
from tunesmith.data.dataset import Dataset
from tunesmith.data.given import Data
from tunesmith.data.split import PARTS
from tunesmith.documents import plots
from tunesmith.documents.plots import Mistakes, Picture
from tunesmith.errors import (
    DamagedRow,
    JobNotInState,
    MissingExtra,
    WorkerAtWork,
)
from tunesmith.jobs import Job, JobStatus
from tunesmith.models import methods
from tunesmith.names import model_key
from tunesmith.options import Options
from tunesmith.phases.child import PROVE_RESUME, Assignment
from tunesmith.phases.messages import Compared
from tunesmith.service.core import must_be_able_to_train
from tunesmith.service.models import Models
from tunesmith.service.rows import Rows
from tunesmith.settings import ROWS

if TYPE_CHECKING:
    import pyarrow


POLL_S = 0.5  # between two looks of a waiter


class Jobs(Models, Rows):
    """The verbs about jobs."""

    def create(
        self,
        name: str,
        base_model: str,
        training_data: Data,
        validation_data: Data = None,
        *,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
        """Freeze the rows and accept a job; durable before it returns. The job runs in a worker of
        its own.

        `options` are those of `Options`. A taken name gets a suffix; the same idempotency key gives
        the same job.
        """
        access.require(self.principal, "CREATE MODEL", name)
        model_key(name)  # InvalidModelName before anything is read
        store = self.store
        must_be_able_to_train()
        parsed = Options.parse(options)
        spec = catalog.find_for(base_model, self.settings.home, parsed.task)
        task = spec.task_spec
        parsed.must_be_read(task, methods.READERS)
        catalog.prices(self.settings.home)  # UnreadableSettings now, not when the job has run
        if parsed.new_version_of:
            self._tuned(parsed.new_version_of)  # UnknownModel now, not when the job has run
        job = Job(
            id=Job.new_id(),
            name=name,
            base_model=spec.name,
            task=spec.task,
            training_data=_described(training_data),
            validation_data=_described(validation_data),
            options=parsed,
            owner=self.principal.user,
            template=task.rules.preprocessing(spec),
            base=spec.to_json(),
        )
        folder = self.settings.job_folder(job.id)
        worker.ensure(self.settings, store, expecting=True)  # it starts while the rows are frozen
        try:
            accepted = self._accept(job, folder, training_data, validation_data, idempotency_key)
        except BaseException:
            self._collect()
            raise
        if accepted.id != job.id:  # the same request came before
            durable.remove(folder)
            self._collect()
        worker.ensure(self.settings, self.store)
        return self._hand_out(accepted)

    def _accept(
        self,
        job: Job,
        folder: Path,
        training_data: Data,
        validation_data: Data,
        idempotency_key: str | None,
    ) -> Job:
        spec, asked = catalog.ModelSpec.from_json(job.base), job.options
        with durable.making(folder):
            frozen = self._snapshot(training_data, validation_data, asked, folder / ROWS, spec)
            self._check_row_limit(spec, asked, sum(frozen.rows[p] for p in PARTS))
            dataset = Dataset.open(folder / ROWS, frozen.digest)
            known = replace(
                job,
                data_digest=frozen.digest,
                rows=frozen.rows,
                warnings=frozen.warnings,
                template=spec.task_spec.rules.fitted(job.template, dataset),
            )
            return self.store.add(known, idempotency_key, frozen.content)

    def show(self, *, statuses: Collection[JobStatus] = (), newest: int | None = None) -> list[Job]:
        """All jobs, or those in some states, or the newest so many of them; the oldest first."""
        worker.ensure(self.settings, self.store)
        return [self._hand_out(j) for j in self.store.all_jobs(statuses, newest)]

    def each_job(self, statuses: Collection[JobStatus] = ()) -> Iterator[Job]:
        """The same, the oldest first, with few of them in memory at a time."""
        worker.ensure(self.settings, self.store)
        return map(self._hand_out, self.store.jobs_in_pages(statuses))

    def describe(self, job_id: str) -> Job:
        """One job as it stands now; UnknownJob otherwise."""
        worker.ensure(self.settings, self.store)
        return self._hand_out(self.store.get(job_id))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop: a waiting one stops now, a working one within a step. No model will
        appear."""
        access.require(self.principal, "OPERATE", job_id)
        job = self.store.request_cancel(job_id)
        if (
            job.status.is_final and job.home == self.store.home
        ):  # it waited or was paused: no worker will come for what it left
            worker.collect(self.settings, job)
        return self._hand_out(job)

    def pause(self, job_id: str) -> Job:
        """Stop a training job for now; JobNotInState unless it is RUNNING. What came after its last
        checkpoint is done again later."""
        access.require(self.principal, "OPERATE", job_id)
        return self._hand_out(self.store.request_pause(job_id))

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on from its last checkpoint; it ends with the weights it would have
        had."""
        access.require(self.principal, "OPERATE", job_id)
        job = self.store.resume(job_id)
        worker.ensure(self.settings, self.store)
        return self._hand_out(job)

    def delete_job(self, job_id: str) -> None:
        """Remove a job that has ended: its row, metrics and events, its frozen rows, its logs. What
        it used stays counted.

        JobNotInState before its end, JobHasModel while its model is in the catalogue,
        OfAnotherHome.
        """
        access.require(self.principal, "OWNERSHIP", job_id)
        try:
            self._here(self.store.get(job_id))
        except (
            DamagedRow
        ):  # what cannot be read can be removed, where it is this home's and nobody works on it
            _, _, home = self.store.states().get(job_id, ("", None, ""))
            if home != self.store.home and not self.settings.job_folder(job_id).is_dir():
                raise
            if worker.is_alive(self.settings.home):
                raise WorkerAtWork(home=str(self.settings.home)) from None
        self._delete_job(job_id)
        self._collect()

    def _delete_job(self, job_id: str) -> None:
        with durable.removing(self.settings.job_folder(job_id)):
            self.store.delete_job(job_id)

    def prune(self, *, older_than_s: float, dry_run: bool = False) -> list[Job]:
        """Remove this home's jobs that ended so long ago and whose model is not in the catalogue
        (any more); what was, or would be, removed."""
        before, named = time.time() - older_than_s, self.store.jobs_with_models()
        old = [
            job
            for job in self.store.jobs_in_pages([s for s in JobStatus if s.is_final])
            if job.home == self.store.home
            and (job.finished_at or 0.0) < before
            and job.id not in named
        ]
        for job in old if not dry_run else ():
            access.require(self.principal, "OWNERSHIP", job.id)
            self._delete_job(job.id)
        self._collect()
        return old

    def verify_resume(self, job_id: str) -> Compared:
        """Do the job's first steps in one go and again with a kill and a resume in between, and
        compare the weights to the bit.

        In a process of its own, on the job's own rows and options; nothing of the job is touched.
        JobNotInState before its options are decided.
        """
        access.require(self.principal, "MONITOR", job_id)
        job = self._here(self.store.get(job_id))
        if job.resolved is None:
            raise JobNotInState(id=job.id, status=job.status.value, needed="past VALIDATING")
        must_be_able_to_train()
        return self._run(PROVE_RESUME, Assignment.of(job, self.settings), Compared)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """Block until the job has ended (or `timeout_s` is over) and return it; `on_change` sees
        every look."""
        began = time.monotonic()
        while True:
            job = self.describe(job_id)
            if on_change is not None:
                on_change(job)
            if job.status.is_final or (
                timeout_s is not None and time.monotonic() - began >= timeout_s
            ):
                return job
            time.sleep(POLL_S)

    def metrics(self, job_id: str) -> "pyarrow.Table":
        """The recorded steps of a job as an Arrow table."""
        try:
            import pyarrow
        except ImportError:
            raise MissingExtra(what="an Arrow table", extra="train") from None
        self.store.get(job_id)
        return pyarrow.Table.from_pylist(self.store.rows("metrics", job_id))

    def plot(self, job_id: str, what: str) -> Picture:
        """A picture of a classifier's verdict rows: `confusion`, `reliability` or `labels`."""
        job = self.store.get(job_id)
        return plots.plot(what, job.name, list(self.store.rows("predictions", job.id)))

    def mistakes(self, job_id: str) -> Mistakes:
        """What a model takes for what, and the verdict rows of highest loss with their text."""
        job = self._here(self.store.get(job_id))
        rows = Dataset.open(self.settings.job_folder(job.id) / ROWS, job.data_digest, job.moved)
        worst = (job.verdict or {}).get("worst", ())
        wanted = {w["row"] for w in worst}
        words = catalog.ModelSpec.from_json(job.base).task_spec.rules.words
        texts = {r.row: words(r) or "" for r in rows.rows("verdict") if r.row in wanted}
        return Mistakes(
            plots.confused(list(self.store.rows("predictions", job.id))),
            [{**w, "text": texts.get(w["row"], "")} for w in worst],
        )

    def _hand_out(self, job: Job) -> Job:
        return replace(job, service=self)


def _described(data: Data) -> str:
    """Training data as text, for DESCRIBE."""
    if data is None:
        return ""
    return (
        os.fspath(data)
        if isinstance(data, (str, os.PathLike))
        else f"<{type(data).__module__.partition('.')[0]} {type(data).__name__}>"
    )
