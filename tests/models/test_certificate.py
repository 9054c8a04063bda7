"""A stored model is used only while it answers as the trained one did, on the base and with the
template it was trained with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import WORDS
from tunesmith import durable
from tunesmith.catalog import ModelSpec, fingerprint
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.documents.certificate import NAME, Certificate, check, template_digest
from tunesmith.errors import CertificateRefused, DamagedFiles
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models import loading
from tunesmith.models.methods import Model
from tunesmith.tasks.text_generation.probes import FILE, Probes, record

CPU = torch.device("cpu")
GOOD = Certificate(
    "adapter", "float32", 40, 40, 0, 1.0, 1e-9, 12, 1.0, "tiny", "base", "template", "data"
)


@pytest.fixture(scope="module")
def trained(tuned_base: Path) -> tuple[Model, Probes]:
    torch.set_num_threads(1)
    encoder = Encoder(PromptTemplate.of_base(tuned_base), tuned_base)
    engine = Engine(loading.load(tuned_base, CPU), encoder, "repeats", 128)
    asked = [
        [{"role": "user", "content": f"{verb} {w}"}]
        for verb in ("say", "repeat", "write", "tell")
        for w in WORDS
    ]
    found = engine.generate(asked, Sampling(max_tokens=8))
    return engine.model, record(
        engine.model,
        [encoder.prompt(m) for m in asked],
        [c.ids for c in found],
        [c.stopped for c in found],
    )


def test_probes_hold_the_trained_models_own_greedy_answers(trained: tuple[Model, Probes]) -> None:
    probes = trained[1]
    assert len(probes.prompts) == 40 and sum(probes.stopped) >= 10
    assert all(a[-1] == 0 for a, s in zip(probes.answers, probes.stopped, strict=True) if s), (
        "the stop id is probed too"
    )
    assert probes.ids_NK.shape == probes.logp_NK.shape == (sum(map(len, probes.answers)), 32)
    assert probes.ids_NK[:, 0].tolist() == [i for answer in probes.answers for i in answer]


def test_the_same_model_agrees_to_the_last_probe(
    trained: tuple[Model, Probes], tmp_path: Path
) -> None:
    model, probes = trained
    probes.save(tmp_path)
    again = Probes.load(tmp_path)
    assert (again.prompts, again.answers, again.stopped) == (
        probes.prompts,
        probes.answers,
        probes.stopped,
    )
    found = again.replay(model)
    assert (found.equal, found.ties, found.top1, again.differing(found, again.replay(model))) == (
        40,
        0,
        1.0,
        0,
    ) and abs(found.kl) < 1e-6


def test_another_model_does_not(trained: tuple[Model, Probes], tiny_base: Path) -> None:
    found = trained[1].replay(loading.load(tiny_base, CPU))
    assert (
        found.equal < 5
        and found.top1 < 0.5
        and found.kl > 0.1
        and trained[1].differing(found, trained[1].replay(trained[0])) == 40
    )


@pytest.mark.parametrize("scale", [1e-7, 1e-1])
def test_a_change_is_seen_from_a_thousandth_of_a_nat_on(
    trained: tuple[Model, Probes], tuned_base: Path, scale: float
) -> None:
    changed = loading.load(tuned_base, CPU)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in changed.parameters():
            p.add_(torch.randn_like(p) * scale * p.abs().mean())
    found = trained[1].replay(changed)
    assert (trained[1].differing(found, trained[1].replay(trained[0])) > 0) is (scale > 1e-3)


def test_damaged_probes_are_refused(trained: tuple[Model, Probes], tmp_path: Path) -> None:
    trained[1].save(tmp_path)
    file = tmp_path / "probes.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DamagedFiles, match="probes"):
        Probes.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("stopped", "equally many"),
        ("logp", "do not fit"),
        ("ids", "no number of a vocabulary"),
        ("answer_lengths", "cannot be read"),
    ],
)
def test_probes_whose_parts_do_not_fit_each_other_are_refused(
    trained: tuple[Model, Probes], tmp_path: Path, part: str, reason: str
) -> None:
    trained[1].save(tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors[part] = -tensors[part] if part == "ids" else tensors[part][:-1]
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(DamagedFiles, match=reason):
        Probes.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"probes": 31, "equal": 31}, "32 are needed"),
        ({"equal": 39}, "1 of 40 probes are answered otherwise"),
        ({"different_from_base": 0}, "does nothing"),
        ({"precision": "bfloat16", "top1": 0.98}, "98.0%"),
        ({"precision": "bfloat16", "kl": 0.02}, "mean KL 0.02"),
        ({"precision": "bfloat16", "kl": float("nan")}, "mean KL nan"),
    ],
)
def test_a_certificate_below_the_threshold_says_why(
    change: dict[str, object], objection: str
) -> None:
    assert GOOD.objections() == replace(GOOD, equal=38, ties=2).objections() == []
    assert replace(GOOD, precision="bfloat16", equal=20, top1=0.992, kl=0.009).objections() == []
    assert objection in "; ".join(replace(GOOD, **change).objections())  # type: ignore[arg-type]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A model folder with a template and its certificate."""
    (tmp_path / "prompt_template.json").write_text("{}")
    durable.write_json(
        tmp_path / NAME, replace(GOOD, template_digest=template_digest(tmp_path)).to_json()
    )
    return tmp_path


def test_a_model_is_checked_against_its_base_and_its_template(published: Path) -> None:
    assert check("m", published, "base").probes == 40
    with pytest.raises(CertificateRefused, match="m is not used: its base is another one"):
        check("m", published, "other")
    (published / "prompt_template.json").write_text("{ }")
    with pytest.raises(CertificateRefused, match="its prompt template is another one"):
        check("m", published, "base")
    for other in ({"probes": 3}, {**GOOD.to_json(), "precision": "float8"}):
        (published / NAME).write_text(json.dumps(other))
        with pytest.raises(CertificateRefused, match="cannot be read"):
            check("m", published, "base")


def test_a_base_is_known_by_its_weights_its_configuration_and_its_tokenizer(
    tiny_base: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    seen = {fingerprint(ModelSpec(name="b", folder=str(tiny_base)))}
    for n, change in enumerate(("weights", "config.json", "tokenizer.json")):
        folder = Path(shutil.copytree(tiny_base, tmp_path / str(n)))
        assert fingerprint(ModelSpec(name="b", folder=str(folder))) in seen, (
            "a copy is the same base"
        )
        if change == "weights":
            tensors = load_file(folder / "model.safetensors")
            save_file(
                {k: t + 0.01 for k, t in tensors.items()},
                folder / "model.safetensors",
                {"format": "pt"},
            )
        else:
            (folder / change).write_text((folder / change).read_text() + " ")
        seen.add(fingerprint(ModelSpec(name="b", folder=str(folder))))
    assert len(seen) == 4
