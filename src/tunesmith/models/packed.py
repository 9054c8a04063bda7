"""Packed rows: the tokens of many rows in one sequence, what they begin with alike only once, and no row sees another. Exact.

The rows' token ids make a prefix tree. Its nodes stand in the sequence one after the other, each before those that go on from it, so
that whatever descends from a node stands in one run behind it. A token attends to its own node up to itself and to all of every
node above: two kinds of dense block, both by torch's own kernel. Partial results are joined by their log-sum-exp, and the backward
pass runs the kernel's own backward on each block with the joint result (as in ring attention, Liu et al. 2023, arXiv 2310.01889).

It enters a model through transformers' AttentionInterface. Without a layout the attention is plain `sdpa`.
T packed positions, H heads, J key-value heads, D width of a head, M nodes of a bucket, L their padded length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "tunesmith_packed"
LEAST_SHARED = 8  # tokens: a shorter beginning costs more as a node of its own than it saves
BUCKET = 0.7  # nodes at least this share as long as the longest are attended to together

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Bucket:
    """Nodes of like length, each attending to itself."""

    places_ML: Tensor
    """Where their tokens stand; after its end a node repeats its last token."""
    flat: Tensor
    """Where the tokens stand, padding left out."""
    valid: Tensor
    """The same tokens as places in the flattened (M, L)."""


@dataclass(frozen=True)
class Layout:
    """Which token attends to which."""

    own: tuple[Bucket, ...]
    shared: tuple[tuple[int, int, int], ...]
    """Nodes with others below: the places [start, end) of the node, and [end, below) of all that goes on from it."""


@dataclass(frozen=True)
class Packed:
    ids_T: Tensor
    positions_T: Tensor
    """The position of each token in its row."""
    places: list[list[int]]
    """Of each row, in the order given: where its tokens stand."""
    layout: Layout


def pack(rows: Sequence[Sequence[int]]) -> Packed:
    """The rows in one sequence."""
    nodes, paths = _tree(rows)
    places = [[p for n in path for p in range(nodes[n][0], nodes[n][1])] for path in paths]
    size = nodes[-1][1] if nodes else 0
    ids, positions = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    for row, where in zip(rows, places, strict=True):
        ids[where], positions[where] = torch.tensor(row), torch.arange(len(row))
    below = [end for _, end in nodes]
    for path in paths:
        for n in path:
            below[n] = max(below[n], nodes[path[-1]][1])
    shared = tuple((start, end, b) for (start, end), b in zip(nodes, below, strict=True) if b > end)
    return Packed(ids, positions, places, Layout(tuple(_buckets(nodes)), shared))


def _tree(rows: Sequence[Sequence[int]]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """The nodes as places (start, end), in order; and of each row the nodes on its way."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    nodes: list[tuple[int, int]] = []
    paths: list[list[int]] = [[] for _ in rows]
    at = 0
    stack = [(0, len(order), 0, 0)]  # rows [low, high) in order, of which `depth` tokens are placed and `seen` are known to be equal
    while stack:
        low, high, depth, seen = stack.pop()
        first, last = rows[order[low]], rows[order[high - 1]]
        common = _common(first, last, seen)
        ends = high - low == 1 or (common == len(last))  # one row, or equal rows
        if ends or common - depth >= LEAST_SHARED:
            if common > depth:
                nodes.append((at, at + common - depth))
                at += common - depth
                for i in range(low, high):
                    paths[order[i]].append(len(nodes) - 1)
            depth = common
        if not ends:
            stack += reversed(list(_runs(rows, order, low, high, depth, common)))
    return nodes, paths


def _runs(
    rows: Sequence[Sequence[int]], order: list[int], low: int, high: int, depth: int, common: int
) -> Iterator[tuple[int, int, int, int]]:
    """The parts of [low, high) whose rows have the same token after the common ones; a row that ends there needs no more."""
    start = low
    while start < high and len(rows[order[start]]) == common:
        if depth < common:  # the common part was too short for a node: each of these rows has it for itself
            yield start, start + 1, depth, common
        start += 1
    for i in range(start + 1, high + 1):
        if i == high or rows[order[i]][common] != rows[order[start]][common]:
            yield start, i, depth, common
            start = i


