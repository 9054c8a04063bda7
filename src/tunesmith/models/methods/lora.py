"""`lora`: LoRA (Hu et al. 2021, arXiv 2106.09685) by PEFT, on every linear layer but the head or on some; alpha = 2 x rank."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.catalog import ModelSpec
from tunesmith.jobs import ResolvedOptions

WHOLE = False


def prepare(model: PreTrainedModel, options: ResolvedOptions) -> PeftModel:
    targets = options.targets if options.targets == "all-linear" else _linear_layers(model, attention=options.targets == "attention")
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=targets, task_type="CAUSAL_LM")
    with _quiet():
        return get_peft_model(model, config)


def _linear_layers(model: PreTrainedModel, attention: bool) -> list[str]:
    """The linear layers inside the blocks' attention, or those outside it (the MLP)."""
    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    return [n for n in linear if ("attn" in n or "attention" in n) == attention]


def save(model: PeftModel, folder: Path, spec: ModelSpec) -> None:
    model.peft_config["default"].base_model_name_or_path = spec.public_name  # never a local path
    with _quiet():
        model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # the library's unfilled card


def load(base: PreTrainedModel, folder: Path) -> PeftModel:
    with _quiet():
        return PeftModel.from_pretrained(base, folder, is_trainable=False)


def merge(model: PeftModel) -> PreTrainedModel:
    with _quiet():
        merged: PreTrainedModel = model.merge_and_unload()
    return merged


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT 0.21 warns on every adapter over transformers 5.23; nothing that a user could act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
