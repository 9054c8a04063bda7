"""RUNNING, in a child process of the worker: load the base, train, save. Writes only into its
attempt's folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tunesmith import catalog, durable, tasks
from tunesmith.data import prose
from tunesmith.data.examples import Example, encode
from tunesmith.documents.certificate import LEAST_PROBES
from tunesmith.documents.quote import Quote
from tunesmith.evaluation.probes import Probes, record
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models import layout, loading, methods, packed
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Quoted, Report, Trained, Warned
from tunesmith.tuning import checkpoints
from tunesmith.tuning.checkpoints import Position
from tunesmith.tuning.loop import Budget, Run, Training, diverged, evaluate, mean_loss, train
from tunesmith.tuning.recipe import token_budget, usual_rate
from tunesmith.tuning.rehearsal import memory_mb, rehearse
from tunesmith.words import counted

RESULT = "result"  # the finished model inside the attempt's folder
PRECISION_ROWS = 64  # on which the loss by a lower precision is measured
PROBES, PROBE_TOKENS = 48, 24  # prompts that prove the stored model, and the longest answer to one


def begin(work: Assignment) -> Training[Example]:
    """The model as every attempt of a job begins with it, and the rows that it learns from."""
    decided, spec, task = work.decided, work.spec, tasks.load(work.task)
    torch.set_num_threads(work.threads)
    torch.manual_seed(decided.seed)
    dataset, encoder = work.dataset(), work.encoder()
    rows, validation = (
        encode(dataset, part, encoder, spec, decided.on_long, decided.learn).accepted
        for part in ("train", "validation")
    )
    base = task.load(spec, loading.device_of(work.device), decided.precision)
    model = methods.METHODS[decided.method].prepare(base, decided)
    return Training(task, model, rows, validation, decided)


def run(work: Assignment, report: Report) -> None:
    training = begin(work)
    every = [*training.rows, *training.validation]
    if why := packed.why_padded(training.model, max(r.size for r in every)):
        report(Warned(f"rows are padded, not packed: slower, and otherwise the same ({why})"))
    micro_tokens = layout.micro_tokens(training.model)
    decided, spec = training.decided, work.spec
    bound_to: dict[str, Any] = {
        "data": work.data_digest,
        "options": decided.values(),
        "base": catalog.fingerprint(spec),
        "template": dict(work.template),
    }
    if checkpoints.newest(work.attempts, bound_to) is None:  # a resumed one was quoted before
        micro_tokens = _quote(work, training, report)
    where = Run(work.attempts, Path(work.home), bound_to, report, micro_tokens)
    at = train(training, where, budget(work))
    if told := diverged(at, decided.learning_rate, usual_rate(spec, decided.method)[0]):
        report(Warned(told))
    _save(work, training, at)
    tokens = sum(r.size for r in training.rows)
    used = {
        "tokens_per_epoch": tokens,
        "seconds_per_epoch": round(at.seconds * tokens / at.trained_tokens, 2),
        "memory_mb": memory_mb(),
        "exact": at.exact,
    }
    losses = (at.training_loss, at.best_loss)
    report(Trained(at.step, at.trained_tokens, *losses, at.stopped_by, used))


def _quote(work: Assignment, training: Training[Example], report: Report) -> int:
    """Measure some steps and tell what the job will take; the tokens that fit through the model at
    once."""
    measured = rehearse(training)
    if training.decided.precision != "full":
        report(Warned(_what_precision_costs(work, training, measured.micro_tokens)))
    price = catalog.credits(Path(work.home), work.spec.name, "training", 1)
    tokens, rows = sum(r.size for r in training.rows), len(training.rows)
    quote = Quote.of(work.spec, training.decided, tokens, rows, measured, price, work.threads)
    report(Quoted(quote.to_json()))
    return measured.micro_tokens


def _save(work: Assignment, training: Training[Example], at: Position) -> None:
    """The finished model with its probes, in the attempt's folder, whole or not at all."""
    decided, spec, encoder = training.decided, work.spec, work.encoder()
    method, model, final = methods.METHODS[decided.method], training.model, Path(work.folder)
    with durable.staging(Path(work.home)) as outer:
        staged = outer / RESULT
        staged.mkdir()
        method.save(model, staged, spec)
        durable.write_json(staged / "prompt_template.json", asdict(encoder.template))
        if decided.precision != "full":
            # what it answers with from now on is its base in full precision
            base = training.task.load(spec, loading.device_of(work.device))
            model = method.attach(base, staged).eval()
        engine = Engine(model, encoder, spec.name, spec.context)
        probes(engine, [*training.validation, *training.rows]).save(staged)
        if not (final / RESULT).exists():
            facts = {"job": work.job_id, "method": decided.method, "step": at.step}
            durable.publish(staged, final / RESULT, facts)


def _what_precision_costs(work: Assignment, training: Training[Example], micro_tokens: int) -> str:
    """The base's loss on some rows in the precision it is trained in, which the fresh adapter
    leaves as it is, and in full."""
    task, some = training.task, (training.validation or training.rows)[:PRECISION_ROWS]
    reduced = mean_loss(evaluate(task, training.model, some, micro_tokens))
    base = task.load(work.spec, loading.device_of(work.device))
    full = mean_loss(evaluate(task, base, some, micro_tokens))
    return (
        f"frozen weights in {training.decided.precision}: the base's loss on "
        f"{counted(len(some), 'row')} is {reduced:.4f} in it, {full:.4f} in full precision "
        f"({reduced - full:+.4f}); the tuned model answers with its base in full precision"
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


def budget(work: Assignment) -> Budget:
    price = catalog.credits(Path(work.home), work.spec.name, "training", 1)
    tokens, option = token_budget(work.decided, price)
    return Budget(tokens, 60 * work.decided.budget_minutes, option)
