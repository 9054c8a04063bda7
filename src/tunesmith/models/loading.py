"""A base or a whole tuned model into memory: safe to load, every weight present, on the device and
in the precision that were asked for."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
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
    if changed := _changed(model, folder):
        raise DamagedFiles(
            folder=str(folder),
            reason=f"transformers {transformers.__version__} loads {changed} otherwise than it "
            f"stands in the file",
        )
    return _ready(model, device, folder)


def _changed(model: PreTrainedModel, folder: Path) -> str:
    """A tensor whose beginning is not that of the file: there are architectures whose weights the
    library sets anew after it has read them. Those that it renames or joins are not looked at."""
    loaded = dict(model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (it is no dictionary)
                part = stored.get_slice(name)
                mine = loaded.get(name)
                if mine is None or list(mine.shape) != part.get_shape() or not mine.ndim:
                    continue
                if not torch.equal(part[:1].to(mine.dtype), mine.detach()[:1].cpu()):
                    return str(name)
    return ""


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
    return in_precision(model, precision)


def in_precision(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """The weights of a model that stay frozen, as the option `precision` names it."""
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    elif precision == "nf4":
        quantized.to_nf4(model)
    return model


def _tie(model: PreTrainedModel) -> None:
    """Where the configuration says that the head is the embedding, it is: some architectures load
    two tensors, train them apart, and save one."""
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    if (
        getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        and head is not None
        and head.weight is not words.weight
        and head.weight.shape == words.weight.shape
    ):
        head.weight = words.weight


def _ready(model: PreTrainedModel, device: torch.device, folder: Path) -> PreTrainedModel:
    model.config.use_cache = False
    _tie(model)
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
