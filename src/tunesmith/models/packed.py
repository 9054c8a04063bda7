"""Packed rows: the tokens of many rows in one sequence, what they begin with alike only once, and
no row sees another. Exact.

The rows' token ids make a prefix tree. Its nodes stand in the sequence one after the other, each
before those that go on from it, so that whatever descends from a node stands in one run behind it.
A token attends to its own node up to itself and to all of every node above: two kinds of dense
block, both by torch's own kernel. Partial results are joined by their log-sum-exp, and the backward
pass runs the kernel's own backward on each block with the joint result (as in ring attention, Liu
et al. 2023, arXiv 2310.01889).

It enters a model through transformers' AttentionInterface. Without a layout the attention is plain
`sdpa`. T packed positions, H heads, J key-value heads, D width of a head, M nodes of a bucket, L
their padded length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tunesmith.models.methods import decoder_of
from tunesmith.models.trial import Trial

NAME = "tunesmith_packed"
LEAST_SHARED = 8  # tokens: a shorter beginning costs more as a node of its own than it saves
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "attention_window_size",
    "window_size",
    "sliding_window_size",
)
"""What configurations call the tokens that a layer looks back, or the length of its chunks."""
BUCKET = 0.7  # nodes at least this share as long as the longest are attended to together

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Bucket:
    """Nodes of like length that are attended to in one call: M nodes, each padded to L places, so
    that they make a grid of M x L."""

    shape: tuple[int, int]
    """(M, L)"""
    places: Tensor
    """For each place of the grid, row by row, the position in the packed sequence of the token that
    stands there; padding repeats a node's last token."""
    flat: Tensor
    """The same positions for tokens alone, padding left out."""
    valid: Tensor
    """For each of these tokens, its place in the grid, counted row by row."""
    padding: Tensor | None
    """Places of the grid that hold padding; None where there is none."""

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """(M, 1, 1, L), 0 or minus infinity: for tokens that look ahead too; None without
        padding."""
        if self.padding is None:
            return None
        found = torch.zeros(self.shape[0] * self.shape[1], dtype=dtype)
        return found.index_fill_(0, self.padding, -torch.inf).view(self.shape[0], 1, 1, -1)


@dataclass(frozen=True)
class Layout:
    """Which token attends to which."""

    own: tuple[Bucket, ...]
    shared: tuple[tuple[int, int, int], ...]
    """Nodes with others below: the places [start, end) of the node, and [end, below) of all that
    goes on from it."""

    def attend(
        self, layer: int, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, scale: float
    ) -> Tensor:
        if not _has_kernel(q_THD):
            q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_TJD, v_TJD))
            mask_TT = self.mask.to(q.device)
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask_TT, scale=scale, enable_gqa=True
            )[0].transpose(0, 1)
        found: Tensor = _Attention.apply(q_THD, k_TJD, v_TJD, self, scale)  # type: ignore[no-untyped-call]
        return found

    @cached_property
    def mask(self) -> Tensor:
        """(T, T), true where one attends to the other: the same layout for devices without the
        kernel."""
        spans = [
            (int(node[0]), int(node[-1]) + 1) for b in self.own for node in b.places.view(b.shape)
        ]
        size = max(end for _, end in spans)
        found = torch.zeros(size, size, dtype=torch.bool)
        for start, end in spans:
            found[start:end, start:end] = torch.ones(
                end - start, end - start, dtype=torch.bool
            ).tril()
        for start, end, below in self.shared:
            found[end:below, start:end] = True
        return found


def _has_kernel(x: Tensor) -> bool:
    """Whether torch has a kernel here that also gives the log of the soft-max's sum."""
    return x.device.type == "cpu"


class Attends(Protocol):
    """What a model's attention can be handed as `packed_layout`."""

    def attend(
        self, layer: Any, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, scale: float
    ) -> Tensor:
        """(T, H, D), of one of the model's layers, by its number; None where a layer does not know
        it."""


@dataclass(frozen=True)
class Packed:
    ids_T: Tensor
    positions_T: Tensor
    """The position of each token in its row."""
    places: list[list[int]]
    """Of each row, in the order given: where its tokens stand."""
    layout: Layout
    nodes: list[tuple[int, int]]
    """The places [start, end) of each."""
    paths: list[list[int]]
    """Of each row: the nodes on its way."""


