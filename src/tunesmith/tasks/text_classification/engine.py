"""A classifier that answers: many texts in, of each the probability of every label."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.labels import chosen
from tunesmith.data.text_classification import Question, TextEncoder
from tunesmith.errors import PromptTooLong
from tunesmith.inference.engine import Completion, Sampling
from tunesmith.models import classifier

MICRO_TOKENS = 2048  # with padding: more gains nothing on two cores


@dataclass(frozen=True)
class Text:
    ids: Sequence[int]
    types: Sequence[int] | None


class Classifier:
    """A loaded model with its tokenizer and labels."""

    adapters = adapter = None

    def __init__(self, model: Any, encoder: TextEncoder, name: str, temperature: float = 1.0):
        """`temperature`: that its logits were divided by, for good, so that its probabilities are
        as often right as they say."""
        self.model, self.encoder, self.temperature = model.eval(), encoder, temperature
        self._name = name

    def must_take(self, question: Question) -> Text:
        return self._texts([question])[0]

    def _texts(self, questions: Sequence[Question]) -> list[Text]:
        """PromptTooLong."""
        found = []
        for asked, made in zip(questions, self.encoder.encode(questions), strict=True):
            if len(made.ids) > self.encoder.window:
                raise PromptTooLong(
                    window=self.encoder.window,
                    tokens=len(made.ids),
                    model=self._name,
                    prompt=asked[0][:60],
                )
            found.append(Text(made.ids, None if asked[1] is None else made.type_ids))
        return found

    def generate(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        told: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        texts = self._texts(questions)
        found = self.probabilities(texts, told)
        labels, several = self.encoder.labels, self.encoder.labels.several
        return [
            Completion(
                labels.text(chosen(p, several)),
                len(t.ids),
                0,
                True,
                scores=tuple(p),
                labels=labels.names,
                several=several,
            )
            for t, p in zip(texts, found.tolist(), strict=True)
        ]

    def stream(self, question: Question, sampling: Sampling) -> Iterator[Completion]:
        yield from self.generate([question], sampling)

    def probabilities(
        self, texts: Sequence[Any], told: Callable[[int], None] | None = None
    ) -> Tensor:
        """(N, C) of anything with ids and types. Equal texts are computed once."""
        logits = self.over(texts, classifier.logits, told)
        return probabilities(logits, self.encoder.labels.several)

    @torch.inference_mode()
    def over(
        self,
        texts: Sequence[Any],
        compute: Callable[[Any, Sequence[Any]], Tensor],
        told: Callable[[int], None] | None = None,
    ) -> Tensor:
        """What `compute` makes of the texts, in their order."""
        keys = [(tuple(t.ids), t.types and tuple(t.types)) for t in texts]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        distinct = sorted(first.values())
        found: dict[int, Tensor] = {}
        for group in classifier.groups(self.model, [texts[i] for i in distinct], MICRO_TOKENS):
            some = [distinct[i] for i in group]
            made = compute(self.model, [texts[i] for i in some]).float().cpu()
            found |= zip(some, made, strict=True)
            if told:
                told(round(len(found) * len(texts) / len(distinct)))
        return torch.stack([found[first[key]] for key in keys])


def probabilities(logits: Tensor, several: bool) -> Tensor:
    return logits.sigmoid() if several else logits.softmax(-1)


def answer_all(
    asked: Sequence[tuple[Classifier, Question]],
    sampling: Sampling,
    told: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Each engine's questions together."""
    found: dict[int, Completion] = {}
    for engine in {id(e): e for e, _ in asked}.values():
        places = [i for i, (e, _) in enumerate(asked) if e is engine]
        heard = told and partial(_told_more, told, len(found))
        found |= zip(
            places, engine.generate([asked[i][1] for i in places], sampling, heard), strict=True
        )
    return [found[i] for i in range(len(asked))]


def _told_more(told: Callable[[int], None], before: int, n: int) -> None:
    told(before + n)
