"""The one way from token ids to hidden states and logits. A method changes what lies below it: the
decoder's own layers and embeddings, never a wrapper's forward.

B rows, T positions, K kept positions, D width, V vocabulary.
"""

import inspect
from typing import Any

from torch import Tensor

from tunesmith.catalog import PLACES
from tunesmith.models import trim
from tunesmith.models.methods import Model, decoder_of


def hidden_at(model: Model, keep_K: Tensor, **inputs: Any) -> Tensor:
    """The last hidden states at the positions `keep_K` alone, (B, K, D)."""
    with trim.only(keep_K):
        hidden_BTD: Tensor = decoder_of(model).base_model(**inputs).last_hidden_state
    return hidden_BTD[:, keep_K]


def logits_at(model: Model, keep_K: Tensor, **inputs: Any) -> Tensor:
    """Logits at the positions `keep_K` alone, (B, K, V): a head over every position would cost most
    of the memory."""
    decoder = decoder_of(model)
    with trim.only(keep_K):
        if "logits_to_keep" in inspect.signature(decoder.forward).parameters:
            kept: Tensor = decoder(**inputs, logits_to_keep=keep_K).logits
            return kept
        every: Tensor = decoder(**inputs).logits
    return every[:, keep_K]


def has_places(model: Model) -> bool:
    """Whether the model can be told the position of each token."""
    return "position_ids" in inspect.signature(decoder_of(model).forward).parameters


def most_places(model: Model) -> int:
    """Positions that its configuration allows; 0 where it names no limit."""
    config = decoder_of(model).config.get_text_config()
    return next((n for name in PLACES if type(n := getattr(config, name, None)) is int), 0)


def cache_word(model: Model) -> str:
    """What the model's forward calls its keys and values."""
    is_new = "cache" in inspect.signature(decoder_of(model).forward).parameters
    return "cache" if is_new else "past_key_values"
