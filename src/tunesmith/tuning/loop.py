"""The one training loop. What varies is passed in: model, rows, options, where to save, whom to
tell.

The loss is the sum over the supervised tokens of an optimizer step divided by their count in that
whole step, whatever the micro-batches: the gradient does not depend on how rows are cut.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from tunesmith.data.rules import Sized
from tunesmith.errors import DamagedFiles, NonFiniteLoss, OutOfMemory
from tunesmith.models.layout import MICRO_TOKENS
from tunesmith.models.methods import trained_tensors
from tunesmith.options import Decided
from tunesmith.phases.messages import Report, RowLosses, Started, Stepped, Warned
from tunesmith.tasks.task import Task
from tunesmith.tuning import checkpoints
from tunesmith.tuning.batches import rows_of_step, steps_per_epoch, steps_within
from tunesmith.tuning.checkpoints import Position
from tunesmith.tuning.strategies import Stage, stages_of

R = TypeVar("R", bound=Sized)

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
    """Per supervised item of the step's rows, before the update."""
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


@dataclass(frozen=True)
class Training(Generic[R]):
    """What is trained, on what, as it was decided."""

    task: Task
    model: Any
    rows: Sequence[R]
    validation: Sequence[R]
    decided: Decided
    rates: Mapping[str, float] = field(default_factory=dict)
    """Of tensors by name: the multiple of the rate at which they learn, where it is not one."""


def train(
    training: Training[R],
    run: Run,
    budget: Budget = Budget(),
    stages: Sequence[Stage] | None = None,
) -> Position:
    """Train stage by stage (by default as decided), until the last step, until validation has
    stopped falling or a budget is used; leave the best weights in the model."""
    stages = stages or stages_of(training.decided)
    trained = trained_tensors(training.model)
    at, found = _begin(trained, run)
    plan = Plan(stages, training.rows, training.decided, budget)
    run.report(Started(at.step, plan.total))
    while True:
        stage = _Stage(training, run, plan, at)
        if found is not None:
            checkpoints.restore_optimizer(found, stage.trained, stage.optimizer)
        elif at.step == 0:
            checkpoints.save(run.attempts[0], run.home, at, trained, stage.optimizer)
        at, found = _take_best(stage.train(at), trained, run), None
        if at.stage + 1 == len(stages) or at.stopped_by not in ("max_epochs", "patience"):
            return at
        at = replace(at, stage=at.stage + 1, stage_began=at.step, stopped_by="")


@dataclass(frozen=True)
class Plan:
    """The optimizer steps of a run, known before the first, so that the rate falls to zero at the
    last of each stage."""

    stages: Sequence[Stage]
    rows: Sequence[Sized]
    decided: Decided
    budget: Budget

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.rows), self.decided.batch_size)

    @property
    def whole(self) -> int:
        """Steps of all stages, whatever they cost."""
        return self.per_epoch * sum(s.epochs for s in self.stages)

    @cached_property
    def total(self) -> int:
        """The same, as far as the budget pays for them."""
        if not self.budget.tokens:
            return self.whole
        sizes = [r.size for r in self.rows]
        steps = steps_within(
            sizes, self.decided.batch_size, self.decided.order_seed, self.whole, self.budget.tokens
        )
        return max(1, steps)  # a budget below one step was refused before

    def ends(self, at: Position) -> int:
        """The step after which the stage of this position has no more."""
        return min(self.total, at.stage_began + self.per_epoch * self.stages[at.stage].epochs)


