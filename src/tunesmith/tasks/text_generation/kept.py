"""What a language model's frozen layers make of rows, kept: for `models.features`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.examples import Example
from tunesmith.data.template import Encoded
from tunesmith.models import features, layers, skipping
from tunesmith.models.layout import MICRO_TOKENS
from tunesmith.models.methods import decoder_of
from tunesmith.tasks.text_generation.batches import Batch, collate, groups

TRIED = ((5, 6, 7, 8, 9), (5, 6, 4), (7, 7, 5, 6, 8, 9, 4))  # token numbers, in any vocabulary


class Reader:
    def key(self, row: Example) -> features.Key:
        return (tuple(row.encoded.ids),)

    def objection(self, model: Any, rows: Sequence[Example], below: int) -> str:
        if below and (below >= layers.count(model) or not can_skip(model, below)):
            return "its layers give the next one more than a state for each token"
        return ""

    def keeps_one(self, model: Any, below: int) -> bool:
        return False

    def groups(self, model: Any, rows: Sequence[Example]) -> list[list[int]]:
        return groups([r.encoded for r in rows], model, MICRO_TOKENS)

    def states(self, model: Any, rows: Sequence[Example], below: int) -> list[Tensor]:
        return _states(model, [r.encoded for r in rows], below)


READER = Reader()


@contextmanager
def standing_in(model: Any, rows: Sequence[Encoded], batch: Batch) -> Iterator[None]:
    """Inside, a pass over this batch computes only what stands above the layers whose states of
    these rows are kept."""
    held = features.held(model)
    known = held.of([(tuple(r.ids),) for r in rows]) if held else None
    if held is None or known is None:
        yield
        return
    with skipping.skipped(model, held.below, _laid_out(batch, rows, known)):
        yield


def _states(model: Any, rows: Sequence[Encoded], below: int) -> list[Tensor]:
    batch = collate(rows, model)
    given = skipping.given_to(model, below, {**batch.inputs, "use_cache": False})
    return [given[b, places] for b, places in _places(batch, rows)]


def _places(batch: Batch, rows: Sequence[Encoded]) -> Iterator[tuple[int, list[int]]]:
    """Of each row: the sequence that it is in, and where its tokens stand there."""
    for b, row in enumerate(rows):
        yield (0, batch.places[b]) if batch.places else (b, list(range(len(row.ids))))


def _laid_out(batch: Batch, rows: Sequence[Encoded], known: Sequence[Tensor]) -> Tensor:
    """The states as the batch has its tokens, (B, T, D); zero at padding."""
    ids = batch.inputs["input_ids"]
    out = known[0].new_zeros(*ids.shape, known[0].shape[-1])
    for (b, places), states in zip(_places(batch, rows), known, strict=True):
        out[b, places] = states
    return out.to(ids.device)


@torch.no_grad()
def can_skip(model: Any, below: int) -> bool:
    """Whether the layers below `below` can be left out where what they give is known: tried."""
    plain = decoder_of(model)
    was_training = model.training
    model.eval()
    rows = [Encoded(list(ids), 1) for ids in TRIED]
    try:
        batch = collate(rows, model)
        given = {**batch.inputs, "use_cache": False}
        whole = plain.base_model(**given).last_hidden_state
        known = _laid_out(batch, rows, _states(model, rows, below))
        with skipping.skipped(model, below, known):
            found = plain.base_model(**given).last_hidden_state
        at = [(b, p) for b, places in _places(batch, rows) for p in places]
        return all(torch.allclose(found[b, p], whole[b, p], rtol=1e-4, atol=1e-5) for b, p in at)
    except Exception:  # of layers that hand on something else
        return False
    finally:
        model.train(was_training)
