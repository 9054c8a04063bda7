"""Contract of every registered method: it trains, saves what a plain library loads, and comes back
to the same logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import decided
from tunesmith import durable
from tunesmith.catalog import ModelSpec
from tunesmith.data.template import Encoded, PromptTemplate
from tunesmith.errors import DamagedFiles
from tunesmith.inference.engine import Engine
from tunesmith.models import chunked_loss, loading, methods, packed
from tunesmith.models.adapters import Adapters
from tunesmith.options import Options
from tunesmith.registry import TunedModel
from tunesmith.tasks import specs, text_generation

CPU = torch.device("cpu")


OPTIONS = decided()


@pytest.fixture(params=sorted(specs.TEXT_GENERATION.methods))
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


ROWS = [
    Encoded([*range(40, 60), 1, 2, 3], 20),
    Encoded([*range(40, 60), 4, 5], 21),
    Encoded([5, 6, 7, 8, 9, 10], 3),
]


def trained(method: methods.Method, base: Path) -> Any:
    """A model whose method has changed it, as training would."""
    torch.manual_seed(0)
    model = method.prepare(loading.load(base, CPU), OPTIONS)
    with torch.no_grad():
        for p in methods.trained_tensors(model).values():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def losses(model: Any, rows: list[Encoded]) -> torch.Tensor:
    return text_generation.token_losses(model, text_generation.collate(rows, model))


def test_a_method_works_through_packed_rows_or_has_them_padded(
    method: methods.Method, tiny_base: Path
) -> None:
    for record in (method, replace(method, can_pack=False)):
        model = trained(record, tiny_base)
        batch = text_generation.collate(ROWS, model)
        assert ("packed_layout" in batch.inputs) is record.can_pack
        told = "" if record.can_pack else f"the method {method.name} cannot be packed"
        assert packed.why_padded(model, 23) == told
        alone = torch.cat([losses(model, [row]) for row in ROWS])
        together = text_generation.token_losses(model, batch)[batch.row_N.argsort(stable=True)]
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_method_works_where_the_head_runs_in_chunks(
    method: methods.Method, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that changed only what a wrapper's forward does would be left out there, unseen."""
    model = trained(method, tiny_base)
    whole, of_base = losses(model, ROWS), losses(loading.load(tiny_base, CPU), ROWS)
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 2 * 260)
    torch.testing.assert_close(losses(model, ROWS), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole, of_base, rtol=1e-3)


def test_a_method_answers_beside_others_on_one_base_or_has_a_model_of_its_own(
    method: methods.Method, tiny_base: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(name="b", folder=str(tiny_base), context=128)
    durable.write_json(
        tmp_path / "prompt_template.json", PromptTemplate.of_base(tiny_base).to_json()
    )
    method.save(trained(method, tiny_base), tmp_path, spec)
    durable.publish(tmp_path, tmp_path.parent / f"published-{method.name}", {})
    folder = str(tmp_path.parent / f"published-{method.name}")
    engine = Engine.load(TunedModel("m", spec, method=method.name, folder=folder), "cpu")
    assert (engine.adapters is not None) is method.can_share
    if not method.can_share:
        shared = Adapters(loading.load(tiny_base, CPU))
        with pytest.raises(DamagedFiles, match="its adapter cannot be used"):
            shared.load(Path(folder))
