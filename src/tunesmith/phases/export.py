"""Export and import of a tuned model, in a child process: what leaves and what comes is replayed on
the stored probes first."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tunesmith import catalog, durable, safe_files, weights
from tunesmith.catalog import ModelSpec
from tunesmith.documents.card import CURVE, Facts, curve_svg, model_card
from tunesmith.documents.certificate import NAME, PROBES, Certificate, read
from tunesmith.errors import CertificateRefused
from tunesmith.evaluation.certify import certify
from tunesmith.models import loading, methods
from tunesmith.models.methods import Model
from tunesmith.phases.child import Transfer
from tunesmith.phases.messages import Report, Written

BASE = "base"  # in an exported folder, where the base went along
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def run(asked: Transfer, report: Report) -> None:
    torch.set_num_threads(asked.threads)
    spec, source, target = ModelSpec.from_json(asked.base), Path(asked.source), Path(asked.target)
    device = loading.device_of(asked.device)
    task = spec.task_spec.task
    probes, encoder = task.probes_of(source), _encoder(spec, source)
    of_base = probes.replay(task.untuned(spec, asked.device, encoder).model)
    before = read(asked.name, source)
    facts = {
        "base": spec.public_name,
        "base_digest": catalog.fingerprint(spec),
        "template_digest": before.template_digest,
        "data_digest": before.data_digest,
    }
    with durable.staging_beside(target) as outer:
        for precision in _precisions(spec) if asked.merged else [before.precision]:
            staged = outer / precision
            shutil.copytree(
                source, staged, ignore=shutil.ignore_patterns(durable.MANIFEST, "README.md", CURVE)
            )
            method = asked.method
            if asked.merged:
                _merge(asked, spec, staged, precision, device)
                method = "full"
            model = _read_back(spec, staged, method, device)
            kind = "merged" if asked.merged else before.artefact
            certificate = certify(kind, precision, model, probes, of_base, **facts)
            if not (objections := certificate.objections()):
                break
        else:
            raise CertificateRefused(name=asked.name, reasons="; ".join(objections))
        if asked.with_base:
            (staged / BASE).mkdir()
            weights.copy(Path(spec.folder), staged / BASE)
        durable.write_json(staged / NAME, certificate.to_json())
        if asked.facts is not None:
            _complete(staged, spec, Facts(**asked.facts), certificate)
        digest = durable.publish(staged, target, {"name": asked.name}, private=asked.facts is None)
    report(Written(certificate.to_json(), method, digest))


def _encoder(spec: ModelSpec, folder: Path) -> Any:
    """How rows became what goes into the model in this folder."""
    preprocessing = safe_files.read_object(folder / spec.task_spec.preprocessing)
    return spec.task_spec.rules.encoder(preprocessing, spec)


def _precisions(spec: ModelSpec) -> Iterator[str]:
    """The base's own precision, then float32 where that rounds too much away."""
    file = sorted(Path(spec.folder).glob("*.safetensors"))[0]
    with safe_open(file, "pt") as f:
        own = str(f.get_tensor(next(iter(f.keys()))).dtype).removeprefix("torch.")
    yield own
    if own != "float32":
        yield "float32"


def _merge(
    asked: Transfer, spec: ModelSpec, staged: Path, precision: str, device: torch.device
) -> None:
    """In place of the adapter's files, one plain model: merged in full precision, then stored in
    the one that is wanted."""
    merged = methods.METHODS[asked.method].merge(
        _read_back(spec, staged, asked.method, device).float()
    )
    for file in [
        *staged.glob("*.safetensors"),
        *staged.glob("*.safetensors.index.json"),
        *staged.glob("adapter_*"),
    ]:
        if file.name != PROBES:
            file.unlink(missing_ok=True)
    merged.config._name_or_path = spec.public_name
    merged.to(getattr(torch, precision)).save_pretrained(staged, safe_serialization=True)


def _read_back(spec: ModelSpec, folder: Path, name: str, device: torch.device) -> Model:
    method = methods.METHODS[name]
    task, encoder = spec.task_spec.task, _encoder(spec, folder)
    if method.artefact == "whole":
        before = task.load_tuned(folder, device, encoder)
    else:
        before = task.load(spec, device, encoder)
    model: Model = method.attach(before, folder)
    return model.eval()


def _complete(staged: Path, spec: ModelSpec, facts: Facts, certificate: Certificate) -> None:
    """What other programs and readers need beside the weights."""
    for name in TOKENIZER_FILES:
        if (Path(spec.folder) / name).exists() and not (staged / name).exists():
            shutil.copy(Path(spec.folder) / name, staged / name)
    durable.replace_text(staged / "README.md", model_card(facts, certificate))
    if facts.curve:
        durable.replace_text(staged / CURVE, curve_svg(facts.curve))
