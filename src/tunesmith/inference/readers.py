"""How a model reads prompts and goes on with their answers: packed where it can take that (`held`),
else padded. Both are exact.

A reader forms groups of prompts, reads a group, and reads one more token of every row of the
cohorts that it made.

B rows, V vocabulary, S positions held, T positions of the longest prompt.
"""

import copy
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.inference import held
from tunesmith.inference.cache import new_cache
from tunesmith.models import forward, packed
from tunesmith.models.adapters import Adapter, Adapters, Segment
from tunesmith.models.layout import micro_batches
from tunesmith.models.methods import Model

BATCH_TOKENS = 8192  # prompt tokens read together
CACHE_TOKENS = 65_536  # positions whose keys and values are held together
MOST_ROWS = 256  # answered together
PREFIX_LEAST = 16  # shared tokens worth a pass of their own


class Cohort(Protocol):
    """Rows that were read together."""

    @property
    def size(self) -> int:
        """Positions held."""

    def __len__(self) -> int: ...
    def keep(self, stays: Sequence[bool]) -> None:
        """Let the other rows go."""


class Reader(Protocol):
    waiting: deque[list[int]]
    """Groups of prompts that are still to be read, as places in the given ones."""

    def takes(self, cohorts: Sequence[Any]) -> bool:
        """Whether the next group has room beside these."""

    def read(self) -> tuple[Any, list[int], Tensor]:
        """The next group: its cohort, its prompts in the cohort's order, and the logits of each
        one's next token, (B, V)."""

    def step(self, cohorts: Sequence[Any], ids_B: Tensor, positions_B: Tensor) -> Tensor:
        """The logits after one more token of every row, cohort after cohort, (B, V)."""


def reader_for(
    model: Model,
    prompts: Sequence[list[int]],
    of: Sequence[Adapter | None],
    adapters: Adapters | None,
    longest: int,
) -> Reader:
    """`of`: the adapter of each prompt; `longest`: positions that a row can come to have."""
    kind = PackedReader if packed.can_hold(model, longest) else PaddedReader
    made: Reader = kind(model, prompts, of, adapters)
    return made


