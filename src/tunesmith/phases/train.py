"""RUNNING, in a child process of the worker: load the base, train, save. Writes only into its
attempt's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunesmith import catalog, durable
from tunesmith.documents.quote import Quote
from tunesmith.models import embeddings, layers, loading, methods
from tunesmith.models.methods import trained_tensors
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Measured, Quoted, Report, Trained, Warned
from tunesmith.tuning import checkpoints
from tunesmith.tuning.checkpoints import Position
from tunesmith.tuning.loop import Budget, Run, Training, diverged, evaluate, mean_loss, train
from tunesmith.tuning.recipe import token_budget, usual_rate
from tunesmith.tuning.rehearsal import memory_mb, rehearse
from tunesmith.words import counted

RESULT = "result"  # the finished model inside the attempt's folder
PRECISION_ROWS = 64  # on which the loss by a lower precision is measured


def begin(work: Assignment) -> Training[Any]:
    """The model as every attempt of a job begins with it, and the rows that it learns from."""
    decided, spec = work.decided, work.spec
    task, rules = spec.task_spec.task, spec.task_spec.rules
    torch.set_num_threads(work.threads)
    torch.manual_seed(decided.seed)
    dataset, encoder = work.dataset(), work.encoder()
    rows, validation = (
        rules.encode(dataset, part, encoder, spec, decided).accepted
        for part in ("train", "validation")
    )
    place = loading.device_of(work.device)
    base = task.load(spec, place, encoder, decided)
    model = methods.METHODS[decided.method].prepare(base, decided)
    return Training(task, model, rows, validation, decided, task.rates(model, decided))


def run(work: Assignment, report: Report) -> None:
    training = begin(work)
    task, decided, spec = training.task, training.decided, work.spec
    if why := task.why_slower(training.model, [*training.rows, *training.validation]):
        report(Warned(why))
    micro_tokens = task.room(training.model)
    bound_to: dict[str, Any] = {
        "data": work.data_digest,
        "options": decided.values(),
        "base": catalog.fingerprint(spec),
        "template": dict(work.template),
    }
    home, model = Path(work.home), training.model
    before = layers.digests(model)
    with _sparing(training, home, str(bound_to["base"])) as why:
        if why:
            report(Warned(f"what the frozen layers give is computed in every pass: {why}"))
        if checkpoints.newest(work.attempts, bound_to) is None:  # a resumed one was quoted before
            micro_tokens = _quote(work, training, report)
        where = Run(work.attempts, home, bound_to, report, micro_tokens)
        at = train(training, where, budget(work))
    if why := diverged(at, decided.learning_rate, usual_rate(spec, decided.method)[0]):
        report(Warned(why))
    names = trained_tensors(model)
    told = layers.table(model, before, training.rates, names)
    _save(work, training, at)
    tokens = sum(r.size for r in training.rows)
    used = {
        "tokens_per_epoch": tokens,
        "seconds_per_epoch": round(at.seconds * tokens / at.trained_tokens, 2),
        "memory_mb": memory_mb(),
        "exact": at.exact,
        "layers": [layer.to_json() for layer in told],
    }
    losses = (at.training_loss, at.best_loss)
    report(Trained(at.step, at.trained_tokens, *losses, at.stopped_by, used))


@contextmanager
def _sparing(training: Training[Any], home: Path, base: str) -> Iterator[str]:
    """Inside, nothing is computed that no row needs or that is known; gives what `remembering`
    gives. `base`: the fingerprint of its weights."""
    task, model, rows = training.task, training.model, [*training.rows, *training.validation]
    # weights that decay do so in every step, whether a row reads them or not
    read = set() if training.decided.weight_decay else task.words(rows)
    with embeddings.only_read(model, read), task.remembering(model, rows, home, base) as why:
        yield why


def _quote(work: Assignment, training: Training[Any], report: Report) -> int:
    """Measure some steps and tell what the job will take; the tokens that fit through the model at
    once."""
    measured = rehearse(training)
    if training.decided.precision != "full":
        report(Warned(_what_precision_costs(work, training, measured.micro_tokens)))
    if training.decided.dropout:
        report(Warned(_what_dropout_costs(work, training, measured)))
    price = catalog.credits(Path(work.home), work.spec.name, "training", 1)
    tokens, rows = sum(r.size for r in training.rows), len(training.rows)
    quote = Quote.of(work.spec, training.decided, tokens, rows, measured, price, work.threads)
    report(Quoted(quote.to_json()))
    return measured.micro_tokens


def _save(work: Assignment, training: Training[Any], at: Position) -> None:
    """The finished model with its probes, in the attempt's folder, whole or not at all."""
    task, decided, spec = training.task, training.decided, work.spec
    method, model, final = methods.METHODS[decided.method], training.model, Path(work.folder)
    with durable.staging(Path(work.home)) as outer:
        staged = outer / RESULT
        staged.mkdir()
        encoder = work.encoder()
        for name, facts in task.finish(model, training.validation, encoder).items():
            durable.write_json(staged / name, facts)
        method.save(model, staged, spec)
        durable.write_json(staged / spec.task_spec.preprocessing, dict(work.template))
        if decided.precision != "full":
            # what it answers with from now on is its base in full precision
            base = task.load(spec, loading.device_of(work.device), encoder)
            model = method.attach(base, staged).eval()
        engine = task.engine_of(model, encoder, spec)
        task.probe(engine, [*training.validation, *training.rows]).save(staged)
        if not (final / RESULT).exists():
            told = {"job": work.job_id, "method": decided.method, "step": at.step}
            durable.publish(staged, final / RESULT, told)


def _what_precision_costs(work: Assignment, training: Training[Any], micro_tokens: int) -> str:
    """The base's loss on some rows in the precision it is trained in, which the fresh adapter
    leaves as it is, and in full."""
    task, some = training.task, (training.validation or training.rows)[:PRECISION_ROWS]
    reduced = mean_loss(evaluate(task, training.model, some, micro_tokens))
    base = task.load(work.spec, loading.device_of(work.device), work.encoder())
    full = mean_loss(evaluate(task, base, some, micro_tokens))
    return (
        f"frozen weights in {training.decided.precision}: the base's loss on "
        f"{counted(len(some), 'row')} is {reduced:.4f} in it, {full:.4f} in full precision "
        f"({reduced - full:+.4f}); the tuned model answers with its base in full precision"
    )


def _what_dropout_costs(work: Assignment, training: Training[Any], measured: Measured) -> str:
    task, decided = training.task, training.decided
    with torch.random.fork_rng(devices=[]):
        base = task.load(work.spec, loading.device_of(work.device), work.encoder())
        plain = replace(training, model=methods.METHODS[decided.method].prepare(base, decided))
        with _sparing(plain, Path(work.home), catalog.fingerprint(work.spec)):
            without = rehearse(plain)
    times = sum(measured.seconds) / sum(without.seconds)
    return f"dropout {decided.dropout:g}: a step takes {times:.1f} times as long as without it"


def budget(work: Assignment) -> Budget:
    price = catalog.credits(Path(work.home), work.spec.name, "training", 1)
    tokens, option = token_budget(work.decided, price)
    return Budget(tokens, 60 * work.decided.budget_minutes, option)
