"""Three optimizer steps of a job, measured and thrown away: the longest rows first, then the first
two steps of the seeded order.

They run at rate zero with an optimizer of their own, so that no weight, no random number and no
checkpoint of the job is touched. Where memory runs out, fewer tokens go through the model at once;
the job begins with what fitted.
"""

import resource
import time
from collections.abc import Sequence

import torch

from tunesmith.errors import OutOfMemory
from tunesmith.models.methods import trained_tensors
from tunesmith.phases.messages import Measured
from tunesmith.tuning.batches import rows_of_step
from tunesmith.tuning.loop import R, Step, Training, evaluate, halved, optimizer_step

VALIDATION_ROWS = 64  # measured; the rest in proportion


def rehearse(training: Training[R]) -> Measured:
    micro_tokens = training.task.room(training.model)
    while True:
        try:
            return _rehearse(training, micro_tokens)
        except OutOfMemory as e:
            micro_tokens = halved(micro_tokens, e)


def _rehearse(training: Training[R], micro_tokens: int) -> Measured:
    task, model, decided = training.task, training.model, training.decided
    trained = trained_tensors(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0, weight_decay=0.0, fused=True)

    def step(rows: Sequence[R]) -> Step:
        norm = decided.max_grad_norm
        return optimizer_step(task, model, trained, optimizer, rows, 0.0, norm, micro_tokens)

    with torch.random.fork_rng(devices=[]):
        usual = [_rows_of(training, n) for n in (0, 1)]
        step(usual[0][:1])  # what happens only once
        steps = [step(rows) for rows in (_longest(training.rows, decided.batch_size), *usual)]
        validation = training.validation
        evaluate(task, model, _longest(validation, decided.batch_size), micro_tokens)
        some = validation[:VALIDATION_ROWS]
        began = time.monotonic()
        evaluate(task, model, some, micro_tokens)
        validation_s = (time.monotonic() - began) * len(validation) / max(1, len(some))
    optimizer.zero_grad(set_to_none=True)
    size = sum(p.numel() * p.element_size() for p in trained.values()) / 1e6
    return Measured(
        [s.seconds for s in steps],
        [s.tokens for s in steps],
        validation_s,
        memory_mb(),
        round(size, 3),
        micro_tokens,
    )


def _rows_of(training: Training[R], step: int) -> list[R]:
    decided = training.decided
    places = rows_of_step(len(training.rows), decided.batch_size, decided.order_seed, step)
    return [training.rows[i] for i in places]


def _longest(rows: Sequence[R], n: int) -> list[R]:
    return sorted(rows, key=lambda r: -r.size)[:n]


def memory_mb() -> int:
    """Peak resident memory of this process (Linux counts in KiB)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