def _common(a: Sequence[int], b: Sequence[int], seen: int) -> int:
    """How many tokens two rows begin with alike; `seen` are known to be."""
    n = min(len(a), len(b))
    while seen < n and a[seen] == b[seen]:
        seen += 1
    return seen


def _buckets(nodes: Sequence[tuple[int, int]]) -> Iterator[Bucket]:
    by_length = sorted(nodes, key=lambda n: n[0] - n[1])
    group: list[tuple[int, int]] = []
    for node in [*by_length, (0, 0)]:
        if group and node[1] - node[0] < BUCKET * (group[0][1] - group[0][0]):
            yield _bucket(group)
            group = []
        group.append(node)


def _bucket(nodes: Sequence[tuple[int, int]]) -> Bucket:
    start, end = torch.tensor(nodes).T[:, :, None]
    length = int((end - start).max())
    places = start + torch.arange(length)
    real = places < end
    return Bucket(places.minimum(end - 1), places[real], real.flatten().nonzero().squeeze(1))


def unique_tokens(before: Sequence[int] | None, row: Sequence[int]) -> int:
    """Tokens that a row adds behind the one before it in sorted order."""
    shared = _common(before, row, 0) if before is not None else 0
    return len(row) - (shared if shared >= LEAST_SHARED else 0)


