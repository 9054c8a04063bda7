"""The one training loop. What varies is passed in: model, rows, options, where to save, whom to
tell.

The loss is the sum over the supervised tokens of an optimizer step divided by their count in that
whole step, whatever the micro-batches: the gradient does not depend on how rows are cut.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.data.examples import Example
from tunesmith.errors import DamagedFiles, NonFiniteLoss, OutOfMemory
from tunesmith.jobs import ResolvedOptions
from tunesmith.models.causal_lm import collate, groups, token_losses
from tunesmith.models.layout import MICRO_TOKENS
from tunesmith.models.methods import Model, trained_tensors
from tunesmith.phases.messages import Report, RowLosses, Started, Stepped, Warned
from tunesmith.tuning import checkpoints
from tunesmith.tuning.batches import rows_of_step, steps_per_epoch, steps_within
from tunesmith.tuning.checkpoints import Position

LEAST_MICRO_TOKENS = (
    64  # half of it is tried where memory runs out, down to this; a row is never cut
)
NON_FINITE_LIMIT = 5  # steps in a row
RECORD_SECONDS = (
    0.5  # at most two recorded steps a second, and every epoch's last: a commit syncs the disk
)


@dataclass(frozen=True)
class Run:
    """Where a run saves and whom it tells."""

    attempts: list[Path]
    """Folders of this attempt (first, written to) and of earlier ones (resumed from)."""
    home: Path
    bound_to: dict[str, Any]
    report: Report
    micro_tokens: int = MICRO_TOKENS
    """Tokens that go through the model at once when the run begins; a resumed one keeps its own."""
    checkpoint_seconds: float = 60.0
    """Besides every epoch's end: what a kill can cost."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave."""

    loss: float
    """Nats per supervised token of the step's rows, before the update."""
    row_losses: list[tuple[float, int]]
    """Of each row: the sum of its token losses, and their number."""
    grad_norm: float
    """Before clipping."""
    rate: float
    tokens: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class Budget:
    """What a run may use at most; 0: no limit."""

    tokens: int = 0
    seconds: float = 0.0
    tokens_option: str = "budget_tokens"
    """The option that set `tokens`."""


