"""The worker: claims a job, renews its lease, runs its three phases in child processes, publishes
the model.

It never imports torch, so an out-of-memory kill or a crash of the trainer spares it. One worker
runs per home folder and machine, held by a file lock that dies with it. Files first, then one
compare-and-set makes the model appear.
"""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith import catalog, durable, registry
from tunesmith.documents.verdict import objection
from tunesmith.errors import (
    ChildDied,
    DamagedRow,
    DiskFull,
    LeaseLost,
    NotPromoted,
    StorageFailed,
    StoreUnavailable,
    TooManyAttempts,
    TrainingFailed,
    TunesmithError,
    UnknownJob,
    from_json,
)
from tunesmith.executors import Executor, Exited, Running
from tunesmith.executors.local import LocalExecutor
from tunesmith.home import open_store
from tunesmith.jobs import Job, JobStatus
from tunesmith.names import model_key
from tunesmith.phases.child import EVALUATE, PREPARE, TRAIN, Assignment, Phase
from tunesmith.phases.messages import (
    Certified,
    Doing,
    Done,
    Failed,
    Judged,
    Message,
    Predicted,
    Prepared,
    Quoted,
    Rejected,
    RowLosses,
    Started,
    Stepped,
    Trained,
    Warned,
)
from tunesmith.schema import jobs, models, predictions, rejections
from tunesmith.settings import ROWS, SNAPSHOTS, UNCLAIMED, Settings
from tunesmith.store import LEASE_S, JobStore

log = logging.getLogger("tunesmith.worker")

HEARTBEAT_S = 1.0  # renews the lease and reads a cancel
POLL_S = 0.5  # between looks for work
DEATHS_LIMIT = 3  # child deaths without a further step
ATTEMPTS_LIMIT = 50  # workers that died over one job, before it is given up
SPACE_POLL_S = 5.0
LOCK_TRIES = 10  # a tenth of a second apart: somebody who only looks holds the lock for a moment

LEFT = (JobStatus.CANCELLING, JobStatus.PAUSED)  # what a heartbeat may find: the child is stopped

_starting = threading.Lock()
_started: dict[
    Path, subprocess.Popen[bytes]
] = {}  # by home; kept, so that a worker that ended is reaped with its parent


def ensure(settings: Settings, store: JobStore, *, expecting: bool = False) -> None:
    """Start a detached worker if there is work and none is alive on this machine; never in a home
    that cannot be written. `expecting`: work is about to come."""
    if store.is_read_only:
        return
    with _starting:
        _ensure(settings, store, expecting)


