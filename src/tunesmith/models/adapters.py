"""LoRA adapters over one loaded base, each for its own rows of a batch: the weights of the base are
held once for all of them.

The arithmetic is that of `methods.lora`, x W' + b + s (x A') B', with the second part added behind
each layer that an adapter changes.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import DamagedFiles
from tunesmith.models import trim
from tunesmith.safe_files import read_object, tensor_sizes

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
}
"""Keys of adapter_config.json that may say something (the last two for what is switched off); all
others change the arithmetic, and must be empty."""
OUTSIDE = "base_model.model."  # what PEFT writes before the names of layers


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds behind one layer."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float


@dataclass(frozen=True, eq=False)
class Adapter:
    layers: Mapping[str, LowRank]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(
            t.numel() * t.element_size()
            for low in self.layers.values()
            for t in (low.a_RI, low.b_OR)
        )


Segment = tuple[int, int, Adapter | None]
"""Rows [start, end) of a batch, or positions of a packed sequence, and the adapter they are read
with; None is the base as it is. An end of -1 is the last one."""


class Adapters:
    """A base that reads with adapters. Until `using` says otherwise, every row is read with
    `usual`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.usual: Adapter | None = None
        self._hooked: set[str] = set()
        self._segments: Sequence[Segment] | None = None
        self._lock = threading.RLock()

    def load(self, folder: Path) -> Adapter:
        """DamagedFiles unless the folder holds an adapter, as `methods.lora` writes one, for this
        base."""
        try:
            found = Adapter(_read(folder, self.model))
        except Exception as e:
            raise DamagedFiles(
                folder=str(folder), reason=f"its adapter cannot be used: {e}"
            ) from None
        with self._lock:
            for layer in found.layers.keys() - self._hooked:
                self.model.get_submodule(layer).register_forward_hook(self._adds(layer))
            self._hooked |= found.layers.keys()
        return found

    @contextmanager
    def using(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Which rows the model reads with which adapter, inside; one thread at a time."""
        with self._lock:
            self._segments = segments
            try:
                yield
            finally:
                self._segments = None

    def _adds(self, layer: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            positions_K = trim.chosen()
            for start, end, adapter in (
                ((0, -1, self.usual),) if self._segments is None else self._segments
            ):
                if adapter and (low := adapter.layers.get(layer)):
                    if positions_K is not None and end != -1:
                        start, end = torch.searchsorted(
                            positions_K, torch.tensor([start, end])
                        ).tolist()
                    _add(inputs[0], out, start, end, low)

        return hook


def _read(folder: Path, model: PreTrainedModel) -> dict[str, LowRank]:
    config, file = read_object(folder / "adapter_config.json"), folder / "adapter_model.safetensors"
    tensor_sizes(file)
    other = sorted(k for k, v in config.items() if k not in NAMED and v)
    if (
        other
        or config.get("peft_type") != "LORA"
        or config.get("bias") != "none"
        or config.get("init_lora_weights") is not True
    ):
        raise ValueError(
            f"its adapter_config.json sets {', '.join(other) or 'its kind'} otherwise than "
            f"Tunesmith does"
        )
    tensors = load_file(file)
    names = sorted({n.removeprefix(OUTSIDE).rpartition(".lora_")[0] for n in tensors})
    if len(tensors) != 2 * len(names):
        raise ValueError("it holds other tensors than two for each layer")
    device = next(model.parameters()).device
    found = {}
    for name in names:
        a, b = (tensors[f"{OUTSIDE}{name}.lora_{x}.weight"].to(device) for x in "AB")
        layer: Any = model.get_submodule(name)
        wide = (
            (layer.in_features, layer.out_features)
            if hasattr(layer, "in_features")
            else tuple(layer.weight.shape)
        )
        if (a.shape[1], b.shape[0]) != wide or not len(a) == b.shape[1] == config["r"]:
            raise ValueError(
                f"{name}: {tuple(a.shape)} and {tuple(b.shape)} do not fit the base's layer"
            )
        found[name] = LowRank(a, b, config["lora_alpha"] / config["r"])
    return found


def _add(x: Tensor, out: Tensor, start: int, end: int, low: LowRank) -> None:
    x_NI, out_NO = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    if end != -1:
        x_NI, out_NO = x_NI[start:end], out_NO[start:end]
    if out.dtype == low.b_OR.dtype:
        out_NO.addmm_(x_NI @ low.a_RI.T, low.b_OR.T, alpha=low.scaling)
    else:
        out_NO += ((x_NI.to(low.a_RI.dtype) @ low.a_RI.T) @ low.b_OR.T * low.scaling).to(out.dtype)
