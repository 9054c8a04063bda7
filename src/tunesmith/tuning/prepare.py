"""VALIDATING, in a child process of the worker: count the tokens, refuse rows by id, decide every `auto`. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import catalog
from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import PARTS, Dataset
from tunesmith.data.examples import encode
from tunesmith.data.template import Encoder
from tunesmith.errors import BudgetTooSmall, NoUsableRows, RowsTooLong
from tunesmith.jobs import Options, ResolvedOptions
from tunesmith.tuning import child
from tunesmith.tuning.batches import steps_within
from tunesmith.tuning.recipe import Facts, resolve, token_budget


def run(assignment: child.Assignment, report: child.Report) -> None:
    price = catalog.credits(Path(assignment.home), assignment.spec.name, "training", 1)
    prepared = prepare(assignment.dataset(), assignment.encoder(), assignment.spec, assignment.asked, price)
    report("rejections", rows=prepared.rejected)
    for warning in prepared.warnings:
        report("warning", message=warning)
    report("prepared", resolved=prepared.resolved.to_json(), input_tokens=prepared.tokens, rows=prepared.rows)


@dataclass(frozen=True)
class Prepared:
    """What is known of a job before any weight is loaded."""

    resolved: ResolvedOptions
    tokens: int
    """Of the accepted training rows, once."""
    rows: Mapping[str, int]
    rejected: list[dict[str, Any]]
    warnings: list[str]


def prepare(dataset: Dataset, encoder: Encoder, spec: ModelSpec, asked: Options, price: float) -> Prepared:
    """RowsTooLong, NoUsableRows or BudgetTooSmall where rows or budget (`price` in credits per token) do not allow training."""
    parts = {part: encode(dataset, part, encoder, spec, asked.on_long) for part in PARTS}
    too_long = [r for p in parts.values() for r in p.rejected]
    if too_long and asked.on_long == "fail":
        raise RowsTooLong(
            count=len(too_long), base_model=spec.name, window=spec.prompt_window, completion_window=spec.completion_window,
            rows=[f"{r['part']} {r['row']}" for r in too_long],
        )  # fmt: skip
    rejected = dataset.rejected() + too_long
    train = parts["train"].accepted
    if not train:
        raise NoUsableRows(part="training", rows=len(too_long), reasons=f"{len(too_long)} x too long")
    resolved = resolve(asked, Facts(spec, len(train)))
    tokens, option = token_budget(resolved, price)
    if tokens and not steps_within([len(e.encoded.ids) for e in train], resolved.batch_size, resolved.seed, 1, tokens):
        raise BudgetTooSmall(name=option, tokens=tokens, batch_size=resolved.batch_size)
    counts = {p: len(e.accepted) for p, e in parts.items()}
    cut = sum(x.cut is not None for e in parts.values() for x in e.accepted)
    told = warnings(spec, resolved.learning_rate, too_long)
    return Prepared(resolved, parts["train"].tokens, {**counts, "rejected": len(rejected), "cut": cut}, rejected, told)


def warnings(spec: ModelSpec, learning_rate: float, too_long: list[dict[str, Any]]) -> list[str]:
    found = []
    if spec.pretraining_rate and learning_rate > spec.pretraining_rate:
        found.append(
            f"learning_rate {learning_rate:g} is above the rate {spec.name} was pretrained with ({spec.pretraining_rate:g}): it will forget"
        )
    if too_long:
        found.append(
            f"rows over the window, rejected: {len(too_long)}; tunesmith.rejections lists them, the option on_long changes the rule"
        )
    return found


if __name__ == "__main__":
    child.main("validating", run)
