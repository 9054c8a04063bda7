"""Answers that follow a JSON schema: after every token the schema says which tokens may come next
(llguidance).

R rows that are still being answered, V vocabulary.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from tunesmith.errors import InvalidSchema

# between the parts of a JSON text: one space or none, so that no answer fills up with blanks
WHITESPACE = " ?"


class Grammar:
    """A JSON schema bound to a tokenizer."""

    def __init__(
        self, schema: str, tokenizer: Path, vocabulary: int, stop_ids: Sequence[int]
    ) -> None:
        """`schema`: JSON text; InvalidSchema where it cannot be followed."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                schema, overrides={"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
            )
        except ValueError as e:
            raise InvalidSchema(schema=schema, reason=str(e)) from None
        self._first = LLMatcher(
            _tokenizer(tokenizer, vocabulary, tuple(stop_ids)), grammar, log_level=0
        )
        if self._first.is_error():
            raise InvalidSchema(schema=schema, reason=self._first.get_error().splitlines()[0])

    def matcher(self) -> LLMatcher:
        """Where one answer stands, at its beginning; `consume_token` moves it on."""
        return self._first.deep_copy()


def allowed(logits_RV: Tensor, matchers: Sequence[LLMatcher]) -> Tensor:
    """The logits, minus infinity where the schema forbids a token."""
    words = np.stack([np.frombuffer(m.compute_bitmask(), np.uint8) for m in matchers])
    bits_RV = np.unpackbits(words, axis=1, bitorder="little")[:, : logits_RV.shape[1]].astype(bool)
    return logits_RV.masked_fill(~torch.from_numpy(bits_RV).to(logits_RV.device), float("-inf"))


@lru_cache(maxsize=4)
def _tokenizer(file: Path, vocabulary: int, stop_ids: tuple[int, ...]) -> LLTokenizer:
    loaded = json.loads(file.read_text("utf-8")) | {"padding": None, "truncation": None}
    return LLTokenizer(json.dumps(loaded), n_vocab=vocabulary, eos_token=list(stop_ids))
