"""One job in this process, for benchmarks and proofs: the product's own children on rows, without
store, worker and start-up."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from tunesmith import catalog
from tunesmith.data.dataset import Dataset, snapshot
from tunesmith.data.given import sources_of
from tunesmith.options import Options
from tunesmith.phases import evaluate, train
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Message, Report, from_line, to_line
from tunesmith.phases.prepare import plan_of
from tunesmith.tuning.recipe import split_seed

Row = tuple[str, ...]
Phase = Callable[[Assignment, Report], None]


def run_job(
    home: Path,
    parts: Mapping[str, Sequence[Row]],
    base: str,
    asked: Mapping[str, Any],
    threads: int = 1,
    phases: Sequence[Phase] = (train.run, evaluate.run),
    columns: Sequence[str] = ("prompt", "completion"),
) -> tuple[Assignment, dict[type[Message], Any]]:
    """The assignment, and everything its phases report, by kind (the last of each): trained,
    verdict, quoted, …

    `parts` are training, validation and test rows of these columns; `home` is an empty folder.
    """
    spec = catalog.find_for(base, home, str(asked.get("task", "")))
    rules = spec.task_spec.rules
    given = {
        name: [dict(zip(columns, row, strict=True)) for row in rows] for name, rows in parts.items()
    }
    sources = sources_of(given, "", spec.task_spec, Options.parse(asked).label_separator)
    with duckdb.connect() as connection:
        frozen = snapshot(
            connection, sources, home / "data", home=home, seed=split_seed(Options.parse(asked))
        )
    dataset = Dataset.open(home / "data", frozen.digest)
    template = rules.fitted(rules.preprocessing(spec), dataset)
    plan = plan_of(
        dataset,
        rules.encoder(template, spec),
        spec,
        Options.parse(asked),
        catalog.credits(home, spec.name, "training", 1),
    )
    (home / "attempt-1").mkdir()
    assignment = Assignment(
        job_id="in-process",
        home=str(home),
        folder=str(home / "attempt-1"),
        data_folder=str(home / "data"),
        data_digest=frozen.digest,
        options=dict(asked),
        resolved=plan.resolved.to_json(),
        base=spec.to_json(),
        template=dict(template),
        device="cpu",
        threads=threads,
        moved=plan.moved,
    )
    told: dict[type[Message], Any] = {}
    for phase in phases:
        phase(assignment, lambda m: told.__setitem__(type(m), from_line(to_line(m))))
    return assignment, told
