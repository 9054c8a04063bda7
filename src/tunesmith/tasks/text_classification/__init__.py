"""The task `text_classification`: the label, or the labels, that belong to a text. What the loop,
the evaluator and the doors ask of it; the functions are those of `tasks.task.Task`."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.catalog import ModelSpec, read_json
from tunesmith.data.text_classification import Example, TextEncoder
from tunesmith.data.text_classification import encoder as encoder_of
from tunesmith.errors import NotTuned
from tunesmith.models import (
    classifier,
    features,
    head,
    layers,
    layout,
    loading,
    methods,
    packed_texts,
)
from tunesmith.options import Decided
from tunesmith.registry import TunedModel
from tunesmith.tasks.specs import PREPROCESSING
from tunesmith.tasks.text_classification import calibration
from tunesmith.tasks.text_classification.engine import Classifier, answer_all
from tunesmith.tasks.text_classification.exam import LabelExam as Exam
from tunesmith.tasks.text_classification.losses import label_losses
from tunesmith.tasks.text_classification.probes import Probes, probe

__all__ = ["Exam", "answer_all", "probe"]

CALIBRATION = "calibration.json"
LEAST_CALIBRATED = 20  # validation rows: of fewer no temperature is fitted


def load(
    spec: ModelSpec,
    device: torch.device,
    encoder: TextEncoder,
    decided: Decided | None = None,
) -> Any:
    dropout, precision = (decided.dropout, decided.precision) if decided else (0.0, "full")
    model = classifier.load(Path(spec.folder), device, encoder.labels, dropout=dropout)
    return loading.in_precision(model, precision)


def load_tuned(folder: Path, device: torch.device, encoder: TextEncoder) -> Any:
    return classifier.load(folder, device, encoder.labels, tuned=True)


def room(model: Any) -> int:
    return layout.micro_tokens(model)


def why_slower(model: Any, rows: Sequence[Example]) -> str:
    longest = max((r.size for r in rows), default=0)
    if packed_texts.can_pack(model, longest):
        return ""
    return "texts are padded to like length, not packed: slower, and otherwise the same"


def together(
    model: Any, rows: Sequence[Example], most: int, most_rows: int | None = None
) -> list[list[int]]:
    return classifier.groups(model, rows, most, most_rows)


def losses(model: Any, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    return label_losses(model, rows)


def rates(model: Any, decided: Decided) -> dict[str, float]:
    """The head learns faster, since it is new."""
    return layers.multiples(model, decided.head_rate, decided.layer_decay)


def remembering(
    model: Any, rows: Sequence[Example], home: Path, base: str
) -> AbstractContextManager[str]:
    return features.remembering(model, rows, home, base, classifier.READER)


def words(rows: Sequence[Example]) -> set[int]:
    return {i for row in rows for i in row.ids}


def finish(
    model: Any, validation: Sequence[Example], encoder: TextEncoder
) -> Mapping[str, Mapping[str, Any]]:
    """Divide the logits by the temperature that fits validation best, and keep it beside them."""
    rows = [e for e in validation if e.targets]
    facts = {"temperature": 1.0, "rows": len(rows)}
    if len(rows) >= LEAST_CALIBRATED:
        engine = Classifier(model, encoder, "")
        logits = engine.over(rows, classifier.logits)
        wanted = calibration.wanted_of([e.targets for e in rows], len(encoder.labels.names))
        facts["temperature"] = calibration.temperature(logits, wanted, encoder.labels.several)
        head.fold(model, facts["temperature"])
    return {CALIBRATION: facts}


def engine_of(
    model: Any, encoder: TextEncoder, spec: ModelSpec, folder: Path | None = None
) -> Classifier:
    facts = read_json(folder, CALIBRATION) if folder else {}
    return Classifier(model, encoder, spec.name, float(facts.get("temperature", 1.0)))


def untuned(spec: ModelSpec, device: str, encoder: TextEncoder) -> Classifier:
    """Every label as likely."""
    model = load(spec, loading.device_of(device), encoder)
    return engine_of(head.zero(model), encoder, spec)


def engine(tuned: TunedModel, device: str, shared: Any = None) -> Classifier:
    if not tuned.folder:
        raise NotTuned(name=tuned.name)
    spec, place, folder = tuned.base, loading.device_of(device), Path(tuned.folder)
    encoder = encoder_of(read_json(folder, PREPROCESSING[0]), spec)
    method = methods.METHODS[tuned.method]
    is_whole = method.artefact == "whole"
    before = load_tuned(folder, place, encoder) if is_whole else load(spec, place, encoder)
    return engine_of(method.attach(before, folder), encoder, spec, folder)


def probes_of(folder: Path) -> Probes:
    return Probes.load(folder)
