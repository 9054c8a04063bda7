"""The loss of many tokens with the head run in chunks: their logits all at once would cost more
memory than the model does.

N tokens, D width, V vocabulary. The gradient of the hidden states is made beside the loss, while a
chunk's logits are there; that of a trained head needs them again and computes them again.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.models.prepacked import Prepacked

CHUNK_LOGITS = 2**24  # held at once; 64 MiB in float32


def losses(hidden_ND: Tensor, head: nn.Linear | Prepacked, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, (N,); at least in float32."""
    if isinstance(head, Prepacked):
        chunks = _chunks(head.out_features, hidden_ND, targets_N)
        return torch.cat(
            [F.cross_entropy(head(hidden), targets, reduction="none") for hidden, targets in chunks]
        )
    found: Tensor = _Losses.apply(hidden_ND, head.weight, head.bias, targets_N)  # type: ignore[no-untyped-call]
    return found


def plain(model: PreTrainedModel) -> nn.Linear | Prepacked | None:
    """The head, where the model's logits are that one layer of its last hidden states and nothing
    else (no cap, no scale): tried once."""
    if model not in _known:
        _known[model] = _plain(model)
    return _known[model]


_known: WeakKeyDictionary[PreTrainedModel, nn.Linear | Prepacked | None] = WeakKeyDictionary()


@torch.no_grad()
def _plain(model: PreTrainedModel) -> nn.Linear | Prepacked | None:
    head, body = model.get_output_embeddings(), model.base_model
    if type(head) not in (nn.Linear, Prepacked) or body is model:
        return None
    was_training = model.training
    model.eval()
    ids = torch.arange(4, device=next(model.parameters()).device)[None] % head.out_features
    same = torch.equal(
        head(body(input_ids=ids, use_cache=False).last_hidden_state),
        model(input_ids=ids, use_cache=False).logits,
    )
    model.train(was_training)
    return head if same else None


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor
    ) -> Tensor:
        losses, grads, room = [], [], None
        for hidden, targets in _chunks(len(weight_VD), hidden_ND, targets_N):
            logits, at = _logits(hidden, weight_VD, bias_V, room), targets[:, None]
            room = logits  # for the next chunk: so much memory is slow to get
            wanted, most = logits.gather(-1, at), logits.amax(-1, keepdim=True)
            weights = (
                logits.sub_(most).exp_()
            )  # of the soft-max, not yet divided by their sum: that is done on D numbers, not on V
            total = weights.sum(-1, keepdim=True)
            losses.append((total.log() + most - wanted).squeeze(-1))
            if ctx.needs_input_grad[0]:
                weights.scatter_add_(-1, at, -total)
                if weights.dtype != hidden.dtype:  # rounded once, not twice
                    grads.append(weights.div_(total).to(hidden.dtype) @ weight_VD)
                else:
                    grads.append((weights @ weight_VD).div_(total))
        ctx.save_for_backward(
            hidden_ND, weight_VD, bias_V, targets_N, torch.cat(grads) if grads else None
        )
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, grad_ND = ctx.saved_tensors
        [g_N] = grads
        d_hidden = None if grad_ND is None else grad_ND * g_N[:, None].to(grad_ND.dtype)
        d_weight = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        d_bias = (
            torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        )
        if d_weight is not None or d_bias is not None:
            for hidden, targets, g in _chunks(len(weight_VD), hidden_ND, targets_N, g_N):
                logs = _logits(hidden, weight_VD, bias_V).log_softmax(-1)
                d_logits = _grad_of_logits(logs, targets).mul_(g[:, None]).to(hidden.dtype)
                if d_weight is not None:
                    d_weight.addmm_(d_logits.T, hidden)
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
        return d_hidden, d_weight, d_bias, None


def _chunks(vocabulary: int, *of_N: Tensor) -> Iterator[tuple[Tensor, ...]]:
    n = max(1, CHUNK_LOGITS // vocabulary)
    return zip(*(torch.split(t, n) for t in of_N), strict=True)


def _logits(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, room: Tensor | None = None
) -> Tensor:
    if room is not None and bias_V is None and room.dtype == hidden_ND.dtype:
        return torch.mm(hidden_ND, weight_VD.T, out=room[: len(hidden_ND)])
    logits = F.linear(hidden_ND, weight_VD, bias_V)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _grad_of_logits(logs_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Of the loss, from the logs of the probabilities, in their place."""
    p = logs_NV.exp_()
    p[torch.arange(len(p), device=p.device), targets_N] -= 1
    return p
