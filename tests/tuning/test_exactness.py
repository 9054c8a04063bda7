"""The gradient, not the loss, is compared: against one row at a time, padded, in float64 with a
float64 norm."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from conftest import decided
from tunesmith.data.dataset import Row
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoded
from tunesmith.models import chunked_loss, methods, packed, trim
from tunesmith.models.methods import lora
from tunesmith.tasks import text_generation
from tunesmith.tasks.text_generation import collate, token_losses
from tunesmith.tuning.loop import accumulate

PADDED_TO = 48
LAYOUTS = [
    dict(max_rows=8),
    dict(max_rows=4),
    dict(max_rows=2),
    dict(max_rows=1),
    dict(max_tokens=70),
    dict(),
]


def examples(lengths: list[tuple[int, int]]) -> list[Example]:
    """Rows of (prompt, completion) tokens."""
    generator = torch.Generator().manual_seed(len(lengths))
    found = []
    for i, (p, c) in enumerate(lengths):
        ids = torch.randint(4, 256, (p + c,), generator=generator).tolist()
        found.append(Example(Row(i + 1, "", "", ""), Encoded(ids, p)))
    return found


class TrueNorm(nn.Module):
    """RMSNorm in the model's own precision; the library's rounds to float32 even in a float64
    model."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))  # type: ignore[no-any-return, operator]


def double_model(folder: Path, method: str, packs: bool) -> nn.Module:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = (
            TrueNorm(layer.input_layernorm),
            TrueNorm(layer.post_attention_layernorm),
        )
    model.model.norm = TrueNorm(model.model.norm)
    if packs:
        packed.enable(model)
        trim.enable(model)
    torch.manual_seed(0)
    tuned = methods.METHODS[method].prepare(
        model,
        decided(),
    )
    for p in methods.trained_tensors(tuned).values():
        p.data = p.data.double()
        if method == "lora" and not p.any():
            nn.init.normal_(p, std=0.05)  # B starts at zero, where A has no gradient to compare
    return tuned.eval()  # type: ignore[no-any-return]


def reference(model: nn.Module, rows: list[Example]) -> dict[str, Tensor]:
    """One row at a time, padded, full logits, labels -100 outside the completion."""
    count = sum(r.encoded.n_learnt for r in rows)
    model.zero_grad(set_to_none=True)
    for row in rows:
        n, ids = len(row.encoded.ids), torch.zeros(1, PADDED_TO, dtype=torch.long)
        ids[0, :n] = torch.tensor(row.encoded.ids)
        mask = (torch.arange(PADDED_TO) < n).long()[None]
        labels = torch.full((PADDED_TO,), -100)
        labels[row.encoded.learnt] = ids[0, row.encoded.learnt]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        (
            F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum") / count
        ).backward()
    return gradients(model)


