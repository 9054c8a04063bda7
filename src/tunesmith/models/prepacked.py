"""Weights laid out once for the products that answering needs: it multiplies them with few rows at
a time, again and again.

By oneDNN, on a processor, in float32: the same products, with weights that stand in memory as its
kernels read them. The plain weights are let go, but for those that something else reads too (an
embedding that is also the head).
"""

from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROWS = 64  # that the layout is chosen for
LEAST = 2**18  # weights of a layer; a smaller one gains less than the operator costs


class Prepacked(nn.Module):
    """A linear layer that can be asked for its output and nothing else."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.size = layer.weight.nbytes
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return found


def enable(model: PreTrainedModel) -> None:
    """Prepack the large linear layers of a model that is only asked from now on; nothing changes
    where torch cannot do it here."""
    linear = [
        (name, m)
        for name, m in model.named_modules()
        if type(m) is nn.Linear and m.weight.numel() >= LEAST
    ]
    if (
        not all(
            m.weight.device.type == "cpu" and m.weight.dtype == torch.float32 for _, m in linear
        )
        or not _works()
    ):
        return
    for name, layer in linear:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Prepacked(layer))


@cache
def _works() -> bool:
    """Not every build of torch has these operators; they are those of its own compiler."""
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
        ):  # the caller's random numbers stay what they are
            layer, x = nn.Linear(48, 96), torch.ones(1, 3, 48)
            return torch.allclose(Prepacked(layer)(x), layer(x), rtol=1e-4, atol=1e-5)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
