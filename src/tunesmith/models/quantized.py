"""Frozen weights in four bits: NF4 with doubly quantised scales, as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes.

It saves memory, not time: a layer's weights are unpacked whenever they are used.
"""

import warnings

from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import MissingExtra

BLOCK = 64  # weights with one scale


def to_nf4(model: PreTrainedModel) -> None:
    """Every linear layer of the decoder, in place; embeddings, norms and the head stay. MissingExtra without bitsandbytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an optional package for GPUs is missing
            import bitsandbytes as bnb
    except ImportError as e:
        raise MissingExtra(what=f"nf4 ({e.name})", extra="quant") from None
    head = model.get_output_embeddings()
    linear = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and m is not head]
    for name, layer in linear:
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=layer.weight.dtype, quant_type="nf4",
            compress_statistics=True,
        )  # fmt: skip
        made.weight = bnb.nn.Params4bit(
            layer.weight.data.contiguous(), requires_grad=False, quant_type="nf4", blocksize=BLOCK, compress_statistics=True, module=made
        )
        if layer.bias is not None:
            made.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made.to(layer.weight.device))
