"""Watching a job: a bar in a terminal, plain lines in a pipe. Ctrl-C stops watching, never the
job."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tunesmith.jobs import Job, JobStatus
from tunesmith.service import Tunesmith
from tunesmith.words import counted

LINE_S = 5.0  # between two lines when piped


def watch(service: Tunesmith, job_id: str, console: Console | None = None) -> Job:
    """Show state, step, loss, tokens per second and the time left until the job has ended; returns
    it."""
    console = console or Console(stderr=True)
    rate = _Rate()
    if not console.is_terminal:
        return service.wait(job_id, on_change=_Lines(service, rate))
    columns = (
        TextColumn("[bold]{task.description:<11}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("PENDING", total=1.0, text="")
        return service.wait(
            job_id,
            on_change=lambda job: bar.update(
                line,
                description=job.status.value,
                completed=job.progress,
                text=_text(service, job, rate),
            ),
        )


class _Rate:
    """Steps per second since this process began to watch."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left_s(self, job: Job) -> float | None:
        now = time.monotonic()
        if self._first is None or job.step < self._first[1]:
            self._first = now, job.step
        began, step = self._first
        done = job.step - step
        return (job.total_steps - job.step) * (now - began) / done if done > 2 else None


class _Lines:
    def __init__(self, service: Tunesmith, rate: _Rate) -> None:
        self._service, self._rate, self._told, self._state = service, rate, 0.0, ""

    def __call__(self, job: Job) -> None:
        now = time.monotonic()
        # an arm of the evaluation is a change too
        state = f"{job.status} {(job.doing or {}).get('what', '')}"
        if state != self._state or (
            now - self._told >= LINE_S and job.status is not JobStatus.EVALUATING
        ):
            self._told, self._state = now, state
            print(
                f"{job.status.value:<11} {100 * job.progress:3.0f} %  "
                f"{_text(self._service, job, self._rate)}".rstrip(),
                file=sys.stderr,
                flush=True,
            )


def doing_text(job: Job) -> str:
    """Which arm of the evaluation answers, how many of how many rows are done, and how long this
    arm still takes."""
    if job.status is not JobStatus.EVALUATING or not job.doing:
        return ""
    what, done, of, left = (job.doing[k] for k in ("what", "done", "of", "left_s"))
    return f"{what}: {done} of {counted(of, 'row')}" + (f"  {_clock(left)} left" if left else "")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _text(service: Tunesmith, job: Job, rate: _Rate) -> str:
    if job.status is JobStatus.EVALUATING:
        return doing_text(job) or "the models are loaded"
    if not job.total_steps:
        return ""
    metric = service.store.last_metric(job.id)
    left = rate.left_s(job)
    parts = [f"step {job.step}/{job.total_steps}"]
    if metric is not None and metric["training_loss"] is not None:
        parts += [
            f"loss {metric['training_loss']:.3f}",
            f"{metric['tokens_per_second']:,.0f} tokens/s",
        ]
    if left is not None and not job.status.is_final:
        parts.append(f"{_clock(left)} left")
    return "  ".join(parts)
