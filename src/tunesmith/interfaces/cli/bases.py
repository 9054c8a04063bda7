"""The group `base`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.interfaces.cli.shared import Json, Quiet, Yes, base_app, confirm, open_service, show

if TYPE_CHECKING:
    from tunesmith.catalog import ModelSpec

Name = Annotated[str, typer.Argument(help="A base model.")]


@base_app.command("list")
def base_list(as_json: Json = False, quiet: Quiet = False) -> None:
    """The catalogue and what was brought, each with its windows (prompt + completion, in tokens)
    and licence, and whether its weights are here."""
    found = open_service().bases()
    if as_json:
        print(json.dumps([_facts(spec, folder) for spec, folder in found]))
        return
    for spec, folder in found:
        if quiet:
            print(spec.name)
            continue
        here = "here" if folder else f"tunesmith base add {spec.name}"
        print(
            f"{spec.name:<27}{_size(spec):>6}  {spec.prompt_window:>6} + "
            f"{spec.completion_window:<5} {spec.licence:<20} {here}"
        )


@base_app.command("add")
def base_add(
    source: Annotated[
        str,
        typer.Argument(
            help="A name of the catalogue, organisation/name of the hub, a folder, or a GGUF file."
        ),
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="Its name here.")] = "",
    revision: Annotated[
        str, typer.Option("--revision", help="Of the hub: a branch, tag or commit.")
    ] = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Bring the weights of a base model, once for all homes of this user."""
    service = open_service()
    print(service.offer_base(source, name, revision=revision).told, file=sys.stderr)
    confirm("bring it", yes or as_json)
    spec = service.add_base(source, name, revision=revision)
    folder = Path(spec.folder)
    show(as_json, _facts(spec, folder), f"{spec.name}: {_size(spec)} weights in {folder}")


@base_app.command("show")
def base_show(name: Name, as_json: Json = False) -> None:
    """What is known of a base model, and where its weights are."""
    spec = open_service().base(name)
    facts = _facts(spec, Path(spec.folder))
    text = "\n".join(f"{k:<18} {v}" for k, v in facts.items() if v and k != "here")
    show(as_json, facts, text)


@base_app.command("remove")
def base_remove(
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Even if models here answer on it.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove the weights of a base model that were brought, for all homes of this user."""
    service = open_service()
    confirm(f"remove the weights of {name}", yes or as_json)
    service.remove_base(name, force=force)
    show(as_json, {"removed": name}, f"base {name}: removed")


def _size(spec: "ModelSpec") -> str:
    n = spec.parameters
    return f"{n / 1e9:.1f}B" if n > 1e9 else f"{n / 1e6:.0f}M"


def _facts(spec: "ModelSpec", folder: Path | None) -> dict[str, Any]:
    return {**asdict(spec), "folder": str(folder) if folder else None, "here": folder is not None}
