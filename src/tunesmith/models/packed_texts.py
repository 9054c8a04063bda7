"""Texts of different length in one sequence for an encoder: every token attends to the whole of its
own text and to nothing else, and no padding goes through the layers. Exact.

Texts of like length are attended to together, by torch's own kernel (the grids of `packed`, here
with a mask, since a token also looks ahead). What a class makes of the first token's state, its
pooling and head, is the class's own code, which is handed these states alone. T tokens, B texts,
H heads, D width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from tunesmith.models import layers, packed, skipping
from tunesmith.models.methods import decoder_of
from tunesmith.models.packed import Bucket

TRIED = ((5, 6, 7, 8), (5, 9), (6, 7, 5, 8, 9, 5, 6))  # token numbers, within any vocabulary
FLAG = "tunesmith_texts_packed"
FIRSTS = "tunesmith_first_tokens_alone"


@dataclass(frozen=True)
class Texts:
    """Which token attends to which."""

    buckets: tuple[Bucket, ...]

    def attend(
        self, layer: Any, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float
    ) -> Tensor:
        found: Tensor = _Attention.apply(q_THD, k_THD, v_THD, self, scale)  # type: ignore[no-untyped-call]
        return found


def pack(rows: Sequence[Sequence[int]]) -> tuple[list[int], Texts]:
    """Where each text begins in the sequence that they make together, in order; and who sees
    whom."""
    ends, at = [], 0
    for row in rows:
        ends.append((at, at + len(row)))
        at += len(row)
    return [start for start, _ in ends], Texts(tuple(packed.buckets(ends)))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, texts: Texts, scale: float
    ) -> Tensor:
        out = torch.empty_like(q_THD)
        lse = q_THD.new_empty(
            q_THD.shape[:2], dtype=torch.promote_types(q_THD.dtype, torch.float32)
        )
        for b in texts.buckets:
            q, k, v = (packed.gathered(x, b) for x in (q_THD, k_THD, v_THD))
            o, s = packed.flash(q, k, v, 0.0, False, attn_mask=b.mask(q.dtype), scale=scale)
            packed.put(out, b, o.transpose(1, 2))
            packed.put(lse, b, s.transpose(1, 2))
        ctx.save_for_backward(q_THD, k_THD, v_THD, out, lse)
        ctx.texts, ctx.scale = texts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_THD, v_THD, out, lse = ctx.saved_tensors
        g_THD = grads[0].contiguous()
        made = [torch.empty_like(x) for x in (q_THD, k_THD, v_THD)]
        for b in ctx.texts.buckets:
            q, k, v, o = (packed.gathered(x, b) for x in (q_THD, k_THD, v_THD, out))
            found = packed.flash_backward(
                packed.scattered(g_THD, b),
                q,
                k,
                v,
                o,
                packed.gathered_lse(lse, b),
                0.0,
                False,
                attn_mask=b.mask(q.dtype),
                scale=ctx.scale,
            )
            for whole, part in zip(made, found, strict=True):
                packed.put(whole, b, part.transpose(1, 2))
        return *made, None, None


# ---------------------------------------------------------------- models


def enable(model: Any) -> None:
    """Let a classifier take packed texts, where it gives the same: tried on a few tokens."""
    plain = decoder_of(model)
    setattr(plain, FLAG, False)
    setattr(plain, FIRSTS, False)
    if next(plain.parameters()).device.type != "cpu" or not plain._supports_attention_backend:
        return
    before = plain.config._attn_implementation
    try:
        plain.set_attn_implementation(packed.NAME)
        same = _same(plain)
    except Exception:  # of a class that reads its texts in another way
        same = False
    if same:
        setattr(plain, FLAG, True)
        setattr(plain, FIRSTS, _can_leave_others(plain))
    else:
        plain.set_attn_implementation(before)


def _can_leave_others(plain: Any) -> bool:
    """Whether the last layer can go on with the first tokens alone: tried."""
    setattr(plain, FIRSTS, True)
    try:
        return _same(plain)
    except Exception:  # of a layer that adds what it was given behind its attention
        return False


def can_pack(model: Any, longest: int) -> bool:
    """Whether texts of up to `longest` tokens may be packed for this model."""
    plain = decoder_of(model)
    around = getattr(plain.config, "local_attention", 0)  # tokens that a layer looks at, both ways
    return bool(getattr(plain, FLAG, False)) and (not around or longest <= around // 2)


@torch.no_grad()
def _same(plain: Any) -> bool:
    """Whether texts in one sequence give what each gives alone."""
    together = logits(plain, [_Text(row) for row in TRIED])
    alone = [plain(input_ids=torch.tensor([row])).logits[0] for row in TRIED]
    return torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def logits(
    model: Any,
    texts: Sequence[Any],
    states_SD: Tensor | None = None,
    below: int | None = None,
) -> Tensor:
    """(B, C) of texts that go through the model in one sequence. `states_SD`: what the layers below
    `below` make of them, which are skipped; without `below` the first tokens' last states."""
    plain = decoder_of(model)
    if states_SD is None:
        first_BD = _first(plain, texts)
    elif below is None:
        first_BD = states_SD
    else:
        with skipping.skipped(plain, below, states_SD[None]):
            first_BD = _first(plain, texts)
    with _standing_in(plain, first_BD[:, None]):
        found: Tensor = plain(input_ids=torch.tensor([[t.ids[0]] for t in texts])).logits
    return found


