"""Texts into tensors, and the loss of every label that is learnt.

B texts, T positions, C labels.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.models import classifier, head
from tunesmith.models.layout import micro_batches
from tunesmith.models.methods import decoder_of


class Tokens(Protocol):
    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def types(self) -> Sequence[int] | None: ...


class Labelled(Tokens, Protocol):
    @property
    def targets(self) -> tuple[int, ...]: ...

    @property
    def weight(self) -> int: ...


def groups(rows: Sequence[Tokens], most: int, most_rows: int | None = None) -> list[list[int]]:
    return micro_batches([len(r.ids) for r in rows], most, most_rows)


def collate(rows: Sequence[Tokens], model: Any) -> dict[str, Tensor]:
    """What the model's forward is given: padded on the right, by the model's own padding token,
    since some count their places by it."""
    plain = decoder_of(model)
    B, T = len(rows), max(len(r.ids) for r in rows)
    ids = torch.full((B, T), int(plain.config.pad_token_id or 0), dtype=torch.long)
    mask = torch.zeros(B, T, dtype=torch.long)
    types = torch.zeros(B, T, dtype=torch.long)
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids[b, :n] = torch.tensor(row.ids)
        mask[b, :n] = 1
        if row.types is not None:
            types[b, :n] = torch.tensor(row.types)
    made = {"input_ids": ids, "attention_mask": mask}
    if getattr(plain.config, "type_vocab_size", 0) > 1:
        made["token_type_ids"] = types
    device = next(model.parameters()).device
    return {name: t.to(device) for name, t in made.items()}


def label_losses(model: Any, rows: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
    """Of each row its cross-entropy, or where a row may have several labels of each label its own,
    in nats; and which row it is of.

    A row whose label no training row has costs what a guess among one label more would, and teaches
    nothing: no output stands for it.
    """
    logits_BC = classifier.logits(model, collate(rows, model)).float()
    if decoder_of(model).config.problem_type == head.KIND[True]:
        wanted_BC = torch.zeros_like(logits_BC)
        for b, row in enumerate(rows):
            wanted_BC[b, list(row.targets)] = 1.0
        losses_BC = F.binary_cross_entropy_with_logits(logits_BC, wanted_BC, reduction="none")
        row_BC = torch.arange(len(rows), device=logits_BC.device)[:, None].expand_as(losses_BC)
        return losses_BC.flatten(), row_BC.flatten()
    targets_B = torch.tensor([r.targets[0] if r.targets else -1 for r in rows])
    targets_B = targets_B.to(logits_BC.device)
    losses_B = F.cross_entropy(logits_BC, targets_B.clamp(min=0), reduction="none")
    guess = torch.tensor(float(logits_BC.shape[1] + 1)).log().to(losses_B)
    return torch.where(targets_B < 0, guess, losses_B), torch.arange(
        len(rows), device=logits_BC.device
    )
