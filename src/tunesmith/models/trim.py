"""The last layer's MLP, only where somebody looks: what it would give at other positions, nothing
reads.

An MLP is most of a layer's arithmetic, and a position's output depends on that position alone. In a
model of few layers this is a tenth of the whole; the loss, its gradient and every answer stay what
they are. T positions, K of them looked at, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_looked_at: ContextVar[Tensor | None] = ContextVar("looked_at", default=None)
_chosen: ContextVar[tuple[Tensor, int] | None] = ContextVar("chosen", default=None)
LEAST_SAVED = 0.25  # of the positions; below it choosing and putting back costs what it saves


@contextmanager
def only(keep_K: Tensor) -> Iterator[None]:
    """Inside, a model's last hidden states are meant to be read at these positions alone, given in
    order."""
    token = _looked_at.set(keep_K)
    try:
        yield
    finally:
        _looked_at.reset(token)
        _chosen.set(None)  # left behind where a pass fails within


def chosen() -> Tensor | None:
    """Asked from within an MLP: the positions that it was given, where it was not given all."""
    found = _chosen.get()
    return found[0] if found else None


def enable(model: PreTrainedModel) -> None:
    """Where the model has such an MLP and gives the same without the rest of it, tried here; else
    nothing changes."""
    layers = next(
        (m for m in model.base_model.children() if isinstance(m, nn.ModuleList) and len(m)), None
    )
    mlp = getattr(layers[-1], "mlp", None) if layers is not None else None
    if not isinstance(mlp, nn.Module):
        return
    hooks = [mlp.register_forward_pre_hook(_choose), mlp.register_forward_hook(_put_back)]
    if not _same(model):
        for hook in hooks:
            hook.remove()


def _choose(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    keep_K = _looked_at.get()
    if keep_K is None or len(keep_K) > (1 - LEAST_SAVED) * inputs[0].shape[1]:
        return None
    _chosen.set((keep_K, inputs[0].shape[1]))
    return (inputs[0].index_select(1, keep_K), *inputs[1:])


def _put_back(module: nn.Module, inputs: tuple[Any, ...], out_BKD: Tensor) -> Tensor | None:
    found = _chosen.get()
    if found is None:
        return None
    _chosen.set(None)
    keep_K, n = found
    return out_BKD.new_zeros(len(out_BKD), n, out_BKD.shape[-1]).index_copy(1, keep_K, out_BKD)


@torch.no_grad()
def _same(model: PreTrainedModel) -> bool:
    ids = (
        torch.arange(8, device=next(model.parameters()).device)[None]
        % model.config.get_text_config().vocab_size
    )
    keep_K = torch.tensor([2, 7], device=ids.device)
    was_training = model.training
    model.eval()
    try:
        whole = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        with only(keep_K):
            trimmed = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        same = torch.allclose(
            whole[:, keep_K], trimmed[:, keep_K], rtol=1e-3, atol=1e-4
        ) and not torch.equal(whole, trimmed)
    except Exception:  # an MLP of another kind: experts, a tuple
        same = False
    model.train(was_training)
    return same
