"""`make demo`: the main job on example data. Everything it does is printed so that it can be typed
by hand."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tunesmith import connect, demo
from tunesmith.interfaces.cli.jobs import verdict_lines
from tunesmith.interfaces.cli.shared import JOB_FAILED
from tunesmith.interfaces.pages import quote_text
from tunesmith.interfaces.progress import watch
from tunesmith.jobs import Job, JobStatus
from tunesmith.service import Tunesmith

NAME, BASE = "support_router", "tunesmith-tiny"
NEEDED_GAIN = 0.20  # over the better of base and commonest answer; below it the demo has failed

ROWS = "SELECT message AS prompt, team AS completion, region FROM tickets WHERE split = ''{split}''"
AUDIT = f"""SELECT severity, name, source, count, message FROM tunesmith.audit(
    '{ROWS.format(split="train")}',
    validation_data := '{ROWS.format(split="valid")}',
    test_data := '{ROWS.format(split="test")}')"""
CREATE = f"""SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', '{NAME}', '{BASE}',
    '{ROWS.format(split="train")}',
    '{ROWS.format(split="valid")}',
    '{{"test_data": "{ROWS.format(split="test")}"}}')"""


def run(path: str) -> int:
    """The whole demo; its exit code."""
    say = Console(soft_wrap=True, highlight=False)
    os.environ.setdefault("TUNESMITH_HOME", str(Path(".tunesmith").absolute()))
    say.print(
        "Tunesmith: a table becomes a tuned model that answers in SQL. Everything below can be "
        "typed by hand.\n",
        style="bold",
    )
    say_shell(say, f"export TUNESMITH_HOME={os.environ['TUNESMITH_HOME']}")
    say_shell(say, f"tunesmith init --demo {path}")
    say.print(
        f"{demo.write(path)} support messages, {len(demo.TEAMS)} teams; columns id, message, "
        "team, split, region\n"
    )
    say_shell(say, "python")
    say.print(
        f'[green]>>>[/] import tunesmith\n[green]>>>[/] con = tunesmith.connect("{path}")      #'
        ' then con.execute("""…""").fetchall()\n'
    )
    with connect(path) as connection:
        say.print(
            "What is wrong with the rows? (column fix: the SQL that mends each finding)",
            style="bold",
        )
        say_sql(say, AUDIT)
        say_table(
            say,
            ("severity", "finding", "query", "rows", "what"),
            connection.execute(AUDIT).fetchall(),
        )
        say.print("What will it take? Three steps, measured here and thrown away:", style="bold")
        rows = ROWS.format(split="train").replace("''", "'")
        say_shell(say, f'tunesmith quote "{rows}" --database {path}')
        say.print(quote_text(Tunesmith(connection).quote(rows, base_model=BASE)) + "\n")
        say_sql(say, CREATE)
        [(job_id,)] = connection.execute(CREATE).fetchall()
        say.print(f"{job_id}\n")
        say_shell(say, f"tunesmith job wait {job_id}      # Ctrl-C detaches, the job goes on")
        service = Tunesmith()
        try:
            job = watch(service, job_id, Console(file=sys.stdout))
        except KeyboardInterrupt:
            say.print(f"\ndetached; the job goes on: tunesmith job wait {job_id}")
            return 130
        if job.status is not JobStatus.SUCCEEDED:
            say.print(f"{job.status.value}: {(job.error or {}).get('message')}", style="red")
            return JOB_FAILED
        describe = f"SELECT SNOWFLAKE.CORTEX.FINETUNE('DESCRIBE', '{job_id}')"
        say_sql(say, describe)
        [(description,)] = connection.execute(describe).fetchall()
        say.print(json.dumps(json.loads(description), indent=1) + "\n")
        answer = (
            f"SELECT id, message, COMPLETE('{job.name}', message) AS team FROM new_tickets "
            "ORDER BY id"
        )
        say_sql(say, answer)
        say_table(say, ("id", "message", "team"), connection.execute(answer).fetchall())
    return _end(say, job)


def _end(say: Console, job: Job) -> int:
    say.print("\n".join(verdict_lines(job)) or "no verdict rows", style="bold")
    arms = (job.verdict or {}).get("arms", {"base": 0.0, "commonest": 0.0, "tuned": 0.0})
    gain = arms["tuned"] - max(arms["base"], arms["commonest"])
    if gain < NEEDED_GAIN:
        say.print(
            f"Tuning gained {100 * gain:.1f} points over the better of the two others; "
            f"{100 * NEEDED_GAIN:.0f} were expected.",
            style="red",
        )
        return 1
    took = (job.finished_at or 0) - job.created_at
    say.print(
        f"\nTuning gained {100 * gain:.1f} points over the better of the two others, in "
        f"{took / 60:.1f} minutes."
    )
    say.print(
        f"More: tunesmith job show {job.id} · SELECT * FROM tunesmith.rejections · docs/tutorial.md"
    )
    return 0


def say_table(say: Console, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row))
    say.print(table)


def say_sql(say: Console, statement: str) -> None:
    say.print(f"[green]sql>[/] {statement.replace('[', chr(92) + '[')};")


def say_shell(say: Console, command: str) -> None:
    say.print(f"[green]$[/] {command}")
