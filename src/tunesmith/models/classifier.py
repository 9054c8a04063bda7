"""A base with a head that gives labels: loaded safely, with as many outputs as there are labels.

The head is that of transformers' own class for sequence classification, so that what is saved loads
there; its pooling is that class's too. The head is new, drawn by torch's random numbers as they
stand, unless the folder holds one of these labels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from tunesmith import safe_files
from tunesmith.data.labels import Labels
from tunesmith.errors import DamagedFiles
from tunesmith.models.head import KIND, last_layer

DROPOUTS = ("dropout", "pdrop")


def load(folder: Path, device: torch.device, labels: Labels, tuned: bool = False) -> Any:
    """A model of these labels in float32, on a GPU in the file's own type, without dropout.

    `tuned`: every weight stands in the folder, the head's too. Otherwise the head is new.
    DamagedFiles where weights are missing that are not the head's.
    """
    safe_files.check_model(folder)
    config = _config(folder, labels)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that the head is new is no news
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=not tuned,
            output_loading_info=True,
        )
    except Exception as e:
        raise DamagedFiles(folder=str(folder), reason=f"{type(e).__name__}: {e}") from None
    finally:
        transformers_logging.set_verbosity(before)
    lacking = {*found["missing_keys"], *(str(k[0]) for k in found["mismatched_keys"])}
    new = set() if tuned else {n for n in lacking if _is_new(model, n)}
    if lacking - new:
        names = ", ".join(sorted(lacking - new)[:5])
        reason = f"weights are missing or of another shape: {names} ({len(lacking - new)})"
        raise DamagedFiles(folder=str(folder), reason=reason)
    return model.to(device).eval()


def _config(folder: Path, labels: Labels) -> Any:
    values = safe_files.read_config(folder)
    for name in ("id2label", "label2id", "num_labels", "problem_type"):
        values.pop(name, None)
    dropouts = {
        k: 0.0
        for k, v in values.items()
        if any(word in k for word in DROPOUTS) and isinstance(v, float)
    }
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values | dropouts)
    for name, value in config.to_dict().items():  # those that the file leaves to the library
        if any(word in name for word in DROPOUTS) and isinstance(value, float):
            setattr(config, name, 0.0)
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: i for i, name in enumerate(labels.names)}
    config.problem_type = KIND[labels.several]
    if config.pad_token_id is None:
        config.pad_token_id = 0
    return config


def _is_new(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor is the head's, or that of a pooler, which some bases are saved without."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(B, C)"""
    found: Tensor = model(**inputs).logits
    return found


@torch.no_grad()
def features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the last layer is given, (B, D): at the last token where the class asks there."""
    kept: list[Tensor] = []
    hook = last_layer(model).register_forward_hook(lambda _, given, __: kept.append(given[0]))
    try:
        model(**inputs)
    finally:
        hook.remove()
    [given] = kept
    if given.ndim == 2:
        return given
    last_B = inputs["attention_mask"].sum(1) - 1
    return given[torch.arange(len(given), device=given.device), last_B]
