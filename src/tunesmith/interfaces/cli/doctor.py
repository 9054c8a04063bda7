"""`tunesmith doctor`."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from tunesmith.interfaces.cli.shared import Json, Yes, confirm, show
from tunesmith.words import counted


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
            confirm("do this", yes or as_json)
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
        show(as_json, {"cancelled": n, "aside": aside and str(aside)}, words)
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
