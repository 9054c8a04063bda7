"""What is only true on a GPU; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from tunesmith.catalog import ModelSpec
from tunesmith.data.template import Encoded, Encoder, PromptTemplate
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models import loading, packed
from tunesmith.tasks import text_generation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SHARED = list(range(40, 60))
ROWS = [
    Encoded([5, 6, 7, 8, 9, 10], 3),
    Encoded([*SHARED, 1, 2, 3], 20),
    Encoded([*SHARED, 4, 5], 21),
]


def test_packed_rows_give_the_losses_and_gradients_of_the_processor(tiny_base: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = loading.load_base(
            ModelSpec(name="b", folder=str(tiny_base)), torch.device(device)
        ).float()
        assert packed.can_pack(model, 23), "or it gave something else here, and rows are padded"
        losses = text_generation.token_losses(model, text_generation.collate(ROWS, model))
        losses.mean().backward()
        found.append((losses.cpu(), model.model.layers[0].mlp.up_proj.weight.grad.cpu()))
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_answers_are_those_of_the_processor(tuned_base: Path) -> None:
    asked = [[{"role": "user", "content": f"say {w}"}] for w in ("red", "dog", "stone")]
    answers = []
    for device in ("cpu", "cuda"):
        model = loading.load_base(ModelSpec(name="b", folder=str(tuned_base)), torch.device(device))
        engine = Engine(model, Encoder(PromptTemplate.of_base(tuned_base), tuned_base), "b", 128)
        answers.append([c.text for c in engine.generate(asked, Sampling(max_tokens=8))])
    assert answers[0] == answers[1]
