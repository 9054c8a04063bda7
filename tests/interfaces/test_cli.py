import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from tunesmith import Tunesmith, worker
from tunesmith.errors import Conflict, Invalid, NotFound, OptionNotRead
from tunesmith.interfaces import cli
from tunesmith.interfaces.cli.shared import JOB_FAILED

ROWS = "SELECT 'q' || i AS prompt, 'a' AS completion FROM range(20) r(i)"
runner = typer.testing.CliRunner()


@pytest.fixture(autouse=True)
def no_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)


def call(*arguments: str) -> Any:
    """Run a command in this process; errors are raised, as `main` would catch them."""
    found = runner.invoke(cli.app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunesmith.interfaces.cli", *arguments],
        capture_output=True,
        text=True,
        **options,
    )


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = """
import resource, sys
sys.argv = ["tunesmith", "--help"]
from tunesmith.interfaces.cli import main
try: main()
except SystemExit: pass
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [m for m in ("torch", "transformers", "sqlalchemy", "duckdb", "pyarrow", "peft") if m in sys.modules]
print(heavy, used.ru_utime + used.ru_stime, file=sys.stderr)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.rsplit(
            " ", 1
        )
        for _ in range(3)
    ]
    assert {heavy for heavy, _ in runs} == {"[]"}
    assert min(float(seconds) for _, seconds in runs) < 0.5, (
        "the promise: under half a second of processor time"
    )


def test_without_a_command_three_next_steps_are_shown() -> None:
    found = call()
    assert (
        found.exit_code == 0
        and found.stdout.count("tunesmith ") >= 4
        and len(found.stdout.splitlines()) < 12
    )


def test_a_job_is_created_listed_shown_and_cancelled() -> None:
    job_id = call("tune", ROWS, "--name", "m", "--max-epochs", "2", "--quiet").stdout.strip()
    assert re.fullmatch(r"ft_[0-9a-f-]{36}", job_id)
    assert call("job", "list", "-q").stdout.split() == [job_id]
    shown = json.loads(call("job", "show", job_id, "--json").stdout)
    assert (
        shown["status"] == "PENDING"
        and shown["options"] == {"max_epochs": 2}
        and shown["rows"]["train"] == 16
    )
    assert "PENDING" in call("job", "show", job_id).stdout
    assert json.loads(call("job", "cancel", job_id, "--json").stdout)["status"] == "CANCELLED"
    assert call("job", "wait", job_id).exit_code == JOB_FAILED


def test_every_option_of_a_job_is_a_flag_with_help() -> None:
    from dataclasses import fields

    from tunesmith.options import Options

    text = shell("tune", "--help", env={"COLUMNS": "200", "PATH": ""}).stdout
    assert all(f"--{f.name.replace('_', '-')}" in text for f in fields(Options))


@pytest.mark.parametrize(
    ("arguments", "family", "code"),
    [
        (("job", "show", "ft_x"), NotFound, 3),
        (("model", "show", "nothing"), NotFound, 3),
        (("complete", "nothing", "hi"), NotFound, 3),
        (("tune", ROWS, "-n", "m", "--base", "nothing"), NotFound, 3),
        (("tune", "DELETE FROM t", "-n", "m"), Invalid, 2),
        (("tune", ROWS, "-n", "m", "--max-epochs", "99"), Invalid, 2),
        (("tune", ROWS, "-n", "not a name"), Invalid, 2),
    ],
)
def test_errors_have_a_family_with_its_exit_code(
    arguments: tuple[str, ...], family: type[Exception], code: int
) -> None:
    with pytest.raises(family) as caught:
        call(*arguments)
    assert caught.value.exit_code == code  # type: ignore[attr-defined]


def test_an_error_is_one_sentence_on_stderr_and_json_on_request(home: Path) -> None:
    found = shell("job", "show", "ft_x", "--json")
    assert found.returncode == 3 and json.loads(found.stdout)["error"]["code"] == "unknown_job"
    assert (
        found.stderr.startswith("tunesmith: No fine-tuning job 'ft_x'")
        and "Traceback" not in found.stderr
    )
    assert shell("job", "nonsense").returncode == 2


def test_a_finished_job_is_a_conflict() -> None:
    service = Tunesmith()
    job = service.create("m", "tunesmith-tiny", ROWS)
    claimed = service.store.claim("w")
    assert claimed is not None
    from tunesmith.jobs import JobStatus

    service.store.move(claimed, JobStatus.FAILED)
    with pytest.raises(Conflict) as caught:
        call("job", "cancel", job.id)
    assert caught.value.exit_code == 1  # type: ignore[attr-defined]


def test_init_writes_the_demo_table(tmp_path: Path) -> None:
    import duckdb

    found = json.loads(call("init", str(tmp_path / "d.duckdb"), "--demo", "--json").stdout)
    assert found["rows"] >= 1200
    with duckdb.connect(tmp_path / "d.duckdb") as connection:
        assert (
            connection.execute(
                "SELECT count(*), count(DISTINCT team) FROM tickets WHERE team <> ''"
            ).fetchall()[0][1]
            == 12
        )


def test_the_catalogue_tells_what_is_here_and_how_to_bring_the_rest() -> None:
    rows = {r["name"]: r for r in json.loads(call("base", "list", "--json").stdout)}
    assert rows["tunesmith-tiny"]["here"] and not rows["mistral-7b"]["here"]
    assert {
        "llama3-8b",
        "llama3-70b",
        "llama3.1-8b",
        "llama3.1-70b",
        "mistral-7b",
        "mixtral-8x7b",
    } <= set(rows)
    assert (
        rows["llama3.1-8b"]["prompt_window"],
        rows["llama3.1-8b"]["completion_window"],
        rows["llama3.1-8b"]["row_limit"],
    ) == (
        20000,
        4000,
        150000,
    )
    assert "tunesmith base add" in call("base", "list").stdout
    assert (
        call("model", "list").exit_code == 0
        and json.loads(call("model", "list", "--json").stdout) == []
    )
    assert (
        json.loads(call("model", "show", "tunesmith-tiny", "--json").stdout)["base_model"]
        == "tunesmith-tiny"
    )


def test_prompts_come_as_arguments_or_lines(home: Path) -> None:
    two = json.loads(
        call("complete", "tunesmith-tiny", "a", "b", "--max-tokens", "2", "--json").stdout
    )
    assert [r["prompt"] for r in two] == ["a", "b"] and all(
        r["completion_tokens"] <= 2 for r in two
    )
    piped = shell("complete", "tunesmith-tiny", "--max-tokens", "2", input="a\nb\n")
    assert (
        piped.returncode == 0
        and len(piped.stdout.splitlines()) == 2
        and "\x1b" not in piped.stdout + piped.stderr
    )


def test_doctor_finds_this_machine_fit() -> None:
    found = call("doctor", "--json")
    checks = {c["name"]: c for c in json.loads(found.stdout)}
    assert found.exit_code == 0 and {
        "home",
        "store",
        "torch",
        "llguidance",
        "scikit-learn",
        "psycopg",
        "disk",
        "worker",
    } <= set(checks)
    assert "ok  torch" in call("doctor").stdout


def test_doctor_says_what_to_do_about_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = shell("doctor", env={"TUNESMITH_HOME": str(tmp_path / "file" / "home"), "PATH": ""})
    assert found.returncode == 1 and "set TUNESMITH_HOME" in found.stdout


def test_the_audit_is_text_json_or_a_page_and_writes_a_clean_view(tmp_path: Path) -> None:
    import duckdb

    database = str(tmp_path / "shop.duckdb")
    call("init", database, "--demo")
    query = (
        "SELECT message AS prompt, team AS completion, region FROM tickets WHERE split = 'train'"
    )
    text = call("audit", query, "--database", database, "--write-view", "clean")
    assert (
        "✗ conflicts (training): 12 rows" in text.stdout
        and "answers: billing" in text.stdout
        and "group region" in text.stdout
    )
    found = json.loads(call("audit", query, "-d", database, "--json").stdout)
    assert {"conflicts", "duplicates", "personal_data", "unusable"} <= {
        f["name"] for f in found["findings"]
    }
    page = call("audit", query, "-d", database, "--html").stdout
    assert (
        page.startswith("<!doctype html>")
        and page.count("<details") == len(found["findings"])
        and "http" not in page
        and "<script" not in page
    )
    with duckdb.connect(database) as connection:
        rows = connection.execute("SELECT count(*) FROM clean").fetchall()[0][0]
        again = (
            json.loads(call("audit", "SELECT * FROM clean", "-d", database, "--json").stdout)
            if connection.close() is None
            else {}
        )
    assert f"view clean: {rows} of 945 rows" in text.stderr
    assert not {f["name"] for f in again["findings"]} & {
        "conflicts",
        "duplicates",
        "near_duplicates",
        "personal_data",
        "unusable",
        "too_long",
    }


def test_a_view_needs_a_database_and_a_name_that_is_free(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="no database file"):
        call("audit", ROWS, "--write-view", "clean")
    database = str(tmp_path / "shop.duckdb")
    call("init", database, "--demo")
    with pytest.raises(Conflict, match="tickets"):
        call("audit", ROWS, "-d", database, "--write-view", "tickets")


def test_a_page_shows_what_users_wrote_as_text() -> None:
    rows = "SELECT '<b>' || i || '</b> how are you' AS prompt, '<script>x' || (i % 2) AS completion FROM range(40) r(i)"
    page = call("audit", rows, "--html").stdout
    assert "&lt;script&gt;x0" in page and "<script" not in page and "<b>3" not in page


INPUT = {
    "plain": b"alpha\nbeta\n",
    "no last newline": b"alpha\nbeta",
    "a mark": b"\xef\xbb\xbfalpha\nbeta\n",
    "CRLF": b"alpha\r\nbeta\r\n",
    "UTF-16": "alpha\nbeta\n".encode("utf-16"),
    "an empty line": b"alpha\n\nbeta\n",
    "empty ones around": b"\nalpha\n \nbeta\n\n",
}


@pytest.mark.parametrize("kind", INPUT)
def test_standard_input_keeps_line_and_answer_together(home: Path, kind: str) -> None:
    asked = subprocess.run(
        [
            sys.executable,
            "-m",
            "tunesmith.interfaces.cli",
            "complete",
            "tunesmith-tiny",
            "--max-tokens",
            "3",
        ],
        input=INPUT[kind],
        capture_output=True,
    )
    assert asked.returncode == 0, asked.stderr
    lines = (
        INPUT[kind]
        .decode("utf-16" if kind == "UTF-16" else "utf-8-sig")
        .replace("\r", "")
        .removesuffix("\n")
        .split("\n")
    )
    answers = {
        w: Tunesmith().complete("tunesmith-tiny", [w], max_tokens=3)[0].text
        for w in ("alpha", "beta")
    }
    assert asked.stdout.decode().split("\n")[:-1] == [
        answers.get(line.strip(), "") for line in lines
    ]


def test_an_encoding_that_is_not_utf8_is_named_and_can_be_said(home: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tunesmith.interfaces.cli",
        "complete",
        "tunesmith-tiny",
        "--max-tokens",
        "2",
    ]
    refused = subprocess.run(command, input=b"a\ncaf\xe9\n", capture_output=True)
    assert (
        refused.returncode == 2
        and b"line 2: the byte 0xE9 is not utf-8" in refused.stderr
        and b"--encoding" in refused.stderr
    )
    found = subprocess.run(
        [*command, "--encoding", "latin-1", "--json"], input=b"caf\xe9\n", capture_output=True
    )
    assert [c["prompt"] for c in json.loads(found.stdout)] == ["café"]


@pytest.mark.parametrize("flag", ["--json", ""])
def test_a_terminal_without_the_characters_gets_their_numbers(home: Path, flag: str) -> None:
    command = [
        sys.executable,
        "-m",
        "tunesmith.interfaces.cli",
        "complete",
        "tunesmith-tiny",
        "Zürich 😀",
        "--max-tokens",
        "2",
    ]
    found = subprocess.run(
        [*command, *([flag] if flag else [])],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert found.returncode == 0 and found.stdout.isascii()
    assert not flag or json.loads(found.stdout)[0]["prompt"] == "Zürich 😀"


def test_an_encoding_that_nothing_reads_is_an_error() -> None:
    with pytest.raises(OptionNotRead, match="the prompts are arguments"):
        call("complete", "tunesmith-tiny", "hi", "--encoding", "latin-1")
