"""`make demo-real`: a real base on messages that people could have written, beside what is simpler:
a linear model on words, the bundled base, and the base untuned with examples in its prompt."""

import csv
import os
import sys
from importlib.resources import files
from pathlib import Path

import duckdb
from rich.console import Console

from tunesmith import connect
from tunesmith.data import baseline
from tunesmith.errors import WeightsNotHere
from tunesmith.interfaces.cli.jobs import verdict_lines
from tunesmith.interfaces.cli.shared import JOB_FAILED, confirm
from tunesmith.interfaces.demo import say_shell, say_sql, say_table
from tunesmith.interfaces.progress import watch
from tunesmith.jobs import Job, JobStatus
from tunesmith.service import Tunesmith

BASE, SMALL = "smollm2-135m-instruct-gguf", "tunesmith-tiny"
WANTED = (0.60, 0.95)
"""Share of the test messages that are answered wholly right: a figure outside is told as a failure
of the demo."""
SHOWN = 12  # mistakes
ROWS = (
    "SELECT message AS prompt, "
    "to_json({{topic: topic, urgent: urgent, flat: flat}})::VARCHAR AS completion "
    "FROM mail WHERE split = ''{split}''"
)
JOBS = {"caretaker_small": (SMALL, 10), "caretaker": (BASE, 4)}
"""By the model's name: its base, and the epochs at most."""


def create(name: str) -> str:
    base, epochs = JOBS[name]
    options = f'{{"max_epochs": {epochs}, "test_data": "{ROWS.format(split="test")}"}}'
    return (
        f"SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', '{name}', '{base}',\n"
        f"    '{ROWS.format(split='train')}',\n    NULL, '{options}')"
    )


MISTAKES = f"""SELECT message, wanted, answer FROM (
    SELECT id, message, to_json({{topic: topic, urgent: urgent, flat: flat}})::VARCHAR AS wanted,
           COMPLETE('caretaker', message) AS answer FROM mail WHERE split = 'test')
WHERE answer <> wanted ORDER BY id LIMIT {SHOWN}"""


def write(path: str, every: int) -> int:
    """Put the table `mail` into a DuckDB file, every n-th message to be judged by; its rows."""
    text = files("tunesmith").joinpath("demo_messages.csv").read_text("utf-8")
    rows = [
        (n, r["message"], r["topic"], r["urgent"] == "true", r["flat"] or None, part)
        for n, r in enumerate(csv.DictReader(text.splitlines()), 1)
        for part in ["train" if n % every else "test"]
    ]
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE OR REPLACE TABLE mail (id INTEGER, message VARCHAR, topic VARCHAR, "
            "urgent BOOLEAN, flat VARCHAR, split VARCHAR)"
        )
        connection.executemany("INSERT INTO mail VALUES (?, ?, ?, ?, ?, ?)", rows)
    return len(rows)


def run(path: str, yes: bool, every: int) -> int:
    """The whole demo; its exit code."""
    say = Console(soft_wrap=True, highlight=False)
    os.environ.setdefault("TUNESMITH_HOME", str(Path(".tunesmith").absolute()))
    service = Tunesmith()
    try:
        service.base(BASE)
    except WeightsNotHere:
        say_shell(say, f"tunesmith base add {BASE}")
        say.print(service.offer_base(BASE).told)
        confirm("bring it", yes)
        service.add_base(BASE)
    say.print(
        f"\n{write(path, every)} messages to a caretaker, written one by one: typos, two topics in "
        "one, irony. Wanted of each: a topic of nine, whether it is urgent, and the flat it comes "
        "from.\n"
    )
    done = {}
    with connect(path) as connection:
        for name in JOBS:
            say_sql(say, create(name))
            [(job_id,)] = connection.execute(create(name)).fetchall()
            say_shell(say, f"tunesmith job wait {job_id}")
            try:
                done[name] = watch(service, job_id, Console(file=sys.stdout))
            except KeyboardInterrupt:
                say.print(f"\ndetached; the job goes on: tunesmith job wait {job_id}")
                return 130
            if done[name].status is not JobStatus.SUCCEEDED:
                error = (done[name].error or {}).get("message")
                say.print(f"{done[name].status.value}: {error}", style="red")
                return JOB_FAILED
        say.print("Mistakes of the tuned model, as they are:", style="bold")
        say_sql(say, MISTAKES)
        for message, wanted, answer in connection.execute(MISTAKES).fetchall():
            say.print(f"  {message}\n      wanted {wanted}\n      answer {answer}", markup=False)
        words = linear(connection)
    return _end(say, done["caretaker_small"], done["caretaker"], words)


def linear(connection: duckdb.DuckDBPyConnection) -> float:
    """Share of the test messages of which a linear model on words, one for each field, gives every
    field."""
    fields = "message, topic, urgent::VARCHAR, coalesce(flat, '')"
    train, test = (
        connection.execute(f"SELECT {fields} FROM mail WHERE split = '{part}'").fetchall()
        for part in ("train", "test")
    )
    asked = [row[0] for row in test]
    found = [
        baseline.fit([row[0] for row in train], [row[i] for row in train]).predict(asked)
        for i in (1, 2, 3)
    ]
    right = [tuple(map(str, row)) for row in zip(*found, strict=True)]
    return sum(r == row[1:] for r, row in zip(right, test, strict=True)) / len(test)


def _end(say: Console, small: Job, job: Job, words: float) -> int:
    verdict = job.verdict or {}
    arms, tiny = verdict.get("arms", {}), (small.verdict or {}).get("arms", {})
    table = {
        "always the commonest answer": arms.get("commonest"),
        "linear models on words, one a field": words,
        f"{SMALL}, tuned": tiny.get("tuned"),
        f"{BASE}, untuned": arms.get("base"),
        f"{BASE}, untuned, examples in its prompt": arms.get("examples"),
        f"{BASE}, tuned": arms.get("tuned"),
    }
    shown = [(name, "not measured" if s is None else f"{s:.1%}") for name, s in table.items()]
    say_table(say, (f"of {verdict.get('n')} messages that chose nothing", "wholly right"), shown)
    say.print("\n".join(verdict_lines(job)), style="bold")
    tuned, low = arms.get("tuned", 0.0), verdict.get("low", 0.0)
    took = sum((j.finished_at or 0) - (j.started_at or 0) for j in (small, job))
    say.print(f"Both jobs took {took / 60:.1f} minutes.")
    if not WANTED[0] <= tuned <= WANTED[1] or low <= 0:
        say.print(
            f"Expected were {WANTED[0]:.0%} to {WANTED[1]:.0%}, and an interval above the best of "
            "the others.",
            style="red",
        )
        return 1
    return 0
