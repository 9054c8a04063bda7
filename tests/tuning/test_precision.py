"""Frozen weights in a lower precision: what it costs is told, and what is published answers with
its base in full precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import make_base, next_word_rows
from tunesmith import Tunesmith
from tunesmith.catalog import ModelSpec
from tunesmith.errors import OptionNotRead
from tunesmith.jobs import JobStatus
from tunesmith.models import loading, methods, quantized
from tunesmith.options import Options
from tunesmith.tasks.specs import TEXT_GENERATION
from tunesmith.tuning.recipe import Known, decide

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths that are multiples of a block of 64 weights."""
    return make_base(
        tmp_path_factory.mktemp("bases") / "wide", hidden_size=64, intermediate_size=128
    )


def test_nf4_keeps_embeddings_and_head_and_packs_the_rest(wide_base: Path) -> None:
    """Each weight comes back within half the widest gap of NF4's levels, and the model computes
    with what comes back."""
    from bitsandbytes.functional import dequantize_4bit

    spec = ModelSpec(name="b", folder=str(wide_base))
    full, packed = loading.load_base(spec, CPU), loading.load_base(spec, CPU, "nf4")
    linear = {n: m for n, m in packed.named_modules() if n.endswith("_proj")}
    assert (
        linear
        and all(m.weight.dtype == torch.uint8 for m in linear.values())
        and packed.lm_head.weight.dtype == torch.float32
    )
    control = loading.load_base(spec, CPU)
    for name, layer in linear.items():
        weight, back = (
            full.get_submodule(name).weight.data,
            dequantize_4bit(layer.weight.data, layer.weight.quant_state),
        )
        assert quantized.gives_back(weight, back) and not torch.equal(weight, back)
        control.get_submodule(name).weight.data = back
    ids = torch.arange(4, 20)[None]
    for training in (True, False):
        packed.train(training), control.train(training)
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(
                packed(input_ids=ids).logits, control(input_ids=ids).logits, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: w.roll(1),
        lambda w: w * 1.3,
        lambda w: w.bfloat16().float() * 0,
        lambda w: w.reshape(-1, 32).flip(0),
    ],
)
def test_weights_that_do_not_come_back_are_seen(wrong: Any) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert quantized.gives_back(weight, weight) and not quantized.gives_back(
        weight, wrong(weight).reshape(64, 64)
    )


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_an_adapter_is_trained_over_weights_of_lower_precision(
    home: Path, tuned_base: Path, precision: str
) -> None:
    service = Tunesmith()
    rows = next_word_rows(4)
    job = service.create(
        "m",
        str(tuned_base),
        rows,
        rows,
        precision=precision,
        learning_rate=1e-2,
        max_epochs=4,
        batch_size=5,
        patience=0,
    )
    job = service.wait(job.id, timeout_s=200)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.resolved and job.resolved.method == "lora", "it was left to auto"
    [told] = [w for w in job.warnings if "frozen weights in" in w]
    assert precision in told and "full precision" in told
    epochs = [
        r["validation_loss"] for r in job.metrics.to_pylist() if r["validation_loss"] is not None
    ]
    assert epochs[-1] < 0.7 * epochs[0]
    tuned = service.model("m")
    saved = load_file(Path(tuned.folder) / "adapter_model.safetensors")
    assert saved and all(t.dtype == torch.float32 for t in saved.values())
    assert service.complete("m", ["say red"])[0].text


def test_a_whole_model_has_no_frozen_weights() -> None:
    with pytest.raises(OptionNotRead, match="read by the method lora, and the method is full"):
        Options.parse({"method": "full", "precision": "nf4"}).must_be_read(
            TEXT_GENERATION, methods.READERS
        )
    small = Known(ModelSpec(name="b", parameters=3_000_000), 100)
    assert (
        decide(Options(), small).method == "full"
        and decide(Options(precision="nf4"), small).method == "lora"
    )


def test_masters_of_an_adapter_stay_in_float32(tiny_base: Path) -> None:
    base = loading.load_base(ModelSpec(name="b", folder=str(tiny_base)), CPU, "bfloat16")
    options: Any = decide(
        Options(method="lora", precision="bfloat16"),
        Known(ModelSpec(name="b", parameters=10**9), 100),
    )
    model = methods.METHODS["lora"].prepare(base, options)
    assert {p.dtype for p in methods.trained_tensors(model).values()} == {torch.float32}
    assert base.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
