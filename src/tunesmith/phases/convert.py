"""A GGUF file into plain weights, in a child process: dequantised by transformers and the package
gguf."""

import warnings
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import UnfitBaseModel
from tunesmith.phases.child import Conversion
from tunesmith.phases.messages import Converted, Report


def run(asked: Conversion, report: Report) -> None:
    """In float32: what the file holds, to the bit."""
    torch.set_num_threads(asked.threads)
    source, target = Path(asked.source), Path(asked.target)
    where = {"gguf_file": source.name, "local_files_only": True}
    try:
        quantisation = _quantisation(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(
                source.parent, dtype=torch.float32, **where
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    except Exception as e:  # whatever the libraries say of an architecture or a file
        reason = f"its file cannot be read ({type(e).__name__}: {e})".splitlines()[0]
        raise UnfitBaseModel(folder=source.name, task="text generation", reason=reason) from None
    model.hf_quantizer, model.config._name_or_path = None, ""  # they are plain weights from now on
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    report(Converted(quantisation))


def _quantisation(file: Path) -> str:
    """The type of most of its numbers; empty where that is a plain one."""
    from gguf import GGUFReader

    sizes: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    most = sizes.most_common(1)[0][0]
    return "" if most in ("F32", "F16", "BF16") else most
