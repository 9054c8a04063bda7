"""A merge is kept in the base's precision only while it still answers as the trained model did."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import WORDS
from tunesmith import catalog, durable
from tunesmith.catalog import ModelSpec
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.documents.certificate import NAME, template_digest
from tunesmith.errors import CertificateRefused
from tunesmith.evaluation.certify import certify
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models import loading, methods
from tunesmith.options import Options
from tunesmith.phases import export as exporting
from tunesmith.phases.child import Transfer
from tunesmith.phases.messages import Message
from tunesmith.tasks.text_generation.probes import Probes, record
from tunesmith.tuning.recipe import Known, decide

CPU = torch.device("cpu")


@pytest.fixture
def half_base(tuned_base: Path, tmp_path: Path) -> ModelSpec:
    """The base that repeats words, stored in bfloat16."""
    folder = Path(shutil.copytree(tuned_base, tmp_path / "half"))
    model = loading.load(tuned_base, CPU)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.sign_()  # steps of bfloat16 are wide there
    model.to(torch.bfloat16).save_pretrained(folder)
    return ModelSpec(
        "half",
        context=128,
        prompt_window=96,
        completion_window=32,
        parameters=10_000,
        folder=str(folder),
    )


def adapter(
    spec: ModelSpec, change: Callable[[str, torch.Tensor], torch.Tensor], folder: Path
) -> Path:
    """A LoRA adapter with these numbers, its probes and its certificate, as the trainer leaves
    it."""
    folder.mkdir()
    options = decide(Options(method="lora", rank=4), Known(spec, 100))
    lora = methods.METHODS["lora"]
    torch.manual_seed(1)
    model = lora.prepare(loading.load_base(spec, CPU), options)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(change(name, p))
    lora.save(model, folder, spec)
    template = PromptTemplate.of_base(Path(spec.folder))
    durable.write_json(folder / "prompt_template.json", template.to_json())
    encoder = Encoder(template, Path(spec.folder))
    asked = [
        [{"role": "user", "content": f"{verb} {w}"}]
        for verb in ("say", "repeat", "write", "tell")
        for w in WORDS
    ]
    found = Engine(model.eval(), encoder, "m", 128).generate(asked, Sampling(max_tokens=6))
    probes = record(
        model,
        [encoder.prompt(m) for m in asked],
        [c.ids for c in found],
        [c.stopped for c in found],
    )
    probes.save(folder)
    made = certify(
        "adapter",
        "float32",
        model,
        probes,
        probes.replay(loading.load_base(spec, CPU)),
        base=spec.public_name,
        base_digest=catalog.fingerprint(spec),
        template_digest=template_digest(folder),
        data_digest="d",
    )
    durable.write_json(folder / NAME, made.to_json())
    return folder


def noise(name: str, p: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(p) * 0.3 if "lora_B" in name else p


def nothing(name: str, p: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(p) if "lora_B" in name else p


def slight(name: str, p: torch.Tensor) -> torch.Tensor:
    """Every weight of one matrix grows by 0.0015: less than half a step of bfloat16 around 1."""
    if "layers.1.mlp.down_proj" in name:
        return torch.full_like(p, 0.0015 / 8 if "lora_B" in name else 1.0)
    return nothing(name, p)


def export(spec: ModelSpec, source: Path, target: Path) -> dict[str, Any]:
    told: list[Message] = []
    work = Transfer("m", spec.to_json(), "lora", str(source), str(target), True, None, "cpu", 1)
    exporting.run(work, told.append)
    [written] = told
    return dict(written.certificate)  # type: ignore[union-attr]


def test_a_merge_keeps_the_bases_precision_where_that_loses_nothing(
    half_base: ModelSpec, tmp_path: Path, monkeypatch: Any
) -> None:
    source = adapter(half_base, noise, tmp_path / "adapter")
    monkeypatch.setattr(
        "tunesmith.documents.certificate.KL", 1.0
    )  # a model of 32 columns rounds coarsely; a real one is measured in the docs
    monkeypatch.setattr("tunesmith.documents.certificate.TOP1", 0.5)
    found = export(half_base, source, tmp_path / "merged")
    assert (found["artefact"], found["precision"]) == ("merged", "bfloat16") and found[
        "different_from_base"
    ] > 0
    assert loading.load(tmp_path / "merged", CPU).config.dtype == torch.float32
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size < 1.1 * (
        Path(half_base.folder) / "model.safetensors"
    ).stat().st_size


def test_a_merge_that_rounds_the_change_away_is_refused_and_float32_takes_its_place(
    half_base: ModelSpec, tmp_path: Path
) -> None:
    source = adapter(half_base, slight, tmp_path / "adapter")
    merged = methods.METHODS["lora"].merge(
        methods.METHODS["lora"].attach(loading.load_base(half_base, CPU), source)
    )
    merged.to(torch.bfloat16).save_pretrained(tmp_path / "rounded")
    probes = Probes.load(source)
    rounded = certify(
        "merged",
        "bfloat16",
        loading.load(tmp_path / "rounded", CPU),
        probes,
        probes.replay(loading.load_base(half_base, CPU)),
        base="",
        base_digest="",
        template_digest="",
        data_digest="",
    )
    assert any("the tuning does nothing" in o for o in rounded.objections())
    found = export(half_base, source, tmp_path / "merged")
    assert (found["precision"], found["equal"] + found["ties"]) == ("float32", found["probes"])


def test_an_adapter_that_does_nothing_is_not_exported(half_base: ModelSpec, tmp_path: Path) -> None:
    source = adapter(half_base, nothing, tmp_path / "adapter")
    with pytest.raises(CertificateRefused, match="does nothing"):
        export(half_base, source, tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter",
        "half",
    ]