def ours(model: nn.Module, rows: list[Example], **layout: int) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    accumulate(text_generation, model, rows, **layout)  # type: ignore[arg-type]
    return gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest relative error of any trained tensor. One whose true gradient is nothing (a query
    over a single key) is compared on the scale of the others."""
    assert found.keys() == truth.keys() and truth
    floor = 1e-6 * max(t.norm() for t in truth.values())
    return max(
        float((found[n] - truth[n]).norm() / truth[n].norm().clamp_min(floor)) for n in truth
    )


ROWS = [(12, 3), (40, 2), (5, 1), (20, 9), (1, 1), (33, 14), (8, 8), (2, 30)]


@pytest.fixture(
    params=[
        "lora padded",
        "full padded",
        "lora packed",
        "full packed",
        "lora packed in chunks",
        "full padded in chunks",
        "lora packed by a mask",
    ],
)
def model(request: pytest.FixtureRequest, tiny_base: Path) -> Iterator[nn.Module]:
    """In chunks: the head runs on three tokens at a time. By a mask: as on devices without the
    attention kernel."""
    torch.set_num_threads(1)
    method, layout, *how = request.param.split()
    made = double_model(tiny_base, method, layout == "packed")
    with pytest.MonkeyPatch.context() as patch:
        if "mask" in how:
            patch.setattr(packed, "_has_kernel", lambda x: False)
        if "chunks" in how:
            patch.setattr(chunked_loss, "CHUNK_LOGITS", 3 * made.config.vocab_size)  # type: ignore[union-attr, operator]
        yield made


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_do_not_depend_on_how_a_step_is_cut(
    model: nn.Module, layout: dict[str, int]
) -> None:
    rows = examples(ROWS)
    assert worst(ours(model, rows, **layout), reference(model, rows)) < 1e-10


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 18)), min_size=1, max_size=9),
    max_rows=st.integers(1, 9),
    max_tokens=st.integers(1, 400),
)
def test_gradients_are_exact_on_any_table(
    model: nn.Module, lengths: list[tuple[int, int]], max_rows: int, max_tokens: int
) -> None:
    rows = examples(lengths)
    assert (
        worst(ours(model, rows, max_rows=max_rows, max_tokens=max_tokens), reference(model, rows))
        < 1e-10
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_step(
    model: nn.Module, layout: dict[str, int]
) -> None:
    rows = examples(ROWS)
    loss, per_row = accumulate(text_generation, model, rows, **layout)  # type: ignore[arg-type]
    alone = [accumulate(text_generation, model, [r])[0] for r in rows]
    counts = [r.encoded.n_completion for r in rows]
    assert loss == pytest.approx(
        sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts), rel=1e-10
    )
    assert [v / n for v, n in per_row] == pytest.approx(alone, rel=1e-10)


def mean_of_means(model: nn.Module, rows: list[Example]) -> None:
    for row in rows:
        (token_losses(model, collate([row.encoded], model)).mean() / len(rows)).backward()  # type: ignore[arg-type]


def prompt_trained(model: nn.Module, rows: list[Example]) -> None:
    accumulate(text_generation, model, [Example(r.row, Encoded(r.encoded.ids, 1)) for r in rows])


def stop_id_forgotten(model: nn.Module, rows: list[Example]) -> None:
    accumulate(
        text_generation,
        model,
        [
            Example(r.row, Encoded(r.encoded.ids[:-1], r.encoded.n_prompt))
            for r in rows
            if r.encoded.n_completion > 1
        ],
    )


@pytest.mark.parametrize("wrong", [mean_of_means, prompt_trained, stop_id_forgotten])
def test_the_comparison_sees_a_wrong_gradient(
    model: nn.Module, wrong: Callable[[nn.Module, list[Example]], None]
) -> None:
    rows = examples(ROWS)
    truth = reference(model, rows)
    model.zero_grad(set_to_none=True)
    wrong(model, rows)
    assert worst(gradients(model), truth) > 1e-3


# ---------------------------------------------------------------- prefix trees


@st.composite
def trees(draw: st.DrawFn) -> list[Example]:
    """Rows that go on from each other's beginnings, at several levels; equal rows and rows that end
    where others go on among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    known: list[list[int]] = [[]]
    for _ in range(draw(st.integers(1, 9))):
        parent = known[draw(st.integers(0, len(known) - 1))]
        start = parent[: draw(st.integers(0, len(parent)))]
        more = draw(st.integers(0 if len(start) > 1 else 2, PADDED_TO - len(start)))
        known.append(start + torch.randint(4, 256, (more,), generator=generator).tolist())
    return [
        Example(Row(i + 1, "", "", ""), draw(answers_in(ids))) for i, ids in enumerate(known[1:])
    ]


@st.composite
def answers_in(draw: st.DrawFn, ids: list[int]) -> Encoded:
    """A row whose last answer begins anywhere, with up to two earlier ones that are learnt too."""
    n_prompt = draw(st.integers(1, len(ids) - 1))
    ends = sorted(draw(st.lists(st.integers(1, n_prompt), max_size=4, unique=True)))
    return Encoded(ids, n_prompt, tuple(zip(ends[::2], ends[1::2], strict=False)))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=trees(), max_rows=st.integers(1, 9), max_tokens=st.integers(1, 400))
def test_gradients_through_a_prefix_tree_are_exact(
    model: nn.Module, rows: list[Example], max_rows: int, max_tokens: int
) -> None:
    assert (
        worst(ours(model, rows, max_rows=max_rows, max_tokens=max_tokens), reference(model, rows))
        < 1e-10
    )


SHARED = [4, *range(30, 50)]
TREE = [
    Example(Row(i, "", "", ""), Encoded([*SHARED, *tail], 12))
    for i, tail in enumerate([[5, 6], [5, 7, 8], [], [9] * 12, [9] * 20])
]


def test_what_rows_begin_with_is_in_the_sequence_once() -> None:
    made = packed.pack([e.encoded.ids for e in TREE])
    assert len(made.ids_T) == 21 + 2 + 3 + 12 + 8 and len(made.layout.shared) == 2
    assert [[int(made.ids_T[p]) for p in places] for places in made.places] == [
        e.encoded.ids for e in TREE
    ]
    assert [[int(made.positions_T[p]) for p in places] for places in made.places] == [
        list(range(len(e.encoded.ids))) for e in TREE
    ]


