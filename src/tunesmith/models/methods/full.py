"""`full`: every weight is trained, and the whole model is saved in the precision it was trained
in."""

from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.catalog import ModelSpec
from tunesmith.options import Decided


def prepare(model: PreTrainedModel, options: Decided) -> PreTrainedModel:
    return model.requires_grad_(True)


def save(model: PreTrainedModel, folder: Path, spec: ModelSpec) -> None:
    model.config._name_or_path = spec.public_name  # never a local path
    model.save_pretrained(folder, safe_serialization=True)


def merge(model: PreTrainedModel) -> PreTrainedModel:
    return model


def attach(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    return base