class PackedReader:
    """Rows of all cohorts go through the model together; each cohort attends to what it holds."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[list[int]],
        of: Sequence[Adapter | None],
        adapters: Adapters | None,
    ) -> None:
        self._model, self._of, self._adapters = model, of, adapters
        self._number = {adapter: i for i, adapter in enumerate(dict.fromkeys(of))}
        self._read_before: dict[Adapter | None, tuple[int, dict[int, held.Pair]]] = {}
        for adapter in self._in_several(self._groups(prompts)):
            self._read_prefix(
                adapter, [p for p, o in zip(prompts, of, strict=True) if o is adapter]
            )
        self._rests = [
            p[self._read_before.get(o, (0, None))[0] :] for p, o in zip(prompts, of, strict=True)
        ]
        self.waiting = deque(self._groups(self._rests))

    def takes(self, cohorts: Sequence[held.Cohort]) -> bool:
        rows = sum(map(len, cohorts))
        new = sum(len(self._rests[i]) + held.ROOM for i in self.waiting[0])
        return not rows or (
            rows + len(self.waiting[0]) <= MOST_ROWS
            and sum(c.size for c in cohorts) + new <= CACHE_TOKENS
        )

    def read(self) -> tuple[held.Cohort, list[int], Tensor]:
        group = self.waiting.popleft()
        of = [self._of[i] for i in group]
        made = packed.pack([self._rests[i] for i in group], [self._number[a] for a in of])
        order = sorted(range(len(group)), key=lambda b: made.paths[b])
        positions, segments, above = made.positions_T.clone(), [], []
        for adapter, rows in groupby(order, key=lambda b: of[b]):
            places = [p for b in rows for p in (made.places[b][0], made.places[b][-1])]
            start, end = min(places), max(places) + 1
            segments.append((start, end, adapter))
            if adapter in self._read_before:
                n, kept = self._read_before[adapter]
                above.append(held.Shared(start, end, kept))
                positions[start:end] += n
        reading = held.Reading(made, above)
        last, at_B = torch.unique(
            torch.tensor([made.places[b][-1] for b in order]), return_inverse=True
        )
        logits_KV = self._forward(made.ids_T, positions, reading, segments, last)
        cohort = held.Cohort.of(reading, order, [of[b] for b in order])
        return cohort, [group[b] for b in order], logits_KV[at_B]

    def step(self, cohorts: Sequence[held.Cohort], ids_B: Tensor, positions_B: Tensor) -> Tensor:
        writing = held.Writing(cohorts)
        of = [adapter for cohort in cohorts for adapter in cohort.adapters]
        logits_BV = self._forward(ids_B, positions_B, writing, _segments(of), torch.arange(len(of)))
        writing.done()
        return logits_BV

    def _forward(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        layout: packed.Attends,
        segments: Sequence[Segment],
        keep_K: Tensor,
    ) -> Tensor:
        with _using(self._adapters, segments):
            return forward.logits_at(
                self._model, keep_K, **packed.inputs(ids_T, positions_T, layout), use_cache=False
            )[0]

    def _groups(self, rows: Sequence[list[int]]) -> list[list[int]]:
        return packed.groups(
            rows, BATCH_TOKENS, MOST_ROWS // 4, [self._number[a] for a in self._of]
        )

    def _in_several(self, groups: Sequence[Sequence[int]]) -> list[Adapter | None]:
        """The adapters whose prompts need more than one group."""
        found = Counter(adapter for group in groups for adapter in {self._of[i] for i in group})
        return [adapter for adapter, n in found.items() if n > 1]

    def _read_prefix(self, adapter: Adapter | None, prompts: Sequence[list[int]]) -> None:
        n = common_prefix(prompts)
        if n < PREFIX_LEAST:
            return
        made = packed.pack([prompts[0][:n]])
        reading = held.Reading(made, [])
        self._forward(
            made.ids_T, made.positions_T, reading, [(0, n, adapter)], torch.tensor([n - 1])
        )
        self._read_before[adapter] = (n, reading.kept)


def _segments(of: Sequence[Adapter | None]) -> list[Segment]:
    found, at = [], 0
    for adapter, run in groupby(of):
        n = len(list(run))
        found.append((at, at + n, adapter))
        at += n
    return found


def _using(adapters: Adapters | None, segments: Sequence[Segment]) -> AbstractContextManager[None]:
    return adapters.using(segments) if adapters else nullcontext()


@dataclass
class PaddedCohort:
    """Padded on the right; each row's positions go on from its own end, so padding decides
    nothing."""

    cache: DynamicCache
    mask_BS: Tensor
    adapter: Adapter | None

    @property
    def size(self) -> int:
        return self.mask_BS.numel()

    def __len__(self) -> int:
        return len(self.mask_BS)

    def keep(self, stays: Sequence[bool]) -> None:
        kept = torch.tensor(stays, device=self.mask_BS.device).nonzero().squeeze(1)
        self.cache.batch_select_indices(kept)
        self.mask_BS = self.mask_BS[kept]


class PaddedReader:
    """One cohort at a time, its rows of like length and of one adapter; what all prompts of an
    adapter begin with is read once."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[list[int]],
        of: Sequence[Adapter | None],
        adapters: Adapters | None,
    ) -> None:
        self._model, self._prompts, self._of, self._adapters = model, prompts, of, adapters
        self._device = next(model.parameters()).device
        self.waiting: deque[list[int]] = deque()
        self._prefix = {}
        for adapter in dict.fromkeys(of):
            mine = [i for i, o in enumerate(of) if o is adapter]
            prefix = self._prefix[adapter] = self._read_prefix(adapter, [prompts[i] for i in mine])
            n, longest = prefix.get_seq_length(), max(len(prompts[i]) for i in mine)
            groups = micro_batches(
                [len(prompts[i]) - n for i in mine],
                BATCH_TOKENS,
                max(1, min(MOST_ROWS, CACHE_TOKENS // longest)),
            )
            self.waiting += [[mine[g] for g in group] for group in groups]

    def takes(self, cohorts: Sequence[PaddedCohort]) -> bool:
        return not cohorts

    def read(self) -> tuple[PaddedCohort, list[int], Tensor]:
        group = self.waiting.popleft()
        prompts, adapter = [self._prompts[i] for i in group], self._of[group[0]]
        prefix = self._prefix[adapter]
        S, B = prefix.get_seq_length(), len(prompts)
        lengths_B = torch.tensor([len(p) for p in prompts], device=self._device)
        T = int(lengths_B.max()) - S
        ids_BT = torch.zeros(B, T, dtype=torch.long, device=self._device)
        mask_BS = torch.zeros(B, S + T, dtype=torch.long, device=self._device)
        for b, p in enumerate(prompts):
            ids_BT[b, : len(p) - S] = torch.tensor(p[S:])
            mask_BS[b, : len(p)] = 1
        cache = copy.deepcopy(prefix)
        if S:
            cache.batch_repeat_interleave(B)
        ends_K, place_B = torch.unique(lengths_B - S - 1, return_inverse=True)
        logits_BKV = self._forward(adapter, ends_K, cache, input_ids=ids_BT, attention_mask=mask_BS)
        return PaddedCohort(cache, mask_BS, adapter), group, logits_BKV[torch.arange(B), place_B]

    def step(self, cohorts: Sequence[PaddedCohort], ids_B: Tensor, positions_B: Tensor) -> Tensor:
        [cohort] = cohorts
        cohort.mask_BS = torch.cat([cohort.mask_BS, cohort.mask_BS.new_ones(len(cohort), 1)], 1)
        inputs = {
            "input_ids": ids_B[:, None],
            "attention_mask": cohort.mask_BS,
            "position_ids": positions_B[:, None],
        }
        inputs = {name: t.to(self._device) for name, t in inputs.items()}
        return self._forward(
            cohort.adapter, torch.tensor([0], device=self._device), cohort.cache, **inputs
        )[:, 0]

    def _read_prefix(self, adapter: Adapter | None, prompts: Sequence[list[int]]) -> DynamicCache:
        """Empty where that is little."""
        cache = new_cache(self._model.config)
        n = common_prefix(prompts) if len(prompts) > 1 else 0
        if n >= PREFIX_LEAST:
            last = torch.tensor([n - 1], device=self._device)
            self._forward(
                adapter, last, cache, input_ids=torch.tensor([prompts[0][:n]], device=self._device)
            )
        return cache

    def _forward(
        self, adapter: Adapter | None, keep_K: Tensor, cache: DynamicCache, **inputs: Tensor
    ) -> Tensor:
        """(B, K, V)"""
        with _using(self._adapters, [(0, -1, adapter)]):
            held_as = {
                forward.cache_word(self._model): cache
            }  # transformers 5.24 renamed the argument
            return forward.logits_at(self._model, keep_K, **inputs, use_cache=True, **held_as)


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many ids all prompts begin with, at least one of each left over."""
    least, greatest = min(prompts), max(prompts)  # what these two share, all share
    shared = next(
        (i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b),
        min(len(least), len(greatest)),
    )
    return min(shared, min(map(len, prompts)) - 1)
