from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunesmith import catalog
from tunesmith.data.template import Encoded
from tunesmith.errors import DamagedFiles
from tunesmith.models import chunked_loss, loading, packed
from tunesmith.tasks import text_generation

CPU = torch.device("cpu")
TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    eos_token_id=0,
    pad_token_id=0,
    bos_token_id=0,
)
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "smollm3", "phi3", "gpt2"]


PACKS = {
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "smollm3",
    "phi3",
}  # gemma2 caps its scores, gpt2 drops values


def random_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    names: dict[str, dict[str, Any]] = {
        "granite": {**TINY, "logits_scaling": 2.0},
        "gpt2": dict(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        ),
    }
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **names.get(family, TINY))
    ).eval()


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_batch_do_not_touch_each_other_in_any_family(family: str, packs: bool) -> None:
    model = random_model(family)
    shared = list(range(40, 60))
    rows = [
        Encoded([5, 6, 7, 8, 9, 10], 3),
        Encoded([11, 12, 13], 1),
        Encoded([*shared, 1, 2, 3], 20),
        Encoded([*shared, 4, 5], 21),
    ]
    alone = [
        text_generation.token_losses(model, text_generation.collate([row], model)) for row in rows
    ]
    if packs:
        packed.enable(model)
        assert (
            packed.can_pack(model, 23) is (family in PACKS) is (packed.why_padded(model, 23) == "")
        )
    together = text_generation.collate(rows, model)
    assert ("packed_layout" in together.inputs) is (packs and family in PACKS)
    losses = text_generation.token_losses(model, together)
    assert together.row_N.tolist() == [0] * 3 + [1] * 2 + [2] * 3 + [3]
    for i, one in enumerate(alone):
        torch.testing.assert_close(losses[together.row_N == i], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "granite", "cohere"])
def test_the_head_in_chunks_gives_the_same_losses_and_is_left_whole_where_logits_are_more_than_one_layer(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(family)
    rows = [Encoded([5, 6, 7, 8, 9, 10], 3), Encoded([11, 12, 13], 1)]
    batch = text_generation.collate(rows, model)
    whole = text_generation.token_losses(model, batch)
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 2 * 64)
    torch.testing.assert_close(
        text_generation.token_losses(model, batch), whole, rtol=1e-5, atol=1e-5
    )
    assert (chunked_loss.plain(model) is not None) is (
        family not in ("gemma2", "granite", "cohere")
    )  # a cap, two scales


def test_a_row_longer_than_a_sliding_window_is_not_packed() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mistral", **{**TINY, "sliding_window": 16})
    ).eval()
    packed.enable(model)
    assert packed.can_pack(model, 16) and not packed.can_pack(model, 17)
    assert packed.why_padded(model, 16) == "" and "reaches back 16 tokens" in packed.why_padded(
        model, 17
    )
    rows = [Encoded(list(range(1, 40)), 20), Encoded([1, 2, 3], 1)]
    assert "packed_layout" not in text_generation.collate(rows, model).inputs


def test_a_target_is_the_next_token_of_the_completion_and_nothing_else() -> None:
    batch = text_generation.collate(
        [Encoded([1, 2, 3, 4, 0], 3), Encoded([5, 6, 0], 1)], random_model("llama")
    )
    assert batch.targets_N.tolist() == [4, 0, 6, 0]
    assert batch.keep_K.tolist() == [0, 1, 2, 3] and batch.inputs["attention_mask"].sum(
        1
    ).tolist() == [5, 3]


def test_weights_that_are_missing_are_never_made_up(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DamagedFiles, match=r"layers\.1\.mlp\.up_proj"):
        loading.load(folder, CPU)


def test_the_control_has_the_bundled_bases_shape_and_never_its_weights(tmp_path: Path) -> None:
    tiny, scratch = (
        catalog.find(n, tmp_path) for n in ("tunesmith-tiny", "tunesmith-tiny-scratch")
    )
    torch.manual_seed(7)
    models = [loading.load_base(s, CPU) for s in (tiny, scratch, scratch)]
    states = [m.state_dict() for m in models]
    assert {n: t.shape for n, t in states[0].items()} == {n: t.shape for n, t in states[1].items()}
    assert all(torch.equal(t, states[2][n]) for n, t in states[1].items()), (
        "the same control at every load"
    )
    matrices = [n for n, t in states[0].items() if t.ndim == 2]
    assert not any(torch.allclose(states[0][n], states[1][n]) for n in matrices)
    assert sum(p.numel() for p in models[0].parameters()) == tiny.parameters == scratch.parameters