def one_position_too_far(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed.inputs
    monkeypatch.setattr(
        packed, "inputs", lambda ids, positions, *rest: right(ids, 2 * positions, *rest)
    )


def prefix_without_gradient(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed._Attention.backward

    def wrong(ctx: Any, *grads: Tensor) -> Any:
        dq, dk, dv, *rest = right(ctx, *grads)
        for start, end, _ in ctx.layout.shared:
            dk[start:end] = dv[start:end] = 0
        return dq, dk, dv, *rest

    monkeypatch.setattr(packed._Attention, "backward", staticmethod(wrong))


def rows_see_each_other(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed.pack

    def wrong(rows: Any) -> packed.Packed:
        made = right(rows)
        first = made.layout.own[0]
        n = len(made.ids_T)
        (one,) = list(packed.buckets([(0, n)]))
        return (
            replace(made, layout=replace(made.layout, own=(one,), shared=()))
            if len(first.flat) < n
            else made
        )

    monkeypatch.setattr(packed, "pack", wrong)


def an_mlp_cut_at_the_wrong_places(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    right = trim.only
    monkeypatch.setattr(trim, "only", lambda keep: right((keep - 1).clamp(min=0)))


@pytest.mark.parametrize(
    "wrong",
    [
        one_position_too_far,
        prefix_without_gradient,
        rows_see_each_other,
        an_mlp_cut_at_the_wrong_places,
    ],
)
def test_the_comparison_sees_a_wrong_packing(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., None]
) -> None:
    model = double_model(tiny_base, "lora", True)
    truth = reference(model, TREE)
    assert worst(ours(model, TREE), truth) < 1e-10
    wrong(model, monkeypatch)
    assert worst(ours(model, TREE), truth) > 1e-3


SEEDS = range(10)
CERTAIN = 4.3  # of Student's t with nine degrees: one run in a thousand is wrong by chance


def farther(ours_and_theirs: list[tuple[float, float]]) -> float:
    """Student's t of the mean log ratio of two errors over several models: how surely the first is
    larger."""
    ratios = torch.tensor([a / b for a, b in ours_and_theirs], dtype=torch.float64).log()
    return float(ratios.mean() / (ratios.std() / len(ratios) ** 0.5))


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """Another model of the same shape: rounding errors of one model say little."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


def error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    total = sum(float((found[n].double() - truth[n]).pow(2).sum()) for n in truth) ** 0.5
    return total / sum(float(t.pow(2).sum()) for t in truth.values()) ** 0.5  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_reduced_precision_packing_is_as_near_to_the_truth_as_padding(
    tiny_base: Path, dtype: torch.dtype
) -> None:
    """Over several models, packed rows are not surely further from the float64 gradient than padded
    ones of the same precision."""
    errors = []
    for seed in SEEDS:
        truth = reference(shaken(double_model(tiny_base, "full", False), seed), TREE)
        packed_, padded = (
            error(ours(shaken(double_model(tiny_base, "full", p), seed).to(dtype), TREE), truth)
            for p in (True, False)
        )
        errors.append((packed_, padded))
    assert farther(errors) < CERTAIN, errors


def test_the_last_mlp_runs_only_where_the_loss_looks(tiny_base: Path) -> None:
    model, seen = double_model(tiny_base, "lora", True), []
    mlps = [m for n, m in model.named_modules() if n.endswith("mlp.down_proj")]
    for mlp in mlps:
        mlp.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[1]))
    batch = collate([e.encoded for e in TREE], model)
    token_losses(model, batch)
    assert (
        seen[-2:] == [batch.inputs["input_ids"].shape[1], len(batch.keep_K)] and seen[-2] > seen[-1]
    )


def adapter_error(base: Path, seed: int, forward: Any) -> float:
    """Of the gradient of an adapter over weights in bfloat16, where its layers compute by
    `forward`."""
    truth = reference(shaken(double_model(base, "lora", False), seed), TREE)
    exact = shaken(double_model(base, "lora", True), seed)
    kept = {n: p.data.clone() for n, p in methods.trained_tensors(exact).items()}
    model = exact.to(torch.bfloat16)
    for n, p in methods.trained_tensors(model).items():
        p.data = kept[n].float()
    with pytest.MonkeyPatch.context() as patch:
        if forward is not None:
            patch.setattr(lora.FusedLinear, "forward", forward)
        found = ours(model, TREE)
    assert all(g.dtype == torch.float32 for g in found.values())
    return error(found, truth)


def test_frozen_weights_in_bfloat16_under_a_float32_adapter_are_as_near_to_the_truth_as_pefts(
    tiny_base: Path,
) -> None:
    """Over several models, ours is not surely further from the float64 gradient than PEFT's own
    layers."""
    peft = lora.lora_layer.Linear.forward
    errors = [(adapter_error(tiny_base, s, None), adapter_error(tiny_base, s, peft)) for s in SEEDS]
    assert farther(errors) < CERTAIN, errors
    assert farther([(4 / 3 * a, b) for a, b in errors]) > CERTAIN, (
        "a third more, as an earlier form had, would be seen"
    )
