"""The loss of every label that is learnt. B texts, C labels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.data.text_classification import Example
from tunesmith.models import classifier
from tunesmith.models.head import KIND
from tunesmith.models.methods import decoder_of


def label_losses(model: Any, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Of each row its cross-entropy, or where a row may have several labels of each label its own,
    in nats; and which row it is of.

    A row whose label no training row has costs what a guess among one label more would, and teaches
    nothing: no output stands for it.
    """
    logits_BC = classifier.logits(model, rows).float()
    row_B = torch.arange(len(rows), device=logits_BC.device)
    if decoder_of(model).config.problem_type == KIND[True]:
        wanted_BC = torch.zeros_like(logits_BC)
        for b, row in enumerate(rows):
            wanted_BC[b, list(row.targets)] = 1.0
        losses_BC = F.binary_cross_entropy_with_logits(logits_BC, wanted_BC, reduction="none")
        for b, row in enumerate(rows):
            if row.factors:
                losses_BC[b, list(row.targets)] *= losses_BC.new_tensor(row.factors)
        return losses_BC.flatten(), row_B[:, None].expand_as(losses_BC).flatten()
    target_B = torch.tensor([r.targets[0] if r.targets else -1 for r in rows], device=row_B.device)
    losses_B = F.cross_entropy(logits_BC, target_B.clamp(min=0), reduction="none")
    if any(r.factors for r in rows):
        losses_B = losses_B * losses_B.new_tensor(
            [r.factors[0] if r.factors else 1.0 for r in rows]
        )
    guess = losses_B.new_full((), logits_BC.shape[1] + 1).log()
    return torch.where(target_B < 0, guess, losses_B), row_B
