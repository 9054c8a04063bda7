"""`lora`: LoRA (Hu et al. 2021, arXiv 2106.09685) by PEFT, on every linear layer but the head or on
some; alpha = 2 x rank.

PEFT's layers and their parameters are kept, so that what is saved is plain PEFT; only their
arithmetic is joined (`FusedLinear`).
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith import imports
from tunesmith.catalog import ModelSpec
from tunesmith.errors import DamagedFiles
from tunesmith.models import head, layers, lora_files
from tunesmith.options import Decided

# bitsandbytes takes a second, and is needed where weights are frozen in NF4 alone: then it has been
# imported before this. PEFT keeps what it finds when it is asked first.
with imports.quickly("peft", without="bitsandbytes"):
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.tuners.lora import layer as lora_layer
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    is_bnb_available()
    is_bnb_4bit_available()


IN_KERNELS = ("out_proj", "x_proj", "dt_proj")  # of a Mamba: see _is_read_by_a_kernel


def prepare(model: PreTrainedModel, options: Decided) -> PeftModel:
    kept = layers.frozen(model, options.freeze)
    chosen = [n for n in _linear_layers(model, options.targets) if f"{n}.weight" not in kept]
    config = _config(model, options.rank, chosen)
    convert_peft_config_for_transformers(config, model, None)
    if config.target_parameters:  # it took layers for experts by their names: they are left out
        config = _config(model, options.rank, sorted(config.target_modules))
    config._register_custom_module({nn.Linear: FusedLinear})
    with _quiet():
        return get_peft_model(model, config)


def _config(model: PreTrainedModel, rank: int, layers: list[str]) -> LoraConfig:
    """A classifier's head is new, and is trained and kept whole."""
    task, kept = head.peft_task(model), head.modules(model) or None
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=layers, task_type=task, modules_to_save=kept
    )


class FusedLinear(lora_layer.Linear):  # type: ignore[misc]
    """PEFT's LoRA layer with the adapter's product added inside the base layer's output, forward
    and backward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name, base = self.active_adapters[0], self.base_layer
        is_plain = len(self.active_adapters) == 1 and not (
            self.disable_adapters or self.merged or self.lora_variant or args or kwargs
        )
        if not is_plain or base.weight.requires_grad or x.dtype != base.weight.dtype:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        fused: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
            x,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return fused


class _Fused(torch.autograd.Function):
    """x W' + b + s (x A') B', with x and x A' kept for the backward pass and nothing else.

    A and B may be of a higher precision than x and W; then their products are too, and sums are
    rounded once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = flat.to(a.dtype) @ a.T
        out = F.linear(x, w, bias).to(a.dtype)
        out.view(-1, out.shape[-1]).addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(flat, w, a, b, low)
        ctx.scaling = scaling
        return out.to(x.dtype)  # no view of another: a model may add to it in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, w, a, b, low = ctx.saved_tensors
        [g] = grads
        g2 = g.reshape(-1, g.shape[-1])
        exact = g2.to(a.dtype)
        g_low = (exact @ b).mul_(ctx.scaling)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (g2 @ w).to(a.dtype).addmm_(g_low, a).to(g.dtype).view(*g.shape[:-1], -1)
        return dx, None, None, g_low.T @ flat.to(a.dtype), (exact.T @ low).mul_(ctx.scaling), None


def _linear_layers(model: PreTrainedModel, targets: str) -> list[str]:
    """All linear layers but the head, or those inside the blocks' attention, or those outside it
    (the MLP). By name: PEFT's own all-linear would add parameters of experts, each adapter of which
    answers apart from the others."""
    words, uses = model.get_output_embeddings(), Counter(map(id, _weights(model)))
    inside = tuple(f"{name}." for name in head.modules(model))
    linear = [
        n
        for n, m in model.named_modules()
        if m is not words
        and not f"{n}.".startswith(inside or "\0")
        and _is_linear(m)
        and uses[id(m.weight)] == 1  # of layers that share their weights, adapters cannot be merged
        and not _is_read_by_a_kernel(model, n)
    ]
    if targets == "all-linear":
        return linear
    return [n for n in linear if ("attn" in n or "attention" in n) == (targets == "attention")]


def _weights(model: PreTrainedModel) -> list[Tensor]:
    """Of every layer that has one, as often as layers have it."""
    return [m.weight for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)]


def _is_read_by_a_kernel(model: PreTrainedModel, name: str) -> bool:
    """A Mamba's convolution, scan and last layers can be one kernel, which takes the weights and
    would never see an adapter beside them."""
    parent, _, own = name.rpartition(".")
    return own in IN_KERNELS and hasattr(model.get_submodule(parent), "conv1d")


@torch.no_grad()
def _is_linear(layer: nn.Module) -> bool:
    """Whether it is one, or a library's own kind that gives the same: some choose experts, or
    round."""
    kind = type(layer)
    if kind in (nn.Linear, Conv1D) or (
        isinstance(layer, nn.Linear) and kind.__module__.startswith("bitsandbytes")
    ):
        return True
    if not isinstance(layer, nn.Linear):
        return False
    x = torch.linspace(-1, 1, layer.in_features).to(layer.weight)[None]
    try:
        found = layer(x)
    except Exception:
        return False
    plain = F.linear(x, layer.weight, layer.bias)
    return isinstance(found, Tensor) and found.shape == plain.shape and torch.allclose(found, plain)


def save(model: PeftModel, folder: Path, spec: ModelSpec) -> None:
    model.peft_config["default"].base_model_name_or_path = spec.public_name  # never a local path
    with _quiet():
        model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # the library's unfilled card


def attach(base: PreTrainedModel, folder: Path) -> PeftModel:
    """DamagedFiles unless the folder holds an adapter as `save` writes one: PEFT itself would start
    compilers, load pickles or never end over others."""
    try:
        lora_files.read(folder, base)
        with _quiet():
            return PeftModel.from_pretrained(base, folder, is_trainable=False)
    except Exception as e:
        raise DamagedFiles(folder=str(folder), reason=f"its adapter cannot be used: {e}") from None


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
