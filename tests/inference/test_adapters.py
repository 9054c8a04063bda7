"""Several adapters of one base: each answers as PEFT's own model does, alone or in one batch with
the others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import decided
from tunesmith import durable
from tunesmith.catalog import ModelSpec
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import DamagedFiles
from tunesmith.inference import pool as pools
from tunesmith.inference import readers
from tunesmith.inference.engine import Engine, Sampling, generate_all
from tunesmith.inference.pool import Pool
from tunesmith.models import loading, methods
from tunesmith.registry import TunedModel

SHARED = "here are words: red, green, blue. now say "
PROMPTS = [[{"role": "user", "content": SHARED + w}] for w in ("red", "dog", "stone", "a", "b")]
TIE = 1e-4


@pytest.fixture(scope="module")
def adapters(tuned_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TunedModel]:
    """Three adapters that answer otherwise than each other, of other ranks and layers."""
    torch.set_num_threads(1)
    made = []
    for i, (rank, targets) in enumerate([(4, "all-linear"), (2, "attention"), (7, "mlp")]):
        folder, place = (
            tmp_path_factory.mktemp(f"staged{i}"),
            tmp_path_factory.mktemp("models") / f"m{i}",
        )
        torch.manual_seed(i)
        model = methods.METHODS["lora"].prepare(
            loading.load(tuned_base, torch.device("cpu")), decided(rank=rank, targets=targets)
        )
        with torch.no_grad():
            for p in methods.trained_tensors(model).values():
                p.add_(torch.randn_like(p) * 0.3)
        spec = ModelSpec(name="base", folder=str(tuned_base), context=128)
        methods.METHODS["lora"].save(model, folder, spec)
        durable.write_json(
            folder / "prompt_template.json", PromptTemplate.of_base(tuned_base).to_json()
        )
        durable.publish(folder, place, {"name": f"m{i}"})
        made.append(TunedModel(name=f"m{i}", base=spec, method="lora", folder=str(place)))
    return made


def by_peft(tuned: TunedModel, prompt: Any, n: int) -> tuple[str, float]:
    """The answer of plain PEFT and transformers, and how close its closest choice was."""
    base = AutoModelForCausalLM.from_pretrained(tuned.base.folder)
    model = PeftModel.from_pretrained(base, tuned.folder).eval() if tuned.folder else base.eval()
    encoder = Encoder(PromptTemplate.of_base(Path(tuned.base.folder)), Path(tuned.base.folder))
    ids = torch.tensor([encoder.prompt(prompt)])
    out = model.generate(
        input_ids=ids,
        max_new_tokens=n,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    gap = min(
        float(best[0] - second[0])
        for s in out.logits
        for best, second in [s[0].topk(2).values.split(1)]
    )
    new = out.sequences[0, ids.shape[1] :].tolist()
    return encoder.decode(new[: new.index(0)] if 0 in new else new), gap


@pytest.mark.parametrize("packs", [True, False])
def test_adapters_of_one_base_in_one_batch_answer_as_peft_does(
    adapters: list[TunedModel], packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool("cpu")
    models = [TunedModel(name="base", base=adapters[0].base), *adapters]
    engines = [pool.engine_for(m) for m in models]
    assert len({id(e.model) for e in engines}) == 1, "one base"
    if not packs:
        monkeypatch.setattr(readers.packed, "can_hold", lambda *a: False)
    asked = [(m, e, p) for p in PROMPTS for m, e in zip(models, engines, strict=True)]
    found = generate_all([(e, p) for _, e, p in asked], Sampling(max_tokens=8))
    seen = set()
    for (model, engine, prompt), completion in zip(asked, found, strict=True):
        wanted, gap = by_peft(model, prompt, 8)
        assert completion.text == wanted or gap < TIE, (model.name, prompt)
        assert completion == engine.generate([prompt], Sampling(max_tokens=8))[0]
        seen.add((completion.text, prompt[0]["content"]))
    assert len(seen) > 0.7 * len(asked), "or the adapters had nothing to say"


def test_adapters_go_through_the_model_together(
    adapters: list[TunedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool("cpu")
    engines = [pool.engine_for(m) for m in adapters]
    generate_all([(engines[0], PROMPTS[0])], Sampling(max_tokens=1))  # the model is tried once
    passes = 0
    forward = engines[0].model.forward

    def counted(*args: Any, **inputs: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*args, **inputs)

    monkeypatch.setattr(engines[0].model, "forward", counted)
    generate_all([(e, p) for p in PROMPTS for e in engines], Sampling(max_tokens=4))
    assert passes <= 4


def test_what_a_row_draws_depends_on_no_other_model(adapters: list[TunedModel]) -> None:
    pool = Pool("cpu")
    first, second = (pool.engine_for(m) for m in adapters[:2])
    hot = Sampling(temperature=1.0, seed=3, max_tokens=6)
    alone = second.generate(PROMPTS, hot)
    assert generate_all([(e, p) for p in PROMPTS for e in (first, second)], hot)[1::2] == alone


def test_an_adapter_that_had_to_go_still_answers_whoever_holds_it(
    adapters: list[TunedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool("cpu")
    first = pool.engine_for(adapters[0])
    before = first.generate(PROMPTS, Sampling(max_tokens=8))
    monkeypatch.setattr(pools, "LOADED_SHARE", 0.0)
    second = pool.engine_for(adapters[1])
    assert list(pool.engines.values()) == [second] and second.model is first.model
    assert first.generate(PROMPTS, Sampling(max_tokens=8)) == before


def test_the_memory_of_a_base_is_counted_once(
    adapters: list[TunedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool("cpu")
    engines = [pool.engine_for(m) for m in adapters]
    weights = sum(p.numel() * p.element_size() for p in engines[0].model.parameters())
    assert pool.bytes_loaded() == weights + sum(e.adapter.size for e in engines if e.adapter)


def test_alone_the_loaded_model_is_the_tuned_one_for_whoever_calls_it(
    adapters: list[TunedModel],
) -> None:
    for tuned in adapters:
        ids = torch.arange(4, 20)[None]
        wanted = (
            PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(tuned.base.folder), tuned.folder
            )
            .eval()(input_ids=ids)
            .logits
        )
        torch.testing.assert_close(
            Engine.load(tuned, "cpu").model(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-5
        )


def other_rank(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": config["r"] + 1}))


def stabilised(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))


def made_for_a_changed_base(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))


def a_tensor_gone(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")


def a_layer_that_is_not_there(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n.replace("layers.0", "layers.99"): t for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )


def another_width(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n: t[:, :-1].contiguous() if ".lora_A." in n else t for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )


@pytest.mark.parametrize(
    "harm",
    [
        other_rank,
        stabilised,
        made_for_a_changed_base,
        a_tensor_gone,
        a_layer_that_is_not_there,
        another_width,
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    adapters: list[TunedModel], harm: Any, tmp_path: Path
) -> None:
    staged = tmp_path / "staged"
    shutil.copytree(adapters[0].folder, staged, ignore=shutil.ignore_patterns(durable.MANIFEST))
    harm(staged)
    durable.publish(staged, tmp_path / "m", {"name": "m"})
    with pytest.raises(DamagedFiles, match="adapter cannot be used"):
        Engine.load(
            TunedModel(name="m", base=adapters[0].base, method="lora", folder=str(tmp_path / "m")),
            "cpu",
        )
