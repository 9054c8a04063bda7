"""A model's layers from below: which weights are whose, which stay as they are, how fast the others
learn, and whether they moved.

Depth 0 is what stands before the first layer (embeddings), depth i + 1 is layer i; what stands
behind the last layer, and the head, is one deeper than that.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.errors import InvalidOptionValue
from tunesmith.models import head
from tunesmith.models.methods import decoder_of

ALLOWED = "fewer than its {n} layers, a share below 1 of them, or a pattern that some names match"


@dataclass(frozen=True)
class Layer:
    """What became of a layer's weights."""

    name: str
    parameters: int
    trained: int
    multiple: float
    """Of the learning rate; 0 where nothing of it is trained."""
    moved: bool
    """Whether any of its weights is another than before the training, to the bit."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def stack_of(model: Any) -> tuple[str, nn.ModuleList]:
    """The layers, and the name that they have in the plain model; no layers where it has none that
    a list holds."""
    lists = [
        (n, m)
        for n, m in decoder_of(model).named_modules()
        if isinstance(m, nn.ModuleList) and len(m)
    ]
    return max(
        lists,
        key=lambda found: sum(p.numel() for p in found[1].parameters()),
        default=("\0", nn.ModuleList()),
    )


def count(model: Any) -> int:
    return len(stack_of(model)[1])


def depths(model: Any) -> dict[str, int]:
    """Of every parameter, by its name in the model as it is trained."""
    name, stack = stack_of(model)
    plain = decoder_of(model)
    above = len(stack) + 1
    by_id: dict[int, int] = {}
    for i, layer in enumerate(stack):
        by_id |= {id(p): i + 1 for p in layer.parameters()}
    # in the order in which they are declared: what comes before the layers is below them
    seen = False
    for n, p in plain.named_parameters():
        seen = seen or n.startswith(f"{name}.")
        by_id.setdefault(id(p), above if seen else 0)
    with suppress(NotImplementedError, AttributeError):  # of a model that reads no words
        by_id |= {id(p): 0 for p in plain.get_input_embeddings().parameters()}
    by_id |= {id(p): above for p in head.tensors(model).values()}
    return {n: by_id[id(p)] for n, p in model.named_parameters()}


def frozen_below(model: Any) -> int:
    """How many layers, from below, nothing is trained in, nor in what stands before them."""
    of = depths(model)
    lowest = min((of[n] for n, p in model.named_parameters() if p.requires_grad), default=0)
    return max(0, lowest - 1)


def frozen(model: Any, freeze: str) -> set[str]:
    """The parameters that the option `freeze` leaves as they are; InvalidOptionValue where it
    means none, or all layers."""
    if not freeze:
        return set()
    n, of = count(model), depths(model)
    number = _number(freeze)
    if number is None:
        plain = {id(p): name for name, p in decoder_of(model).named_parameters()}
        named = {n: plain[id(p)] for n, p in model.named_parameters()}
        found = {n for n, name in named.items() if re.search(freeze, name)}
    else:
        below = round(number * n) if number < 1 else int(number)
        found = {name for name, depth in of.items() if depth <= below} if 0 < below < n else set()
    if not found or len(found) == len(of):
        raise InvalidOptionValue(name="freeze", value=freeze, allowed=ALLOWED.format(n=n))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def multiples(model: Any, head_rate: float, layer_decay: float) -> dict[str, float]:
    """Of every parameter: how fast it learns, as a multiple of the rate. The head `head_rate`, the
    layer below it 1, and each one further down `layer_decay` times the one above (Howard and Ruder
    2018, arXiv 1801.06146)."""
    of, top = depths(model), count(model)
    found = {n: layer_decay ** max(0, top - depth) for n, depth in of.items()}
    return found | dict.fromkeys(head.trained(model), head_rate)


def digests(model: Any) -> dict[str, str]:
    """Of every parameter as it stands."""
    return {n: _digest(p) for n, p in model.named_parameters()}


@torch.no_grad()
def _digest(parameter: torch.Tensor) -> str:
    plain = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(plain.numpy().data, digest_size=16).hexdigest()


def table(
    model: Any, before: Mapping[str, str], rates: Mapping[str, float], trained: Collection[str]
) -> list[Layer]:
    """What became of each layer, the lowest first; `before` the digests, `trained` the names of
    what was trained. After the training nothing else may have happened to the weights."""
    of, behind, after = depths(model), set(head.trained(model)), digests(model)
    names = {0: "embeddings" if count(model) else "weights", count(model) + 1: "behind the layers"}
    groups: dict[str, list[str]] = {}
    for n, depth in sorted(of.items(), key=lambda item: (item[0] in behind, item[1])):
        name = "head" if n in behind else names.get(depth, f"layer {depth - 1}")
        groups.setdefault(name, []).append(n)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    return [
        Layer(
            name,
            sum(sizes[n] for n in members),
            sum(sizes[n] for n in members if n in trained),
            max((rates.get(n, 1.0) for n in members if n in trained), default=0.0),
            any(before[n] != after[n] for n in members),
        )
        for name, members in groups.items()
    ]
