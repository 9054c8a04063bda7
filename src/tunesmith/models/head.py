"""The head of a classifier: what stands behind the layers of its base, whatever its class calls it.
A language model has none in this sense: its head is its vocabulary's.

A method's wrapper keeps the head as it was beside the one that is trained.
"""

from typing import Any

import torch
from torch import nn

from tunesmith.models.methods import decoder_of

KIND = {False: "single_label_classification", True: "multi_label_classification"}
"""What configurations call it that a text has one label, or may have several."""


def is_classifier(model: Any) -> bool:
    plain = decoder_of(model)
    return type(plain).__name__.endswith("ForSequenceClassification") and (
        plain.config.problem_type in KIND.values()
    )


def modules(model: Any) -> list[str]:
    """The names of its parts, in order; none of a language model."""
    if not is_classifier(model):
        return []
    plain = decoder_of(model)
    return sorted(
        name
        for name, part in plain.named_children()
        if name != plain.base_model_prefix and any(True for _ in part.parameters())
    )


def tensors(model: Any) -> dict[str, nn.Parameter]:
    """Its parameters by their names in the plain model."""
    inside = tuple(f"{name}." for name in modules(model))
    return {n: p for n, p in decoder_of(model).named_parameters() if n.startswith(inside)}


def trained(model: Any) -> dict[str, nn.Parameter]:
    """The same by their names in the model as it is trained."""
    own = {id(p) for p in tensors(model).values()}
    return {n: p for n, p in model.named_parameters() if id(p) in own}


def last_layer(model: Any) -> nn.Linear:
    """The one whose outputs are the logits."""
    plain, inside = decoder_of(model), tuple(modules(model))
    linear = [
        m for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n.startswith(inside)
    ]
    found: nn.Linear = [m for m in linear if m.out_features == plain.config.num_labels][-1]
    return found


def name_of_last_layer(model: Any) -> str:
    """In the plain model."""
    wanted = last_layer(model)
    found: str = next(n for n, m in decoder_of(model).named_modules() if m is wanted)
    return found


@torch.no_grad()
def zero(model: Any) -> Any:
    """The model with a head that holds every label for as likely."""
    layer = last_layer(model)
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()
    return model


@torch.no_grad()
def fold(model: Any, temperature: float) -> None:
    """Divide the logits by a temperature, for good."""
    layer = last_layer(model)
    layer.weight.div_(temperature)
    if layer.bias is not None:
        layer.bias.div_(temperature)


def peft_task(model: Any) -> str:
    """What PEFT calls what such a model does."""
    return "SEQ_CLS" if is_classifier(model) else "CAUSAL_LM"
