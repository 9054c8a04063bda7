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

from tunesmith.data.examples import Example
from tunesmith.errors import OutOfMemory
from tunesmith.jobs import ResolvedOptions
from tunesmith.models import layout
from tunesmith.models.methods import Model, trained_tensors
from tunesmith.phases.messages import Measured
from tunesmith.tuning.batches import rows_of_step
from tunesmith.tuning.loop import Step, evaluate, halved, optimizer_step

VALIDATION_ROWS = 64  # measured; the rest in proportion


def rehearse(
    model: Model, train: Sequence[Example], validation: Sequence[Example], options: ResolvedOptions
) -> Measured:
    micro_tokens = layout.micro_tokens(model)
    while True:
        try:
            return _rehearse(model, train, validation, options, micro_tokens)
        except OutOfMemory as e:
            micro_tokens = halved(micro_tokens, e)


def _rehearse(
    model: Model,
    train: Sequence[Example],
    validation: Sequence[Example],
    options: ResolvedOptions,
    micro_tokens: int,
) -> Measured:
    trained = trained_tensors(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0, weight_decay=0.0, fused=True)

    def step(rows: Sequence[Example]) -> Step:
        return optimizer_step(
            model, trained, optimizer, rows, 0.0, options.max_grad_norm, micro_tokens
        )

    with torch.random.fork_rng(devices=[]):
        usual = [
            [train[i] for i in rows_of_step(len(train), options.batch_size, options.seed, s)]
            for s in (0, 1)
        ]
        step(usual[0][:1])  # what happens only once
        steps = [step(rows) for rows in (_longest(train, options.batch_size), *usual)]
        evaluate(model, _longest(validation, options.batch_size), micro_tokens)
        some = validation[:VALIDATION_ROWS]
        began = time.monotonic()
        evaluate(model, some, micro_tokens)
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


def _longest(rows: Sequence[Example], n: int) -> list[Example]:
    return sorted(rows, key=lambda e: -len(e.encoded.ids))[:n]


def memory_mb() -> int:
    """Peak resident memory of this process (Linux counts in KiB)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
