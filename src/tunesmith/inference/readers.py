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

from tunesmith.inference import held
from tunesmith.inference.cache import holds_everything, keep_rows, new_cache
from tunesmith.models import forward, packed
from tunesmith.models.adapters import Adapter, Adapters, Segment
from tunesmith.models.layout import micro_batches
from tunesmith.models.methods import Model, decoder_of
from tunesmith.models.trial import Trial

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
    kinds: list[type[Any]] = [PaddedReader]
    if packed.can_hold(model, longest):
        kinds.insert(0, PackedReader)
    kind = next((k for k in kinds if can_hold(model, k)), WholeReader)
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
    """Padded on the left, so that tokens stand as far apart as they do alone, whatever windows,
    distances or states a model's layers count in."""

    cache: Any
    mask_BS: Tensor
    adapter: Adapter | None

    @property
    def size(self) -> int:
        return self.mask_BS.numel()

    def __len__(self) -> int:
        return len(self.mask_BS)

    def keep(self, stays: Sequence[bool]) -> None:
        kept = torch.tensor(stays, device=self.mask_BS.device).nonzero().squeeze(1)
        keep_rows(self.cache, kept)
        self.mask_BS = self.mask_BS[kept]


class _OneByOne:
    """One cohort at a time, its rows of like length and of one adapter."""

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
        for adapter in dict.fromkeys(of):
            mine = [i for i, o in enumerate(of) if o is adapter]
            held = self._begin(adapter, [prompts[i] for i in mine])
            for alike in self._together(mine):
                self.waiting += _padded_groups(prompts, alike, held)

    def takes(self, cohorts: Sequence[Any]) -> bool:
        return not cohorts

    def _begin(self, adapter: Adapter | None, prompts: Sequence[list[int]]) -> int:
        """Read what all prompts of an adapter begin with; how many tokens are held of it."""
        return 0

    def _together(self, mine: list[int]) -> list[list[int]]:
        """The prompts that may stand in one cohort."""
        return [mine]


class PaddedReader(_OneByOne):
    """What all prompts of an adapter begin with is read once, where every layer holds all that it
    has seen."""

    def __init__(self, model: Model, *given: Any) -> None:
        self._word, self._has_places = forward.cache_word(model), forward.has_places(model)
        self._prefix: dict[Adapter | None, tuple[Any, int]] = {}
        super().__init__(model, *given)

    def _begin(self, adapter: Adapter | None, prompts: Sequence[list[int]]) -> int:
        self._prefix[adapter] = self._read_prefix(adapter, prompts)
        return self._prefix[adapter][1]

    def _together(self, mine: list[int]) -> list[list[int]]:
        """A model that counts places by itself, up to a limit, counts padding too: a short row
        beside a long one would come to its end too soon."""
        if self._has_places or not forward.most_places(self._model):
            return [mine]
        by_length = sorted(mine, key=lambda i: len(self._prompts[i]))
        return [list(run) for _, run in groupby(by_length, lambda i: len(self._prompts[i]))]

    def read(self) -> tuple[PaddedCohort, list[int], Tensor]:
        group = self.waiting.popleft()
        prompts, adapter = [self._prompts[i] for i in group], self._of[group[0]]
        prefix, S = self._prefix[adapter]
        B, T = len(prompts), max(map(len, prompts)) - S
        ids_BT = torch.zeros(B, T, dtype=torch.long, device=self._device)
        mask_BS = torch.zeros(B, S + T, dtype=torch.long, device=self._device)
        mask_BS[:, :S] = 1
        for b, p in enumerate(prompts):
            ids_BT[b, T - len(p) + S :] = torch.tensor(p[S:])
            mask_BS[b, S + T - len(p) + S :] = 1
        cache = copy.deepcopy(prefix)
        if S:
            cache.batch_repeat_interleave(B)
        places_BT = (mask_BS.cumsum(1) - 1).clamp(min=0)[:, S:]
        logits_BV = self._forward(adapter, cache, ids_BT, mask_BS, places_BT)
        return PaddedCohort(cache, mask_BS, adapter), group, logits_BV

    def step(self, cohorts: Sequence[PaddedCohort], ids_B: Tensor, positions_B: Tensor) -> Tensor:
        [cohort] = cohorts
        cohort.mask_BS = torch.cat([cohort.mask_BS, cohort.mask_BS.new_ones(len(cohort), 1)], 1)
        ids_B1, places_B1 = (x[:, None].to(self._device) for x in (ids_B, positions_B))
        return self._forward(cohort.adapter, cohort.cache, ids_B1, cohort.mask_BS, places_B1)

    def _read_prefix(
        self, adapter: Adapter | None, prompts: Sequence[list[int]]
    ) -> tuple[Any, int]:
        """What is held of it, and how many tokens: none where that is little."""
        cache = new_cache(self._model.config)
        n = common_prefix(prompts) if len(prompts) > 1 else 0
        if n < PREFIX_LEAST or not (self._has_places and holds_everything(cache)):
            return cache, 0
        ids_1T = torch.tensor([prompts[0][:n]], device=self._device)
        places_1T = torch.arange(n, device=self._device)[None]
        self._forward(adapter, cache, ids_1T, torch.ones_like(ids_1T), places_1T)
        return cache, n

    def _forward(
        self, adapter: Adapter | None, cache: Any, ids_BT: Tensor, mask_BS: Tensor, places: Tensor
    ) -> Tensor:
        """Of the last token of each row, (B, V)."""
        last = torch.tensor([ids_BT.shape[1] - 1], device=self._device)
        more = {"position_ids": places} if self._has_places else {}
        with _using(self._adapters, [(0, -1, adapter)]):
            return forward.logits_at(
                self._model,
                last,
                input_ids=ids_BT,
                attention_mask=mask_BS,
                use_cache=True,
                **{self._word: cache},
                **more,
            )[:, 0]


