"""RUNNING, in a child process of the worker: load the base, train, save. Writes only into its
attempt's folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tunesmith import catalog, durable
from tunesmith.data import prose
from tunesmith.data.examples import Example, encode
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models import causal_lm, layout, methods, packed
from tunesmith.models.certificate import LEAST_PROBES
from tunesmith.models.methods import Model
from tunesmith.models.probes import Probes, record
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Quoted, Report, Trained, Warned
from tunesmith.tuning.loop import Budget, Run, diverged, evaluate, mean_loss, train
from tunesmith.tuning.quote import Quote
from tunesmith.tuning.recipe import token_budget, usual_rate
from tunesmith.tuning.rehearsal import memory_mb, rehearse
from tunesmith.words import counted

RESULT = "result"  # the finished model inside the attempt's folder
PRECISION_ROWS = 64  # on which the loss by a lower precision is measured
PROBES, PROBE_TOKENS = 48, 24  # prompts that prove the stored model, and the longest answer to one


def begin(assignment: Assignment) -> tuple[Model, dict[str, list[Example]]]:
    """The model as every attempt of a job begins with it, and the rows of each part."""
    options, spec = assignment.decided, assignment.spec
    torch.set_num_threads(assignment.threads)
    torch.manual_seed(options.seed)
    dataset, encoder = assignment.dataset(), assignment.encoder()
    rows = {
        part: encode(dataset, part, encoder, spec, options.on_long, options.learn).accepted
        for part in ("train", "validation")
    }
    base = causal_lm.load_base(spec, causal_lm.device_of(assignment.device), options.precision)
    return methods.load(options.method).prepare(base, options), rows


def run(assignment: Assignment, report: Report) -> None:
    options, spec, encoder = assignment.decided, assignment.spec, assignment.encoder()
    home, folder = Path(assignment.home), Path(assignment.folder)
    model, rows = begin(assignment)
    tokens = sum(len(r.encoded.ids) for r in rows["train"])
    micro_tokens = layout.micro_tokens(model)
    if reason := packed.why_padded(
        model, max(len(r.encoded.ids) for part in rows.values() for r in part)
    ):
        report(Warned(f"rows are padded, not packed: slower, and otherwise the same ({reason})"))
    if not any(
        True for a in assignment.attempts for _ in a.glob("step-*")
    ):  # a resumed job was quoted when it began
        measured = rehearse(model, rows["train"], rows["validation"], options)
        micro_tokens = measured.micro_tokens
        if options.precision != "full":
            report(
                Warned(
                    _what_precision_costs(
                        assignment, model, rows["validation"] or rows["train"], micro_tokens
                    )
                )
            )
        price = catalog.credits(home, spec.name, "training", 1)
        quote = Quote.of(
            spec, options, tokens, len(rows["train"]), measured, price, assignment.threads
        )
        report(Quoted(quote.to_json()))
    bound_to: dict[str, Any] = {
        "data": assignment.data_digest,
        "options": {k: r.value for k, r in options.decided.items()},
        "base": catalog.fingerprint(spec),
        "template": dict(assignment.template),
    }
    where = Run(assignment.attempts, home, bound_to, report, micro_tokens)
    at = train(model, rows["train"], rows["validation"], options, where, budget(assignment))
    if told := diverged(at, options.learning_rate, usual_rate(spec, options.method)[0]):
        report(Warned(told))
    with durable.staging(home) as outer:
        staged = outer / RESULT
        staged.mkdir()
        methods.load(options.method).save(model, staged, spec)
        durable.write_json(staged / "prompt_template.json", asdict(encoder.template))
        if (
            options.precision != "full"
        ):  # what it answers with from now on is its base in full precision
            model = (
                methods.load(options.method)
                .load(causal_lm.load_base(spec, causal_lm.device_of(assignment.device)), staged)
                .eval()
            )
        probes(
            Engine(model, encoder, spec.name, spec.context), [*rows["validation"], *rows["train"]]
        ).save(staged)
        if not (folder / RESULT).exists():
            durable.publish(
                staged,
                folder / RESULT,
                {"job": assignment.job_id, "method": options.method, "step": at.step},
            )
    report(
        Trained(
            step=at.step,
            trained_tokens=at.trained_tokens,
            training_loss=at.training_loss,
            validation_loss=at.best_loss,
            stopped_by=at.stopped_by,
            used={
                "tokens_per_epoch": tokens,
                "seconds_per_epoch": round(at.seconds * tokens / at.trained_tokens, 2),
                "memory_mb": memory_mb(),
                "exact": at.exact,
            },
        )
    )


def _what_precision_costs(
    assignment: Assignment, model: Model, rows: Sequence[Example], micro_tokens: int
) -> str:
    """The base's loss on some rows in the precision it is trained in, which the fresh adapter
    leaves as it is, and in full."""
    some = rows[:PRECISION_ROWS]
    reduced = mean_loss(evaluate(model, some, micro_tokens))
    full = mean_loss(
        evaluate(
            causal_lm.load_base(assignment.spec, causal_lm.device_of(assignment.device)),
            some,
            micro_tokens,
        )
    )
    return (
        f"frozen weights in {assignment.decided.precision}: the base's loss on "
        f"{counted(len(some), 'row')} is "
        f"{reduced:.4f} in it, {full:.4f} in full "
        f"precision ({reduced - full:+.4f}); the tuned model answers with its base in full "
        f"precision"
    )


def probes(engine: Engine, rows: Sequence[Example]) -> Probes:
    """What the trained model answers to some of its rows, and where they are few to lines of
    prose."""
    asked = list({json.dumps(e.messages): e.messages for e in rows[: 4 * PROBES]}.values())[:PROBES]
    more = [line[:n] for line in prose.lines() for n in (40, 20)]  # short enough for any window
    asked += [[{"role": "user", "content": line}] for line in more][
        : max(0, LEAST_PROBES - len(asked))
    ]
    found = engine.generate(asked, Sampling(max_tokens=PROBE_TOKENS))
    return record(
        engine.model,
        [engine.encoder.prompt(m) for m in asked],
        [c.ids for c in found],
        [c.stopped for c in found],
    )


def budget(assignment: Assignment) -> Budget:
    price = catalog.credits(Path(assignment.home), assignment.spec.name, "training", 1)
    tokens, option = token_budget(assignment.decided, price)
    return Budget(tokens, 60 * assignment.decided.budget_minutes, option)
