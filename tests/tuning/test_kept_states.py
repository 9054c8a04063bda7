"""A language model whose lower layers are frozen reads them once, and learns what it would without
that."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import decided, make_base, next_word_rows
from tunesmith import Tunesmith
from tunesmith.data.dataset import Row
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.models import features, layers, loading, methods, packed
from tunesmith.tasks import text_generation
from tunesmith.tuning.loop import accumulate

CPU = torch.device("cpu")


def rows_for(base: Path) -> list[Example]:
    encoder = Encoder(PromptTemplate.of_base(base), base)
    return [
        Example(
            Row(i, r["prompt"], r["completion"], "{}"),
            encoder.row([{"role": "user", "content": r["prompt"]}], r["completion"]),
        )
        for i, r in enumerate(next_word_rows())
    ]


def gradients(model: Any, rows: list[Example]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()
    accumulate(text_generation, model, rows, max_tokens=120)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("freeze", ["1", "2"])
def test_gradients_are_those_of_the_whole_pass(
    tmp_path: Path, method: str, freeze: str, is_packed: bool
) -> None:
    base = make_base(tmp_path / "base", num_hidden_layers=3)
    model = loading.load(base, CPU)
    if not is_packed:
        packed.disable(model, "asked")
    chosen = decided(method=method, freeze=freeze)
    tuned = methods.METHODS[method].prepare(model, chosen).double()
    rows, rate = rows_for(base), torch.Generator().manual_seed(0)
    for n, p in tuned.named_parameters():
        if "lora_B" in n:
            p.data.normal_(0, 0.1, generator=rate)
    wanted = gradients(tuned, rows)
    calls: list[int] = []
    layers.stack_of(tuned)[1][0].mlp.register_forward_hook(lambda *_: calls.append(1))
    with text_generation.remembering(tuned, rows, tmp_path, "base") as why:
        assert why == ""
        kept = features.held(tuned)
        assert kept is not None and kept.below == int(freeze)
        before = len(calls)
        found = gradients(tuned, rows)
        assert len(calls) == before, "no pass runs the frozen layers"
    assert found.keys() == wanted.keys() and wanted
    for n, g in wanted.items():
        torch.testing.assert_close(found[n], g, rtol=1e-10, atol=1e-12)


def test_a_job_with_frozen_layers_keeps_their_states_for_the_next(
    home: Path, tuned_base: Path
) -> None:
    ts, found = Tunesmith(), []
    for name in ("a", "b"):
        asked = {"freeze": 1, "max_epochs": 2, "learning_rate": 3e-3, "batch_size": 5}
        job = ts.create(name, str(tuned_base), next_word_rows(4), method="lora", **asked).wait()
        assert job.status == "SUCCEEDED", job.error
        found.append((job.training_loss, job.validation_loss))
    assert found[0] == found[1]
    assert len(list((home / features.FOLDER).iterdir())) == 1
