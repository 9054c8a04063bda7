"""The one reader of LoRA files, as PEFT writes them: for going on with PEFT's own layers, and for
answering without PEFT."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.models import head
from tunesmith.safe_files import read_object, tensor_sizes

MOST_RANK, MOST_TARGETS = 4096, 20_000
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
NAMED = {
    "r",
    "lora_alpha",
    "target_modules",
    "task_type",
    "peft_type",
    "inference_mode",
    "init_lora_weights",
    "bias",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "megatron_core",
    "qalora_group_size",
    "fan_in_fan_out",
}
"""Keys of adapter_config.json that may say something: two of them of what is switched off, the last
that the weights of a layer stand the other way round, which PEFT sees by itself. All others change
the arithmetic, or what PEFT does, and must be empty."""
ADDED = {"classifier", "score"}
"""What PEFT itself names as a classifier's head, whether it has such parts or not."""
OUTSIDE = "base_model.model."  # what PEFT writes before the names of layers


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds behind one layer: s (x A') B'."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float


def read(folder: Path, model: PreTrainedModel) -> dict[str, LowRank]:
    """Of each layer of the base that the adapter changes, what it adds. ValueError where the files
    say anything else than `methods.lora` does, or do not fit the base."""
    rank, scaling = _settings(read_object(folder / "adapter_config.json"), model)
    file = folder / "adapter_model.safetensors"
    tensor_sizes(file)
    tensors = load_file(file)
    for name, wanted in head.tensors(model).items():
        found_here = tensors.pop(f"{OUTSIDE}{name}", None)
        if found_here is None or found_here.shape != wanted.shape:
            raise ValueError(f"{name}, of the head, is missing or of another shape")
    names = sorted({n.removeprefix(OUTSIDE).rpartition(".lora_")[0] for n in tensors})
    if len(tensors) != 2 * len(names):
        raise ValueError("it holds other tensors than two for each layer")
    device = next(model.parameters()).device
    found = {}
    for name in names:
        a, b = (tensors[f"{OUTSIDE}{name}.lora_{x}.weight"].to(device) for x in "AB")
        if (a.shape[1], b.shape[0]) != _widths(model.get_submodule(name)) or not (
            len(a) == b.shape[1] == rank
        ):
            raise ValueError(
                f"{name}: {tuple(a.shape)} and {tuple(b.shape)} do not fit the base's layer"
            )
        found[name] = LowRank(a, b, scaling)
    return found


def _widths(layer: Any) -> tuple[int, ...]:
    """Of what goes into a layer and what comes out."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)


def _settings(config: Mapping[str, Any], model: PreTrainedModel) -> tuple[int, float]:
    """The rank, and alpha over the rank."""
    rank, alpha, targets = (config.get(k) for k in ("r", "lora_alpha", "target_modules"))
    if type(rank) is not int or not 1 <= rank <= MOST_RANK or type(alpha) is not int:
        raise ValueError(f"its rank is {rank!r:.40}, its alpha {alpha!r:.40}")
    names = [targets] if isinstance(targets, str) else targets
    if (
        not isinstance(names, list)
        or not 1 <= len(names) <= MOST_TARGETS
        or not all(isinstance(n, str) and PLAIN_NAME.fullmatch(n) for n in names)
    ):
        raise ValueError("its target_modules are no names of layers")
    fixed: dict[str, Any] = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
    other = [k for k, v in config.items() if k not in {*NAMED, "modules_to_save"} and v]
    other += [k for k, v in fixed.items() if config.get(k) != v]
    other += ["task_type"] * (config.get("task_type") not in (None, head.peft_task(model)))
    kept, saved = set(head.modules(model)), set(config.get("modules_to_save") or ())
    if not kept <= saved <= (kept | ADDED if kept else kept):
        other.append("modules_to_save")
    if other:
        raise ValueError(
            f"its adapter_config.json sets {', '.join(sorted(other))} otherwise than Tunesmith does"
        )
    return rank, alpha / rank
