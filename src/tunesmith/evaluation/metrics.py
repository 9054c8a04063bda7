"""Scores of an answer against the wanted one."""

from collections import Counter
from collections.abc import Sequence


def exact_match(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of answers that equal the wanted ones, spaces at the ends apart."""
    return sum(a.strip() == w.strip() for a, w in zip(answers, wanted, strict=True)) / max(1, len(wanted))


def commonest(completions: Sequence[str]) -> str:
    """The most frequent completion: what a model without any skill would always say."""
    return Counter(c.strip() for c in completions).most_common(1)[0][0]
