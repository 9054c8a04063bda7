"""The group `job`."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.errors import InvalidOptionValue
from tunesmith.interfaces.cli.shared import (
    JOB_FAILED,
    LISTED,
    JobId,
    Json,
    Quiet,
    Yes,
    confirm,
    job_app,
    open_service,
    show,
)
from tunesmith.jobs import Job, JobStatus
from tunesmith.words import counted

if TYPE_CHECKING:
    from tunesmith.service import Tunesmith


@job_app.command("list")
def job_list(
    everything: Annotated[
        bool, typer.Option("--all", help="All jobs, not the newest alone.")
    ] = False,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", help="Jobs in this state, such as RUNNING; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many of the newest.")] = LISTED,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The newest jobs, the newest of them last."""
    statuses = [_status(s) for s in status or ()]
    service = open_service()
    jobs = (
        service.each_job(statuses) if everything else service.show(statuses=statuses, newest=limit)
    )
    shown = 0
    for shown, j in enumerate(jobs, 1):
        if as_json:
            print(("[" if shown == 1 else ", ") + json.dumps(job_facts(j)), end="")
        else:
            print(j.id if quiet else _job_line(service, j))
    if as_json:
        print("]" if shown else "[]")
        return
    if not shown and not quiet:
        print("no such jobs" if statuses else "no jobs yet: tunesmith tune --help", file=sys.stderr)
    if (
        shown == limit
        and not everything
        and not quiet
        and (more := service.store.count_jobs(statuses) - limit) > 0
    ):
        print(f"… and {more:,} before: --all", file=sys.stderr)


def _job_line(service: "Tunesmith", j: Job) -> str:
    elsewhere = (
        "" if j.home == service.store.home else f"  (of the home {service.store.place_of(j.home)})"
    )
    return (
        f"{j.id}  {j.status.value:<13} {100 * j.progress:3.0f} %  {j.base_model:<16} "
        f"{j.name}{elsewhere}"
    )


def _status(word: str) -> JobStatus:
    try:
        return JobStatus(word.upper())
    except ValueError:
        raise InvalidOptionValue(
            name="status", value=word, allowed="one of " + ", ".join(JobStatus)
        ) from None


@job_app.command("show")
def job_show(id: JobId, as_json: Json = False) -> None:
    """Everything about a job: state, losses, decided options with their reasons, scores,
    warnings."""
    job = open_service().describe(id)
    print(json.dumps(job_facts(job)) if as_json else job_page(job))


@job_app.command("plot")
def job_plot(
    id: JobId,
    what: Annotated[str, typer.Argument(help="confusion, reliability or labels.")] = "confusion",
    out: Annotated[
        str, typer.Option(help="The SVG file to write; default: its name and what it shows.")
    ] = "",
    as_json: Json = False,
) -> None:
    """A picture of a classifier's verdict rows, as an SVG file."""
    from tunesmith import durable

    service = open_service()
    job = service.describe(id)
    file = Path(out or f"{job.name}-{what}.svg")
    durable.replace_text(file, service.plot(job.id, what).svg)
    show(as_json, {"file": str(file)}, f"{file} written")


@job_app.command("mistakes")
def job_mistakes(id: JobId, as_json: Json = False) -> None:
    """What a model takes for what, and the verdict rows on which its loss is highest."""
    found = open_service().mistakes(id)
    lines = [f"{label!r} answered as {given!r}: {n}" for label, given, n in found.pairs[:20]]
    lines += [
        f"row {w['row']}, loss {w['loss']:.2f}: {w['wanted']!r} answered as {w['answer']!r:.60}\n"
        f"    {w['text']:.200}"
        for w in found.worst
    ]
    show(as_json, asdict(found), "\n".join(lines) or "there are no verdict rows")


@job_app.command("layers")
def job_layers(id: JobId, as_json: Json = False) -> None:
    """Of each layer of a trained model: its weights, how many were trained and how fast, and
    whether they moved."""
    found = (open_service().describe(id).used or {}).get("layers", [])
    lines = [
        f"{f['name']:<18} {f['parameters']:>12,} weights, {f['trained']:>12,} trained at "
        f"{f['multiple']:.3g} x the rate, {'moved' if f['moved'] else 'not moved'}"
        for f in found
    ]
    show(as_json, found, "\n".join(lines) or "nothing was trained yet")


@job_app.command("wait")
def job_wait(id: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Watch a job until it has ended. Ctrl-C detaches; the job goes on."""
    watch(open_service().describe(id), as_json, quiet)


@job_app.command("cancel")
def job_cancel(id: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Stop a job. No model will appear."""
    job = open_service().cancel(id)
    show_job(job, as_json, quiet, f"job {job.id}: {job.status.value}")


@job_app.command("delete")
def job_delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of jobs that have ended.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove jobs that have ended, with their frozen rows, metrics and logs. What they used stays
    counted."""
    service = open_service()
    confirm(f"remove {counted(len(ids), 'job')} for good", yes or as_json)
    for id in ids:
        service.delete_job(id)
    show(as_json, {"deleted": ids}, "\n".join(f"job {id}: removed" for id in ids))


@job_app.command("prune")
def job_prune(
    older_than: Annotated[
        str, typer.Option("--older-than", help="Ended so long ago: 90d, 12h, 30m.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    yes: Yes = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove jobs that ended some time ago and whose model is not in the catalogue, with all that
    is kept of them."""
    service, seconds = open_service(), _duration(older_than)
    old = service.prune(older_than_s=seconds, dry_run=True)
    if not as_json:
        for job in old:
            print(job.id if quiet else _job_line(service, job))
    if old and not dry_run:
        confirm(f"remove {counted(len(old), 'job')} for good", yes or as_json)
        for job in old:
            service.delete_job(job.id)
    done = "would be removed" if dry_run else "removed"
    if as_json:
        print(
            json.dumps(
                {"removed": [] if dry_run else [j.id for j in old], "found": [j.id for j in old]}
            )
        )
    elif not quiet:
        print(f"{counted(len(old), 'job')} {done}", file=sys.stderr)


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw])", text.strip())
    if not match:
        raise InvalidOptionValue(
            name="older-than",
            value=text,
            allowed="a number and a unit: s, m, h, d or w, such as 90d",
        )
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]


