"""Frozen weights in a lower precision: what it costs is told, and what is published answers with its base in full precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import next_word_rows
from tunesmith import Tunesmith
from tunesmith.catalog import ModelSpec
from tunesmith.errors import InvalidOptionValue
from tunesmith.jobs import JobStatus, Options
from tunesmith.models import causal_lm, methods
from tunesmith.tuning.recipe import Facts, resolve

CPU = torch.device("cpu")


def test_nf4_keeps_embeddings_and_head_and_packs_the_rest(tuned_base: Path) -> None:
    spec = ModelSpec(name="b", folder=str(tuned_base))
    full, packed = causal_lm.load_base(spec, CPU), causal_lm.load_base(spec, CPU, "nf4")
    linear = [m for n, m in packed.named_modules() if n.endswith("_proj")]
    assert linear and all(m.weight.dtype == torch.uint8 for m in linear) and packed.lm_head.weight.dtype == torch.float32
    ids = torch.arange(4, 20)[None]
    difference = (packed(input_ids=ids).logits - full(input_ids=ids).logits).norm() / full(input_ids=ids).logits.norm()
    assert 1e-3 < difference < 0.3, "near, and not the same"


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_an_adapter_is_trained_over_weights_of_lower_precision(home: Path, tuned_base: Path, precision: str) -> None:
    service = Tunesmith()
    rows = next_word_rows(4)
    job = service.create("m", str(tuned_base), rows, rows, precision=precision, learning_rate=1e-2, max_epochs=4, batch_size=5, patience=0)
    job = service.wait(job.id, timeout_s=200)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.resolved and job.resolved.method == "lora", "it was left to auto"
    [told] = [w for w in job.warnings if "frozen weights in" in w]
    assert precision in told and "full precision" in told
    epochs = [r["validation_loss"] for r in job.metrics.to_pylist() if r["validation_loss"] is not None]
    assert epochs[-1] < 0.7 * epochs[0]
    tuned = service.model("m")
    saved = load_file(Path(tuned.folder) / "adapter_model.safetensors")
    assert saved and all(t.dtype == torch.float32 for t in saved.values())
    assert service.complete("m", ["say red"])[0].text


def test_a_whole_model_has_no_frozen_weights() -> None:
    with pytest.raises(InvalidOptionValue, match="nothing is frozen"):
        Options.parse({"method": "full", "precision": "nf4"})
    small = Facts(ModelSpec(name="b", parameters=3_000_000), 100)
    assert resolve(Options(), small).method == "full" and resolve(Options(precision="nf4"), small).method == "lora"


def test_masters_of_an_adapter_stay_in_float32(tiny_base: Path) -> None:
    base = causal_lm.load_base(ModelSpec(name="b", folder=str(tiny_base)), CPU, "bfloat16")
    options: Any = resolve(Options(method="lora", precision="bfloat16"), Facts(ModelSpec(name="b", parameters=10**9), 100))
    model = methods.load("lora").prepare(base, options)
    assert {p.dtype for p in methods.trained_tensors(model).values()} == {torch.float32}
    assert base.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
