"""What a loaded model can be trusted with, tried on a few tokens: no list of architectures knows
every configuration of every base.

A result counts as the same where it is off by little of what other words before it would change
(the control): a mistake in attention, positions or state is as large as that, rounding is not.

R rows of T tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

ALIKE = 8
"""Tokens that the first two rows begin with alike; they are one node where rows are packed."""
ROWS = (
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 12],
    [3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 12],
    [15, 13, 5, 14, 3, 9, 8, 4, 6, 7, 10, 12],
)
"""The third, the control, ends as both do, after other tokens."""


@dataclass(frozen=True)
class Trial:
    """Three rows, and what the model makes of each by itself."""

    model: Any
    rows: list[list[int]]
    logits_RTV: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> Self:
        """Whatever the model's own code raises."""
        words = model.config.get_text_config().vocab_size
        rows = [[i % words for i in row] for row in ROWS]
        ids_RT = torch.tensor(rows, device=next(model.parameters()).device)
        was_training = model.training
        try:
            return cls(model, rows, model.eval()(input_ids=ids_RT, use_cache=False).logits)
        finally:
            model.train(was_training)

    @property
    def is_causal(self) -> bool:
        """Whether later tokens change nothing that stands before them."""
        first, second, control = self.logits_RTV[:, :ALIKE]
        return self.is_same(second, first, control)

    def is_same(self, found: Tensor, wanted: Tensor, control: Tensor) -> bool:
        exact = self.logits_RTV.dtype in (torch.float32, torch.float64)
        found, wanted, control = (t.double() for t in (found, wanted, control))
        allowed = (1e-2 if exact else 0.2) * (wanted - control).abs().max()
        return bool((found - wanted).abs().max() <= allowed + 1e-6 * wanted.abs().max())

    def is_end(self, found_V: Tensor, row: int, end: int) -> bool:
        """Whether these are the logits of a row's token at the place `end`, from behind."""
        return self.is_same(found_V, self.logits_RTV[row, end], self.logits_RTV[2, -1])

    def objection(self, attempt: Callable[[], bool]) -> str:
        """Why an attempt does not give the same: what the model's own code raises, or that."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return "" if attempt() else "it would give something else"
        except Exception as e:
            return f"{e}".splitlines()[0][:120] or type(e).__name__
        finally:
            self.model.train(was_training)
