"""How a verdict is decided: one word, by a rule that was fixed before the scores were seen. Imports
no torch.

Arms answer the same rows, which chose nothing. The difference of the tuned model to the best arm
that only a prompt would have cost, and to a constant answer, is judged by a paired bootstrap
interval over rows (Efron and Tibshirani 1993, chapter 13), its quantiles widened for small samples
as Hesterberg (2015, arXiv 1411.5279) describes.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.documents.verdict import Slice, Word
from tunesmith.evaluation.bias import by_value

RESAMPLES = 4000
# below so many rows the whole interval must lie beyond this margin
FEW_ROWS, FEW_ROWS_MARGIN = 100, 0.05
# rows on which two arms must differ: five flips of a fair coin fall alike once in sixteen
LEAST_DIFFERENT = 6
PROMPT_ARMS = ("base", "examples")  # what a prompt alone would have given


def judge(tuned: ArrayLike, before: ArrayLike, seed: int = 0) -> tuple[Word, float, float, float]:
    """The word, the mean difference tuned minus before, and the ends of its 95 % interval, from
    scores per row."""
    difference = np.asarray(tuned, float) - np.asarray(before, float)
    low, high = interval(difference, seed)
    margin = FEW_ROWS_MARGIN if len(difference) < FEW_ROWS else 0.0
    enough = np.count_nonzero(difference) >= LEAST_DIFFERENT
    word = (
        Word.HELPED
        if enough and low > margin
        else Word.HARMED
        if enough and high < -margin
        else Word.NO_EVIDENCE
    )
    return word, float(difference.mean()), low, high


def decide(
    scores: Mapping[str, Sequence[float]], seed: int = 0, against: Sequence[str] = PROMPT_ARMS
) -> tuple[Word, str, float, float, float]:
    """The word, the arm that it is against, and the difference with its interval, from every arm's
    scores per row.

    Against the best of the arms `against`, which need no tuning. HELPED must also hold against
    always giving the commonest answer, which takes no model at all: tuning that teaches nothing but
    the form of an answer passes a base that never writes one. Where that fails, it is what is
    shown.
    """
    best = max((a for a in against if a in scores), key=lambda a: sum(scores[a]))
    word, *figures = judge(scores["tuned"], scores[best], seed)
    if word is Word.HELPED:
        against_constant, *others = judge(scores["tuned"], scores["commonest"], seed)
        if against_constant is not Word.HELPED:
            return (Word.NO_EVIDENCE, "commonest", others[0], others[1], others[2])
    return (word, best, figures[0], figures[1], figures[2])


def interval(values: ArrayLike, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of a mean: percentiles at the level that a t interval of as many values
    would ask for."""
    x = np.asarray(values, float)
    n = len(x)
    if n < 2:
        return (-1.0, 1.0)
    means = _resampled_means(x, seed)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_t(0.5 + level / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(x: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of RESAMPLES samples with replacement. Equal values are drawn together, by their
    counts."""
    values, counts = np.unique(x, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(x), counts / len(x), size=RESAMPLES)
    means: NDArray[np.float64] = drawn @ values / len(x)
    return means


def student_t(p: float, freedom: int) -> float:
    """The quantile of Student's t (Hill 1970, Cornish-Fisher expansion; relative error below 0.001
    from 5 degrees of freedom)."""
    z = NormalDist().inv_cdf(p)
    n = freedom
    a = (z**3 + z) / 4
    b = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    c = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    d = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + a / n + b / n**2 + c / n**3 + d / n**4


def slices(
    contexts: Sequence[Mapping[str, Any]], tuned: Sequence[float], before: Sequence[float]
) -> tuple[Slice, ...]:
    """The scores by every context column of a few values, each value less than once a row."""
    found = []
    for column, groups in by_value(contexts):
        if len(groups) == len(contexts):
            continue
        for value, rows in groups.items():
            t, b = np.asarray([tuned[i] for i in rows]), np.asarray([before[i] for i in rows])
            low, high = interval(t - b)
            found.append(
                Slice(column, value, len(rows), float(b.mean()), float(t.mean()), low, high)
            )
    return tuple(found)
