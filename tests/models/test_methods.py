"""Contract of every registered method: it trains, saves what a plain library loads, and comes back
to the same logits."""

from pathlib import Path

import pytest
import torch

from conftest import decided
from tunesmith.catalog import ModelSpec
from tunesmith.models import loading, methods
from tunesmith.options import Options

CPU = torch.device("cpu")


OPTIONS = decided()


@pytest.fixture(params=sorted(methods.METHODS))
def method(request: pytest.FixtureRequest) -> methods.Method:
    return methods.METHODS[request.param]


def test_every_method_is_an_option_and_every_option_a_method() -> None:
    choices = next(f for f in Options.__dataclass_fields__.values() if f.name == "method").metadata[
        "choices"
    ]
    assert set(choices) == set(methods.METHODS)


def test_a_saved_model_comes_back_with_the_same_logits(
    method: methods.Method, tiny_base: Path, tmp_path: Path
) -> None:
    model = method.prepare(loading.load(tiny_base, CPU), OPTIONS)
    trained = methods.trained_tensors(model)
    assert trained
    with torch.no_grad():
        for p in trained.values():
            p.add_(torch.randn_like(p) * 0.1)
    ids = torch.arange(4, 20)[None]
    wanted = model.eval()(input_ids=ids).logits
    method.save(model, tmp_path, ModelSpec(name="/home/ana/secret/base", folder=str(tiny_base)))
    loaded = method.attach(
        loading.load(
            tmp_path if "config.json" in {f.name for f in tmp_path.iterdir()} else tiny_base, CPU
        ),
        tmp_path,
    ).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(loading.load(tiny_base, CPU)(input_ids=ids).logits, wanted)
    assert not any("/home/ana" in f.read_text() for f in tmp_path.glob("*.json")), (
        "no local path leaves the machine"
    )


def test_a_lora_starts_as_the_base_and_has_the_papers_number_of_weights(tiny_base: Path) -> None:
    base = loading.load(tiny_base, CPU)
    shapes = [
        m.weight.shape
        for n, m in base.named_modules()
        if isinstance(m, torch.nn.Linear) and n != "lm_head"
    ]
    ids = torch.arange(4, 20)[None]
    before = base(input_ids=ids).logits
    model = methods.METHODS["lora"].prepare(base, OPTIONS).eval()
    assert sum(type(m).__name__ == "FusedLinear" for m in model.modules()) == len(shapes)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert sum(p.numel() for p in methods.trained_tensors(model).values()) == sum(
        4 * (a + b) for a, b in shapes
    )


@pytest.mark.parametrize(("targets", "layers"), [("attention", "self_attn"), ("mlp", "mlp")])
def test_a_lora_can_be_kept_to_the_attention_or_the_mlp(
    tiny_base: Path, targets: str, layers: str
) -> None:
    model = methods.METHODS["lora"].prepare(loading.load(tiny_base, CPU), decided(targets=targets))
    trained = methods.trained_tensors(model)
    inside = [
        n
        for n, m in loading.load(tiny_base, CPU).named_modules()
        if layers in n and isinstance(m, torch.nn.Linear)
    ]
    assert len(trained) == 2 * len(inside) and all(f".{layers}." in n for n in trained)
