"""The learning rate range test (Smith 2015, arXiv 1506.01186): some steps at a rate that rises from
next to nothing, until the loss grows; the rate to begin with is well below that where it is
lowest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.models.methods import trained_tensors
from tunesmith.tuning.batches import rows_of_step
from tunesmith.tuning.loop import Training, grouped, optimizer_step

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 90
SMOOTH = 0.9
GROWN = 1.5  # times the lowest loss: then it is enough
BELOW = 10  # times lower than the rate at which the loss is lowest


@dataclass(frozen=True)
class Tried:
    """One step's rate, and the smoothed loss before it."""

    rate: float
    loss: float


def tried(training: Training[Any]) -> list[Tried]:
    """Rates from low to high, each with the loss that the steps before it have led to. The model is
    changed: throw it away."""
    decided, model = training.decided, training.model
    trained = trained_tensors(model)
    optimizer = torch.optim.AdamW(
        grouped(trained, training.rates), lr=LOWEST, weight_decay=decided.weight_decay, fused=True
    )
    room = training.task.room(model)
    found: list[Tried] = []
    mean = 0.0
    for i in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (i / (STEPS - 1))
        places = rows_of_step(len(training.rows), decided.batch_size, decided.order_seed, i)
        rows = [training.rows[p] for p in places]
        step = optimizer_step(
            training.task, model, trained, optimizer, rows, rate, decided.max_grad_norm, room
        )
        if not step.is_finite:
            break
        mean = SMOOTH * mean + (1 - SMOOTH) * step.loss
        found.append(Tried(rate, mean / (1 - SMOOTH ** (i + 1))))
        if i > STEPS // 4 and found[-1].loss > GROWN * min(t.loss for t in found):
            break
    return found


def suggested(found: Sequence[Tried]) -> float:
    """A tenth of the rate at which the smoothed loss was lowest, to two digits."""
    best = min(found, key=lambda t: t.loss if math.isfinite(t.loss) else math.inf)
    return float(f"{best.rate / BELOW:.1e}")
