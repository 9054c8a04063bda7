"""Probes: what the trained model answered, and how another artefact of it reads the same.

When training ends, the model in memory answers some prompts, greedily; its answers and, at each
answered position, its most likely tokens with their log-probabilities are kept with it. Whatever is
later made of the model (the files loaded back, a merge) reads the same prompts and answers, and its
agreement makes its certificate.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.data import prose
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoded
from tunesmith.documents.certificate import LEAST_PROBES
from tunesmith.documents.certificate import PROBES as FILE
from tunesmith.errors import DamagedFiles
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models.layout import MICRO_TOKENS
from tunesmith.models.methods import Model
from tunesmith.tasks.task import Agreement
from tunesmith.tasks.text_generation.batches import collate, groups, supervised_logits

PROBES, PROBE_TOKENS = 48, 24  # prompts that prove the stored model, and the longest answer to one
KEPT = 32  # tokens kept at each position; the rest count as one
TIE = 1e-4  # best and second best closer than this may change places when the order of sums does
DIFFERENT = 1e-3  # nats: a log-probability that moved by less has not been tuned


@dataclass(frozen=True)
class Probes:
    """N positions answered over all probes, in order; K tokens kept at each."""

    prompts: list[list[int]]
    answers: list[list[int]]
    """Greedy, with the stop id where one came."""
    stopped: list[bool]
    ids_NK: Tensor
    logp_NK: Tensor

    @property
    def count(self) -> int:
        return len(self.prompts)

    @property
    def stop_rate(self) -> float:
        return sum(self.stopped) / max(1, len(self.stopped))

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

    def replay(self, model: Model) -> Agreement:
        """Read the prompts and answers with another model."""
        equal = ties = same = at = 0
        divergence = 0.0
        seen: list[Tensor] = []
        for answer, logits in zip(
            self.answers, _logits(model, self.prompts, self.answers), strict=True
        ):
            n = len(answer)
            ids, p = self.ids_NK[at : at + n], self.logp_NK[at : at + n].double()
            here = logits.double().cpu().log_softmax(-1)
            q, best = here.gather(1, ids), here.argmax(-1)
            agree = best == torch.tensor(answer)
            tied = p[:, 0] - p[:, 1] < TIE
            equal += bool(agree.all())
            ties += bool((agree | tied).all() and not agree.all())
            same += int(agree.sum())
            seen.append(q)
            rest_p, rest_q = ((1 - x.exp().sum(1)).clamp(min=1e-12) for x in (p, q))
            divergence += float(
                (p.exp() * (p - q)).sum() + (rest_p * (rest_p / rest_q).log()).sum()
            )
            at += n
        return Agreement(equal, ties, same / max(1, at), divergence / max(1, at), seen)

    def differing(self, a: Agreement, b: Agreement) -> int:
        """Probes on which two models give a token that the trained one held for possible another
        log-probability, by more than DIFFERENT."""
        possible = torch.split(self.logp_NK > math.log(1e-4), [len(x) for x in self.answers])
        return sum(
            bool(((p - q).abs() > DIFFERENT)[m].any())
            for p, q, m in zip(a.seen, b.seen, possible, strict=True)
        )

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


def probe(engine: Engine, rows: Sequence[Example]) -> Probes:
    """What the trained model answers to some of its rows, and where they are few to lines of
    prose."""
    asked = list({json.dumps(e.messages): e.messages for e in rows[: 4 * PROBES]}.values())[:PROBES]
    more = [line[:n] for line in prose.lines() for n in (40, 20)]  # short enough for any window
    asked += [[{"role": "user", "content": line}] for line in more][
        : max(0, LEAST_PROBES - len(asked))
    ]
    found = engine.generate(asked, Sampling(max_tokens=PROBE_TOKENS))
    return record(
        engine.model,
        [engine.encoder.prompt(m) for m in asked],
        [c.ids for c in found],
        [c.stopped for c in found],
    )


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


@torch.no_grad()
def _logits(
    model: Model, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Iterator[Tensor]:
    """Of each probe, the logits at its answered positions, (answered, V), in the order of the
    probes."""
    model.eval()
    rows = [Encoded([*p, *a], len(p)) for p, a in zip(prompts, answers, strict=True)]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for group in groups(rows, model, MICRO_TOKENS):
        batch = collate([rows[i] for i in group], model)
        logits_NV = supervised_logits(model, batch).float()
        for b, i in enumerate(group):
            found[i] = logits_NV[batch.row_N == b]
    yield from found


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([i for row in rows for i in row], dtype=torch.int32)


def _lengths(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.int32)


def _split(flat: Tensor, lengths: Tensor) -> list[list[int]]:
    return [part.tolist() for part in torch.split(flat, lengths.tolist())]