def train(
    model: Model,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    options: ResolvedOptions,
    run: Run,
    budget: Budget = Budget(),
) -> Position:
    """Train until the last step, until validation has stopped falling or a budget is used; leave
    the best weights in the model."""
    trained = trained_tensors(model)
    optimizer = torch.optim.AdamW(
        trained.values(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    here = checkpoints.environment(next(iter(trained.values())).device)
    per_epoch = steps_per_epoch(len(train_rows), options.batch_size)
    planned = per_epoch * options.max_epochs
    total = _affordable(train_rows, options, planned, budget)
    at = _start(trained, optimizer, run, here)
    run.report(Started(at.step, total))
    saved, told, bad = time.monotonic(), 0.0, 0
    while not at.stopped_by:
        began = time.monotonic()
        rows = [
            train_rows[i]
            for i in rows_of_step(len(train_rows), options.batch_size, options.seed, at.step)
        ]
        rate = options.learning_rate * at.rate_scale * schedule(at.step, total, options.warmup)
        state = torch.get_rng_state()
        try:
            step = optimizer_step(
                model, trained, optimizer, rows, rate, options.max_grad_norm, at.micro_tokens
            )
        except OutOfMemory as e:  # nothing was updated: the same step again, in smaller pieces
            at = _smaller(at, e, run)
            torch.set_rng_state(state)
            checkpoints.save(run.attempts[0], run.home, at, trained, optimizer, again=True)
            continue
        bad = 0 if step.is_finite else bad + 1
        if bad:
            run.report(
                Warned(
                    f"step {at.step + 1} gave a loss or gradient that is no finite number; it "
                    f"was skipped"
                )
            )
        if bad == NON_FINITE_LIMIT:
            at, bad = _go_back(at, rows, options, trained, optimizer, run), 0
            continue
        at = replace(at, step=at.step + 1, trained_tokens=at.trained_tokens + step.tokens)
        epoch, epoch_ends = (at.step - 1) // per_epoch + 1, at.step % per_epoch == 0
        if step.is_finite:
            at = _count(at, step)
            run.report(RowLosses("train", epoch, _losses_of(rows, step.row_losses)))
        out_of_time = 0 < budget.seconds <= at.seconds + time.monotonic() - began
        pauses = epoch_ends or out_of_time or at.step == total
        if pauses:
            at = replace(
                at,
                training_loss=at.epoch_nats / max(1, at.epoch_tokens),
                epoch_nats=0.0,
                epoch_tokens=0,
            )
        if pauses and validation_rows:
            at = _validate(model, validation_rows, at, epoch, run)
        now = time.monotonic()
        at = replace(at, seconds=at.seconds + now - began)
        at = replace(
            at, stopped_by=_stopped_by(at, total, planned, per_epoch, out_of_time, options, budget)
        )
        is_due = pauses or now - saved > run.checkpoint_seconds
        if is_due or now - told > RECORD_SECONDS:
            _tell(step, at, epoch, pauses and bool(validation_rows), run)
            told = now
        if (
            is_due
        ):  # after telling: what is run again is told again, what is not must have been told
            checkpoints.save(run.attempts[0], run.home, at, trained, optimizer)
            checkpoints.collect(run.attempts, at.best_step)
            saved = now
    return _take_best(at, trained, run)


def _smaller(at: Position, error: OutOfMemory, run: Run) -> Position:
    """Half the tokens in a micro-batch from here on; part of the position, so that a resumed run
    cuts its steps alike."""
    half = halved(at.micro_tokens, error)
    run.report(
        Warned(
            f"step {at.step + 1} did not fit into memory; from here on {half} tokens go "
            f"through the model at once"
        )
    )
    return replace(at, micro_tokens=half)


def halved(micro_tokens: int, error: OutOfMemory) -> int:
    """What to try after `error`, which is raised where there is no less to try."""
    if micro_tokens < 2 * LEAST_MICRO_TOKENS:
        raise error
    return micro_tokens // 2


def _affordable(
    rows: Sequence[Example], options: ResolvedOptions, planned: int, budget: Budget
) -> int:
    """The steps that the token budget pays for: known before the first one, so that the rate falls
    to zero at the last."""
    if not budget.tokens:
        return planned
    steps = steps_within(
        [len(r.encoded.ids) for r in rows], options.batch_size, options.seed, planned, budget.tokens
    )
    return max(1, steps)  # a budget below one step was refused before


def _stopped_by(
    at: Position,
    total: int,
    planned: int,
    per_epoch: int,
    out_of_time: bool,
    options: ResolvedOptions,
    budget: Budget,
) -> str:
    if at.step == total:
        return "max_epochs" if total == planned else budget.tokens_option
    if out_of_time:
        return "budget_minutes"
    return "patience" if has_settled(at, per_epoch, options.patience) else ""


def _count(at: Position, step: Step) -> Position:
    nats, tokens = sum(v for v, _ in step.row_losses), sum(n for _, n in step.row_losses)
    first = step.loss if at.first_loss is None else at.first_loss
    return replace(
        at, epoch_nats=at.epoch_nats + nats, epoch_tokens=at.epoch_tokens + tokens, first_loss=first
    )


def _tell(step: Step, at: Position, epoch: int, was_validated: bool, run: Run) -> None:
    run.report(
        Stepped(
            step=at.step,
            epoch=epoch,
            training_loss=step.loss if math.isfinite(step.loss) else None,
            learning_rate=step.rate,
            validation_loss=at.validation_loss if was_validated else None,
            grad_norm=step.grad_norm if math.isfinite(step.grad_norm) else None,
            tokens=step.tokens,
            tokens_per_second=step.tokens / step.seconds,
            seconds=step.seconds,
            trained_tokens=at.trained_tokens,
        )
    )


def optimizer_step(
    model: Model,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Example],
    rate: float,
    max_grad_norm: float,
    micro_tokens: int = MICRO_TOKENS,
) -> Step:
    """One update at `rate`; none where the loss or the gradient is no finite number. OutOfMemory
    before anything is updated."""
    began = time.monotonic()
    model.train()
    optimizer.zero_grad(set_to_none=True)
    with memory_guard(rows, micro_tokens):
        loss, row_losses = accumulate(model, rows, max_tokens=micro_tokens)
    norm = float(nn.utils.clip_grad_norm_(trained.values(), max_grad_norm))
    step = Step(
        loss,
        row_losses,
        norm,
        rate,
        sum(len(r.encoded.ids) for r in rows),
        time.monotonic() - began,
    )
    if step.is_finite:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return replace(step, seconds=time.monotonic() - began)


def accumulate(
    model: Model,
    rows: Sequence[Example],
    *,
    max_tokens: int = MICRO_TOKENS,
    max_rows: int | None = None,
) -> tuple[float, list[tuple[float, int]]]:
    """Add the gradient of sum(token losses) / count(tokens of all rows) to the model, micro-batch
    by micro-batch."""
    count = sum(r.encoded.n_learnt for r in rows)
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for group in groups([r.encoded for r in rows], model, max_tokens, max_rows):
        per_row = _backward(model, [rows[i] for i in group], count)
        for i, value in zip(group, per_row, strict=True):
            losses[i] = (value, rows[i].encoded.n_learnt)
    return sum(v for v, _ in losses) / count, losses


def _backward(model: Model, rows: Sequence[Example], count: int) -> list[float]:
    batch = collate([r.encoded for r in rows], model)
    losses_N = token_losses(model, batch)
    torch.autograd.backward(losses_N.sum() / count)
    return _per_row(losses_N, batch.row_N, len(rows))


@torch.no_grad()
def evaluate(
    model: Model, rows: Sequence[Example], micro_tokens: int = MICRO_TOKENS
) -> list[tuple[float, int]]:
    """Each row's (sum of token losses, tokens), in the order of `rows`; keeps counters, never
    logits."""
    model.eval()
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    with memory_guard(rows, micro_tokens):
        for group in groups([r.encoded for r in rows], model, micro_tokens):
            batch = collate([rows[i].encoded for i in group], model)
            for i, value in zip(
                group, _per_row(token_losses(model, batch), batch.row_N, len(group)), strict=True
            ):
                found[i] = (value, rows[i].encoded.n_learnt)
    return found


@contextmanager
def memory_guard(rows: Sequence[Example], micro_tokens: int) -> Iterator[None]:
    """OutOfMemory, with what was tried, for the ways in which torch says so."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not (
            isinstance(e, (MemoryError, torch.OutOfMemoryError))
            or "can't allocate memory" in str(e)
        ):
            raise
        longest = max(rows, key=lambda r: len(r.encoded.ids))
        raise OutOfMemory(
            micro_tokens=micro_tokens, row=longest.row.row, tokens=len(longest.encoded.ids)
        ) from None


def mean_loss(losses: Sequence[tuple[float, int]]) -> float:
    """Nats per supervised token over all rows."""
    return sum(v for v, _ in losses) / max(1, sum(n for _, n in losses))


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate at `step` (from 0): linear rise over the warm-up, then linear fall
    towards zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return (total - step) / max(1, total - rising)


def has_settled(at: Position, per_epoch: int, patience: int) -> bool:
    """Whether `patience` whole epochs brought no better validation loss. Decided by the position
    alone, so a resumed run agrees."""
    waited = (
        0 < patience * per_epoch <= at.step - at.best_step
        and at.best_step > 0
        and at.step % per_epoch == 0
    )
    return (
        waited and at.validation_loss is not None
    )  # a loss that is no number is a failure, not a plateau


def _start(
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    run: Run,
    here: dict[str, Any],
) -> Position:
    found = _newest(run)
    if found is None:
        at = Position(bound_to=run.bound_to, micro_tokens=run.micro_tokens, environment=here)
        checkpoints.save(run.attempts[0], run.home, at, trained, optimizer)
        return at
    at = checkpoints.restore(found, trained, optimizer)
    if at.environment == here:
        return at
    other = ", ".join(
        f"{k} {at.environment.get(k)} -> {v}" for k, v in here.items() if at.environment.get(k) != v
    )
    run.report(
        Warned(
            f"resumed at step {at.step} under another {other}: the weights may differ in "
            f"their last bits"
        )
    )
    return replace(at, environment=here, exact=False)


def _newest(run: Run) -> checkpoints.Checkpoint | None:
    def say(e: DamagedFiles) -> None:
        run.report(Warned(f"a damaged checkpoint was passed over for the one before it: {e}"))

    return checkpoints.newest(run.attempts, run.bound_to, say)


def _validate(
    model: Model, rows: Sequence[Example], at: Position, epoch: int, run: Run
) -> Position:
    try:
        losses = evaluate(model, rows, at.micro_tokens)
    except OutOfMemory as e:
        return _validate(model, rows, _smaller(at, e, run), epoch, run)
    loss = mean_loss(losses)
    run.report(RowLosses("validation", epoch, _losses_of(rows, losses)))
    at = replace(at, validation_loss=loss if math.isfinite(loss) else None)
    if math.isfinite(loss) and (at.best_loss is None or loss < at.best_loss):
        at = replace(at, best_step=at.step, best_loss=loss)
    return at


def _go_back(
    at: Position,
    rows: Sequence[Example],
    options: ResolvedOptions,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    run: Run,
) -> Position:
    """To the last checkpoint, once, at half the rate; the second time the job fails with the rows
    it stumbled over."""
    found = _newest(run)
    if at.rate_scale < 1 or found is None:
        raise NonFiniteLoss(
            steps=NON_FINITE_LIMIT,
            rows=[r.row.row for r in rows],
            learning_rate=options.learning_rate,
        )
    run.report(
        Warned(
            f"{NON_FINITE_LIMIT} non-finite steps in a row: back to step "
            f"{found.position.step} at half the learning rate"
        )
    )
    return replace(checkpoints.restore(found, trained, optimizer), rate_scale=0.5)


DIVERGED = 1.5  # times the loss before training: above it a run has unlearnt


def diverged(at: Position, rate: float, usual: float) -> str:
    """What to say of a run whose loss rose instead of falling, with the rate to try; empty for any
    other. `usual`: the rule's rate."""
    if (
        at.first_loss is None
        or at.training_loss is None
        or not at.training_loss > DIVERGED * at.first_loss
    ):
        return ""
    kept = (
        f" The weights of step {at.best_step} are kept (validation loss {at.best_loss:.3g})."
        if at.best_loss is not None
        else ""
    )
    return (
        f"training diverged: the loss of its rows rose from {at.first_loss:.3g} to "
        f"{at.training_loss:.3g}. The "
        f"learning_rate of {rate:g} is "
        f"too high; try {min(rate / 10, usual):g}.{kept}"
    )


def _take_best(at: Position, trained: dict[str, nn.Parameter], run: Run) -> Position:
    """The best epoch's weights into the model; where its checkpoint is damaged the last ones stay,
    and the position says so."""
    if at.best_step in (-1, at.step):
        return at
    for attempt in run.attempts:
        try:
            checkpoints.load_weights(attempt / f"step-{at.best_step:08d}", trained)
            return at
        except DamagedFiles as e:
            damage = e
    run.report(
        Warned(
            f"the weights of the last step are kept, since those of the best one, "
            f"{at.best_step}, are gone: {damage}"
        )
    )
    return replace(at, best_step=at.step, best_loss=at.validation_loss)


def _per_row(losses_N: torch.Tensor, row_N: torch.Tensor, n_rows: int) -> list[float]:
    sums = torch.zeros(n_rows, dtype=losses_N.dtype, device=losses_N.device)
    return [float(v) for v in sums.index_add_(0, row_N, losses_N.detach())]


def _losses_of(
    rows: Sequence[Example], losses: Sequence[tuple[float, int]]
) -> list[list[float | int | None]]:
    return [
        [r.row.row, v / n if math.isfinite(v) else None, n]
        for r, (v, n) in zip(rows, losses, strict=True)
    ]
