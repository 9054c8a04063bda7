"""The verdict on a tuned model, as every door shows it. Plain data: `evaluation.judge` decides."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from tunesmith.words import counted

STOP_RATE = 0.95  # share of answers that must stop by themselves


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
class Gap:
    """The verdict rows by the values of one context column: best minus worst group, for base and
    tuned model."""

    column: str
    rows: Mapping[str, int]
    """Of each group that is large enough."""
    base: float
    tuned: float
    base_worst: str
    base_worst_score: float
    tuned_worst: str
    tuned_worst_score: float


@dataclass(frozen=True)
class Swapped:
    """How often an answer changes when words for groups are exchanged in its prompt (counterfactual
    flip rate)."""

    rows: int
    base: float
    tuned: float


@dataclass(frozen=True)
class Bias:
    gaps: tuple[Gap, ...]
    swapped: Swapped | None
    not_measured: tuple[str, ...]
    """What could not be measured, and why."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            tuple(Gap(**g) for g in data["gaps"]),
            Swapped(**data["swapped"]) if data["swapped"] else None,
            tuple(data["not_measured"]),
        )


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
        "linear": "a linear model on words",
        "probe": "a linear model on what the base makes of each text",
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