class _Stage(Generic[R]):
    """One stage of a run: its weights, its optimizer, and the steps until it ends."""

    def __init__(self, training: Training[R], run: Run, plan: Plan, at: Position) -> None:
        self._training, self._run, self._plan = training, run, plan
        self._decided, self._budget = training.decided, plan.budget
        self._stage, self._end = plan.stages[at.stage], plan.ends(at)
        self._all = trained_tensors(training.model)
        self.trained = {n: self._all[n] for n in self._stage.of(self._all)}
        self.optimizer = torch.optim.AdamW(
            grouped(self.trained, training.rates),
            lr=self._stage.learning_rate,
            weight_decay=self._decided.weight_decay,
            fused=True,
        )
        self._saved, self._told, self._bad = time.monotonic(), 0.0, 0

    def train(self, at: Position) -> Position:
        while not at.stopped_by:
            began = time.monotonic()
            rows = self._rows_of(at.step)
            state = torch.get_rng_state()
            try:
                step = self._step(rows, at)
            except OutOfMemory as e:  # nothing was updated: the same step again, in smaller pieces
                at = _smaller(at, e, self._run)
                torch.set_rng_state(state)
                self._save(at, again=True)
                continue
            if self._is_bad(step, at):
                at = self._go_back(at, rows)
                continue
            at = self._after(step, at, rows, began)
        return at

    def _step(self, rows: Sequence[R], at: Position) -> Step:
        share = schedule(at.step - at.stage_began, self._end - at.stage_began, self._decided.warmup)
        rate = self._stage.learning_rate * at.rate_scale * share
        return optimizer_step(
            self._training.task,
            self._training.model,
            self.trained,
            self.optimizer,
            rows,
            rate,
            self._decided.max_grad_norm,
            at.micro_tokens,
        )

    def _rows_of(self, step: int) -> list[R]:
        rows, decided = self._training.rows, self._decided
        places = rows_of_step(len(rows), decided.batch_size, decided.order_seed, step)
        return [rows[i] for i in places]

    def _is_bad(self, step: Step, at: Position) -> bool:
        """Whether this is one too many in a row whose loss or gradient is no number."""
        self._bad = 0 if step.is_finite else self._bad + 1
        if self._bad:
            told = "gave a loss or gradient that is no finite number; it was skipped"
            self._run.report(Warned(f"step {at.step + 1} {told}"))
        return self._bad == NON_FINITE_LIMIT

    def _after(self, step: Step, at: Position, rows: Sequence[R], began: float) -> Position:
        """The position after a step: counted, validated where an epoch ends, told and saved."""
        at = replace(at, step=at.step + 1, trained_tokens=at.trained_tokens + step.tokens)
        per_epoch = self._plan.per_epoch
        epoch = (at.step - 1) // per_epoch + 1
        if step.is_finite:
            at = _count(at, step)
            self._run.report(RowLosses("train", epoch, _losses_of(rows, step.row_losses)))
        used = at.seconds + time.monotonic() - began
        out_of_time = 0 < self._budget.seconds <= used
        pauses = at.step % per_epoch == 0 or out_of_time or at.step == self._end
        if pauses:
            mean = at.epoch_nats / max(1, at.epoch_tokens)
            at = replace(at, training_loss=mean, epoch_nats=0.0, epoch_tokens=0)
        is_validated = pauses and bool(self._training.validation)
        if is_validated:
            at = _validate(self._training, at, epoch, self._run)
        now = time.monotonic()
        at = replace(at, seconds=at.seconds + now - began)
        at = replace(at, stopped_by=self._stopped_by(at, out_of_time))
        is_due = pauses or now - self._saved > self._run.checkpoint_seconds
        if is_due or now - self._told > RECORD_SECONDS:
            _tell(step, at, epoch, is_validated, self._run)
            self._told = now
        if is_due:
            # Saved after it was told: a step that a resumed run does again is told again, one that
            # it does not do again has been told.
            self._save(at)
            checkpoints.collect(self._run.attempts, at.best_step)
            self._saved = now
        return at

    def _save(self, at: Position, again: bool = False) -> None:
        run = self._run
        checkpoints.save(run.attempts[0], run.home, at, self._all, self.optimizer, again=again)

    def _stopped_by(self, at: Position, out_of_time: bool) -> str:
        if at.step == self._plan.total < self._plan.whole:
            return self._budget.tokens_option
        if at.step == self._end:
            return "max_epochs"
        if out_of_time:
            return "budget_minutes"
        is_settled = has_settled(at, self._plan.per_epoch, self._decided.patience)
        return "patience" if is_settled else ""

    def _go_back(self, at: Position, rows: Sequence[R]) -> Position:
        """To the last checkpoint, once, at half the rate; the second time the job fails with the
        rows it stumbled over."""
        found = _newest(self._run)
        if at.rate_scale < 1 or found is None:
            raise NonFiniteLoss(
                steps=NON_FINITE_LIMIT,
                rows=[r.number for r in rows],
                learning_rate=self._stage.learning_rate,
            )
        words = f"back to step {found.position.step} at half the learning rate"
        self._run.report(Warned(f"{NON_FINITE_LIMIT} non-finite steps in a row: {words}"))
        self._bad = 0
        checkpoints.load_weights(found.folder, self._all)
        checkpoints.restore_optimizer(found, self.trained, self.optimizer)
        return replace(found.position, rate_scale=0.5)


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
    task: Task,
    model: Any,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Sized],
    rate: float,
    max_grad_norm: float,
    micro_tokens: int = MICRO_TOKENS,
) -> Step:
    """One update at `rate`; none where the loss or the gradient is no finite number. OutOfMemory
    before anything is updated."""
    began = time.monotonic()
    if not model.training:  # it visits every module, which takes longer than the step of a head
        model.train()
    optimizer.zero_grad(set_to_none=True)
    with memory_guard(rows, micro_tokens):
        loss, row_losses = accumulate(task, model, rows, max_tokens=micro_tokens)
    norm = float(nn.utils.clip_grad_norm_(trained.values(), max_grad_norm))
    size, seconds = sum(r.size for r in rows), time.monotonic() - began
    step = Step(loss, row_losses, norm, rate, size, seconds)
    if step.is_finite:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("multiple", 1.0)
        optimizer.step()
    return replace(step, seconds=time.monotonic() - began)


