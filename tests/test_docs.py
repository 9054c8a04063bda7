"""The docs run: every fenced python, sql and shell block, page by page, each page in an empty
folder."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import tunesmith
from conftest import need_base
from tunesmith import errors
from tunesmith.options import Options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(python|sql|shell)\n(.*?)^```", re.M | re.S)
NEEDS = {"labels": "all-minilm-l6-v2"}
RUNNABLE = [p for p in PAGES if BLOCK.search(p.read_text())]


def run_shell(text: str) -> None:
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"


def run_sql(text: str) -> None:
    with tunesmith.connect("demo.duckdb") as connection:
        for statement in connection.extract_statements(text):
            connection.execute(statement.query).fetchall()


@pytest.mark.timeout(480)  # a page runs several real jobs
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda p: p.stem)
def test_the_page_runs_from_top_to_bottom(
    page: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if page.stem in NEEDS:
        need_base(monkeypatch, NEEDS[page.stem])
    names: dict[str, object] = {}
    for kind, text in BLOCK.findall(page.read_text()):
        match kind:
            case "shell":
                run_shell(text)
            case "sql":
                run_sql(text)
            case "python":
                exec(compile(text, str(page), "exec"), names)


def test_the_generated_parts_are_fresh() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_docs

    code = "import make_docs\nfor p in make_docs.PARTS: assert make_docs.rendered(p) == (make_docs.DOCS / p).read_text(), p"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True
    )
    assert ended.returncode == 0, f"run python scripts/make_docs.py\n{ended.stderr}"
    assert make_docs.PARTS


def test_every_option_error_table_and_command_is_documented() -> None:
    sql = (ROOT / "docs" / "sql.md").read_text()
    for name in [f.name for f in fields(Options)] + list(errors._by_code()):
        assert f"`{name}`" in sql, name
    from tunesmith.interfaces.sql_names import MACROS, TABLES

    assert all(f"tunesmith.{t}" in sql for t in TABLES) and all(m.upper() in sql for m in MACROS)


def test_the_readme_is_one_screen_and_every_link_leads_somewhere() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 60
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_nothing_in_the_repository_names_a_path_of_a_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in listed:
        if name.endswith((".py", ".md", ".toml", ".json", ".yml")) or "/" not in name:
            text = (ROOT / name).read_text(errors="replace")
            assert not re.search(r"/(work|root|opt/pypi)/", text), name
