"""`lora`: LoRA (Hu et al. 2021, arXiv 2106.09685) by PEFT, on every linear layer but the head; alpha = 2 x rank."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tunesmith.catalog import ModelSpec
from tunesmith.jobs import ResolvedOptions

WHOLE = False


def prepare(model: PreTrainedModel, options: ResolvedOptions) -> PeftModel:
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with _quiet():
        return get_peft_model(model, config)


def save(model: PeftModel, folder: Path, spec: ModelSpec) -> None:
    model.peft_config["default"].base_model_name_or_path = spec.public_name  # never a local path
    with _quiet():
        model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # the library's unfilled card


def load(base: PreTrainedModel, folder: Path) -> PeftModel:
    with _quiet():
        return PeftModel.from_pretrained(base, folder, is_trainable=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT 0.21 warns on every adapter over transformers 5.23; nothing that a user could act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
