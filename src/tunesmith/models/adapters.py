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
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import DamagedFiles
from tunesmith.models import lora_files, trim
from tunesmith.models.lora_files import LowRank


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
            found = Adapter(lora_files.read(folder, self.model))
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


def _add(x: Tensor, out: Tensor, start: int, end: int, low: LowRank) -> None:
    x_NI, out_NO = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    if end != -1:
        x_NI, out_NO = x_NI[start:end], out_NO[start:end]
    if out.dtype == low.b_OR.dtype:
        out_NO.addmm_(x_NI @ low.a_RI.T, low.b_OR.T, alpha=low.scaling)
    else:
        out_NO += ((x_NI.to(low.a_RI.dtype) @ low.a_RI.T) @ low.b_OR.T * low.scaling).to(out.dtype)
