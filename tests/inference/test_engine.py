import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis.strategies import (
    DataObject,
    booleans,
    builds,
    data,
    integers,
    lists,
    sampled_from,
    text,
)
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from conftest import WORDS
from tunesmith import catalog
from tunesmith.catalog import ModelSpec
from tunesmith.data.template import Encoded, Encoder, PromptTemplate
from tunesmith.errors import InvalidSchema, PromptTooLong
from tunesmith.inference import engine as engines
from tunesmith.inference import held, readers
from tunesmith.inference import pool as pools
from tunesmith.inference.engine import Engine, Sampling, choose, row_seeds
from tunesmith.inference.pool import Pool
from tunesmith.models import chunked_loss, prepacked
from tunesmith.registry import TunedModel
from tunesmith.tasks import text_generation

PROMPTS = [f"say {w}" for w in WORDS] + [
    "say",
    "x",
    "a much longer prompt than all of the others, say red",
    "say dog say dog say dog",
]
TIE = 1e-4  # two best logits closer than this may change places when the batch changes


def ask(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": t}] for t in texts]


def base_of(folder: Path) -> TunedModel:
    return TunedModel(
        name=str(folder), base=ModelSpec(name=str(folder), folder=str(folder), context=128)
    )


@pytest.fixture(scope="module")
def engine(tuned_base: Path) -> Engine:
    """With its weights prepacked, as those of larger models are."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepacked, "LEAST", 0)
        return Engine.load(base_of(tuned_base), "cpu")


def test_prepacked_weights_give_what_plain_ones_do(engine: Engine, tuned_base: Path) -> None:
    plain, model = Engine.load(base_of(tuned_base), "cpu").model, engine.model
    assert isinstance(model.get_output_embeddings(), prepacked.Prepacked) and not isinstance(
        plain.get_output_embeddings(), prepacked.Prepacked
    )
    assert not [m for m in model.modules() if type(m) is torch.nn.Linear], (
        "the plain weights are let go"
    )
    n_head = plain.get_output_embeddings().weight.numel()
    assert pools._weights(model) - pools._weights(plain) == 4 * n_head, (
        "the tied embedding alone is held twice"
    )
    rows = [Encoded(engine.encoder.prompt([{"role": "user", "content": p}]), 3) for p in PROMPTS]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        wanted, found = (
            text_generation.token_losses(m, text_generation.collate(rows, m))
            for m in (plain, model)
        )
        assert torch.allclose(wanted, found, atol=1e-5)
        assert chunked_loss.plain(model) is model.get_output_embeddings()
        patch.setattr(chunked_loss, "CHUNK_LOGITS", 1000)
        assert torch.allclose(
            wanted,
            text_generation.token_losses(model, text_generation.collate(rows, model)),
            atol=1e-5,
        ), "the head in chunks"


def hugging_face(folder: Path, text: str, new_tokens: int) -> tuple[str, float]:
    """transformers' own greedy answer to one prompt, and how close its closest choice was."""
    model, encoder = (
        LlamaForCausalLM.from_pretrained(folder).eval(),
        Encoder(PromptTemplate.of_base(folder), folder),
    )
    ids = torch.tensor([encoder.prompt([{"role": "user", "content": text}])])
    out = model.generate(
        ids,
        max_new_tokens=new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    gap = min(
        float(best[0] - second[0])
        for s in out.logits
        for best, second in [s[0].topk(2).values.split(1)]
    )
    new = out.sequences[0, ids.shape[1] :].tolist()
    return encoder.decode(new[: new.index(0)] if 0 in new else new), gap


def test_greedy_answers_are_those_of_hugging_face_in_any_batch(
    engine: Engine, tuned_base: Path
) -> None:
    found = engine.generate(ask(PROMPTS), Sampling(max_tokens=12))
    ties = 0
    for prompt, completion in zip(PROMPTS, found, strict=True):
        wanted, gap = hugging_face(tuned_base, prompt, 12)
        ties += gap < TIE
        assert completion.text == wanted or gap < TIE, prompt
    assert ties == 0
    assert [c.text for c in found[:10]] == list(WORDS), "the fixture has learnt to repeat"


def test_an_answer_does_not_depend_on_its_neighbours(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = engine.generate(ask(PROMPTS), Sampling(max_tokens=12))
    monkeypatch.setattr(readers, "BATCH_TOKENS", 1)
    assert engine.generate(ask(PROMPTS), Sampling(max_tokens=12)) == together
    assert engine.generate(ask(PROMPTS[::-1]), Sampling(max_tokens=12)) == together[::-1]


SHARED = "here are words: red, green, blue. now "


def test_what_prompts_begin_with_is_computed_once_and_changes_no_answer(
    engine: Engine, tuned_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [SHARED + p for p in PROMPTS]
    found = engine.generate(ask(prompts), Sampling(max_tokens=12))
    for prompt, completion in zip(prompts, found, strict=True):
        wanted, gap = hugging_face(tuned_base, prompt, 12)
        assert completion.text == wanted or gap < TIE, prompt
    total = sum(len(engine.encoder.prompt(p)) for p in ask(prompts[:10]))
    sizes = passes(engine, monkeypatch)
    again = engine.generate(ask(prompts[:10]), Sampling(max_tokens=1))
    assert sizes == [sum(sizes)] and sum(sizes) < 0.5 * total, (
        "most of the tokens were computed once"
    )
    monkeypatch.setattr(readers, "BATCH_TOKENS", 50)
    sizes.clear()
    assert engine.generate(ask(prompts[:10]), Sampling(max_tokens=1)) == again
    assert len(sizes) > 2 and sum(sizes) < 0.5 * total, "also where they are read in several groups"
    monkeypatch.setattr(readers, "PREFIX_LEAST", 10**9)
    sizes.clear()
    assert (
        engine.generate(ask(prompts[:10]), Sampling(max_tokens=1)) == again
        and sum(sizes) > 0.5 * total
    )


def passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of each pass through the model, from here on; before its first answer it is
    tried."""
    engine.generate(ask(["say red"]), Sampling(max_tokens=1))
    sizes: list[int] = []
    forward = engine.model.forward

    def counted(*args: Any, **inputs: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        return forward(*args, **inputs)

    monkeypatch.setattr(engine.model, "forward", counted)
    return sizes


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "phi3"])
def test_a_shared_prefix_changes_no_answer_in_any_family(
    family: str, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = dict(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=0,
    )
    if family in ("mistral", "gemma2"):
        shape["sliding_window"] = 12
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).eval()
    engine = Engine(model, Encoder(PromptTemplate.of_base(tiny_base), tiny_base), family, 256)
    prompts = ask([SHARED + p for p in PROMPTS])
    found = engine.generate(prompts, Sampling(max_tokens=6))
    monkeypatch.setattr(readers, "PREFIX_LEAST", 10**9)
    assert engine.generate(prompts, Sampling(max_tokens=6)) == found


def test_a_long_neighbour_takes_no_room_from_an_answer(engine: Engine) -> None:
    prompts = ask(["x", "y" * 118])
    assert engine.generate(prompts, Sampling()) == [
        engine.generate([p], Sampling())[0] for p in prompts
    ]
    hot = engine.generate(ask(["x"] * 3 + ["y" * 118]), Sampling(temperature=1.0, seed=1))
    assert all(
        c.prompt_tokens + c.completion_tokens <= 128
        and (c.stopped or c.prompt_tokens + c.completion_tokens == 128)
        for c in hot
    )
    assert not any(c.text == "\ufffd" for c in hot)


def test_rows_that_are_done_leave_the_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven short answers and one that goes on: the long one is not paid for twelve times, and no
    answer changes."""
    prompts = ask([*PROMPTS[:10], "x", "stone"])
    alone = [engine.generate([p], Sampling(max_tokens=40))[0] for p in prompts]
    sizes = passes(engine, monkeypatch)
    assert engine.generate(prompts, Sampling(max_tokens=40)) == alone
    longest, written = max(c.completion_tokens for c in alone), sizes[1:]
    assert (
        longest > 20 and written[0] == 12 and written[-1] <= 2 and sum(written) < 0.5 * 12 * longest
    )


def test_the_next_prompts_join_where_there_is_room(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long answer is written while others come and go, and no answer changes."""
    prompts = ask(["stone", *(f"say {w} {i}" for i in range(4) for w in WORDS)])
    alone = [engine.generate([p], Sampling(max_tokens=40))[0] for p in prompts]
    monkeypatch.setattr(readers, "MOST_ROWS", 12)
    sizes = passes(engine, monkeypatch)
    assert engine.generate(prompts, Sampling(max_tokens=40)) == alone
    passes_together = len(sizes)
    monkeypatch.setattr(readers.PackedReader, "takes", lambda self, cohorts: not cohorts)
    sizes.clear()
    assert engine.generate(prompts, Sampling(max_tokens=40)) == alone
    assert passes_together < 0.7 * len(sizes), "than one group after the other"


TIE = 1e-5


def close_choices(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how little each choice could have been another: the distance of the two best logits, or of
    the number that was drawn to the next token's share. Sums in another order move both."""
    real, margins = engines.choose, list[float]()

    def choose(logits_BV: torch.Tensor, sampling: Sampling, u_B: Any) -> torch.Tensor:
        if u_B is None:
            best = logits_BV.topk(2).values
            margins.append(float((best[:, 0] - best[:, 1]).min()))
        else:
            p_BV = torch.softmax(logits_BV.float() / sampling.temperature, -1)
            up_to = p_BV.sort(-1, descending=True).values.cumsum(-1)
            margins.append(float((up_to - u_B[:, None] * up_to[:, -1:]).abs().min()))
        return real(logits_BV, sampling, u_B)

    monkeypatch.setattr(engines, "choose", choose)
    return margins


@given(data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_answers_do_not_depend_on_how_prompts_are_grouped_shared_and_held(
    engine: Engine, data: DataObject
) -> None:
    draw = data.draw
    starts = ["", "say", SHARED, SHARED + "red, and ", "x" * draw(integers(1, 60))]
    texts = draw(
        lists(
            builds(str.__add__, sampled_from(starts), text("ab say", max_size=12)),
            min_size=1,
            max_size=24,
        )
    )
    texts = [t or "x" for t in texts]
    asked = Sampling(
        max_tokens=draw(integers(1, 20)), temperature=draw(sampled_from([0.0, 1.0])), seed=1
    )
    with pytest.MonkeyPatch.context() as m:
        margins = close_choices(m)
        wanted = engine.generate(ask(texts), asked)
    assume(min(margins, default=1.0) > TIE)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(readers, "BATCH_TOKENS", draw(sampled_from([1, 40, 200, 8192])))
        m.setattr(readers, "MOST_ROWS", draw(sampled_from([4, 12, 256])))
        m.setattr(readers, "CACHE_TOKENS", draw(sampled_from([1, 500, 65_536])))
        m.setattr(readers, "PREFIX_LEAST", draw(sampled_from([1, 10**9])))
        m.setattr(held, "LEAST_SHARED", draw(sampled_from([0, 20, 10**9])))
        m.setattr(held, "ROOM", draw(sampled_from([1, 32])))
        m.setattr(engines, "FEW", draw(sampled_from([0.0, 0.75, 1.0])))
        if draw(booleans()):
            m.setattr(readers.packed, "can_hold", lambda *a: False)
        found = engine.generate(ask(texts), asked)
    assert found == wanted


def test_equal_prompts_are_answered_once_when_greedy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = passes(engine, monkeypatch)
    found = engine.generate(ask(["say red", "say dog", "say red"]), Sampling(max_tokens=5))
    assert max(sizes[1:]) == 2 and found[0] == found[2] != found[1]


def test_an_answer_ends_at_the_stop_id_at_max_tokens_or_at_the_window(engine: Engine) -> None:
    [stopped] = engine.generate(ask(["say stone"]), Sampling(max_tokens=50))
    assert stopped.text == "stone" and stopped.stopped and stopped.completion_tokens == 5
    [cut] = engine.generate(ask(["say stone"]), Sampling(max_tokens=2))
    assert cut.text == "st" and not cut.stopped and cut.completion_tokens == 2
    [full] = engine.generate(ask(["x" * 120]), Sampling())
    assert full.prompt_tokens + full.completion_tokens <= 128


@pytest.mark.parametrize("text", ["x" * 126, "x" * 5000, "x" * 10_000_000])
def test_a_prompt_over_the_window_is_an_error_not_a_cut(engine: Engine, text: str) -> None:
    with pytest.raises(PromptTooLong, match=r"max tokens of 128 exceeded"):
        engine.generate(ask(["fine", text]), Sampling())


def test_no_prompts_give_no_answers(engine: Engine) -> None:
    assert engine.generate([], Sampling()) == []


def test_sampling_follows_the_distribution_and_top_p_keeps_the_likeliest() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    generator = torch.Generator().manual_seed(0)

    def shares(**options: float) -> list[float]:
        u = torch.rand(20_000, generator=generator)
        drawn = choose(p.log().repeat(20_000, 1), Sampling(temperature=1.0, **options), u)  # type: ignore[arg-type]
        return (torch.bincount(drawn, minlength=4) / len(drawn)).tolist()

    assert shares() == pytest.approx(p.tolist(), abs=0.02)
    assert shares(top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert shares(top_p=0.01) == [1, 0, 0, 0]
    cold = choose(
        p.log().repeat(100, 1), Sampling(temperature=0.01), torch.rand(100, generator=generator)
    )
    assert set(cold.tolist()) == {0}


def test_a_seed_makes_sampling_repeatable_and_rows_draw_for_themselves(engine: Engine) -> None:
    hot = Sampling(temperature=1.0, max_tokens=8, seed=3)
    first = engine.generate(ask(["x"] * 8), hot)
    assert first == engine.generate(ask(["x"] * 8), hot) and len({c.text for c in first}) > 1
    among_others = engine.generate(
        ask(["x"] * 3 + ["say red, and then say green, and then say stone"] * 9), hot
    )
    assert among_others[:3] == first[:3], "what a row draws is its own"


SCHEMA = json.dumps(
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["colour", "n"],
        "properties": {
            "colour": {"enum": ["red", "green", "stone"]},
            "n": {"type": "integer", "minimum": 0, "maximum": 9},
        },
    }
)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_follow_a_schema_whatever_the_model_would_say(
    engine: Engine, temperature: float
) -> None:
    prompts = [f"{'long ' * (i % 7)}say {i}" for i in range(24)]
    asked = Sampling(temperature=temperature, seed=5, max_tokens=60, schema=SCHEMA)
    found = engine.generate(ask(prompts), asked)
    for answer in found:
        value = json.loads(answer.text)
        assert answer.stopped and set(value) == {"colour", "n"}
        assert value["colour"] in ("red", "green", "stone") and value["n"] in range(10)
    assert engine.generate(ask(prompts[7:8]), asked)[0].ids == found[7].ids, (
        "neighbours decide nothing"
    )
    assert len({a.text for a in found}) > 1 or temperature == 0
    free = engine.generate(ask(prompts), Sampling(max_tokens=8))
    assert not all(a.text.startswith("{") for a in free), "or the schema had nothing to do"


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        '{"type": "banana"}',
        '{"$ref": "http://127.0.0.1:9/x"}',
        '{"type": "string", "pattern": "("}',
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(engine: Engine, schema: str) -> None:
    with pytest.raises(InvalidSchema, match="cannot be followed"):
        engine.generate(ask(["x"]), Sampling(schema=schema))


@pytest.mark.parametrize(
    "asked",
    [
        Sampling(max_tokens=12),
        Sampling(temperature=1.0, seed=2, max_tokens=12),
        Sampling(max_tokens=60, schema=SCHEMA),
    ],
)
def test_a_streamed_answer_grows_to_the_one_that_is_given_whole(
    engine: Engine, asked: Sampling
) -> None:
    for prompt in ("say red", "x", "say stone"):
        seen = list(engine.stream(ask([prompt])[0], asked))
        assert seen[-1] == engine.generate(ask([prompt]), asked)[0]
        assert (
            all(b.text.startswith(a.text) for a, b in pairwise(seen))
            and len(seen) == seen[-1].completion_tokens + seen[-1].stopped
        )


def test_a_character_of_several_tokens_is_streamed_whole(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [*engine.encoder.text("née 😀"), engine.encoder.template.end_id]
    tokens = iter(wanted)
    monkeypatch.setattr(engines, "choose", lambda *a: torch.tensor([next(tokens)]))
    seen = [c.text for c in engine.stream(ask(["x"])[0], Sampling())]
    assert seen[-1] == "née 😀" and len(wanted) > 7 and not any("\ufffd" in text for text in seen)


def test_what_a_row_draws_depends_on_its_prompt_not_on_its_place(engine: Engine) -> None:
    prompts = [f"say {i}" for i in range(12)]
    hot = Sampling(temperature=1.0, max_tokens=6, seed=9)
    forward = engine.generate(ask(prompts), hot)
    assert [c.ids for c in engine.generate(ask(prompts[::-1]), hot)][::-1] == [
        c.ids for c in forward
    ]
    assert not set(row_seeds([[1], [1], [2]], 1)) & set(row_seeds([[1], [1], [2]], 2)), (
        "neighbouring seeds draw other numbers"
    )


def test_loaded_models_are_kept_while_there_is_room_and_the_longest_unused_goes_first(
    tuned_base: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool("cpu")
    third = Path(shutil.copytree(tiny_base, tmp_path / "third"))
    first, second = (pool.engine_for(base_of(b)) for b in (tuned_base, tiny_base))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(pools, "LOADED_SHARE", 2.5 * pool.bytes_loaded() / 2 / memory)
    assert pool.engine_for(base_of(tuned_base)) is first
    pool.engine_for(base_of(third))
    assert (
        pool.engine_for(base_of(tuned_base)) is first
        and pool.engine_for(base_of(tiny_base)) is not second
    )
    monkeypatch.setattr(pools, "LOADED_SHARE", 0.0)
    last = pool.engine_for(base_of(third))
    assert list(pool.engines.values()) == [last], "what is asked is there, however large"


def test_the_bundled_base_and_its_control_are_two_engines(tmp_path: Path) -> None:
    pool = Pool("cpu")
    prompt, sampling = [[{"role": "user", "content": "Where is my card?"}]], Sampling(max_tokens=8)
    bases = [
        TunedModel(name=n, base=catalog.find(n, tmp_path))
        for n in ("tunesmith-tiny", "tunesmith-tiny-scratch")
    ]
    answers = [pool.engine_for(b).generate(prompt, sampling)[0].text for b in bases]
    assert bases[0].base.folder == bases[1].base.folder and answers[0] != answers[1]
