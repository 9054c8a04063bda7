"""The `tunesmith` command. Each command parses, makes one call to the service, and renders.

Data goes to stdout, talk to stderr; `--json` gives machines a stable form. Exit codes: 0 done, 1
failed, 2 usage, 3 not found, 5 the job failed or was cancelled, 130 interrupted. Nothing heavy is
imported before a command runs.
"""

import errno
import inspect
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith import imports
from tunesmith.errors import InvalidOptionValue, Notice, OptionNotRead, TunesmithError
from tunesmith.jobs import Job, JobStatus
from tunesmith.options import Options, allowed_values
from tunesmith.words import counted

if TYPE_CHECKING:
    from tunesmith.registry import TunedModel
    from tunesmith.service import Tunesmith

JOB_FAILED = 5
LISTED = 50  # jobs that `job list` shows

app = typer.Typer(
    help="Fine-tune models where your tables are.",
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
job_app = typer.Typer(
    help="Jobs: list, show, wait, pause, resume, cancel, delete, prune, verify-resume.",
    no_args_is_help=True,
)
model_app = typer.Typer(
    help="Models: list, show, promote, export, import, delete.", no_args_is_help=True
)
app.add_typer(job_app, name="job")
app.add_typer(model_app, name="model")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the id or the name.")]
Database = Annotated[
    str,
    typer.Option(
        "--database", "-d", envvar="TUNESMITH_DATABASE", help="DuckDB file where queries run."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JobId = Annotated[str, typer.Argument(help="Id of a job (ft_…).")]


def main() -> None:
    """The console script: errors become one sentence and an exit code."""
    imports.is_own_process = True
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a terminal that cannot show a character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _tell
    try:
        try:
            app(standalone_mode=True)
        finally:
            sys.stdout.flush()  # here, where an error of it is one of ours
    except TunesmithError as e:
        if "--json" in sys.argv:
            print(json.dumps({"error": e.to_json()}, default=str))
        print(f"tunesmith: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `tunesmith job list | head`
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print("tunesmith: standard output is full; what was asked for is done", file=sys.stderr)
        sys.exit(1)


def _tell(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Ours are sentences for users; those of libraries stay as they are."""
    ours = f"tunesmith: {message}\n"
    sys.stderr.write(
        ours
        if issubclass(category, Notice)
        else warnings.formatwarning(message, category, filename, lineno, line)
    )


def _service(database: str = ":memory:") -> "Tunesmith":
    from tunesmith.service import Tunesmith

    return Tunesmith(database)


# ---------------------------------------------------------------- start


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from tunesmith import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(
            "Tunesmith tunes models where your tables are. Three next steps:\n\n"
            "  tunesmith init --demo                     a DuckDB file with example messages\n"
            '  tunesmith tune "SELECT message AS prompt, team AS completion FROM tickets '
            "WHERE split = 'train'\" \\\n"
            "      --name support_router --database demo.duckdb --wait\n"
            '  tunesmith complete support_router "The parcel is fine, the invoice is not."\n\n'
            "`tunesmith --help` shows every command."
        )


@app.command()
def init(
    path: Annotated[str, typer.Argument(help="The DuckDB file to write.")] = "demo.duckdb",
    demo: Annotated[
        bool, typer.Option("--demo", help="With the demo's tables: tickets and new_tickets.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a DuckDB file and the home folder."""
    import duckdb

    from tunesmith import demo as demo_table
    from tunesmith.service import database_error

    service = _service()
    service.store.has_work()  # opens the store, so that a home that cannot be written is told now
    try:
        duckdb.connect(path).close()
        rows = demo_table.write(path) if demo else 0
    except duckdb.Error as e:
        raise database_error(path, e) from None
    _print(
        as_json,
        {"database": path, "home": str(service.settings.home), "rows": rows},
        f"{path}: {rows} rows in tickets, messages without a team in new_tickets"
        if rows
        else f"{path}: empty",
    )


# ---------------------------------------------------------------- before a job


@app.command()
def audit(
    training: Annotated[
        str,
        typer.Argument(
            help="A query with prompt and completion; or a file, folder or glob: Parquet, CSV, "
            "TSV, JSON."
        ),
    ],
    validation: Annotated[
        str,
        typer.Option("--validation", help="A query or file whose prompts must not be in training."),
    ] = "",
    test: Annotated[
        str, typer.Option("--test", help="Likewise, for the rows that will judge the model.")
    ] = "",
    base: Annotated[
        str, typer.Option("--base", "-b", help="Base model that counts the tokens.")
    ] = "tunesmith-tiny",
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="A column whose values are groups; may be repeated."),
    ] = None,
    database: Database = ":memory:",
    encoding: Annotated[
        str,
        typer.Option(
            "--encoding", help="Of text files; default: by their byte-order mark, else UTF-8."
        ),
    ] = "",
    write_view: Annotated[
        str, typer.Option("--write-view", help="Make a view of the training query with the fixes.")
    ] = "",
    html: Annotated[
        bool, typer.Option("--html", help="Print one self-contained HTML page.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What is wrong with the rows, which rows, and the SQL that mends it. Creates no job."""
    from tunesmith.interfaces.pages import audit_html, audit_text

    service = _service(database)
    report = service.audit(
        training,
        validation or None,
        test_data=test or None,
        base_model=base,
        groups=group or (),
        encoding=encoding,
    )
    rows = service.write_view(write_view, report.clean_sql) if write_view else 0
    print(
        json.dumps(report.to_json())
        if as_json
        else audit_html(report)
        if html
        else audit_text(report)
    )
    if write_view:
        print(
            f"view {write_view}: {rows:,} of {counted(report.rows['training'], 'row')}",
            file=sys.stderr,
        )


def _quote(
    training: Annotated[
        str,
        typer.Argument(
            help="A query with prompt and completion; or a file, folder or glob: Parquet, CSV, "
            "TSV, JSON."
        ),
    ],
    base: Annotated[
        list[str] | None,
        typer.Option(
            "--base", "-b", help="Base model; may be repeated. Default: all that are here."
        ),
    ] = None,
    validation: Annotated[
        str,
        typer.Option(
            "--validation", help="A query or file; default: a share of the training rows."
        ),
    ] = "",
    database: Database = ":memory:",
    as_json: Json = False,
    **options: Any,
) -> None:
    """What a job would take: exact tokens, and time and memory from three steps measured here.
    Creates no job."""
    from tunesmith.interfaces.pages import quote_text

    service, given = _service(database), {k: v for k, v in options.items() if v is not None}
    names = base or [
        spec.name for spec, folder in service.bases() if folder is not None and not spec.scratch_of
    ]
    quotes = [
        service.quote(training, validation or None, base_model=name, **given) for name in names
    ]
    print(
        json.dumps([q.to_json() for q in quotes])
        if as_json
        else "\n\n".join(map(quote_text, quotes))
    )


# ---------------------------------------------------------------- tune


def _tune(
    training: Annotated[
        str,
        typer.Argument(
            help="A query with prompt and completion; or a file, folder or glob: Parquet, CSV, "
            "TSV, JSON."
        ),
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the tuned model.")],
    base: Annotated[
        str, typer.Option("--base", "-b", help="Base model: a name, a folder or organisation/name.")
    ] = "tunesmith-tiny",
    validation: Annotated[
        str,
        typer.Option(
            "--validation", help="A query or file; default: a share of the training rows."
        ),
    ] = "",
    database: Database = ":memory:",
    wait: Annotated[bool, typer.Option("--wait", help="Watch until the job has ended.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Create a fine-tuning job. It runs by itself; this command returns at once unless --wait is
    given."""
    given = {k: v for k, v in options.items() if v is not None}
    job = _service(database).create(name, base, training, validation or None, **given)
    if not wait:
        _print_job(
            job,
            as_json,
            quiet,
            f"job {job.id} accepted, model {job.name}; `tunesmith job wait {job.id}` shows how it "
            f"goes",
        )
        return
    _watch(job, as_json, quiet)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """One flag for every field of Options."""
    signature = inspect.signature(command)
    declared = [
        p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    flags = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    "--" + f.name.replace("_", "-"), help=f"{f.metadata['help']} {_range(f)}"
                ),
            ],
        )
        for f in fields(Options)
    ]
    command.__signature__ = signature.replace(parameters=declared + flags)  # type: ignore[attr-defined]
    command.__annotations__ |= {p.name: p.annotation for p in flags}
    return command


def _range(f: Any) -> str:
    return f"[{'|'.join(allowed_values(f))}; default {f.default!r}]"


app.command("quote")(_with_options(_quote))
app.command("tune")(_with_options(_tune))


# ---------------------------------------------------------------- jobs


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
    service = _service()
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
    job = _service().describe(id)
    print(json.dumps(job_facts(job)) if as_json else job_page(job))


@job_app.command("wait")
def job_wait(id: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Watch a job until it has ended. Ctrl-C detaches; the job goes on."""
    _watch(_service().describe(id), as_json, quiet)


@job_app.command("cancel")
def job_cancel(id: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Stop a job. No model will appear."""
    job = _service().cancel(id)
    _print_job(job, as_json, quiet, f"job {job.id}: {job.status.value}")


@job_app.command("delete")
def job_delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of jobs that have ended.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove jobs that have ended, with their frozen rows, metrics and logs. What they used stays
    counted."""
    service = _service()
    _confirm(f"remove {counted(len(ids), 'job')} for good", yes or as_json)
    for id in ids:
        service.delete_job(id)
    _print(as_json, {"deleted": ids}, "\n".join(f"job {id}: removed" for id in ids))


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
    service, seconds = _service(), _duration(older_than)
    old = service.prune(older_than_s=seconds, dry_run=True)
    if not as_json:
        for job in old:
            print(job.id if quiet else _job_line(service, job))
    if old and not dry_run:
        _confirm(f"remove {counted(len(old), 'job')} for good", yes or as_json)
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
    job = _service().pause(id)
    _print_job(
        job,
        as_json,
        quiet,
        f"job {job.id}: {job.status.value}; `tunesmith job resume {job.id}` goes on",
    )


@job_app.command("resume")
def job_resume(id: JobId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Let a paused job go on."""
    job = _service().resume(id)
    _print_job(job, as_json, quiet, f"job {job.id}: {job.status.value}")


@job_app.command("verify-resume")
def job_verify_resume(id: JobId, as_json: Json = False) -> None:
    """Show that a kill and a resume change no weight: the job's first steps in one go, and again
    with a kill, compared to the bit."""
    found = _service().verify_resume(id)
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


def _watch(job: Job, as_json: bool, quiet: bool) -> None:
    from tunesmith.interfaces.progress import watch

    try:
        job = watch(job.service, job.id)
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on: tunesmith job wait {job.id}", file=sys.stderr)
        sys.exit(130)
    _print_job(job, as_json, quiet, job_page(job))
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


# ---------------------------------------------------------------- models


@model_app.command("list")
def model_list(
    bases: Annotated[
        bool, typer.Option("--bases", help="The base models, and whether their weights are here.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tuned models, or with --bases the catalogue."""
    if bases:
        _base_list(as_json, quiet)
        return
    models = _service().models()
    if as_json:
        print(json.dumps([model_facts(m) for m in models]))
        return
    for m in models:
        line = (
            f"v{m.version}"
            + ("" if m.version == 1 and m.is_current else f" of {m.line}")
            + (" *" if m.is_current else "")
        )
        print(m.name if quiet else f"{m.name:<32} {line:<24} {m.method:<5} on {m.base.name}")
    if not models and not quiet:
        print("no tuned models yet: tunesmith tune --help", file=sys.stderr)


def _base_list(as_json: bool, quiet: bool) -> None:
    found = _service().bases()
    if as_json:
        print(
            json.dumps(
                [
                    {
                        **asdict(spec),
                        "folder": str(folder) if folder else None,
                        "here": folder is not None,
                    }
                    for spec, folder in found
                ]
            )
        )
        return
    for spec, folder in found:
        size = (
            f"{spec.parameters / 1e9:.1f}B"
            if spec.parameters > 1e9
            else f"{spec.parameters / 1e6:.0f}M"
        )
        here = "here" if folder else f"hf download {spec.hub_id}"
        print(
            spec.name
            if quiet
            else f"{spec.name:<16}{size:>6}  {spec.prompt_window:>6} + "
            f"{spec.completion_window:<5} {spec.licence:<20} {here}"
        )


@model_app.command("show")
def model_show(
    name: Annotated[str, typer.Argument(help="A tuned or base model.")], as_json: Json = False
) -> None:
    """Where a model comes from and where its files are."""
    facts = model_facts(_service().model(name))
    print(
        json.dumps(facts) if as_json else "\n".join(f"{k:<12} {v}" for k, v in facts.items() if v)
    )


@model_app.command("promote")
def model_promote(
    name: Annotated[str, typer.Argument(help="A version: its own name, or name@number.")],
    force: Annotated[bool, typer.Option("--force", help="Whatever its verdict says.")] = False,
    as_json: Json = False,
) -> None:
    """Let the name that a model is a version of (option new_version_of) answer with it."""
    model = _service().promote(name, force=force)
    _print(
        as_json,
        model_facts(model),
        f"{model.line} now answers with version {model.version} ({model.name})",
    )


@model_app.command("delete")
def model_delete(
    names: Annotated[list[str], typer.Argument(help="Tuned models.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove tuned models and their files. Their jobs stay, and their names are free."""
    service = _service()
    _confirm(f"remove {counted(len(names), 'model')} for good", yes or as_json)
    for name in names:
        service.drop_model(name)
    _print(as_json, {"deleted": names}, "\n".join(f"model {name}: removed" for name in names))


@model_app.command("export")
def model_export(
    name: Annotated[str, typer.Argument(help="A tuned model.")],
    folder: Annotated[str, typer.Argument(help="The folder to write; it must not be there yet.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="One plain model in place of an adapter.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a model as a Hugging Face folder with a model card, proven by its probes."""
    c = _service().export(name, folder, merged=merged)
    _print(
        as_json,
        {"folder": folder, "certificate": c.to_json()},
        f"{folder}: {c.artefact}, {c.precision}; {c.equal} of {c.probes} probes equal, mean KL "
        f"{c.kl:.2g}",
    )


@model_app.command("import")
def model_import(
    folder: Annotated[str, typer.Argument(help="A folder that `model export` wrote.")],
    name: Annotated[
        str, typer.Option("--name", "-n", help="Its name here; default: the one it had.")
    ] = "",
    base: Annotated[
        str,
        typer.Option("--base", "-b", help="Its base, where it cannot be found by its fingerprint."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Take in an exported model, once it has answered its probes here."""
    model = _service().import_model(folder, name, base_model=base)
    _print(as_json, model_facts(model), f"{model.name} on {model.base.name}")


def model_facts(model: "TunedModel") -> dict[str, Any]:
    return {
        "name": model.name,
        "version_of": model.line,
        "version": model.version,
        "is_current": model.is_current,
        "base_model": model.base.name,
        "method": model.method,
        "job_id": model.job_id,
        "folder": model.folder or model.base.folder,
        "licence": model.base.licence,
        "verdict": model.verdict,
        "created_at": model.created_at,
        "owner": model.owner,
    }


# ---------------------------------------------------------------- answering, worker, doctor


@app.command()
def complete(
    model: Annotated[str, typer.Argument(help="A tuned or base model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts; without any, one per line from standard input."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens that hold this share; 0: all.")
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 4096,
    encoding: Annotated[
        str, typer.Option(help="Of standard input; default: by its byte-order mark, else UTF-8.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Answer each prompt, one line each; on a terminal a single answer appears as it is written. An
    empty line is answered by one."""
    if prompts and encoding:
        raise OptionNotRead(
            name="encoding",
            value=encoding,
            readers="standard input",
            here="the prompts are arguments",
        )
    asked = prompts or _lines_of_input(encoding)
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    if len(asked) == 1 and sys.stdout.isatty() and not as_json:
        for piece in _service().stream(model, asked[0], **options):
            print(piece, end="", flush=True)
        print()
        return
    from tunesmith.data.text import is_empty

    answers = iter(_service().complete(model, [p for p in asked if not is_empty(p)], **options))
    nothing: dict[str, Any] = {
        "text": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "stopped": True,
        "ids": (),
    }
    found = [nothing if is_empty(p) else asdict(next(answers)) for p in asked]
    if as_json:
        _print_json([{"prompt": p, **c} for p, c in zip(asked, found, strict=True)])
        return
    for c in found:
        print(c["text"].replace("\r", "\\r").replace("\n", "\\n") if len(asked) > 1 else c["text"])


def _lines_of_input(encoding: str) -> list[str]:
    from tunesmith.data.files import decoded

    if sys.stdin is None:  # closed by who called
        return []
    lines = decoded(sys.stdin.buffer.read(), encoding).split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _print_json(value: Any) -> None:
    """In characters that standard output has."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_unicode))


@app.command()
def worker() -> None:
    """Run a worker here until there is nothing to do. Usually one is started by itself."""
    from tunesmith import worker as worker_module

    worker_module.main()


@app.command()
def doctor(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Reconcile rows and files, as after a restore from a backup."
        ),
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last repair back.")] = False,
    as_copy: Annotated[
        bool, typer.Option("--as-copy", help="Make a copied home one of its own.")
    ] = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Read every row of the store and every file of jobs and models."
        ),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """What works on this machine, and what to do about what does not."""
    from tunesmith.interfaces import doctor as doctor_module

    if repair:
        found = doctor_module.plan()
        if as_json:
            print(json.dumps([asdict(m) for m in found], default=str))
        else:
            print(
                "\n".join(f"{m.kind}: {m.what}: {m.remedy}" for m in found)
                or "every row has its files and every folder its row"
            )
        if found:
            _confirm("do this", yes or as_json)
            place = doctor_module.mend(found)
            print(
                f"done, and written down in {place}; tunesmith doctor --undo takes it back",
                file=sys.stderr,
            )
        return
    if undo:
        said = doctor_module.undo()
        print(json.dumps(said) if as_json else "\n".join(said) or "there is no repair to take back")
        return
    if as_copy:
        n, aside = doctor_module.as_copy(unseen=yes)
        words = f"a home of its own from now on; {counted(n, 'unfinished job')} cancelled here"
        words += f"; folders of the other home's jobs and models are in {aside}" if aside else ""
        _print(as_json, {"cancelled": n, "aside": aside and str(aside)}, words)
        return
    checks = doctor_module.examine(deep=deep)
    if as_json:
        print(json.dumps([c.__dict__ for c in checks]))
    else:
        for c in checks:
            print(
                f"{'ok ' if c.ok else 'BAD'} {c.name:<14} {c.found}"
                + (f"\n      {c.advice}" if c.advice else "")
            )
    if not all(c.ok for c in checks):
        sys.exit(1)


@app.command()
def demo(
    path: Annotated[str, typer.Argument(help="The DuckDB file to write.")] = "demo.duckdb",
) -> None:
    """The main job on example data, every statement shown. Exits 1 where tuning did not help."""
    from tunesmith.interfaces.demo import run

    sys.exit(run(path))


def _confirm(what: str, is_agreed: bool) -> None:
    """On a terminal, ask before what is hard to take back; elsewhere it was asked for by the
    command itself."""
    sys.stdout.flush()
    if not is_agreed and sys.stdin is not None and sys.stdin.isatty():
        typer.confirm(f"{what}?", abort=True, err=True)


def _print(as_json: bool, facts: dict[str, Any], text: str) -> None:
    print(json.dumps(facts) if as_json else text)


def _print_job(job: Job, as_json: bool, quiet: bool, text: str) -> None:
    print(json.dumps(job_facts(job)) if as_json else job.id if quiet else text)


if __name__ == "__main__":
    main()