def _padded_groups(prompts: Sequence[list[int]], mine: Sequence[int], held: int) -> list[list[int]]:
    longest = max(len(prompts[i]) for i in mine)
    groups = micro_batches(
        [len(prompts[i]) - held for i in mine],
        BATCH_TOKENS,
        max(1, min(MOST_ROWS, CACHE_TOKENS // longest)),
    )
    return [[mine[g] for g in group] for group in groups]


@dataclass
class WholeCohort:
    rows: list[list[int]]
    adapter: Adapter | None

    @property
    def size(self) -> int:
        return sum(map(len, self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, stays: Sequence[bool]) -> None:
        self.rows = [row for row, stays_here in zip(self.rows, stays, strict=True) if stays_here]


class WholeReader(_OneByOne):
    """For models whose layers hold what cannot be held for several rows: the whole of every row is
    read again for each token. Padded on the right, where nothing that is read comes after."""

    def read(self) -> tuple[WholeCohort, list[int], Tensor]:
        group = self.waiting.popleft()
        cohort = WholeCohort([self._prompts[i] for i in group], self._of[group[0]])
        return cohort, group, self._logits(cohort)

    def step(self, cohorts: Sequence[WholeCohort], ids_B: Tensor, positions_B: Tensor) -> Tensor:
        [cohort] = cohorts
        coming = zip(cohort.rows, ids_B.tolist(), positions_B.tolist(), strict=True)
        cohort.rows = [[*row, i] if place == len(row) else row for row, i, place in coming]
        return self._logits(cohort)

    def _logits(self, cohort: WholeCohort) -> Tensor:
        lengths_B = torch.tensor([len(row) for row in cohort.rows])
        T = int(lengths_B.max())
        ids_BT = torch.tensor([[*row, *[row[-1]] * (T - len(row))] for row in cohort.rows])
        ends_K, place_B = torch.unique(lengths_B - 1, return_inverse=True)
        with _using(self._adapters, [(0, -1, cohort.adapter)]):
            logits_BKV = forward.logits_at(
                self._model,
                ends_K.to(self._device),
                input_ids=ids_BT.to(self._device),
                use_cache=False,
            )
        return logits_BKV[torch.arange(len(cohort)), place_B]


def can_hold(model: Model, kind: type[Any]) -> bool:
    """Whether rows of different length, answered beside each other from what such a reader holds of
    them, are answered as alone: tried once."""
    decoder = decoder_of(model)
    known: dict[type[Any], bool] = decoder.__dict__.setdefault("tunesmith_holds", {})
    if kind not in known:
        trial = Trial.of(decoder)
        known[kind] = not trial.objection(lambda: _holds(trial, kind))
    return known[kind]


def _holds(trial: Trial, kind: type[Any]) -> bool:
    """The second row is two tokens shorter; it goes on alone when the first has left."""
    rows = [trial.rows[0], trial.rows[1][:-2]]
    ends = (-1, -3)
    reader = kind(trial.model, [row[:-2] for row in rows], [None, None], None)
    while reader.waiting:
        cohort, group, _ = reader.read()
        for back in (2, 1):
            ids_B = torch.tensor([rows[i][-back] for i in group])
            places_B = torch.tensor([len(rows[i]) - back for i in group])
            logits_BV = reader.step([cohort], ids_B, places_B)
        if not all(
            trial.is_end(logits_V, i, ends[i]) for i, logits_V in zip(group, logits_BV, strict=True)
        ):
            return False
        if 1 not in group:
            continue
        cohort.keep([i == 1 for i in group])
        n = len(rows[1])
        [last] = reader.step([cohort], torch.tensor([trial.rows[1][n]]), torch.tensor([n]))
        if not trial.is_end(last, 1, -2):
            return False
    return True


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many ids all prompts begin with, at least one of each left over."""
    least, greatest = min(prompts), max(prompts)  # what these two share, all share
    shared = next(
        (i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b),
        min(len(least), len(greatest)),
    )
    return min(shared, min(map(len, prompts)) - 1)
