"""The task `text_generation`: text that follows a prompt. What the loop, the evaluator and the
doors ask of it; the functions are those of `tasks.task.Task`."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.catalog import ModelSpec
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoder
from tunesmith.inference.engine import Engine, generate_all
from tunesmith.models import features, layout, loading, packed
from tunesmith.models.adapters import Adapters
from tunesmith.models.methods import Model
from tunesmith.options import Decided
from tunesmith.registry import TunedModel
from tunesmith.tasks.text_generation import kept
from tunesmith.tasks.text_generation.batches import collate, groups, token_losses
from tunesmith.tasks.text_generation.exam import TextExam as Exam
from tunesmith.tasks.text_generation.probes import Probes, probe

__all__ = ["Exam", "answer_all", "collate", "groups", "probe", "token_losses"]

answer_all = generate_all


def load(
    spec: ModelSpec,
    device: torch.device,
    encoder: Encoder,
    decided: Decided | None = None,
) -> PreTrainedModel:
    return loading.load_base(spec, device, decided.precision if decided else "full")


def load_tuned(folder: Path, device: torch.device, encoder: Encoder) -> PreTrainedModel:
    return loading.load(folder, device)


def room(model: Model) -> int:
    return layout.micro_tokens(model)


def why_slower(model: Model, rows: Sequence[Example]) -> str:
    why = packed.why_padded(model, max((r.size for r in rows), default=0))
    return why and f"rows are padded, not packed: slower, and otherwise the same ({why})"


def together(
    model: Model, rows: Sequence[Example], most: int, most_rows: int | None = None
) -> list[list[int]]:
    return groups([r.encoded for r in rows], model, most, most_rows)


def losses(model: Model, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Of each supervised token, in nats."""
    encoded = [r.encoded for r in rows]
    batch = collate(encoded, model)
    with kept.standing_in(model, encoded, batch):
        return token_losses(model, batch), batch.row_N


def rates(model: Model, decided: Decided) -> dict[str, float]:
    return {}


def remembering(
    model: Model, rows: Sequence[Example], home: Path, base: str
) -> AbstractContextManager[str]:
    return features.remembering(model, rows, home, base, kept.READER)


def words(rows: Sequence[Example]) -> set[int]:
    return {i for row in rows for i in row.encoded.ids}


def finish(
    model: Model, validation: Sequence[Example], encoder: Encoder
) -> Mapping[str, Mapping[str, Any]]:
    return {}


def engine_of(model: Model, encoder: Encoder, spec: ModelSpec) -> Engine:
    return Engine(model, encoder, spec.name, spec.context)


def untuned(spec: ModelSpec, device: str, encoder: Encoder) -> Engine:
    return Engine.load(TunedModel(name=spec.name, base=spec), device)


def engine(tuned: TunedModel, device: str, shared: Adapters | None = None) -> Engine:
    return Engine.load(tuned, device, shared)


def probes_of(folder: Path) -> Probes:
    return Probes.load(folder)
