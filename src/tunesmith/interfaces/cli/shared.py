"""What every command has: the groups, common flags, the service, and how it speaks."""

import json
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.errors import Notice

if TYPE_CHECKING:
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
base_app = typer.Typer(
    help="Base models: list, add, show, remove. None is ever fetched unasked.",
    no_args_is_help=True,
)
app.add_typer(job_app, name="job")
app.add_typer(model_app, name="model")
app.add_typer(base_app, name="base")

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


def tell(
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


def open_service(database: str = ":memory:") -> "Tunesmith":
    from tunesmith.service import Tunesmith

    return Tunesmith(database)


def confirm(what: str, is_agreed: bool) -> None:
    """On a terminal, ask before what is hard to take back; elsewhere it was asked for by the
    command itself."""
    sys.stdout.flush()
    if not is_agreed and sys.stdin is not None and sys.stdin.isatty():
        typer.confirm(f"{what}?", abort=True, err=True)


def show(as_json: bool, facts: dict[str, Any], text: str) -> None:
    print(json.dumps(facts) if as_json else text)


def show_json(value: Any) -> None:
    """In characters that standard output has."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_unicode))
