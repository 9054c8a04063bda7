"""What frozen layers make of texts is computed once, and nothing is otherwise for it."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_packed_texts import CPU, LABELS, PACKED, SHAPES, Text, drawn

from conftest import WORDS, make_encoder
from tunesmith import Tunesmith
from tunesmith.models import classifier, features, head, layers
from tunesmith.models.classifier import READER
from tunesmith.models.methods import decoder_of


def partly_frozen(folder: Path, kind: str, freeze: str) -> Any:
    model = classifier.load(make_encoder(folder / kind, kind, **SHAPES[kind]), CPU, LABELS).double()
    if freeze == "all":
        model.requires_grad_(False)
        for p in head.trained(model).values():
            p.requires_grad_(True)
    else:
        for n in layers.frozen(model, freeze):
            model.get_parameter(n).requires_grad_(False)
    return model


def gradients(model: Any, texts: list[Text]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()
    out = classifier.logits(model, texts)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out).double()).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("freeze", ["1", "2", "all"])
@pytest.mark.parametrize("kind", sorted(PACKED - {"distilbert"}))
def test_gradients_are_those_of_the_whole_pass(tmp_path: Path, kind: str, freeze: str) -> None:
    model = partly_frozen(tmp_path, kind, freeze)
    texts = drawn(8, 1)
    wanted = gradients(model, texts)
    with features.remembering(model, texts, tmp_path, "base", READER) as why:
        assert why == ""
        held = features.held(model)
        assert held.below == (layers.count(model) if freeze == "all" else int(freeze))
        found = gradients(model, texts)
        assert held.of([READER.key(Text([2, 9, 9, 3]))]) is None, (
            "a text that is not known is computed"
        )
        classifier.logits(model, [*texts[:2], Text([2, 9, 9, 3])])
    assert not hasattr(decoder_of(model), features.HELD)
    assert found.keys() == wanted.keys()
    for n, g in wanted.items():
        torch.testing.assert_close(found[n], g, rtol=1e-10, atol=1e-10)


def test_the_frozen_layers_run_once_whoever_asks_again(tmp_path: Path) -> None:
    model, texts = partly_frozen(tmp_path, "bert", "2"), drawn(12, 2)
    calls = []
    layers.stack_of(model)[1][0].attention.register_forward_hook(lambda *_: calls.append(1))
    for again in range(3):
        random.Random(again).shuffle(texts)
        with features.remembering(model, texts, tmp_path, "base", READER):
            before = len(calls)
            for _ in range(3):
                classifier.logits(model, texts)
            assert len(calls) == before, "no pass of an epoch runs them"
        if not again:
            first = len(calls)
        # each time can_skip tries three texts: one pass to learn the states, one beside it
    assert len(calls) - first == 2 * 2
    assert len(list((tmp_path / features.FOLDER).iterdir())) == 1


def test_what_is_kept_is_the_same_to_the_bit_whatever_the_order_and_after_damage(
    tmp_path: Path,
) -> None:
    model, texts = partly_frozen(tmp_path, "bert", "2"), drawn(12, 2)
    found = []
    for again in range(3):
        random.Random(again).shuffle(texts)
        with features.remembering(model, texts, tmp_path, "base", READER):
            held = features.held(model)
            found.append(
                torch.cat(
                    [held.of([READER.key(t)])[0] for t in sorted(texts, key=READER.key)]
                ).clone()
            )
        [kept] = (tmp_path / features.FOLDER).iterdir()
        if again == 0:
            file = kept / features.FILE
            file.write_bytes(file.read_bytes()[:-8] + b"12345678")
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_least_recently_used_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    model = partly_frozen(tmp_path, "bert", "2")
    monkeypatch.setattr(features, "ALL_BYTES", 40_000)
    places: list[set[Path]] = []
    for seed in range(4):
        with features.remembering(model, drawn(8, seed), tmp_path, "base", READER):
            pass
        places.append(set((tmp_path / features.FOLDER).iterdir()))
        for i, place in enumerate(sorted(places[-1], key=lambda p: p.stat().st_mtime)):
            os.utime(place, (i, i))
    assert len(places[-1]) < 4 and not places[0] & places[-1]
    assert places[-1] - places[-2], "the newest stays"


def test_a_job_with_frozen_layers_ends_as_without_what_was_kept(
    home: Path, tiny_encoder: Path
) -> None:
    rows = [
        {"text": f"{WORDS[i % 2]} {WORDS[3 + i % 5]} {i}", "label": WORDS[i % 2]} for i in range(60)
    ]
    ts, found = Tunesmith(), []
    for name, options in (("a", {}), ("b", {}), ("c", {"freeze": ""})):
        asked = {"freeze": "2", "max_epochs": 2, "learning_rate": 3e-3, "head_rate": 1} | options
        job = ts.create(name, str(tiny_encoder), rows, **asked).wait()
        assert job.status == "SUCCEEDED", job.error
        found.append((job.training_loss, job.validation_loss))
    assert found[0] == found[1] != found[2], "the second read what the first had kept"
    assert len(list((home / features.FOLDER).iterdir())) == 1