def pack(rows: Sequence[Sequence[int]], apart: Sequence[int] | None = None) -> Packed:
    """The rows in one sequence; those of another number in `apart` share nothing, however alike
    they begin."""
    nodes, paths = _tree(rows, apart or [0] * len(rows))
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
    return Packed(ids, positions, places, Layout(tuple(buckets(nodes)), shared), nodes, paths)


def _tree(
    rows: Sequence[Sequence[int]], apart: Sequence[int]
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """The nodes as places (start, end), in order; and of each row the nodes on its way."""
    order = sorted(range(len(rows)), key=lambda i: (apart[i], tuple(rows[i])))
    nodes: list[tuple[int, int]] = []
    paths: list[list[int]] = [[] for _ in rows]
    at = 0
    edges = [
        0,
        *(i for i in range(1, len(order)) if apart[order[i - 1]] != apart[order[i]]),
        len(order),
    ]
    # rows [low, high) in order, of which `depth` tokens are placed and `seen` are known to be equal
    stack = [(low, high, 0, 0) for low, high in reversed(list(pairwise(edges)))]
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
    """The parts of [low, high) whose rows have the same token after the common ones; a row that
    ends there needs no more."""
    start = low
    while start < high and len(rows[order[start]]) == common:
        if (
            depth < common
        ):  # the common part was too short for a node: each of these rows has it for itself
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


def buckets(nodes: Sequence[tuple[int, int]]) -> Iterator[Bucket]:
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
    valid, padding = (m.flatten().nonzero().squeeze(1) for m in (real, ~real))
    return Bucket(
        (len(nodes), length),
        places.minimum(end - 1).flatten(),
        places[real],
        valid,
        padding if len(padding) else None,
    )


def unique_tokens(before: Sequence[int] | None, row: Sequence[int]) -> int:
    """Tokens that a row adds behind the one before it in sorted order."""
    shared = _common(before, row, 0) if before is not None else 0
    return len(row) - (shared if shared >= LEAST_SHARED else 0)


# ---------------------------------------------------------------- attention


class _Attention(torch.autograd.Function):
    """Everything is kept as a model's projections leave it, position by position, so that a token's
    heads move together.

    The kernel takes fewer key-value heads than query heads as they are.
    """

    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        out, lse = attended(q_THD, k_TJD, v_TJD, layout, scale)
        out = out.to(q_THD.dtype)
        ctx.save_for_backward(q_THD, k_TJD, v_TJD, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_TJD, v_TJD, out, lse = ctx.saved_tensors
        g_THD = grads[0].contiguous()
        made = [torch.empty_like(x, dtype=lse.dtype) for x in (q_THD, k_TJD, v_TJD)]
        for b in ctx.layout.own:
            q, k, v, o = (gathered(x, b) for x in (q_THD, k_TJD, v_TJD, out))
            found = flash_backward(
                scattered(g_THD, b), q, k, v, o, gathered_lse(lse, b), 0.0, True, scale=ctx.scale
            )
            for whole, part in zip(made, found, strict=True):
                put(whole, b, part.transpose(1, 2))
        dq, dk, dv = made
        for start, end, below in ctx.layout.shared:
            g, q, o = (_heads(x[end:below]) for x in (g_THD, q_THD, out))
            k, v, joint = (
                _heads(k_TJD[start:end]),
                _heads(v_TJD[start:end]),
                lse[None, end:below].transpose(1, 2),
            )
            found = flash_backward(g, q, k, v, o, joint, 0.0, False, scale=ctx.scale)
            for whole, part in zip(
                (dq[end:below], dk[start:end], dv[start:end]), found, strict=True
            ):
                whole.add_(part[0].transpose(0, 1))
        return dq.to(q_THD.dtype), dk.to(q_THD.dtype), dv.to(q_THD.dtype), None, None


def attended(
    q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, layout: Layout, scale: float
) -> tuple[Tensor, Tensor]:
    """The attention's result and the log of each soft-max's sum, (T, H, D) and (T, H), at least in
    float32."""
    exact = torch.promote_types(q_THD.dtype, torch.float32)
    out, lse = torch.empty_like(q_THD, dtype=exact), q_THD.new_empty(q_THD.shape[:2], dtype=exact)
    for b in layout.own:
        o, s = flash(*(gathered(x, b) for x in (q_THD, k_TJD, v_TJD)), 0.0, True, scale=scale)
        put(out, b, o.transpose(1, 2))
        put(lse, b, s.transpose(1, 2))
    for start, end, below in layout.shared:
        join(
            out[end:below],
            lse[end:below],
            q_THD[end:below],
            k_TJD[start:end],
            v_TJD[start:end],
            scale,
        )
    return out, lse


def join(
    out_NHD: Tensor, lse_NH: Tensor, q_NHD: Tensor, k_SJD: Tensor, v_SJD: Tensor, scale: float
) -> None:
    """Let N tokens attend to S others too, all to all: into `out` and `lse`, which hold what they
    have seen until now."""
    o, s = flash(_heads(q_NHD), _heads(k_SJD), _heads(v_SJD), 0.0, False, scale=scale)
    other = s[0].T.to(lse_NH.dtype)
    both = torch.logaddexp(lse_NH, other)
    out_NHD.lerp_(o[0].transpose(0, 1).to(out_NHD.dtype), (other - both).exp_()[..., None])
    lse_NH.copy_(both)


def attended_rows(
    q_BHD: Tensor, k_BSJD: Tensor, v_BSJD: Tensor, mask_BS: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """One token of each of B rows, attending to its own row: the result and the log of its
    soft-max's sum. `mask`: 0, or minus infinity."""
    mask = None if mask_BS is None else mask_BS[:, None, None]
    k, v = k_BSJD.transpose(1, 2), v_BSJD.transpose(1, 2)
    o, s = flash(q_BHD[:, :, None], k, v, 0.0, False, attn_mask=mask, scale=scale)
    return o[:, :, 0], s[..., 0]


def _heads(x_SHD: Tensor) -> Tensor:
    """(1, H, S, D), the same memory."""
    return x_SHD.transpose(0, 1)[None]


def gathered(x_THD: Tensor, b: Bucket) -> Tensor:
    """(M, H, L, D)"""
    return x_THD.index_select(0, b.places).view(*b.shape, *x_THD.shape[1:]).transpose(1, 2)


def gathered_lse(lse_TH: Tensor, b: Bucket) -> Tensor:
    """(M, H, L), heads last in memory: as the kernel leaves it."""
    return lse_TH.index_select(0, b.places).view(*b.shape, -1).transpose(1, 2)


def scattered(g_THD: Tensor, b: Bucket) -> Tensor:
    """The gradient of a bucket's outputs, (M, H, L, D): zero at padding."""
    rows = g_THD.index_select(0, b.places)
    if b.padding is not None:
        rows.index_fill_(0, b.padding, 0.0)
    return rows.view(*b.shape, *g_THD.shape[1:]).transpose(1, 2)


def put(whole_T: Tensor, b: Bucket, rows_ML: Tensor) -> None:
    """What a bucket's real tokens gave, into their places."""
    rows = rows_ML.flatten(0, 1)
    whole_T.index_copy_(
        0, b.flat, (rows if b.padding is None else rows.index_select(0, b.valid)).to(whole_T.dtype)
    )


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: Attends | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a model calls in every layer: (1, H, T, D) to (1, T, H, D)."""
    if packed_layout is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    _must_be_plain(attention_mask, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q_THD, k_TJD, v_TJD = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return packed_layout.attend(getattr(module, "layer_idx", None), q_THD, k_TJD, v_TJD, scale)[
        None
    ], None


PLAIN = {
    "deterministic",
    "sliding_window",
    "attention_chunk_size",
    "position_ids",
    "cache_position",
    "use_cache",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "logits_to_keep",
    "num_items_in_batch",
}
"""What models hand to their attention besides, and packed rows may leave unread: windows and places
are in the layout, or rows were not packed; the others change no result."""


def _must_be_plain(mask: Tensor | None, more: dict[str, Any]) -> None:
    """ValueError where a model adds something to its attention that packed rows would lose."""
    named = [k for k, v in more.items() if v is not None and k not in PLAIN]
    if mask is not None and mask.numel() > 1:
        named.append("attention_mask")
    if named:
        raise ValueError(f"its attention reads {', '.join(named)}")


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def enable(model: PreTrainedModel, trial: Trial | None = None) -> None:
    """Let a model take packed rows, where it can: tried on a few tokens."""
    if not _objection(model):
        before = model.config._attn_implementation
        found = trial or Trial.of(model)
        model.set_attn_implementation(NAME)
        if why := found.objection(lambda: _same(found)):
            model.set_attn_implementation(before)
            model.tunesmith_padded = why


def _same(trial: Trial) -> bool:
    """Whether two rows that begin alike give in one sequence what each gives alone."""
    made = pack(trial.rows[:2])
    device = next(trial.model.parameters()).device
    given = inputs(made.ids_T, made.positions_T, made.layout, device)
    logits_TV = trial.model(**given, use_cache=False).logits[0]
    return all(trial.is_end(logits_TV[made.places[row][-1]], row, -1) for row in (0, 1))


def disable(model: Any, why: str) -> None:
    """Have rows padded for this model, whatever it could take; `why` is what users are told."""
    model.set_attn_implementation("sdpa")
    model.tunesmith_padded = why


def can_hold(model: Any, longest: int) -> bool:
    """Whether rows may be packed while they are answered too: what is held of them is attended to
    by the kernel alone."""
    return can_pack(model, longest) and _has_kernel(next(model.parameters()))


def can_pack(model: Any, longest: int) -> bool:
    """Whether rows of up to `longest` tokens may be packed for this model as it stands."""
    config = model.config.get_text_config()
    return config._attn_implementation == NAME and longest <= _window(model, longest)


def why_padded(model: Any, longest: int) -> str:
    """Why rows of up to `longest` tokens are not packed for this model; empty where they are."""
    if can_pack(model, longest):
        return ""
    if longest > _window(model, longest):
        return (
            f"its attention reaches back {_window(model, longest)} tokens and the longest row "
            f"has {longest}"
        )
    decoder = decoder_of(model)
    told: str = getattr(decoder, "tunesmith_padded", "")
    return told or _objection(decoder)


def _window(model: Any, longest: int) -> int:
    """Tokens that every layer looks back at least: rows that are longer are not packed."""
    config = model.config.get_text_config()
    found = [getattr(config, name, None) for name in WINDOWS]
    return min([n for n in found if isinstance(n, int) and n > 0], default=longest)


def _objection(model: PreTrainedModel) -> str:
    """Why a model must be given padded rows."""
    config = model.config.get_text_config()
    if not model._supports_attention_backend:
        return "its attention cannot be exchanged"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps attention scores"
    if any(
        v
        for k, v in config.to_dict().items()
        if ("dropout" in k or "pdrop" in k) and isinstance(v, float)
    ):
        return "it drops values at random, which rows with one beginning would share"
    return ""


def inputs(
    ids_T: Tensor, positions_T: Tensor, layout: Attends, device: torch.device | None = None
) -> dict[str, Any]:
    """What the model's forward is given. The mask of one element is never read: the layout says who
    sees whom."""
    made = {
        "input_ids": ids_T[None],
        "position_ids": positions_T[None],
        "attention_mask": torch.zeros(1, 1, 1, 1),
    }
    return {**{name: t.to(device) for name, t in made.items()}, "packed_layout": layout}


def groups(
    rows: Sequence[Sequence[int]],
    max_tokens: int,
    max_rows: int | None = None,
    apart: Sequence[int] | None = None,
) -> list[list[int]]:
    """Rows for one pass each: at most `max_tokens` distinct ones (or one row), rows that begin
    alike together (`apart` as in `pack`)."""
    of = apart or [0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (of[i], tuple(rows[i]), i))
    found: list[list[int]] = []
    used = 0
    for before, i in pairwise([-1, *order]):
        new = unique_tokens(rows[before] if found and of[before] == of[i] else None, rows[i])
        if not found or used + new > max_tokens or len(found[-1]) == max_rows:
            found.append([])
            used, new = 0, len(rows[i])
        found[-1].append(i)
        used += new
    return found
