"""Frozen weights in four bits: NF4 with doubly quantised scales, as in QLoRA (Dettmers et al. 2023,
arXiv 2305.14314), by bitsandbytes.

It saves memory, not time: a layer's weights are unpacked whenever they are used.
"""

import warnings

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import InvalidOptionValue, MissingExtra

BLOCK = 64  # weights with one scale


def to_nf4(model: PreTrainedModel) -> None:
    """Every linear layer of the decoder, in place; embeddings, norms, the head, and layers that the
    library does not give back as it should (on some processors: of widths that are no multiple of
    BLOCK) stay. MissingExtra without bitsandbytes; InvalidOptionValue where no layer can be
    packed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an optional package for GPUs is missing
            import bitsandbytes as bnb
    except ImportError as e:
        raise MissingExtra(what=f"nf4 ({e.name})", extra="quant") from None
    head = model.get_output_embeddings()
    linear = [
        (name, m) for name, m in model.named_modules() if type(m) is nn.Linear and m is not head
    ]
    packed = 0
    for name, layer in linear:
        made = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            quant_type="nf4",
            compress_statistics=True,
        )
        made.weight = bnb.nn.Params4bit(
            layer.weight.data.contiguous(),
            requires_grad=False,
            quant_type="nf4",
            blocksize=BLOCK,
            compress_statistics=True,
            module=made,
        )
        if layer.bias is not None:
            made.bias = layer.bias
        # its other form for answering rounds scales to bfloat16, and fails on narrow layers
        made.support_avx512bf16_for_cpu = False
        made = made.to(layer.weight.device)
        if gives_back(
            layer.weight.data,
            bnb.functional.dequantize_4bit(made.weight.data, made.weight.quant_state),
        ):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, made)
            packed += 1
    if linear and not packed:
        allowed = (
            f"full or bfloat16 for this base: none of its layers survives in four bits here "
            f"(widths should be multiples of {BLOCK})"
        )
        raise InvalidOptionValue(name="precision", value="nf4", allowed=allowed)


# half of the widest gap between two levels of NF4 (Dettmers et al. 2023, appendix E), of a block's
# largest weight
HALF_GAP = 0.1520
# of the largest scale: scales have eight bits themselves, dynamic ones (Dettmers et al. 2022, arXiv
# 2110.02861)
SCALE_ERROR = 0.02


def gives_back(weight: Tensor, unpacked: Tensor) -> bool:
    """Whether every weight came back within what rounding to NF4 can change."""
    flat = weight.float().flatten()
    size = -(-len(flat) // BLOCK) * BLOCK
    w_BN, u_BN = (
        F.pad(x.float().flatten(), (0, size - len(flat))).view(-1, BLOCK)
        for x in (weight, unpacked)
    )
    scale_B = w_BN.abs().amax(1)
    most_B = (HALF_GAP + 0.001) * scale_B + SCALE_ERROR * scale_B.max()
    return bool(((w_BN - u_BN).abs().amax(1) <= most_B).all())