# ---------------------------------------------------------------- attention


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_HTD: Tensor, k_JTD: Tensor, v_JTD: Tensor, layout: Layout, scale: float) -> Tensor:
        H, J = len(q_HTD), len(k_JTD)
        exact = torch.promote_types(q_HTD.dtype, torch.float32)
        out, lse = torch.empty_like(q_HTD, dtype=exact), q_HTD.new_empty(q_HTD.shape[:2], dtype=exact)
        for b in layout.own:
            q, k, v = (_gathered(_repeated(x, H // J if x is not q_HTD else 1), b) for x in (q_HTD, k_JTD, v_JTD))
            o, s = _flash(q, k, v, 0.0, True, scale=scale)
            out[:, b.flat] = o.transpose(0, 1).flatten(1, 2)[:, b.valid].to(exact)
            lse[:, b.flat] = s.transpose(0, 1).flatten(1, 2)[:, b.valid].to(exact)
        for start, end, below in layout.shared:
            o, s = _flash(_folded(q_HTD[:, end:below], J), k_JTD[None, :, start:end], v_JTD[None, :, start:end], 0.0, False, scale=scale)
            o, s = _unfolded(o, H).to(exact), s.reshape(H, below - end).to(exact)
            mine = lse[:, end:below]
            both = torch.logaddexp(mine, s)
            out[:, end:below] = out[:, end:below] * (mine - both).exp()[..., None] + o * (s - both).exp()[..., None]
            lse[:, end:below] = both
        out = out.to(q_HTD.dtype)
        ctx.save_for_backward(q_HTD, k_JTD, v_JTD, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_HTD, k_JTD, v_JTD, out, lse = ctx.saved_tensors
        [g_HTD] = grads
        H, J = len(q_HTD), len(k_JTD)
        G = H // J
        dq, dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (q_HTD, k_JTD, v_JTD))
        for b in ctx.layout.own:
            q, k, v, o = (_gathered(x, b) for x in (q_HTD, _repeated(k_JTD, G), _repeated(v_JTD, G), out))
            found = _flash_backward(_scattered(g_HTD, b), q, k, v, o, _lse(lse[:, b.places_ML].transpose(0, 1)), 0.0, True, scale=ctx.scale)
            for total, d, n in zip((dq, dk, dv), found, (1, G, G), strict=True):
                flat = d.transpose(0, 1).flatten(1, 2)[:, b.valid].to(total.dtype)
                total[:, b.flat] = flat if n == 1 else flat.unflatten(0, (J, G)).sum(1)
        for start, end, below in ctx.layout.shared:
            s = slice(end, below)
            q, o, g = (_folded(x[:, s], J) for x in (q_HTD, out, g_HTD))
            k, v = k_JTD[None, :, start:end], v_JTD[None, :, start:end]
            found = _flash_backward(g, q, k, v, o, _lse(lse[:, s].reshape(1, J, -1)), 0.0, False, scale=ctx.scale)
            dq[:, s] += _unfolded(found[0], H)
            dk[:, start:end] += found[1][0]
            dv[:, start:end] += found[2][0]
        return dq.to(q_HTD.dtype), dk.to(q_HTD.dtype), dv.to(q_HTD.dtype), None, None


def _repeated(x_JTD: Tensor, n: int) -> Tensor:
    return x_JTD.repeat_interleave(n, 0) if n > 1 else x_JTD


def _gathered(x_HTD: Tensor, b: Bucket) -> Tensor:
    """(M, H, L, D)"""
    return x_HTD[:, b.places_ML].transpose(0, 1)


def _scattered(g_HTD: Tensor, b: Bucket) -> Tensor:
    """The gradient of a bucket's outputs, (M, H, L, D): zero at padding."""
    H, _, D = g_HTD.shape
    M, L = b.places_ML.shape
    flat = g_HTD.new_zeros(H, M * L, D)
    flat[:, b.valid] = g_HTD[:, b.flat]
    return flat.view(H, M, L, D).transpose(0, 1)


def _folded(x_HSD: Tensor, J: int) -> Tensor:
    """Query heads of one key-value head behind each other, (1, J, S of each head, D): no key has to be repeated."""
    H, S, D = x_HSD.shape
    return x_HSD.reshape(1, J, H // J * S, D)


def _unfolded(x: Tensor, H: int) -> Tensor:
    return x.reshape(H, -1, x.shape[-1])


def _lse(x: Tensor) -> Tensor:
    """In the memory order in which the kernel leaves it: heads last."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, packed_layout: Layout | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What a model calls in every layer: (1, H, T, D) to (1, T, H, D)."""
    if packed_layout is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: Tensor = _Attention.apply(query[0], key[0], value[0], packed_layout, scale)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)[None], None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def enable(model: PreTrainedModel) -> None:
    """Let a model take packed rows, where it can."""
    if not _objection(model):
        model.set_attn_implementation(NAME)


def can_pack(model: Any, longest: int) -> bool:
    """Whether rows of up to `longest` tokens may be packed for this model as it stands."""
    config = model.config.get_text_config()
    return config._attn_implementation == NAME and longest <= _window(model, longest)


def why_padded(model: Any, longest: int) -> str:
    """Why rows of up to `longest` tokens are not packed for this model; empty where they are."""
    if can_pack(model, longest):
        return ""
    if longest > _window(model, longest):
        return f"its attention reaches back {_window(model, longest)} tokens and the longest row has {longest}"
    return _objection(model.get_base_model() if hasattr(model, "get_base_model") else model)


def _window(model: Any, longest: int) -> int:
    return getattr(model.config.get_text_config(), "sliding_window", None) or longest


def _objection(model: PreTrainedModel) -> str:
    """Why a model must be given padded rows."""
    config = model.config.get_text_config()
    if next(model.parameters()).device.type != "cpu":
        return "packing is proven on processors only"
    if not model._supports_attention_backend:
        return "its attention cannot be exchanged"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps attention scores"
    if any(v for k, v in config.to_dict().items() if ("dropout" in k or "pdrop" in k) and isinstance(v, float)):
        return "it drops values at random, which rows with one beginning would share"
    return ""


def inputs(packed: Packed) -> dict[str, Any]:
    """What the model's forward is given. The mask of one element is never read: the layout says who sees whom."""
    return {
        "input_ids": packed.ids_T[None], "position_ids": packed.positions_T[None], "attention_mask": torch.zeros(1, 1, 1, 1),
        "packed_layout": packed.layout,
    }  # fmt: skip


def in_order(rows: Sequence[Sequence[int]]) -> list[int]:
    """The rows' places in sorted order: those that begin alike stand together."""
    return sorted(range(len(rows)), key=lambda i: (tuple(rows[i]), i))


def groups(rows: Sequence[Sequence[int]], max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Rows for one pass each: at most `max_tokens` distinct ones (or one row), rows that begin alike together."""
    order = in_order(rows)
    found: list[list[int]] = []
    used = 0
    for before, i in pairwise([-1, *order]):
        new = unique_tokens(rows[before] if found else None, rows[i])
        if not found or used + new > max_tokens or len(found[-1]) == max_rows:
            found.append([])
            used, new = 0, len(rows[i])
        found[-1].append(i)
        used += new
    return found
