"""The embeddings of the words that rows hold, trained alone: the gradient of any other is zero, and
so is what AdamW adds to it, so that moving its moments through memory in every step adds nothing.

Exact where weights do not decay. V words, R of them read, D width.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.models.methods import decoder_of


@contextmanager
def only_read(model: Any, tokens: Collection[int]) -> Iterator[None]:
    """Inside, the parameter of the model's input embedding holds the rows of these tokens alone,
    under its own name; afterwards what they became stands in the whole. Nothing happens where the
    embedding is not trained, is the model's output too, or is of a class that does more than look
    up."""
    plain = decoder_of(model)
    whole = _embedding(plain)
    if whole is None or not tokens:
        yield
        return
    read = _Read(whole, sorted(set(tokens) - {whole.padding_idx}))
    plain.set_input_embeddings(read)
    try:
        yield
    finally:
        with torch.no_grad():
            whole.weight[read.tokens_R] = read.weight
        plain.set_input_embeddings(whole)


class _Read(nn.Module):
    """Looks words up in the rows that are trained, and others where they always stood."""

    def __init__(self, whole: nn.Embedding, tokens: list[int]) -> None:
        super().__init__()
        device = whole.weight.device
        self.tokens_R = torch.tensor(tokens, device=device)
        self.weight = nn.Parameter(whole.weight.detach()[self.tokens_R])
        self._others_VD = whole.weight.detach()
        self._places_V = torch.full((len(self._others_VD),), -1, device=device)
        self._places_V[self.tokens_R] = torch.arange(len(tokens), device=device)

    def forward(self, ids: Tensor) -> Tensor:
        places = self._places_V[ids]
        known = places >= 0
        if bool(known.all()):
            return F.embedding(places, self.weight)
        trained = F.embedding(places.clamp(min=0), self.weight)
        return torch.where(known[..., None], trained, F.embedding(ids, self._others_VD))


def _embedding(plain: Any) -> nn.Embedding | None:
    try:
        found = plain.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # of a model that reads no words
        return None
    if type(found) is not nn.Embedding or not found.weight.requires_grad:
        return None
    if found.max_norm or found.scale_grad_by_freq:
        return None
    uses = [p for _, p in plain.named_parameters(remove_duplicate=False) if p is found.weight]
    return found if len(uses) == 1 else None
