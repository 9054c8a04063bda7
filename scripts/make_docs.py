"""Write the generated parts of the docs: options, errors, command help. A test fails while they are
stale.

python scripts/make_docs.py
"""

import os
import re
from dataclasses import fields
from pathlib import Path

os.environ |= {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}

import typer.main
from typer.testing import CliRunner

from tunesmith import errors
from tunesmith.interfaces.cli import app
from tunesmith.options import Options, allowed_values

DOCS = Path(__file__).parents[1] / "docs"


def options() -> str:
    rows = ["| option | values | default | |", "|---|---|---|---|"]
    for f in fields(Options):
        default = f"`{f.default}`" if f.default != "" else ""
        rows.append(
            f"| `{f.name}` | {', '.join(allowed_values(f))} | {default} | {f.metadata['help']} |"
        )
    return "\n".join(rows)


def error_table() -> str:
    rows = ["| code | what it says |", "|---|---|"]
    for code, kind in sorted(errors._by_code().items()):
        text = " ".join((kind.__doc__ or "").split()).replace("|", "\\|")
        shown = (
            re.sub(r"{(\w+)(![^}]*|:[^}]*)?}", r"*\1*", text).replace("{{", "{").replace("}}", "}")
        )
        rows.append(f"| `{code}` | {shown} |")
    return "\n".join(rows)


def commands() -> str:
    found = []
    for path in _paths():
        text = CliRunner().invoke(app, [*path, "--help"], prog_name="tunesmith").stdout
        found.append(f"## {' '.join(['tunesmith', *path])}\n\n```text\n{text.strip()}\n```")
    return "\n\n".join(re.sub(r" +$", "", f, flags=re.M) for f in found)


def _paths() -> list[list[str]]:
    group = typer.main.get_command(app)
    found = []
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        found += [[name, sub] for sub in sorted(getattr(command, "commands", {}))] or [[name]]
    return found


PARTS = {"sql.md": {"options": options, "errors": error_table}, "cli.md": {"commands": commands}}


def rendered(page: str) -> str:
    """A page with its generated parts as they should be."""
    text = (DOCS / page).read_text()
    for name, make in PARTS[page].items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = (
            text[: text.index(start) + len(start)] + "\n" + make() + "\n" + text[text.index(end) :]
        )
    return text


if __name__ == "__main__":
    for page in PARTS:
        (DOCS / page).write_text(rendered(page))
