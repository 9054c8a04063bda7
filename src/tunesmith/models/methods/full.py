"""`full`: every weight is trained, and the whole model is saved in the precision it was trained
in."""

from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.catalog import ModelSpec
from tunesmith.models import layers
from tunesmith.options import Decided


def prepare(model: PreTrainedModel, options: Decided) -> PreTrainedModel:
    model.requires_grad_(True)
    kept = layers.frozen(model, options.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in kept)
    return model


def save(model: PreTrainedModel, folder: Path, spec: ModelSpec) -> None:
    model.config._name_or_path = spec.public_name  # never a local path
    model.save_pretrained(folder, safe_serialization=True)


def merge(model: PreTrainedModel) -> PreTrainedModel:
    return model


def attach(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    return base
