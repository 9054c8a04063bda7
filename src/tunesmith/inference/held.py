"""Prompts that are read and answered together, for models that take packed rows: what is held of
them, and the attention to it.

What prompts begin with alike is read once, held once, and attended to by all of them in one
product. What a prompt has for itself stands in a tensor with room for its answer: a new token is
written to its place, and nothing else is moved until rows leave.

B rows, T packed positions, H heads, J key-value heads, S positions held, D width of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunesmith.models import packed
from tunesmith.models.adapters import Adapter

# tokens that holding a node once must save; a smaller one is copied to its rows, which costs less
# than a product more
LEAST_SHARED = 512
ROOM = 32  # tokens of an answer for which there is room at first

Pair = tuple[Tensor, Tensor]
"""Keys and values, (S, J, D) each."""


@dataclass(frozen=True)
class Shared:
    """Tokens that rows [start, end) all go on from, by layer."""

    start: int
    end: int
    held: Mapping[int, Pair]

    @property
    def size(self) -> int:
        return len(next(iter(self.held.values()))[0])


class Reading:
    """Attention while prompts are read: as in training, and each layer's keys and values are
    kept."""

    def __init__(self, made: packed.Packed, above: Sequence[Shared]) -> None:
        """`above`: what was read before and goes on in the tokens [start, end)."""
        self.made, self.above = made, above
        self.kept: dict[int, Pair] = {}

    def attend(
        self, layer: int, q_THD: Tensor, k_TJD: Tensor, v_TJD: Tensor, scale: float
    ) -> Tensor:
        self.kept[layer] = (k_TJD, v_TJD)
        out, lse = packed.attended(q_THD, k_TJD, v_TJD, self.made.layout, scale)
        for node in self.above:
            tokens = slice(node.start, node.end)
            packed.join(out[tokens], lse[tokens], q_THD[tokens], *node.held[layer], scale)
        return out.to(q_THD.dtype)


@dataclass
class Own:
    """What rows of like length have for themselves, and the tokens that are written behind it."""

    rows_B: Tensor
    """Which of the cohort's rows they are."""
    lengths_B: Tensor
    held: dict[int, Pair]
    """By layer, (B, S, J, D) each; S is more than is filled."""
    mask_BS: Tensor | None = None
    used: int = 0
    """Positions that any row has after the coming token."""

    def make_room(self) -> None:
        """For one more token of each row."""
        self.used = int(self.lengths_B.max()) + 1
        any_keys = next(iter(self.held.values()))[0]
        if self.used > any_keys.shape[1]:
            self.held = {
                layer: (_longer(k, self.used), _longer(v, self.used))
                for layer, (k, v) in self.held.items()
            }
        free = torch.arange(self.used)[None] > self.lengths_B[:, None]
        self.mask_BS = (
            torch.zeros_like(free, dtype=any_keys.dtype).masked_fill_(free, float("-inf"))
            if free.any()
            else None
        )

    def attend(
        self, layer: int, q_BHD: Tensor, k_BJD: Tensor, v_BJD: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.held[layer]
        at = torch.arange(len(self.lengths_B)), self.lengths_B
        keys[at], values[at] = k_BJD, v_BJD
        return packed.attended_rows(
            q_BHD, keys[:, : self.used], values[:, : self.used], self.mask_BS, scale
        )

    def keep(self, mask_N: Tensor) -> "Own | None":
        """The rows of the cohort's N that stay; None where none of these does."""
        stays = mask_N[self.rows_B]
        if not stays.any():
            return None
        lengths, rows = self.lengths_B[stays], (mask_N.cumsum(0) - 1)[self.rows_B[stays]]
        return Own(
            rows, lengths, {layer: (k[stays], v[stays]) for layer, (k, v) in self.held.items()}
        )


def _longer(x_BSJD: Tensor, needed: int) -> Tensor:
    B, S, J, D = x_BSJD.shape
    made = x_BSJD.new_zeros(B, needed + max(ROOM, needed // 4), J, D)
    made[:, :S] = x_BSJD
    return made


@dataclass
class Cohort:
    """Rows that were read together, in an order of their own."""

    shared: list[Shared]
    own: list[Own]
    adapters: list[Adapter | None] = field(default_factory=list)
    """Of each row."""

    @classmethod
    def of(
        cls, reading: Reading, order: Sequence[int], adapters: Sequence[Adapter | None]
    ) -> "Cohort":
        """`order`: the rows as packed, those that begin alike together; `adapters` in that
        order."""
        made, users = reading.made, dict[int, list[int]]()
        for at, row in enumerate(order):
            for n in made.paths[row]:
                users.setdefault(n, []).append(at)
        size = {n: made.nodes[n][1] - made.nodes[n][0] for n in users}
        nodes = [n for n, rows in users.items() if size[n] * (len(rows) - 1) >= LEAST_SHARED]
        shared = [
            Shared(users[n][0], users[n][-1] + 1, _cut(reading.kept, *made.nodes[n])) for n in nodes
        ]
        for node in reading.above:
            rows = [
                at for at, row in enumerate(order) if node.start <= made.places[row][0] < node.end
            ]
            shared.append(Shared(rows[0], rows[-1] + 1, node.held))
        apart = set(nodes)
        places = [
            [p for n in made.paths[row] if n not in apart for p in range(*made.nodes[n])]
            for row in order
        ]
        return cls(shared, [_own(b, places, reading.kept) for b in _alike(places)], list(adapters))

    def __len__(self) -> int:
        return len(self.adapters)

    @property
    def size(self) -> int:
        """Positions held."""
        return sum(s.size for s in self.shared) + sum(
            next(iter(o.held.values()))[0][..., 0, 0].numel() for o in self.own
        )

    def attend(
        self, layer: int, q_BHD: Tensor, k_BJD: Tensor, v_BJD: Tensor, scale: float
    ) -> Tensor:
        out = torch.empty_like(q_BHD, dtype=torch.promote_types(q_BHD.dtype, torch.float32))
        lse = out.new_empty(out.shape[:2])
        for own in self.own:
            rows_B = own.rows_B
            found = own.attend(layer, q_BHD[rows_B], k_BJD[rows_B], v_BJD[rows_B], scale)
            out[rows_B], lse[rows_B] = (x.to(out.dtype) for x in found)
        for node in self.shared:
            rows = slice(node.start, node.end)
            packed.join(out[rows], lse[rows], q_BHD[rows], *node.held[layer], scale)
        return out.to(q_BHD.dtype)

    def keep(self, stays: Sequence[bool]) -> None:
        """Let the other rows go."""
        mask_N = torch.tensor(stays)
        before = [0, *mask_N.cumsum(0).tolist()]
        found = [Shared(before[s.start], before[s.end], s.held) for s in self.shared]
        self.shared = [s for s in found if s.end > s.start]
        self.own = [own for own in (o.keep(mask_N) for o in self.own) if own]
        self.adapters = [a for a, s in zip(self.adapters, stays, strict=True) if s]


class Writing:
    """Attention while one more token of every row of some cohorts is read, cohort after cohort."""

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self.cohorts = cohorts
        for own in self._own():
            own.make_room()

    def attend(
        self, layer: int, q_BHD: Tensor, k_BJD: Tensor, v_BJD: Tensor, scale: float
    ) -> Tensor:
        cuts = [len(c) for c in self.cohorts]
        parts = zip(
            self.cohorts, *(torch.split(x, cuts) for x in (q_BHD, k_BJD, v_BJD)), strict=True
        )
        return torch.cat([cohort.attend(layer, q, k, v, scale) for cohort, q, k, v in parts])

    def done(self) -> None:
        """Every layer has the token."""
        for own in self._own():
            own.lengths_B += 1

    def _own(self) -> list[Own]:
        return [own for cohort in self.cohorts for own in cohort.own]


def _cut(kept: Mapping[int, Pair], start: int, end: int) -> dict[int, Pair]:
    return {
        layer: (k[start:end].clone(), v[start:end].clone()) for layer, (k, v) in kept.items()
    }  # a view would hold all of it


def _alike(places: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows whose own parts are of like length, together."""
    found: list[list[int]] = []
    for row in sorted(range(len(places)), key=lambda r: -len(places[r])):
        if not found or len(places[row]) + ROOM < packed.BUCKET * (
            len(places[found[-1][0]]) + ROOM
        ):
            found.append([])
        found[-1].append(row)
    return [sorted(rows) for rows in found]


def _own(rows: Sequence[int], places: Sequence[Sequence[int]], kept: Mapping[int, Pair]) -> Own:
    lengths = torch.tensor([len(places[r]) for r in rows])
    longest = int(lengths.max())
    where = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, r in enumerate(rows):
        where[b, : lengths[b]] = torch.tensor(places[r], dtype=torch.long)
    held = {layer: (_gathered(k, where), _gathered(v, where)) for layer, (k, v) in kept.items()}
    return Own(torch.tensor(rows), lengths, held)


def _gathered(x_TJD: Tensor, where_BS: Tensor) -> Tensor:
    """(B, S + room, J, D)"""
    B, S = where_BS.shape
    made = x_TJD.new_zeros(B, S + ROOM, *x_TJD.shape[1:])
    made[:, :S] = x_TJD[where_BS]
    return made
