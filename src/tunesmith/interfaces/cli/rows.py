"""Rows before a job, and the job: audit, quote, tune."""

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.errors import UnfitLabels
from tunesmith.interfaces.cli.jobs import show_job, watch
from tunesmith.interfaces.cli.shared import Database, Json, Quiet, open_service
from tunesmith.options import Options, allowed_values
from tunesmith.words import counted

Training = Annotated[
    str,
    typer.Argument(
        help="A query with prompt and completion; or a file, folder or glob: Parquet, CSV, "
        "TSV, JSON."
    ),
]
Validation = Annotated[
    str,
    typer.Option("--validation", help="A query or file; default: a share of the training rows."),
]


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


def audit(
    training: Training,
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
    label_separator: Annotated[
        str,
        typer.Option(
            "--label-separator", help="What stands between a row's labels, where they are one text."
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

    service = open_service(database)
    report = service.audit(
        training,
        validation or None,
        test_data=test or None,
        base_model=base,
        groups=group or (),
        encoding=encoding,
        label_separator=label_separator,
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


@_with_options
def quote(
    training: Training,
    base: Annotated[
        list[str] | None,
        typer.Option(
            "--base", "-b", help="Base model; may be repeated. Default: all that are here."
        ),
    ] = None,
    validation: Validation = "",
    database: Database = ":memory:",
    as_json: Json = False,
    **options: Any,
) -> None:
    """What a job would take: exact tokens, and time and memory from three steps measured here.
    Creates no job."""
    from tunesmith.catalog import offered
    from tunesmith.interfaces.pages import quote_text

    service, given = open_service(database), {k: v for k, v in options.items() if v is not None}
    names = base or [
        spec.name for spec, folder in service.bases() if folder is not None and not spec.scratch_of
    ]
    quotes, refused = [], {}
    for name in names:
        try:
            quotes.append(service.quote(training, validation or None, base_model=name, **given))
        except UnfitLabels as e:  # an encoder, and answers that are no labels
            refused[name] = e
    if refused and (base or not quotes):
        raise next(iter(refused.values()))
    print(
        json.dumps([q.to_json() for q in quotes])
        if as_json
        else "\n\n".join(map(quote_text, quotes))
    )
    for name, why in refused.items():
        print(f"{name} is not for these rows: {why}", file=sys.stderr)
    if not base and (more := offered()):
        print(f"another base in a command: {', '.join(more)}", file=sys.stderr)


@_with_options
def lr_find(
    training: Training,
    base: Annotated[
        str, typer.Option("--base", "-b", help="Base model: a name, a folder or organisation/name.")
    ] = "tunesmith-tiny",
    validation: Validation = "",
    database: Database = ":memory:",
    out: Annotated[str, typer.Option(help="An SVG file for the picture.")] = "",
    as_json: Json = False,
    **options: Any,
) -> None:
    """Which learning rate to begin with: some steps at rising rates, thrown away. Creates no
    job."""
    from tunesmith import durable

    given = {k: v for k, v in options.items() if v is not None}
    service = open_service(database)
    found = service.find_rate(training, validation or None, base_model=base, **given)
    if out:
        durable.replace_text(Path(out), found.plot().svg)
    print(json.dumps(found.to_json()) if as_json else found.told)


@_with_options
def tune(
    training: Training,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the tuned model.")],
    base: Annotated[
        str, typer.Option("--base", "-b", help="Base model: a name, a folder or organisation/name.")
    ] = "tunesmith-tiny",
    validation: Validation = "",
    database: Database = ":memory:",
    wait: Annotated[bool, typer.Option("--wait", help="Watch until the job has ended.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Create a fine-tuning job. It runs by itself; this command returns at once unless --wait is
    given."""
    given = {k: v for k, v in options.items() if v is not None}
    job = open_service(database).create(name, base, training, validation or None, **given)
    if not wait:
        show_job(
            job,
            as_json,
            quiet,
            f"job {job.id} accepted, model {job.name}; `tunesmith job wait {job.id}` shows how it "
            f"goes",
        )
        return
    watch(job, as_json, quiet)