def _ensure(settings: Settings, store: JobStore, expecting: bool) -> None:
    started = _started.get(settings.home)
    if started is not None and started.poll() is None:  # it may not hold the lock yet
        return
    if not (expecting or store.has_work()) or is_alive(settings.home):
        return
    with os.fdopen(durable.open_private(settings.home / "worker.log"), "ab") as out:
        _started[settings.home] = subprocess.Popen(
            # -P: a file in the folder that the user stands in, named like a library, is not run
            [sys.executable, "-P", "-m", "tunesmith.worker"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=settings.home,
            env={**os.environ, **settings.environment()},
            start_new_session=True,
        )


def is_alive(home: Path) -> bool:
    """Whether this home's worker runs on this machine. Those who look share the lock, so they do
    not mistake each other for it."""
    try:
        os.close(_lock(home, fcntl.LOCK_SH))
    except BlockingIOError:
        return True
    return False


@contextmanager
def _only_worker(home: Path) -> Iterator[None]:
    """The lock of this home's one worker; BlockingIOError while another holds it. It ends with its
    process, however that ends."""
    descriptor = _lock(home, fcntl.LOCK_EX, tries=LOCK_TRIES)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _lock(home: Path, kind: int, tries: int = 1) -> int:
    durable.open_home(home)
    with durable.typed_errors(home / "worker.lock"):
        descriptor = os.open(home / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for n in range(tries):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if n + 1 == tries:
                os.close(descriptor)
                raise
            time.sleep(0.1)
    raise AssertionError("tries is at least 1")


@dataclass(frozen=True)
class _Death:
    """How a child ended without a word."""

    code: int
    for_memory: bool
    """Whether the system killed a process for its memory while the child ran."""

    @property
    def from_outside(self) -> bool:
        """Somebody, or a shutdown, ended it; a crash, an exit or a want of memory is the job's own
        doing and would come again."""
        return (
            -self.code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            and not self.for_memory
        )

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        return f"killed by signal {-self.code}" + (
            ": there was no memory left" if self.for_memory else ""
        )


def collect(settings: Settings, job: Job) -> None:
    """Checkpoints and results of a job that has ended, and files that were to be its model; its
    rows and its logs stay."""
    if job.status in (
        JobStatus.CANCELLED,
        JobStatus.FAILED,
    ):  # a model appears with SUCCEEDED or never
        durable.remove(settings.home / "models" / job.id.removeprefix("ft_"))
    for folder in settings.job_folder(job.id).glob("attempt-*/*"):
        if folder.is_dir():
            durable.remove(folder)


def collect_snapshots(settings: Settings, store: JobStore) -> None:
    """Frozen rows that no job of this home has any more, by its folder (one that was put aside
    too) or by its row."""
    home = settings.home
    owners = ("jobs/*", f"{UNCLAIMED}/*/jobs/*", "tmp/*")  # in tmp/ a quote at work
    links = (folder / ROWS for owner in owners for folder in home.glob(owner))
    durable.collect(home / SNAPSHOTS, links, store.own_snapshots())


def sweep(settings: Settings, store: JobStore) -> None:
    """What killed processes left: staging folders of none that is alive, and what jobs that have
    ended no longer need."""
    durable.sweep_staging(settings.home)
    for table in (jobs, models):
        for folder in durable.abandoned(settings.home / table.name):
            known = folder.name in {i.removeprefix("ft_") for i in store.own_ids(table)}
            (durable.settle if known else durable.remove)(folder)
    collect_snapshots(settings, store)
    kept = {
        folder.parent.parent.name
        for folder in (settings.home / "jobs").glob("*/attempt-*/*")
        if folder.is_dir()
    }
    kept |= {folder.name for folder in (settings.home / "models").glob("*")} - store.own_ids(models)
    for name in sorted(kept):
        try:
            job = store.get(f"ft_{name}")
        except (UnknownJob, DamagedRow):  # doctor tells of it
            continue
        if job.status.is_final:
            collect(settings, job)


class Worker:
    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        executor: Executor,
        *,
        holder: str = "",
        lease_s: float = LEASE_S,
    ) -> None:
        """`executor` runs the phases. `holder` names what may take its jobs back at once when it
        starts again: by default this home on this machine."""
        self._settings, self._store, self._executor = settings, store, executor
        self._lease_s = lease_s
        self._holder = holder or f"{os.uname().nodename}:{store.home or settings.home}"

    def run(self) -> None:
        """Work until there was nothing to do for a while."""
        idle_since = time.monotonic()
        while True:
            job = self._store.claim(self._holder, self._lease_s)
            if job is not None:
                self.work(job)
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= self._settings.idle_s:
                return
            else:
                time.sleep(min(POLL_S, self._settings.idle_s))

    def work_all(self) -> None:
        """Every job that waits now, then return."""
        while (job := self._store.claim(self._holder, self._lease_s)) is not None:
            self.work(job)

    def work(self, job: Job) -> None:
        """One claimed job, from where it stands to its end."""
        log.info("%s %s attempt %d", job.id, job.status, job.attempt)
        failures = 0  # of the disk; each is met by a fresh attempt
        try:
            if job.attempt > ATTEMPTS_LIMIT:
                raise TooManyAttempts(id=job.id, attempts=job.attempt - 1)
            while job.status.is_working:
                try:
                    job = self._advance(job)
                except DiskFull as e:
                    job = self._wait_here(job, e)
                except StorageFailed as e:
                    failures += 1
                    if failures == DEATHS_LIMIT:
                        raise
                    job = self._store.retry(self._store.get(job.id))
                    self._store.warn(job, f"{e} Tried again from the last checkpoint.")
                except TunesmithError:
                    raise
                # a fault of ours, or of a library: the job ends by name, the worker goes on
                except Exception as e:
                    failures += 1
                    log.exception("%s", job.id)
                    if failures == DEATHS_LIMIT:
                        phase = f"{job.status.value}, {failures} times"
                        reason = (
                            f"{type(e).__name__}: {e}. worker.log in the home folder has the rest"
                        )
                        raise TrainingFailed(id=job.id, phase=phase, reason=reason) from None
                    job = self._store.retry(self._store.get(job.id))
                log.info("%s %s", job.id, job.status)
        except (
            LeaseLost,
            StoreUnavailable,
        ) as e:  # the job keeps its state for whoever claims it next
            log.warning("%s", e)
        except TunesmithError as e:
            job = self._store.get(job.id)
            if not job.status.is_final:
                job = self._store.move(job, JobStatus.FAILED, error=e.to_json())
                log.info("%s %s: %s", job.id, job.status, e)
            if job.status.is_final:
                collect(self._settings, job)

    def _advance(self, job: Job) -> Job:
        """Do what the job's state asks for; returns the job in its next state."""
        match job.status:
            case JobStatus.VALIDATING:
                return self._after(self._run_phase(PREPARE, job), JobStatus.RUNNING)
            case JobStatus.RUNNING:
                return self._after(self._run_phase(TRAIN, job), JobStatus.EVALUATING)
            case JobStatus.WAITING_SPACE:
                return self._wait_for_space(job)
            case JobStatus.EVALUATING:
                return self._publish(self._run_phase(EVALUATE, job))
            case JobStatus.CANCELLING:
                return self._cancelled(job)
        raise AssertionError(f"a worker holds no job in state {job.status}")

    def _after(self, job: Job, status: JobStatus) -> Job:
        return job if job.status in LEFT else self._store.move(job, status)

    # ------------------------------------------------------------ one phase

    def _run_phase(self, phase: Phase, job: Job) -> Job:
        """Run a phase's child until it is done. A child that dies is started again, from its last
        checkpoint."""
        deaths, furthest = 0, self._store.get(job.id).step
        while True:
            ended = self._run_child(phase, job)
            job = self._store.get(job.id)
            if ended is None or job.status in LEFT:
                return job
            if isinstance(ended, TunesmithError):
                raise ended
            if ended.from_outside:
                if job.attempt > ATTEMPTS_LIMIT:
                    raise TooManyAttempts(id=job.id, attempts=job.attempt)
            else:
                deaths = deaths + 1 if job.step <= furthest else 1
                furthest = max(furthest, job.step)
            if deaths >= DEATHS_LIMIT:
                raise ChildDied(
                    phase=phase.word,
                    id=job.id,
                    times=deaths,
                    reason=str(ended),
                    log=self._log_tail(job),
                )
            self._store.warn(
                job,
                f"the {phase.word} process ended ({ended}); started again from its last checkpoint",
                level="info",
            )
            job = self._store.retry(job)

    def _run_child(self, phase: Phase, job: Job) -> "TunesmithError | _Death | None":
        """None when the phase is done or was cancelled, the error that the child told, or how it
        died."""
        folder = self._settings.job_folder(job.id) / f"attempt-{job.attempt}"
        durable.make_folder(folder)
        assignment = Assignment.of(self._store.get(job.id), self._settings)
        with os.fdopen(durable.open_private(folder / "log.txt"), "ab") as log:
            running = self._executor.start(phase, assignment, log)
        try:
            return self._listen(running, job)
        finally:
            running.stop()

    def _listen(self, running: Running, job: Job) -> "TunesmithError | _Death | None":
        scribe, is_done, beat = _Scribe(self._store, job), False, 0.0
        failed: TunesmithError | None = None
        while True:
            if time.monotonic() - beat > HEARTBEAT_S:
                beat = time.monotonic()
                if self._store.renew(job, self._lease_s) in LEFT:
                    return None
            match running.hear(HEARTBEAT_S):
                case None:
                    pass
                case Exited(code, for_memory):
                    return None if is_done else failed or _Death(code, for_memory)
                case Done():
                    is_done = True
                case Failed(error):
                    failed = from_json(dict(error))
                case message:
                    scribe.hear(message)

    # ------------------------------------------------------------ ends

    def _publish(self, job: Job) -> Job:
        """The tuned model's files into their final place, then the compare-and-set."""
        if job.status is not JobStatus.EVALUATING or job.resolved is None:
            return job
        final = Path("models") / job.id.removeprefix("ft_") / "v1"
        target = self._settings.home / final
        if (
            not target.exists()
        ):  # else a worker before us died between this rename and the next statement
            attempts = sorted(
                self._settings.job_folder(job.id).glob("attempt-*/result"),
                key=lambda p: -int(p.parent.name[8:]),
            )
            durable.verify(attempts[0])
            with durable.staging(self._settings.home) as outer:
                staged = outer / "v1"  # hard links: no second copy of the weights
                shutil.copytree(
                    attempts[0],
                    staged,
                    copy_function=os.link,
                    ignore=shutil.ignore_patterns(durable.MANIFEST),
                )
                durable.write_json(staged / "certificate.json", job.certificate)
                durable.publish(staged, target, {"job": job.id, "name": job.name})
        durable.verify(target)
        model = dict(
            id=job.id.removeprefix("ft_"),
            name=job.name,
            model_key=model_key(job.name),
            job_id=job.id,
            base_model=job.base_model,
            base=dict(job.base),
            task=job.task,
            method=job.resolved.method,
            folder=str(final),
            digest=durable.sha256(target / durable.MANIFEST),
            verdict=dict(job.verdict) if job.verdict else None,
            owner=job.owner,
        )
        used = dict(
            kind="training",
            model=job.name,
            base_model=job.base_model,
            job_id=job.id,
            input_tokens=job.trained_tokens,
            output_tokens=0,
            started_at=job.started_at,
            credits=catalog.credits(
                self._settings.home, job.base_model, "training", job.trained_tokens
            ),
        )
        line, why_not = self._line(job)
        job = self._store.succeed(job, model, used, version_of=line, moves=not why_not)
        if job.status is JobStatus.SUCCEEDED:
            collect(self._settings, job)
        return job

    def _line(self, job: Job) -> tuple[str, str]:
        """The line of versions that the new model joins, and why its name will not move to it; both
        empty where it begins a line."""
        if not job.options.new_version_of:
            return "", ""
        head = registry.resolve(self._store, self._settings.home, job.options.new_version_of)
        why_not = objection(job.verdict)
        if why_not:
            told = NotPromoted(line=job.options.new_version_of, name=job.name, reason=why_not)
            self._store.warn(job, str(told))
        return head.line, why_not

    def _cancelled(self, job: Job) -> Job:
        job = self._store.move(job, JobStatus.CANCELLED)
        collect(self._settings, job)
        return job

    def _wait_here(self, job: Job, error: DiskFull) -> Job:
        """The disk is full: a training job says so by its state, another waits where it stands."""
        job = self._store.get(job.id)
        if job.status is JobStatus.RUNNING:
            return self._store.move(job, JobStatus.WAITING_SPACE)
        self._store.warn(job, f"{error} The job waits for space and goes on by itself.")
        self._await_space(job)
        return self._store.get(job.id)

    def _wait_for_space(self, job: Job) -> Job:
        self._await_space(job)
        return self._after(self._store.get(job.id), JobStatus.RUNNING)

    def _await_space(self, job: Job) -> None:
        """Until there is room for the job's files, or it is cancelled."""
        needed = 4 * int(job.base.get("parameters") or 0) * 4
        while self._store.renew(job, self._lease_s) is not JobStatus.CANCELLING:
            time.sleep(SPACE_POLL_S)
            try:
                return durable.check_space(self._settings.home, needed)
            except DiskFull:
                continue

    def _log_tail(self, job: Job) -> str:
        logs = sorted(
            self._settings.job_folder(job.id).glob("attempt-*/log.txt"),
            key=lambda p: p.stat().st_mtime,
        )
        return logs[-1].read_text(errors="replace")[-2000:] if logs else ""


class _Scribe:
    """Writes down what a phase tells."""

    def __init__(self, store: JobStore, job: Job) -> None:
        self._store, self._job = store, job
        self._row_losses: list[dict[str, Any]] = []

    def hear(self, message: Message) -> None:
        store, job = self._store, self._job
        match message:
            case Warned(words):
                store.warn(job, words)
            case Rejected(rows):
                store.record_rows(job, rejections, [dict(r) for r in rows])
            case Predicted(rows):
                store.record_rows(job, predictions, [dict(r) for r in rows])
            case RowLosses(part, epoch, rows):
                self._row_losses += [
                    {"part": part, "epoch": epoch, "row": row, "loss": loss, "tokens": tokens}
                    for row, loss, tokens in rows
                ]
            case Stepped():
                metric = asdict(message)
                store.record_step(job, metric, self._row_losses, metric.pop("trained_tokens"))
                self._row_losses = []
            case Judged(verdict):
                store.record(job, verdict=verdict, doing=None)
            case Doing():
                store.record(job, doing=asdict(message))
            case Started() | Prepared() | Trained() | Quoted() | Certified():
                store.record(job, **asdict(message))  # its fields are those of the job
            case _:
                raise AssertionError(f"a job's phase told {message}")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    settings = Settings.read()
    executor = LocalExecutor(settings)
    store = open_store(settings)
    try:
        while True:
            with _only_worker(settings.home):
                executor.warm()
                sweep(settings, store)
                Worker(settings, store, executor).run()
                sweep(settings, store)
            if (
                not store.has_waiting()
            ):  # a job that came while the lock was still held would find no worker
                break
    except BlockingIOError:
        log.info("another worker is alive in %s", settings.home)
    except StoreUnavailable as e:  # whoever looks next starts another worker
        log.warning("%s", e)


if __name__ == "__main__":
    main()