@job_app.command("pause")
def job_pause(id: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Stop a training job for now; it keeps its last checkpoint."""
    job = open_service().pause(id)
    show_job(
        job,
        as_json,
        quiet,
        f"job {job.id}: {job.status.value}; `tunesmith job resume {job.id}` goes on",
    )


@job_app.command("resume")
def job_resume(id: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Let a paused job go on."""
    job = open_service().resume(id)
    show_job(job, as_json, quiet, f"job {job.id}: {job.status.value}")


@job_app.command("verify-resume")
def job_verify_resume(id: JobId, as_json: Json = False) -> None:
    """Show that a kill and a resume change no weight: the job's first steps in one go, and again
    with a kill, compared to the bit."""
    found = open_service().verify_resume(id)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(
            f"{counted(found.steps, 'step')} in one go; the same with a kill, resumed from the "
            f"checkpoint of step {found.resumed_from}: "
            f"{found.tensors} trained tensors, {len(found.different)} differ"
        )
    if found.different:
        sys.exit(1)


def watch(job: Job, as_json: bool, quiet: bool) -> None:
    from tunesmith.interfaces.progress import watch

    try:
        job = watch(job.service, job.id)
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on: tunesmith job wait {job.id}", file=sys.stderr)
        sys.exit(130)
    show_job(job, as_json, quiet, job_page(job))
    if job.status is not JobStatus.SUCCEEDED:
        sys.exit(JOB_FAILED)


def job_facts(job: Job) -> dict[str, Any]:
    """A job as JSON: the command line's contract."""
    return {
        "id": job.id,
        "name": job.name,
        "base_model": job.base_model,
        "task": job.task,
        "status": job.status.value,
        "progress": job.progress,
        "step": job.step,
        "total_steps": job.total_steps,
        "rows": dict(job.rows),
        "input_tokens": job.input_tokens,
        "trained_tokens": job.trained_tokens,
        "training_loss": job.training_loss,
        "validation_loss": job.validation_loss,
        "stopped_by": job.stopped_by,
        "doing": job.doing,
        "quote": job.quote,
        "used": job.used,
        "certificate": job.certificate,
        "verdict": job.verdict,
        "warnings": list(job.warnings),
        "error": job.error,
        "training_data": job.training_data,
        "validation_data": job.validation_data,
        "options": job.options.to_json(),
        "resolved": job.resolved.to_json() if job.resolved else None,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "attempt": job.attempt,
        "owner": job.owner,
        "home": job.home,
    }


def job_page(job: Job) -> str:
    """A job for a reader, the scores first."""
    lines = [*verdict_lines(job)]
    lines.append(f"job {job.id}  {job.status.value}  model {job.name} on {job.base_model}")
    if job.error is not None:
        lines.append(f"error: {job.error['message']}")
    lines += [f"warning: {w}" for w in job.warnings]
    if job.rows:
        lines.append("rows: " + ", ".join(f"{n} {part}" for part, n in job.rows.items()))
    from tunesmith.interfaces.progress import doing_text

    if doing := doing_text(job):
        lines.append(f"evaluating: {doing}")
    if job.total_steps:
        why = {
            "": "",
            "max_epochs": "",
            "patience": ", stopped by patience: validation no longer fell",
        }.get(job.stopped_by, f", stopped by {job.stopped_by}")
        lines.append(
            f"steps: {job.step} of {job.total_steps}{why}; trained tokens: "
            f"{job.trained_tokens:,}; attempts: {job.attempt}"
        )
    from tunesmith.interfaces.pages import used_text

    lines += filter(None, [used_text(job.quote, job.used)])
    losses = [
        f"{name} loss {value:.4f}"
        for name, value in (("training", job.training_loss), ("validation", job.validation_loss))
        if value is not None
    ]
    if losses:
        lines.append(", ".join(losses))
    if job.resolved is not None:
        lines.append("options:")
        lines += [
            f"  {name:<14} {known['value']!s:<10} {known['origin']}: {known['reason']}"
            for name, known in job.resolved.to_json().items()
            if known["value"] != ""
        ]
    return "\n".join(lines)


def verdict_lines(job: Job) -> list[str]:
    from tunesmith.interfaces.pages import verdict_text

    return verdict_text(job.verdict, job.base_model, job.name)


def show_job(job: Job, as_json: bool, quiet: bool, text: str) -> None:
    print(json.dumps(job_facts(job)) if as_json else job.id if quiet else text)
