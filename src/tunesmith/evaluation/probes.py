"""Probes: what the trained model answered, and how another artefact of it reads the same.

When training ends, the model in memory answers some prompts, greedily; its answers and, at each
answered position, its most likely tokens with their log-probabilities are kept with it. Whatever is
later made of the model (the files loaded back, a merge) reads the same prompts and answers, and its
agreement makes its certificate.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.data.template import Encoded
from tunesmith.documents.certificate import Certificate
from tunesmith.errors import DamagedFiles
from tunesmith.models.layout import MICRO_TOKENS
from tunesmith.models.methods import Model
from tunesmith.tasks import text_generation

KEPT = 32  # tokens kept at each position; the rest count as one
TIE = 1e-4  # best and second best closer than this may change places when the order of sums does
DIFFERENT = 1e-3  # nats: a log-probability that moved by less has not been tuned
FILE = "probes.safetensors"


@dataclass(frozen=True)
class Probes:
    """N positions answered over all probes, in order; K tokens kept at each."""

    prompts: list[list[int]]
    answers: list[list[int]]
    """Greedy, with the stop id where one came."""
    stopped: list[bool]
    ids_NK: Tensor
    logp_NK: Tensor

    def save(self, folder: Path) -> None:
        save_file(
            {
                "prompts": _flat(self.prompts),
                "prompt_lengths": _lengths(self.prompts),
                "answers": _flat(self.answers),
                "answer_lengths": _lengths(self.answers),
                "stopped": torch.tensor(self.stopped),
                "ids": self.ids_NK.int(),
                "logp": self.logp_NK,
            },
            folder / FILE,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        try:
            t = load_file(folder / FILE)
            prompts, answers = (
                _split(t[n], t[f"{n[:-1]}_lengths"]) for n in ("prompts", "answers")
            )
            found = cls(prompts, answers, t["stopped"].tolist(), t["ids"].long(), t["logp"])
            found._check()
            return found
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as e:
            raise DamagedFiles(folder=str(folder), reason=f"{FILE} cannot be read: {e}") from None

    def _check(self) -> None:
        """ValueError where the parts do not fit each other."""
        n, kept = sum(map(len, self.answers)), self.ids_NK.shape[-1]
        if (
            not len(self.prompts) == len(self.answers) == len(self.stopped)
            or not all(self.prompts)
            or not all(self.answers)
        ):
            raise ValueError("prompts, answers and stops are not equally many")
        if (
            self.ids_NK.shape != self.logp_NK.shape
            or self.ids_NK.shape != (n, kept)
            or kept < 2
            or not self.logp_NK.is_floating_point()
        ):
            raise ValueError("the tokens kept do not fit the answers")
        ids = [
            *(i for p in (*self.prompts, *self.answers) for i in p),
            *self.ids_NK.flatten().tolist(),
        ]
        if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
            raise ValueError("a token is no number of a vocabulary")


@dataclass(frozen=True)
class Agreement:
    """How a model reads the probes, beside how the trained one did."""

    equal: int
    """Probes of which every answered token is the best one here too, ties apart."""
    ties: int
    """Probes that part only where the trained model's two best were closer than TIE."""
    top1: float
    """Share of positions with the same best token."""
    kl: float
    """Mean divergence of the distributions from the trained model's, in nats."""
    logp: list[Tensor]
    """Of each probe, this model's log-probabilities of the kept tokens, (answered, K)."""


def record(
    model: Model,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    stopped: Sequence[bool],
) -> Probes:
    """Probes of the trained model, from its own greedy answers, the stop id left out of them."""
    rows = [
        ([*p], [*a, 0] if s else [*a], s)
        for p, a, s in zip(prompts, answers, stopped, strict=True)
        if a or s
    ]
    found = list(_logits(model, [r[0] for r in rows], [r[1] for r in rows]))
    for (_, answer, has_stopped), logits in zip(rows, found, strict=True):
        if has_stopped:  # which of the stop ids it was, the position before tells
            answer[-1] = int(logits[-1].argmax())
    kept = [logits.log_softmax(-1).topk(min(KEPT, logits.shape[-1])) for logits in found]
    return Probes(
        [r[0] for r in rows],
        [r[1] for r in rows],
        [r[2] for r in rows],
        torch.cat([k.indices for k in kept]).cpu(),
        torch.cat([k.values for k in kept]).float().cpu(),
    )


def replay(model: Model, probes: Probes) -> Agreement:
    """Read the probes' prompts and answers with another model."""
    equal = ties = same = at = 0
    divergence = 0.0
    seen: list[Tensor] = []
    for answer, logits in zip(
        probes.answers, _logits(model, probes.prompts, probes.answers), strict=True
    ):
        n = len(answer)
        ids, p = probes.ids_NK[at : at + n], probes.logp_NK[at : at + n].double()
        here = logits.double().cpu().log_softmax(-1)
        q, best = here.gather(1, ids), here.argmax(-1)
        agree = best == torch.tensor(answer)
        tied = p[:, 0] - p[:, 1] < TIE
        equal += bool(agree.all())
        ties += bool((agree | tied).all() and not agree.all())
        same += int(agree.sum())
        seen.append(q)
        rest_p, rest_q = ((1 - x.exp().sum(1)).clamp(min=1e-12) for x in (p, q))
        divergence += float((p.exp() * (p - q)).sum() + (rest_p * (rest_p / rest_q).log()).sum())
        at += n
    return Agreement(equal, ties, same / max(1, at), divergence / max(1, at), seen)


def differing(probes: Probes, a: Agreement, b: Agreement) -> int:
    """Probes on which two models give a token that the trained one held for possible another
    log-probability, by more than DIFFERENT."""
    possible = torch.split(probes.logp_NK > math.log(1e-4), [len(x) for x in probes.answers])
    return sum(
        bool(((p - q).abs() > DIFFERENT)[m].any())
        for p, q, m in zip(a.logp, b.logp, possible, strict=True)
    )


def certify(
    artefact: str,
    precision: str,
    model: Model,
    probes: Probes,
    of_base: Agreement,
    *,
    base_digest: str,
    template_digest: str,
    data_digest: str,
) -> Certificate:
    """The certificate of an artefact that was read back as `model`; `of_base` is how its base reads
    the same probes."""
    found = replay(model, probes)
    return Certificate(
        artefact,
        precision,
        len(probes.prompts),
        found.equal,
        found.ties,
        found.top1,
        found.kl,
        differing(probes, of_base, found),
        sum(probes.stopped) / max(1, len(probes.stopped)),
        base_digest,
        template_digest,
        data_digest,
    )


@torch.no_grad()
def _logits(
    model: Model, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Iterator[Tensor]:
    """Of each probe, the logits at its answered positions, (answered, V), in the order of the
    probes."""
    model.eval()
    rows = [Encoded([*p, *a], len(p)) for p, a in zip(prompts, answers, strict=True)]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for group in text_generation.groups(rows, model, MICRO_TOKENS):
        batch = text_generation.collate([rows[i] for i in group], model)
        logits_NV = text_generation.supervised_logits(model, batch).float()
        for b, i in enumerate(group):
            found[i] = logits_NV[batch.row_N == b]
    yield from found


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([i for row in rows for i in row], dtype=torch.int32)


def _lengths(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.int32)


def _split(flat: Tensor, lengths: Tensor) -> list[list[int]]:
    return [part.tolist() for part in torch.split(flat, lengths.tolist())]
