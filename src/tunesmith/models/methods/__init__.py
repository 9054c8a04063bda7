"""Methods: how weights may change. A method is a module with three functions, and a line in
METHODS.

`prepare(model, options)` gives the model with exactly its trained tensors requiring gradients;
`save(model, folder, spec)` writes what a plain library loads (PEFT, transformers); `load(base,
folder)` brings a saved one back onto its base; `merge(model)` makes a plain model of it. A module
is imported when it is asked for: PEFT takes seven seconds.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import torch
from transformers import PreTrainedModel

from tunesmith.catalog import ModelSpec
from tunesmith.jobs import ResolvedOptions

Model: TypeAlias = PreTrainedModel  # or PEFT's wrapper around one, which answers the same calls

METHODS = {
    "full": "tunesmith.models.methods.full",
    "lora": "tunesmith.models.methods.lora",
}
WHOLE = {"full"}
"""Those whose folder holds a whole model, which is loaded in place of the base."""


class Method(Protocol):
    def prepare(self, model: Any, options: ResolvedOptions) -> Any: ...
    def save(self, model: Any, folder: Path, spec: ModelSpec) -> None: ...
    def load(self, base: Any, folder: Path) -> Any: ...
    def merge(self, model: Any) -> Any: ...


def load(name: str) -> Method:
    return cast(Method, import_module(METHODS[name]))


def trained_tensors(model: Model) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}
