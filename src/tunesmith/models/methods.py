"""Methods: how weights may change. A method is three functions and a line in METHODS.

`prepare` gives the model with exactly its trained tensors requiring gradients; `save` writes what a plain library loads
(PEFT, transformers); `load` brings a saved one back onto its base.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tunesmith.catalog import ModelSpec
from tunesmith.jobs import ResolvedOptions

Model = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Method:
    prepare: Callable[[PreTrainedModel, ResolvedOptions], Model]
    save: Callable[[Model, Path, ModelSpec], None]
    load: Callable[[PreTrainedModel, Path], Model]
    whole: bool = False
    """The saved folder is a whole model: it is loaded in place of the base."""


def _lora(model: PreTrainedModel, options: ResolvedOptions) -> Model:
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the head; alpha = 2 x rank."""
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with _quiet():
        adapted = get_peft_model(model, config)
    return adapted


def _save_adapter(model: Model, folder: Path, spec: ModelSpec) -> None:
    assert isinstance(model, PeftModel)
    model.peft_config["default"].base_model_name_or_path = spec.public_name      # never a local path
    with _quiet():
        model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)      # the library's unfilled card


def _load_adapter(base: PreTrainedModel, folder: Path) -> Model:
    with _quiet():
        return PeftModel.from_pretrained(base, folder, is_trainable=False)


def _full(model: PreTrainedModel, options: ResolvedOptions) -> Model:
    for p in model.parameters():
        p.requires_grad_(True)
    return model


def _save_whole(model: Model, folder: Path, spec: ModelSpec) -> None:
    model.config._name_or_path = spec.public_name
    model.save_pretrained(folder, safe_serialization=True)


METHODS: dict[str, Method] = {
    "lora": Method(_lora, _save_adapter, _load_adapter),
    "full": Method(_full, _save_whole, lambda model, folder: model, whole=True),
}


def trained_tensors(model: Model) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


class _quiet(warnings.catch_warnings):
    """PEFT 0.21 warns on every adapter over transformers 5.23; nothing a user could act on."""

    def __enter__(self) -> None:      # type: ignore[override]
        super().__enter__()
        warnings.simplefilter("ignore")
