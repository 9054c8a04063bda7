"""VALIDATING, in a child process of the worker: count the tokens, refuse rows by id, decide every
`auto`. No torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith import catalog
from tunesmith.catalog import ModelSpec
from tunesmith.data import split
from tunesmith.data.dataset import Dataset
from tunesmith.data.rules import REFUSED, TOO_LONG, Encoding
from tunesmith.data.split import PARTS
from tunesmith.errors import AnswersNotFound, BudgetTooSmall, NoUsableRows, RowsTooLong
from tunesmith.options import Decided, Options
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Prepared, Rejected, Report, Warned
from tunesmith.tuning.batches import steps_within
from tunesmith.tuning.recipe import Known, decide, token_budget


def run(assignment: Assignment, report: Report) -> None:
    price = catalog.credits(Path(assignment.home), assignment.spec.name, "training", 1)
    plan = plan_of(
        assignment.dataset(), assignment.encoder(), assignment.spec, assignment.asked, price
    )
    report(Rejected(plan.rejected))
    for warning in plan.warnings:
        report(Warned(warning))
    report(Prepared(plan.resolved.to_json(), plan.tokens, plan.rows, plan.moved))


@dataclass(frozen=True)
class Plan:
    """What is known of a job before any weight is loaded."""

    resolved: Decided
    tokens: int
    """Of the accepted training rows, once."""
    rows: Mapping[str, int]
    rejected: list[dict[str, Any]]
    moved: dict[str, dict[str, list[int]]]
    """Rows that the job counts to another part than the frozen one: see Dataset."""
    warnings: list[str]


def plan_of(dataset: Dataset, encoder: Any, spec: ModelSpec, asked: Options, price: float) -> Plan:
    """RowsTooLong, NoUsableRows or BudgetTooSmall where rows or budget (`price` in credits per
    token) do not allow training."""
    frozen = replace(dataset, moved={})  # as often as this is done, it gives the same
    parts, why_last = _encoded(frozen, encoder, spec, asked)
    rejected = [r for p in parts.values() for r in p.rejected]
    too_long = [r for r in rejected if r["reason"] == TOO_LONG]
    if too_long and asked.on_long == "fail":
        raise RowsTooLong(
            count=len(too_long),
            base_model=spec.name,
            window=spec.prompt_window,
            completion_window=spec.completion_window,
            rows=[f"{r['part']} {r['row']}" for r in too_long],
        )
    moved, told = _filled_again(frozen, parts) if rejected else ({}, [])
    accepted = {
        part: list(
            split.counted_to(
                part, moved, lambda p: parts[p].accepted, lambda example: example.row.row
            )
        )
        for part in PARTS
    }
    train = accepted["train"]
    if not train:
        reasons = Counter(r["reason"] for r in rejected)
        raise NoUsableRows(
            part="training",
            rows=len(rejected),
            reasons="; ".join(f"{n} x {reason}" for reason, n in reasons.items()),
        )
    resolved = decide(asked, Known(spec, len(train), learn=why_last))
    tokens, option = token_budget(resolved, price)
    if tokens and not steps_within(
        [e.size for e in train], resolved.batch_size, resolved.order_seed, 1, tokens
    ):
        raise BudgetTooSmall(name=option, tokens=tokens, batch_size=resolved.batch_size)
    counts = {p: len(e) for p, e in accepted.items()}
    cut = sum(e.is_cut for examples in accepted.values() for e in examples)
    rejected = dataset.rejected() + rejected
    told += warnings(spec, resolved.learning_rate, rejected) + ([why_last] if why_last else [])
    told += [words for encoding in parts.values() for words in encoding.told]
    used = sum(e.size for e in train)
    return Plan(
        resolved, used, {**counts, "rejected": len(rejected), "cut": cut}, rejected, moved, told
    )


def _encoded(
    dataset: Dataset, encoder: Any, spec: ModelSpec, asked: Options
) -> tuple[dict[str, Encoding[Any]], str]:
    """The rows of each part as they go into the base, and why only last answers are learnt where
    all were asked for."""

    def encoded(options: Options) -> dict[str, Encoding[Any]]:
        encode = spec.task_spec.rules.encode
        return {part: encode(dataset, part, encoder, spec, options) for part in PARTS}

    try:
        return encoded(asked), ""
    except AnswersNotFound as e:
        why = (
            f"only the last answer of each conversation is learnt: the base's chat template does "
            f"not write an earlier one (message "
            f"{e.fields['message']}) as it would have been asked for it"
        )
        return encoded(replace(asked, learn="last")), why


def _filled_again(
    dataset: Dataset, parts: Mapping[str, Encoding[Any]]
) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """Which rows go to another part now that some were rejected, and what must be told about the
    parts' sizes."""
    rows: dict[str, list[tuple[int, str, int]]] = {source: [] for source in dataset.sources}
    for part, examples in parts.items():
        for e in examples.accepted:
            rows[dataset.source_of[part]].append((e.row.draw, part, e.row.row))
    plans = split.plans({source: len(found) for source, found in rows.items() if found})
    moved: dict[str, dict[str, list[int]]] = {}
    counts = dict.fromkeys(PARTS, 0)
    for source, found in rows.items():
        if not found:
            continue
        sizes = sorted(Counter(draw for draw, *_ in found).items())
        new = dict(
            zip(
                (d for d, _ in sizes),
                split.split([n for _, n in sizes], plans[source]),
                strict=True,
            )
        )
        for draw, part, row in sorted(found):
            counts[new[draw]] += 1
            if new[draw] != part:
                moved.setdefault(part, {}).setdefault(new[draw], []).append(row)
    empty = [s for s, found in rows.items() if not found and s != "training"]
    told = [
        f"no row of the {source} query is left: its part is taken from the other rows"
        for source in empty
    ]
    return moved, [*told, *split.warnings(counts, plans)]


def warnings(spec: ModelSpec, learning_rate: float, rejected: list[dict[str, Any]]) -> list[str]:
    found = []
    if spec.pretraining_rate and learning_rate > spec.pretraining_rate:
        found.append(
            f"learning_rate {learning_rate:g} is above the rate {spec.name} was pretrained with "
            f"({spec.pretraining_rate:g}): it will forget"
        )
    if spec.left_out:
        found.append(
            f"left out of the base's config.json, since it could load code or other weights: "
            f"{', '.join(spec.left_out)}"
        )
    reasons = Counter(r["reason"] for r in rejected)
    if reasons[TOO_LONG]:
        found.append(
            f"rows over the window, rejected: {reasons[TOO_LONG]}; tunesmith.rejections lists "
            f"them, the option on_long changes the rule"
        )
    if reasons[REFUSED]:
        words = next(r["detail"] for r in rejected if r["reason"] == REFUSED)
        found.append(
            f"rows that the base's chat template refuses, rejected: {reasons[REFUSED]} ({words}); "
            f"tunesmith.rejections lists them"
        )
    return found
