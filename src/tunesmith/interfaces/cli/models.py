"""The group `model`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.interfaces.cli.shared import Json, Quiet, Yes, confirm, model_app, open_service, show
from tunesmith.words import counted

if TYPE_CHECKING:
    from tunesmith.registry import TunedModel


@model_app.command("list")
def model_list(as_json: Json = False, quiet: Quiet = False) -> None:
    """Tuned models."""
    models = open_service().models()
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


@model_app.command("show")
def model_show(
    name: Annotated[str, typer.Argument(help="A tuned or base model.")], as_json: Json = False
) -> None:
    """Where a model comes from and where its files are."""
    facts = model_facts(open_service().model(name))
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
    model = open_service().promote(name, force=force)
    show(
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
    service = open_service()
    confirm(f"remove {counted(len(names), 'model')} for good", yes or as_json)
    for name in names:
        service.drop_model(name)
    show(as_json, {"deleted": names}, "\n".join(f"model {name}: removed" for name in names))


@model_app.command("export")
def model_export(
    name: Annotated[str, typer.Argument(help="A tuned model.")],
    folder: Annotated[str, typer.Argument(help="The folder to write; it must not be there yet.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="One plain model in place of an adapter.")
    ] = False,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Beside an adapter, its base, in base/.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a model as a Hugging Face folder with a model card, proven by its probes."""
    c = open_service().export(name, folder, merged=merged, with_base=with_base)
    show(
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
    model = open_service().import_model(folder, name, base_model=base)
    show(as_json, model_facts(model), f"{model.name} on {model.base.name}")


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
