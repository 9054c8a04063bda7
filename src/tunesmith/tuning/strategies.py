"""Strategies: in what order weights are trained. A strategy is a list of stages. No torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.options import Decided


@dataclass(frozen=True)
class Stage:
    """A stretch of training with an optimizer of its own: which weights, how fast, how long."""

    epochs: int
    """At most: patience or a budget may end it earlier."""
    learning_rate: float
    """The peak; it rises and falls anew in each stage."""
    only: str = ""
    """A regular expression that the name of a tensor must match; empty: all that the method
    trains."""

    def of(self, names: Iterable[str]) -> list[str]:
        return [n for n in names if re.search(self.only, n)]


def stages_of(decided: Decided) -> list[Stage]:
    """What was decided, as stages; so far the one strategy `plain`: all weights at one rate."""
    return [Stage(decided.max_epochs, decided.learning_rate)]