def _first(plain: Any, texts: Sequence[Any]) -> Tensor:
    """The first tokens' last states, (B, D)."""
    starts, given = _given(plain, texts)
    at_B = torch.tensor(starts)
    if not getattr(plain, FIRSTS, False):
        last_1TD: Tensor = _base(plain)(**given).last_hidden_state
        return last_1TD[0, at_B]
    with _first_tokens_alone(plain, at_B):
        first_1BD: Tensor = _base(plain)(**given).last_hidden_state
    return first_1BD[0]


@contextmanager
def _first_tokens_alone(plain: Any, at_B: Tensor) -> Iterator[None]:
    """Inside, the last layer goes on behind its attention with the texts' first tokens: of the
    others nothing more is read."""

    def pick(_: nn.Module, __: Any, out: Any) -> Any:
        return (out[0][:, at_B], *out[1:]) if isinstance(out, tuple) else out[:, at_B]

    last: Any = layers.stack_of(plain)[1][-1]
    hook = last.attention.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def states(model: Any, texts: Sequence[Any], below: int | None) -> Tensor:
    """What layer `below` is given of texts, (S, D), of one after the other; without it the first
    tokens' last states, (B, D)."""
    plain = decoder_of(model)
    if below is None:
        return _first(plain, texts)
    _, given = _given(plain, texts)
    return skipping.given_to(plain, below, given)[0]


@torch.no_grad()
def can_skip(model: Any, below: int) -> bool:
    """Whether the layers below `below` can be left out where what they give is known: tried."""
    plain = decoder_of(model)
    if below == len(layers.stack_of(plain)[1]):
        return True  # then nothing of the base is run
    texts = [_Text(row) for row in TRIED]
    was_training = plain.training
    plain.eval()
    try:
        found = logits(plain, texts, states(plain, texts, below), below)
        return torch.equal(found, logits(plain, texts))
    except Exception:  # of layers that hand on something else
        return False
    finally:
        plain.train(was_training)


@dataclass(frozen=True)
class _Text:
    ids: Sequence[int]
    types: Sequence[int] | None = None


def _base(plain: Any) -> Any:
    return getattr(plain, plain.base_model_prefix)


def _given(plain: Any, texts: Sequence[Any]) -> tuple[list[int], dict[str, Any]]:
    """Where each text begins, and what the base is given."""
    rows = [t.ids for t in texts]
    starts, layout = pack(rows)
    given: dict[str, Any] = {
        "input_ids": torch.tensor([[i for row in rows for i in row]]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row))]])
        + _first_place(plain),
        "attention_mask": torch.zeros(1, 1, 1, 1),  # never read: the layout says who sees whom
        "packed_layout": layout,
    }
    if getattr(plain.config, "type_vocab_size", 0) > 1:
        flat = [k for t in texts for k in t.types or [0] * len(t.ids)]
        given["token_type_ids"] = torch.tensor([flat])
    return starts, given


def _first_place(plain: Any) -> int:
    """Of a text: some count places from behind the padding token's."""
    places = next((m for n, m in plain.named_modules() if n.endswith("position_embeddings")), None)
    padding = getattr(places, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


_states: ContextVar[Tensor | None] = ContextVar("states", default=None)


@contextmanager
def _standing_in(plain: Any, hidden_B1D: Tensor) -> Iterator[None]:
    """Inside, the base gives these states without computing anything, pooled as it pools."""
    base = _base(plain)
    token = _states.set(hidden_B1D)
    try:
        with skipping.doing(base, lambda *_, **__: _answer(base)):
            yield
    finally:
        _states.reset(token)


def _answer(base: nn.Module) -> Any:
    hidden, pooler = _states.get(), getattr(base, "pooler", None)
    return BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=hidden, pooler_output=None if pooler is None else pooler(hidden)
    )
