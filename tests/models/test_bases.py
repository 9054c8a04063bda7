"""One base of each mechanism, made from transformers' own configurations, goes the whole way. All
architectures: `make bases`."""

import warnings
from pathlib import Path
from typing import Any

import bases
import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from conftest import make_base
from tunesmith import Tunesmith, architectures, catalog
from tunesmith.errors import DamagedFiles, UnfitBaseModel
from tunesmith.inference import readers
from tunesmith.models import loading, methods, packed
from tunesmith.models.trial import Trial

CPU = torch.device("cpu")
MECHANISMS = {
    "mistral": (True, "held and packed"),  # a sliding window in every layer
    "gemma3_text": (True, "held and packed"),  # in some, two scales of positions, QK norms
    "llama4_text": (True, "held and packed"),  # chunks, experts, layers without positions
    "falcon": (False, "held"),  # fused QKV, one key-value head, parallel blocks
    "bloom": (False, "held"),  # ALiBi
    "gpt2": (True, "packed"),  # learned positions, Conv1D
    "gemma2": (False, "held"),  # capped scores and logits
    "deepseek_v3": (True, "packed"),  # MLA, experts, a dense layer
    "gpt_oss": (False, "held"),  # sinks, fused experts, windows
    "mixtral": (True, "held and packed"),  # experts
    "cohere": (True, "packed"),  # scaled logits, parallel blocks, a norm of its own
    "mamba2": (False, "held"),  # recurrent states alone
    "jamba": (False, "held"),  # beside attention, with experts
}
"""Of each: whether its rows are packed in training, and how they are answered."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")


@pytest.mark.parametrize("architecture", MECHANISMS)
def test_it_is_answered_trained_saved_exported_and_resumed_as_the_plain_library_would(
    architecture: str, tmp_path: Path
) -> None:
    found = bases.examine(architecture, tmp_path)
    assert not found.refused and not any(found.methods.values()), found
    assert (found.packs, found.answers) == MECHANISMS[architecture], found


def test_an_error_in_the_positions_of_held_rows_is_found_before_any_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A control: where every row were padded on the right, as plain attention could take it, a
    window would count the padding. Then nothing is held."""
    model = zoo.model_of("mistral")
    assert readers.can_hold(model, readers.PaddedReader)
    wrong = zoo.model_of("mistral")
    right = readers.PaddedReader._forward

    def off_by_one(self: Any, *given: Any) -> Any:
        *others, places = given
        return right(self, *others, places + (places > 5))

    monkeypatch.setattr(readers.PaddedReader, "_forward", off_by_one)
    assert not readers.can_hold(wrong, readers.PaddedReader)
    rows = [[5, 6, 7], [5, 6, 7, 8, 9, 10, 11]]
    assert type(readers.reader_for(wrong, rows, [None, None], None, 20)) is readers.WholeReader


def test_what_packed_rows_would_lose_is_seen_and_they_are_padded() -> None:
    """Even where the numbers of a trial hardly show it: a cap on small scores, a bias near zero."""
    model = zoo.model_of("llama")
    attention = type(model.model.layers[0].self_attn)
    plain = attention.forward

    def with_more(self: Any, *given: Any, **more: Any) -> Any:
        return plain(self, *given, **more, softcap=1e6 if "packed_layout" in more else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "forward", with_more)
        packed.enable(model)
    assert packed.why_padded(model, 10) == "its attention reads softcap"


def test_a_model_that_reads_both_ways_is_refused_by_name_at_create(
    tmp_path: Path, home: Path
) -> None:
    base = zoo.save(zoo.model_of("bert"), tmp_path / "bert")
    rows = [{"prompt": f"say {i}", "completion": "yes"} for i in range(20)]
    with pytest.raises(UnfitBaseModel, match="text generation"):
        Tunesmith().create("m", str(base), rows, task="text_generation")
    assert not Tunesmith().show()
    with pytest.raises(UnfitBaseModel, match="behind another"):  # whoever comes past that
        loading.load(base, CPU)
    assert Trial.of(zoo.model_of("llama")).is_causal


def test_weights_that_the_library_changes_when_it_loads_them_are_refused(tmp_path: Path) -> None:
    """It sets this architecture's embedding anew after it has read it; a control, another, is
    loaded."""
    base = zoo.save(zoo.model_of("youtu"), tmp_path / "base")
    with pytest.raises(DamagedFiles, match="otherwise than it stands in the file"):
        loading.load(base, CPU)
    loading.load(zoo.save(zoo.model_of("llama"), tmp_path / "other"), CPU)


