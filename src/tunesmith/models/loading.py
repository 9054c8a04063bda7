"""A base or a whole tuned model into memory: safe to load, every weight present, on the device and
in the precision that were asked for."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from tunesmith import safe_files
from tunesmith.catalog import ModelSpec
from tunesmith.errors import DamagedFiles, InvalidSetting, UnfitBaseModel
from tunesmith.models import packed, quantized, trim
from tunesmith.models.trial import Trial

transformers_logging.disable_progress_bar()


def device_of(setting: str) -> torch.device:
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidSetting(
            name="TUNESMITH_DEVICE",
            value=setting,
            allowed="torch finds no GPU here, so it is auto or cpu",
        )
    return torch.device(setting)


def load(folder: Path, device: torch.device) -> PreTrainedModel:
    """A base or a whole tuned model: safetensors only, no code of its own, every weight present;
    float32, on a GPU the file's own type.

    UnfitBaseModel where it is no causal language model; UnsafeBaseModel or DamagedFiles where it is
    none of that. Whatever the library raises over a config of a stranger is the last.
    """
    safe_files.check_model(folder)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=_config(folder),
            dtype=torch.float32 if device.type == "cpu" else "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as e:
        raise DamagedFiles(folder=str(folder), reason=f"{type(e).__name__}: {e}") from None
    lacking = sorted(found["missing_keys"]) + [str(k[0]) for k in found["mismatched_keys"]]
    if lacking:  # the library would fill them with random numbers and only warn
        raise DamagedFiles(
            folder=str(folder),
            reason=f"weights are missing or of another shape: {', '.join(lacking[:5])} "
            f"({len(lacking)})",
        )
    return _ready(model, device, folder)


def _config(folder: Path) -> Any:
    """Of what `safe_files` leaves of config.json: the library reads no other."""
    values = safe_files.read_config(folder)
    kind = CONFIG_MAPPING[values["model_type"]]
    return kind.from_dict(values)


def load_base(spec: ModelSpec, device: torch.device, precision: str = "full") -> PreTrainedModel:
    """The weights of a catalogue entry or folder; for a control the same random ones at every call.

    `precision`: full, or bfloat16 or nf4 for weights that stay frozen (the option of that name).
    """
    if spec.scratch_of:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                _config(Path(spec.folder)), dtype=torch.float32
            )
        model = _ready(model, device, Path(spec.folder))
    else:
        model = load(Path(spec.folder), device)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    elif precision == "nf4":
        quantized.to_nf4(model)
    return model


def _ready(model: PreTrainedModel, device: torch.device, folder: Path) -> PreTrainedModel:
    model.config.use_cache = False
    model = model.to(device).eval()
    try:
        trial = Trial.of(model)
    except Exception as e:
        raise DamagedFiles(folder=str(folder), reason=f"{type(e).__name__}: {e}") from None
    if not trial.is_causal:
        reason = "tokens that stand behind another change what the model makes of it"
        raise UnfitBaseModel(folder=str(folder), task="text generation", reason=reason)
    packed.enable(model, trial)
    trim.enable(model)
    return model
