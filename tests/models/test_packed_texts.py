"""Texts in one sequence give what each gives alone, and teach what each teaches alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_encoder
from tunesmith.data.labels import Labels
from tunesmith.models import classifier, packed_texts

CPU = torch.device("cpu")
LABELS = Labels(("a", "b", "c"))
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {},
    "electra": {},
    "roberta": {},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "mpnet": {},
    "deberta-v2": {},
}
PACKED = {"bert", "electra", "roberta", "distilbert", "modernbert"}
FIRST_TOKENS_ALONE = {"bert", "electra", "roberta"}


@dataclass(frozen=True)
class Text:
    ids: Sequence[int]
    types: Sequence[int] | None = None


def drawn(n: int, seed: int, longest: int = 24) -> list[Text]:
    draw = random.Random(seed)
    lengths = [draw.randint(2, longest) for _ in range(n)]
    return [Text([2, *(draw.randint(4, 60) for _ in range(k - 2)), 3]) for k in lengths]


def test_equal_texts_go_through_the_layers_once_and_teach_as_often_as_they_stand(
    tmp_path: Path,
) -> None:
    model, texts = model_of(tmp_path, "bert"), drawn(4, 3)
    repeated = [texts[i] for i in (0, 1, 0, 2, 3, 0, 2)]
    weights = torch.linspace(-1, 1, 3 * len(repeated)).view(-1, 3).double()
    seen: list[int] = []
    hook = model.bert.embeddings.register_forward_hook(lambda *x: seen.append(x[-1].shape[1]))

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        (logits * weights).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    found = gradients(classifier.logits(model, repeated))
    assert seen == [sum(len(t.ids) for t in texts)]
    hook.remove()
    alone = torch.cat([classifier.logits(model, [t]) for t in repeated])
    for a, b in zip(found, gradients(alone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def model_of(folder: Path, kind: str) -> Any:
    return classifier.load(make_encoder(folder / kind, kind, **SHAPES[kind]), CPU, LABELS).double()


@pytest.mark.parametrize("kind", SHAPES)
def test_together_texts_give_and_teach_what_each_does_alone(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path, kind)
    assert packed_texts.can_pack(model, 24) == (kind in PACKED)
    assert getattr(model, packed_texts.FIRSTS) == (kind in FIRST_TOKENS_ALONE)
    for seed in range(5):
        texts = drawn(9, seed)
        together = classifier.logits(model, texts)
        alone = torch.cat([classifier.logits(model, [t]) for t in texts])
        padded = torch.cat([model(**classifier.padded(model, [t])).logits for t in texts])
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(together, padded, rtol=1e-10, atol=1e-10)
        model.zero_grad()
        out = classifier.logits(model, texts)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out).double()
        (out * weights).sum().backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        for text, w in zip(texts, weights, strict=True):
            (model(**classifier.padded(model, [text])).logits[0] * w).sum().backward()
        for n, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(found[n], p.grad, rtol=1e-10, atol=1e-10)


def test_two_texts_keep_their_kinds(tmp_path: Path) -> None:
    model = model_of(tmp_path, "bert")
    texts = [
        Text([2, 5, 3, 6, 7, 3], [0, 0, 0, 1, 1, 1]),
        Text([2, 5, 3]),
        Text([2, 9, 3, 3], [0, 0, 0, 1]),
    ]
    alone = torch.cat([model(**classifier.padded(model, [t])).logits for t in texts])
    torch.testing.assert_close(classifier.logits(model, texts), alone, rtol=1e-10, atol=1e-10)
    other = [*texts[:2], Text(texts[2].ids)]
    assert not torch.allclose(classifier.logits(model, other)[2], alone[2])


def test_beyond_a_window_on_both_sides_texts_are_padded(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "m", "modernbert", local_attention=32, **SHAPES["modernbert"])
    model = classifier.load(folder, CPU, LABELS).double()
    assert packed_texts.can_pack(model, 16) and not packed_texts.can_pack(model, 17)
    texts = drawn(6, 0)
    alone = torch.cat([model(**classifier.padded(model, [t])).logits for t in texts])
    torch.testing.assert_close(classifier.logits(model, texts), alone, rtol=1e-10, atol=1e-10)


def test_groups_hold_every_text_once_and_no_more_tokens_than_allowed(tmp_path: Path) -> None:
    for kind in ("bert", "mpnet"):
        model, texts = model_of(tmp_path, kind), drawn(40, 3)
        groups = classifier.groups(model, texts, 60)
        assert sorted(i for group in groups for i in group) == list(range(40))
        for group in groups:
            sizes = [len(texts[i].ids) for i in group]
            used = sum(sizes) if kind == "bert" else len(sizes) * max(sizes)
            assert used <= 60