def test_a_head_that_is_the_embedding_stays_it(tmp_path: Path) -> None:
    """A control: the library loads this one as two tensors, and saves one of them."""
    base = zoo.save(zoo.model_of("bigbird_pegasus"), tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert plain.lm_head.weight is not plain.get_input_embeddings().weight
    model = loading.load(base, CPU)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_rows_of_a_model_that_counts_its_places_are_answered_to_the_end_of_its_window() -> None:
    """Beside a longer row; what is padded would count."""
    model = zoo.model_of("mpt")
    long, short = list(range(5, 215)), list(range(5, 15))
    reader = readers.reader_for(model, [long, short], [None, None], None, zoo.CONTEXT)
    assert type(reader) is readers.PaddedReader
    with torch.inference_mode():
        while reader.waiting:
            cohort, group, _ = reader.read()
            rows = [[long, short][i] for i in group]
            while min(map(len, rows)) < zoo.CONTEXT:  # one that is done goes along
                places = torch.tensor([min(len(row), zoo.CONTEXT - 1) for row in rows])
                rows = [[*row, 7][: zoo.CONTEXT] for row in rows]
                logits_BV = reader.step([cohort], torch.tensor([7] * len(rows)), places)
            last = min(range(len(rows)), key=lambda b: len([long, short][group[b]]))
            alone = model(input_ids=torch.tensor([rows[last]]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits_BV[last], alone, rtol=1e-3, atol=1e-4)


def test_layers_that_share_their_weights_have_no_adapter_and_merge() -> None:
    """Two adapters on one tensor would both be added to it."""
    model = zoo.model_of("llama")
    first, second = (model.model.layers[i].mlp for i in (0, 1))
    second.up_proj.weight = first.up_proj.weight
    tuned = bases.prepared("lora", model)
    names = methods.trained_tensors(tuned)
    assert names and not any(
        "up_proj" in n and ("layers.0." in n or "layers.1." in n) for n in names
    )
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        wanted = tuned(input_ids=ids).logits
        merged = methods.METHODS["lora"].merge(tuned)
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "kimi_linear", "reformer"])
def test_an_architecture_that_the_list_does_not_know_is_left_to_the_trial(
    tmp_path: Path, kind: str
) -> None:
    base = make_base(tmp_path / "base")
    bases.rewrite(base / "config.json", model_type=kind)
    architectures.must_fit(base)
    assert (kind in architectures.known()) is (kind == "llama")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "gemma3", "text_config": {}, "vision_config": {}}, "vision_config"),
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"model_type": "someones"}, "no causal language model 'someones'"),
        ({"model_type": "someones", "auto_map": {"AutoModel": "x.Y"}}, "as code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq.*bring them as they were"),
    ],
)
def test_what_is_no_language_model_here_is_named_at_create(
    tmp_path: Path, home: Path, config: dict[str, Any], told: str
) -> None:
    base = make_base(tmp_path / "base")
    bases.rewrite(base / "config.json", **config)
    rows = [{"prompt": f"say {i}", "completion": "yes"} for i in range(20)]
    with pytest.raises(Exception, match=told):
        Tunesmith().create("m", str(base), rows)


def test_what_could_load_code_is_left_out_and_told_once(tmp_path: Path, home: Path) -> None:
    base = make_base(tmp_path / "base")
    asked = {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "_model_name_or_path": "x",
        "_flash_attn_2_enabled": True,
        "transformers_weights": "other.safetensors",
        "_name_or_path": "x/y",
    }
    bases.rewrite(base / "config.json", **asked)
    assert catalog.find(str(base), home).left_out == tuple(sorted(asked.keys() - {"_name_or_path"}))
    model = loading.load(base, CPU)
    assert model.config._attn_implementation == packed.NAME and "evil" not in str(model.config)
    rows = [{"prompt": f"say {i}", "completion": "yes"} for i in range(20)]
    job = Tunesmith().create("m", str(base), rows, max_epochs=1).wait()
    told = [w for w in job.warnings if "left out" in w]
    assert len(told) == 1 and all(k in told[0] for k in asked if k != "_name_or_path"), told
