"""The verdict: did tuning help? One word, decided by a rule that was fixed before the scores were
seen. Imports no torch.

Arms answer the same rows, which chose nothing. The difference of the tuned model to the best arm
that only a prompt would have cost, and to a constant answer, is judged by a paired bootstrap
interval over rows (Efron and Tibshirani 1993, chapter 13), its quantiles widened for small samples
as Hesterberg (2015, arXiv 1411.5279) describes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.evaluation.bias import Bias, by_value
from tunesmith.words import counted

RESAMPLES = 4000
FEW_ROWS, FEW_ROWS_MARGIN = (
    100,
    0.05,
)  # below so many rows the whole interval must lie beyond this margin
LEAST_DIFFERENT = (
    6  # rows on which two arms must differ: five flips of a fair coin fall alike once in sixteen
)
STOP_RATE = 0.95  # share of answers that must stop by themselves
PROMPT_ARMS = ("base", "examples")  # what a prompt alone would have given


class Word(StrEnum):
    HELPED = "HELPED"
    NO_EVIDENCE = "NO_EVIDENCE"
    HARMED = "HARMED"


@dataclass(frozen=True)
class Slice:
    """The verdict rows of one value of a context column."""

    column: str
    value: str
    n: int
    before: float
    """Mean score of the arm that the verdict is against."""
    tuned: float
    low: float
    high: float
    """95 % interval of tuned minus before."""


@dataclass(frozen=True)
class Verdict:
    word: Word
    metric: str
    """The primary metric, named from the training rows before anything was scored."""
    n: int
    arms: Mapping[str, float]
    """Mean score of every arm on the primary metric: base, examples, commonest, linear (where
    measured), tuned."""
    against: str
    """The better of the arms that only a prompt would have cost; `commonest` where tuning passed
    those but not that."""
    difference: float
    low: float
    high: float
    """95 % interval of the mean difference tuned minus `against`, as shares (0.1: ten points)."""
    losses: Mapping[str, float]
    """Nats per token on the verdict rows, base and tuned."""
    stop_rate: float
    """Share of the tuned model's answers that ended by a stop id."""
    examples: int = 0
    """Examples in the prompt of the arm `examples`."""
    commonest_answer: str = ""
    other_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metric, then arm: means that decide nothing."""
    won: tuple[int, ...] = ()
    """Rows that the tuned model answers better than `against`; positions in their query."""
    lost: tuple[int, ...] = ()
    worst: tuple[Mapping[str, Any], ...] = ()
    """The tuned model's rows of highest loss: row, loss, wanted, answer."""
    slices: tuple[Slice, ...] = ()
    retention: Mapping[str, float] = field(default_factory=dict)
    """Bits per byte of plain prose before and after: what the base could and the tuned model may
    have forgotten."""
    bias: Bias | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known
        }
        return cls(
            **{
                **values,
                "word": Word(data["word"]),
                "slices": tuple(Slice(**s) for s in data.get("slices", ())),
                "bias": Bias.from_json(data["bias"]) if data.get("bias") else None,
            }
        )


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
    scores: Mapping[str, Sequence[float]], seed: int = 0
) -> tuple[Word, str, float, float, float]:
    """The word, the arm that it is against, and the difference with its interval, from every arm's
    scores per row.

    Against the better prompt-only arm. HELPED must also hold against always giving the commonest
    answer, which takes no model at all: tuning that teaches nothing but the form of an answer
    passes a base that never writes one. Where that fails, it is what is shown.
    """
    best = max((a for a in PROMPT_ARMS if a in scores), key=lambda a: sum(scores[a]))
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


def objection(verdict: Mapping[str, Any] | None) -> str:
    """Why a name should not answer with this model; empty where nothing speaks against it."""
    if not verdict:
        return "it has no verdict"
    if verdict["word"] != Word.HELPED:
        return f"its verdict is {verdict['word']}"
    return (
        f"only {verdict['stop_rate']:.0%} of its answers stop by themselves"
        if verdict["stop_rate"] < STOP_RATE
        else ""
    )


def sentence(verdict: Mapping[str, Any]) -> str:
    """The first line on the screen."""
    v = Verdict.from_json(verdict)
    against = {
        "base": "the base as it is",
        "examples": f"the base with {v.examples} examples in its prompt",
        "commonest": f"always answering {v.commonest_answer!r:.40}",
    }.get(v.against, v.against)
    interval = f"95 % interval {100 * v.low:+.1f} to {100 * v.high:+.1f}"
    figures = (
        f"{100 * v.difference:+.1f} points on {counted(v.n, 'row')} ({interval}), against {against}"
    )
    return {
        Word.HELPED: f"HELPED: tuning gained {figures}",
        Word.NO_EVIDENCE: f"NO EVIDENCE that tuning helped: {figures}",
        Word.HARMED: f"HARMED: tuning lost, {figures}",
    }[v.word]
