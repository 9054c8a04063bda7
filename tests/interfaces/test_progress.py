"""What a watcher sees while a job is evaluated: which arm, how far, how long still; a line for
every change in a pipe."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tunesmith
from conftest import next_word_rows
from tunesmith import Tunesmith
from tunesmith.interfaces.cli.jobs import job_facts, job_page
from tunesmith.interfaces.progress import doing_text, watch
from tunesmith.jobs import Job, JobStatus
from tunesmith.options import Options
from tunesmith.service import POLL_S


def evaluating(**doing: Any) -> Job:
    return Job(
        "ft_x",
        "m",
        "b",
        "text_generation",
        "",
        "",
        Options(),
        status=JobStatus.EVALUATING,
        doing=doing or None,
    )


def test_the_arm_its_rows_and_the_time_left_are_words() -> None:
    job = evaluating(what="base with 16 examples", done=30, of=168, left_s=95.0)
    assert doing_text(job) == "base with 16 examples: 30 of 168 rows  1:35 left"
    assert doing_text(evaluating(what="tuned", done=0, of=1, left_s=None)) == "tuned: 0 of 1 row"
    assert doing_text(evaluating()) == doing_text(replace(job, status=JobStatus.SUCCEEDED)) == ""
    assert (
        "evaluating: base with 16 examples: 30 of 168 rows" in job_page(job)
        and job_facts(job)["doing"]["of"] == 168
    )
    assert "base with 16 examples" in job._repr_html_()


def test_every_arm_is_told_in_every_door(
    home: Path,
    tuned_base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunesmith.service.jobs.POLL_S", 0.002)
    service, rows = Tunesmith(), next_word_rows(6)
    job = service.create(
        "m", str(tuned_base), rows, rows, learning_rate=1e-2, max_epochs=1, swap_terms="red/green"
    )
    seen: dict[str, set[tuple[int, int]]] = {}
    in_sql: set[str] = set()

    def look(now: Job) -> None:
        if now.doing:
            seen.setdefault(now.doing["what"], set()).add((now.doing["done"], now.doing["of"]))

    with tunesmith.connect() as connection:
        sql = "SELECT doing ->> 'what' FROM tunesmith.jobs WHERE doing IS NOT NULL"

        def both(now: Job) -> None:
            look(now)
            if now.doing:
                in_sql.update(what for (what,) in connection.execute(sql).fetchall())

        done = service.wait(job.id, timeout_s=200, on_change=both)
    assert done.status is JobStatus.SUCCEEDED and done.doing is None, done.error
    arms = ("base", "tuned", "linear model")  # whichever a look fell into
    assert len(seen) > 1 and in_sql and all(any(a in what for a in arms) for what in seen)
    assert all(0 <= n <= of for found in seen.values() for n, of in found) and POLL_S > 0.002


def test_a_pipe_gets_a_line_for_every_change_and_no_more(
    home: Path, tuned_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = (
        [evaluating(what="base", done=n, of=9, left_s=1.0) for n in range(4)]
        + [evaluating(what="tuned", done=n, of=9, left_s=1.0) for n in range(4)]
        + [replace(evaluating(), status=JobStatus.SUCCEEDED)]
    )

    class Watched:
        store = type("S", (), {"last_metric": staticmethod(lambda _: None)})

        def wait(self, job_id: str, on_change: Any) -> Job:
            for state in states:
                on_change(state)
            return states[-1]

    watch(Watched(), "ft_x", Console(file=io.StringIO()))  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["EVALUATING", "EVALUATING", "SUCCEEDED"]
    assert "base: 0 of 9 rows" in lines[0] and "tuned: 0 of 9 rows" in lines[1]


def test_facts_are_json(home: Path) -> None:
    assert (
        json.loads(json.dumps(job_facts(evaluating(what="x", done=0, of=1, left_s=None))))["doing"][
            "what"
        ]
        == "x"
    )
