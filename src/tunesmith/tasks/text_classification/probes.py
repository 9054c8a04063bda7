"""Probes: texts with the probabilities that the trained model gave them, and how another artefact
of it reads the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.data import prose
from tunesmith.documents.certificate import LEAST_PROBES
from tunesmith.documents.certificate import PROBES as FILE
from tunesmith.errors import DamagedFiles
from tunesmith.models.classifier import logits
from tunesmith.models.head import KIND
from tunesmith.models.methods import decoder_of
from tunesmith.tasks.task import Agreement
from tunesmith.tasks.text_classification.engine import Classifier, Text, probabilities

PROBES = 48
EQUAL = 1e-5  # largest difference of a probability in float32
DIFFERENT = 1e-3  # a probability that moved by less has not been tuned
OF_EVEN = 0.1  # likewise, as a share of what each of very many labels has where all are as likely


@dataclass(frozen=True)
class Probes:
    """P texts, C labels."""

    texts: list[Text]
    p_PC: Tensor
    stop_rate = 1.0

    @property
    def count(self) -> int:
        return len(self.texts)

    def save(self, folder: Path) -> None:
        flat = [i for t in self.texts for i in t.ids]
        types = [i for t in self.texts for i in (t.types or [0] * len(t.ids))]
        save_file(
            {
                "ids": torch.tensor(flat, dtype=torch.int32),
                "types": torch.tensor(types, dtype=torch.int32),
                "lengths": torch.tensor([len(t.ids) for t in self.texts], dtype=torch.int32),
                "probabilities": self.p_PC,
            },
            folder / FILE,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        try:
            t = load_file(folder / FILE)
            lengths = [int(n) for n in t["lengths"].tolist()]
            ids, types = (torch.split(t[n].long(), lengths) for n in ("ids", "types"))
            texts = [Text(i.tolist(), k.tolist()) for i, k in zip(ids, types, strict=True)]
            p = t["probabilities"].float()
            if p.ndim != 2 or len(p) != len(texts) or not all(lengths) or not p.isfinite().all():
                raise ValueError("texts and probabilities do not fit each other")
            if any(i < 0 for text in texts for i in text.ids):
                raise ValueError("a token is no number of a vocabulary")
            return cls(texts, p)
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as e:
            raise DamagedFiles(folder=str(folder), reason=f"{FILE} cannot be read: {e}") from None

    def replay(self, model: Any) -> Agreement:
        found = _probabilities(model, self.texts)
        if found.shape != self.p_PC.shape:
            raise DamagedFiles(folder=FILE, reason="it is of a model with other labels")
        apart = (found - self.p_PC).abs().amax(-1)
        p, q = (x.double().clamp(min=1e-12) for x in (self.p_PC, found))
        return Agreement(
            int((apart <= EQUAL).sum()),
            0,
            float((found.argmax(-1) == self.p_PC.argmax(-1)).double().mean()),
            float((p * (p / q).log()).sum(-1).abs().mean()),
            found,
        )

    def differing(self, a: Agreement, b: Agreement) -> int:
        least = min(DIFFERENT, OF_EVEN / a.seen.shape[-1])
        return int(((a.seen - b.seen).abs().amax(-1) > least).sum())


@torch.no_grad()
def _probabilities(model: Any, texts: Sequence[Text]) -> Tensor:
    """One text at a time: what stands beside it changes no bit."""
    model.eval()
    several = decoder_of(model).config.problem_type == KIND[True]
    rows = [logits(model, [text])[0].float().cpu() for text in texts]
    return probabilities(torch.stack(rows), several)


def probe(engine: Classifier, rows: Sequence[Any]) -> Probes:
    """What the trained model gives some of its rows, and where they are few lines of prose."""
    texts = list({tuple(r.ids): Text(r.ids, r.types) for r in rows[: 4 * PROBES]}.values())[:PROBES]
    lines = [line[:n] for line in prose.lines() for n in (40, 20)]
    more = engine.encoder.encode([(line, None) for line in lines])
    window = engine.encoder.window
    texts += [Text(e.ids[:window], None) for e in more][: max(0, LEAST_PROBES - len(texts))]
    return Probes(texts, _probabilities(engine.model, texts))