def grouped(
    trained: Mapping[str, nn.Parameter], rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """An optimizer's groups: runs of tensors that learn at one multiple of the rate, so that all
    stand in the order in which they were given."""
    runs = groupby(trained, lambda name: rates.get(name, 1.0))
    return [{"params": [trained[n] for n in names], "multiple": m} for m, names in runs]


def accumulate(
    task: Task,
    model: Any,
    rows: Sequence[Sized],
    *,
    max_tokens: int = MICRO_TOKENS,
    max_rows: int | None = None,
) -> tuple[float, list[tuple[float, int]]]:
    """Add the gradient of sum(item losses) / count(items of all rows) to the model, micro-batch
    by micro-batch."""
    count = sum(r.weight for r in rows)
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for group in task.together(model, rows, max_tokens, max_rows):
        losses_N, row_N = task.losses(model, [rows[i] for i in group])
        torch.autograd.backward(losses_N.sum() / count)
        for i, value in zip(group, _per_row(losses_N, row_N, len(group)), strict=True):
            losses[i] = (value, rows[i].weight)
    return sum(v for v, _ in losses) / count, losses


@torch.no_grad()
def evaluate(
    task: Task, model: Any, rows: Sequence[Sized], micro_tokens: int = MICRO_TOKENS
) -> list[tuple[float, int]]:
    """Each row's (sum of item losses, items), in the order of `rows`; keeps counters, never
    logits."""
    model.eval()
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    with memory_guard(rows, micro_tokens):
        for group in task.together(model, rows, micro_tokens):
            losses_N, row_N = task.losses(model, [rows[i] for i in group])
            for i, value in zip(group, _per_row(losses_N, row_N, len(group)), strict=True):
                found[i] = (value, rows[i].weight)
    return found


@contextmanager
def memory_guard(rows: Sequence[Sized], micro_tokens: int) -> Iterator[None]:
    """OutOfMemory, with what was tried, for the ways in which torch says so."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not (
            isinstance(e, (MemoryError, torch.OutOfMemoryError))
            or "can't allocate memory" in str(e)
        ):
            raise
        longest = max(rows, key=lambda r: r.size)
        raise OutOfMemory(
            micro_tokens=micro_tokens, row=longest.number, tokens=longest.size
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
    """Whether `patience` whole epochs of this stage brought no better validation loss. Decided by
    the position alone, so a resumed run agrees."""
    waited = (
        0 < patience * per_epoch <= at.step - max(at.best_step, at.stage_began)
        and at.best_step > 0
        and at.step % per_epoch == 0
    )
    # a loss that is no number is a failure, not a plateau
    return waited and at.validation_loss is not None


def _begin(
    trained: dict[str, nn.Parameter], run: Run
) -> tuple[Position, checkpoints.Checkpoint | None]:
    """Where the run begins or goes on, its weights and random state restored, and the checkpoint
    that its optimizer has yet to be restored from."""
    found, here = _newest(run), checkpoints.environment(next(iter(trained.values())).device)
    if found is None:
        # those that were passed over would be taken for the newest
        checkpoints.remove_all(run.attempts)
        at = Position(bound_to=run.bound_to, micro_tokens=run.micro_tokens, environment=here)
        return at, None
    checkpoints.load_weights(found.folder, trained)
    at = found.position
    if at.environment == here:
        return at, found
    known = at.environment
    other = ", ".join(f"{k} {known.get(k)} -> {v}" for k, v in here.items() if known.get(k) != v)
    words = "the weights may differ in their last bits"
    run.report(Warned(f"resumed at step {at.step} under another {other}: {words}"))
    return replace(at, environment=here, exact=False), found


def _newest(run: Run) -> checkpoints.Checkpoint | None:
    def say(e: DamagedFiles) -> None:
        run.report(Warned(f"a checkpoint was passed over: {e}"))

    return checkpoints.newest(run.attempts, run.bound_to, say)


def _validate(training: Training[R], at: Position, epoch: int, run: Run) -> Position:
    rows = training.validation
    try:
        losses = evaluate(training.task, training.model, rows, at.micro_tokens)
    except OutOfMemory as e:
        return _validate(training, _smaller(at, e, run), epoch, run)
    loss = mean_loss(losses)
    run.report(RowLosses("validation", epoch, _losses_of(rows, losses)))
    at = replace(at, validation_loss=loss if math.isfinite(loss) else None)
    if math.isfinite(loss) and (at.best_loss is None or loss < at.best_loss):
        at = replace(at, best_step=at.step, best_loss=loss)
    return at


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
    rows: Sequence[Sized], losses: Sequence[tuple[float, int]]
) -> list[list[float | int | None]]:
    return [
        [r.number, v / n if math.isfinite(v) else None, n]
        for r, (v, n) in zip(rows, losses, strict=True)
    ]
