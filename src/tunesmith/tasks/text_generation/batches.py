"""Rows into tensors, and the loss of every supervised token.

B rows, T positions, K kept positions, N supervised tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.data.template import Encoded
from tunesmith.models import chunked_loss, packed
from tunesmith.models.forward import hidden_at, logits_at
from tunesmith.models.layout import micro_batches
from tunesmith.models.methods import Model, decoder_of


@dataclass(frozen=True)
class Batch:
    """Rows for one pass, packed where the model can take that, else padded on the right. The layout
    decides nothing else."""

    inputs: Mapping[str, Any]
    """What the model's forward is given."""
    keep_K: Tensor
    """Positions whose next token is supervised in any row: the head runs only there."""
    at_N: Tensor
    """Of each supervised token, the place of its logits among the kept ones, batch and position
    flattened."""
    targets_N: Tensor
    row_N: Tensor
    """Which of the rows a supervised token belongs to; a row's tokens stand in order."""
    places: Sequence[list[int]] = ()
    """Where rows are packed: of each, where its tokens stand in the one sequence."""


def groups(
    rows: Sequence[Encoded], model: Model, max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Indices of rows that go through the model together: at most `max_tokens` with padding, or
    distinct ones where they are packed."""
    ids = [r.ids for r in rows]
    if packed.can_pack(model, max(map(len, ids), default=0)):
        return packed.groups(ids, max_tokens, max_rows)
    return micro_batches([len(i) for i in ids], max_tokens, max_rows)


def collate(rows: Sequence[Encoded], model: Model) -> Batch:
    device = next(model.parameters()).device
    if packed.can_pack(model, max(len(r.ids) for r in rows)):
        return _packed(rows, device)
    B, T = len(rows), max(len(r.ids) for r in rows)
    ids = torch.zeros(B, T, dtype=torch.long)
    mask = torch.zeros(B, T, dtype=torch.long)
    supervised = torch.zeros(B, T, dtype=torch.bool)
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids[b, :n] = torch.tensor(row.ids)
        mask[b, :n] = 1
        supervised[b, torch.tensor(row.learnt, dtype=torch.long) - 1] = (
            True  # the position before each learnt token predicts it
        )
    keep = supervised.any(0).nonzero().squeeze(1)
    b_N, k_N = supervised[:, keep].nonzero(as_tuple=True)
    targets, at = ids[b_N, keep[k_N] + 1], b_N * len(keep) + k_N
    keep, at, targets, b_N = (t.to(device) for t in (keep, at, targets, b_N))
    return Batch(
        {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, keep, at, targets, b_N
    )


def _packed(rows: Sequence[Encoded], device: torch.device) -> Batch:
    made = packed.pack([r.ids for r in rows])
    before = [places[i - 1] for places, r in zip(made.places, rows, strict=True) for i in r.learnt]
    keep, at = torch.unique(torch.tensor(before, dtype=torch.long), return_inverse=True)
    targets = torch.tensor([r.ids[i] for r in rows for i in r.learnt], dtype=torch.long)
    row_N = torch.tensor([b for b, r in enumerate(rows) for _ in range(r.n_learnt)])
    keep, at, targets, row_N = (t.to(device) for t in (keep, at, targets, row_N))
    return Batch(
        packed.inputs(made.ids_T, made.positions_T, made.layout, device),
        keep,
        at,
        targets,
        row_N,
        made.places,
    )


def supervised_logits(model: Model, batch: Batch) -> Tensor:
    """The logits that predict each supervised token, (N, V)."""
    return logits_at(model, batch.keep_K, **batch.inputs, use_cache=False).flatten(0, 1)[batch.at_N]


def token_losses(model: Model, batch: Batch) -> Tensor:
    """Cross-entropy of each supervised token, (N,), in nats; not averaged. Where they are many the
    head runs in chunks."""
    decoder = decoder_of(model)
    n_logits = len(batch.targets_N) * decoder.config.get_text_config().vocab_size
    if n_logits > chunked_loss.CHUNK_LOGITS and (head := chunked_loss.plain(decoder)) is not None:
        hidden_BKD = hidden_at(model, batch.keep_K, **batch.inputs, use_cache=False)
        return chunked_loss.losses(hidden_BKD.flatten(0, 1)[batch.at_N], head, batch.targets_N)
    logits_NV = supervised_logits(model, batch)
    if logits_NV.dtype in (torch.float16, torch.bfloat16):
        logits_NV = logits_NV.float()
    return F.cross_entropy(logits_NV, batch.targets_N, reduction="none")
