"""Words that no row holds are left out of training, and nothing is otherwise for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_packed_texts import CPU, LABELS, SHAPES, Text, drawn

from conftest import make_base, make_encoder
from tunesmith.data.dataset import Row
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoded
from tunesmith.models import classifier, embeddings, loading
from tunesmith.tasks import text_generation

NAME = "embeddings.word_embeddings.weight"


def loaded(folder: Path, kind: str) -> Any:
    torch.manual_seed(0)
    return classifier.load(folder / kind, CPU, LABELS).double()


def trained(model: Any, steps: list[list[Text]]) -> list[float]:
    """The norm of each step's gradient."""
    model.train()
    norms = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for texts in steps:
        optimizer.zero_grad()
        out = classifier.logits(model, texts)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out).double()).sum().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
    return norms


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_weights_are_those_of_the_whole_training(tmp_path: Path, kind: str) -> None:
    make_encoder(tmp_path / kind, kind, **SHAPES[kind])
    steps = [drawn(6, seed) for seed in range(5)]
    plain, other = (loaded(tmp_path, kind) for _ in range(2))
    wanted = trained(plain, steps)
    read = {i for texts in steps for t in texts for i in t.ids}
    unread = Text([2, 71, 5, 72, 3])
    before = other.get_input_embeddings().weight.clone()
    assert not {71, 72} & read and {2, 5, 3} <= read and len(before) > 72
    with embeddings.only_read(other, read):
        found = trained(other, steps)
        rows = next(p for n, p in other.named_parameters() if n.endswith(NAME))
        assert len(rows) <= len(read) < len(before), "the name is kept, the rows are fewer"
        other.eval()
        inside = classifier.logits(other, [unread, steps[0][0]])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0.0)
    for (n, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11, msg=n)
    outside = classifier.logits(other.eval(), [unread, steps[0][0]])
    torch.testing.assert_close(inside, outside, rtol=1e-10, atol=1e-12)
    after = other.get_input_embeddings().weight
    still = sorted(set(range(len(before))) - read)
    assert torch.equal(after[still], before[still])
    assert not torch.equal(after[sorted(read)], before[sorted(read)])


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_learns_the_same_and_a_tied_one_is_left_alone(
    tmp_path: Path, tied: bool
) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=tied)
    rows = [Encoded([5, 6, 7, 8, 9 + i], 2) for i in range(4)]
    steps = [
        [Example(Row(i, "", "", ""), r) for i, r in enumerate(rows[n : n + 2])] for n in (0, 2)
    ]

    def learnt(read: set[int]) -> dict[str, torch.Tensor]:
        model = loading.load(base, CPU).double()
        whole = model.get_input_embeddings()
        with embeddings.only_read(model, read):
            assert (model.get_input_embeddings() is whole) == (tied or not read)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
            for some in steps:
                optimizer.zero_grad()
                text_generation.losses(model, some)[0].sum().backward()
                optimizer.step()
        return dict(model.state_dict())

    wanted, found = learnt(set()), learnt(text_generation.words([e for s in steps for e in s]))
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-12, msg=name)


def test_what_was_learnt_stands_in_the_whole_after_an_error(tmp_path: Path) -> None:
    make_encoder(tmp_path / "bert", "bert", **SHAPES["bert"])
    model = loaded(tmp_path, "bert")
    whole = model.get_input_embeddings()
    with pytest.raises(ZeroDivisionError), embeddings.only_read(model, {5, 6}):
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(7.0)
        raise ZeroDivisionError
    assert model.get_input_embeddings() is whole
    assert bool((whole.weight[[5, 6]] == 7).all()) and not bool((whole.weight[4] == 7).any())


def test_an_embedding_that_is_the_output_too_or_is_frozen_is_left_alone(tmp_path: Path) -> None:
    make_encoder(tmp_path / "bert", "bert", **SHAPES["bert"])
    model = loaded(tmp_path, "bert")
    whole = model.get_input_embeddings()
    whole.weight.requires_grad_(False)
    with embeddings.only_read(model, {5, 6}):
        assert model.get_input_embeddings() is whole
    whole.weight.requires_grad_(True)
    model.classifier.tied = whole.weight
    with embeddings.only_read(model, {5, 6}):
        assert model.get_input_embeddings() is whole
