"""The first commands of a newcomer, and what runs by itself otherwise."""

import sys
from typing import Annotated

import typer

from tunesmith.interfaces.cli.shared import Json, Yes, open_service, show


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

    service = open_service()
    service.store.has_work()  # opens the store, so that a home that cannot be written is told now
    try:
        duckdb.connect(path).close()
        rows = demo_table.write(path) if demo else 0
    except duckdb.Error as e:
        raise database_error(path, e) from None
    show(
        as_json,
        {"database": path, "home": str(service.settings.home), "rows": rows},
        f"{path}: {rows} rows in tickets, messages without a team in new_tickets"
        if rows
        else f"{path}: empty",
    )


def worker() -> None:
    """Run a worker here until there is nothing to do. Usually one is started by itself."""
    from tunesmith import worker as worker_module

    worker_module.main()


def demo(
    path: Annotated[str, typer.Argument(help="The DuckDB file to write.")] = "demo.duckdb",
    real: Annotated[
        bool,
        typer.Option("--real", help="With a real base, brought where it is not here."),
    ] = False,
    every: Annotated[
        int, typer.Option("--every", min=2, max=20, help="With --real: judge by each n-th message.")
    ] = 6,
    yes: Yes = False,
) -> None:
    """The main job on example data, every statement shown. Exits 1 where tuning did not help."""
    from tunesmith.interfaces import demo as made_up
    from tunesmith.interfaces import demo_real

    sys.exit(demo_real.run(path, yes, every) if real else made_up.run(path))
