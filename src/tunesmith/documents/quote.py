"""The quote: what a job will take, before it is paid for. Plain data; what is measured comes from
`rehearsal`. No torch."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tunesmith.catalog import ModelSpec
from tunesmith.options import Decided
from tunesmith.phases.messages import Measured

LOW, HIGH = (
    0.85,
    1.25,
    # allowed beyond the fastest and the slowest of the three steps; chosen by us, for a machine
    # that also does other work
)


@dataclass(frozen=True)
class Quote:
    base_model: str
    method: str
    epochs: int
    """At most; training may stop earlier by patience."""
    steps: int
    tokens_per_epoch: int
    """Exact, by the base's own tokenizer: prompt, completion, template and stop ids of the accepted
    rows, no padding."""
    credits: float
    """For all epochs, by the price table."""
    seconds_per_epoch: float
    low: float
    high: float
    """Seconds per epoch, from three steps measured on this machine, the longest batch among
    them."""
    memory_mb: int
    """Peak of the trainer's process."""
    model_mb: float
    """Size of what is saved: the adapter, or the whole model."""
    threads: int
    linear: float | None = None
    """Share of the validation rows that a linear model on words answers rightly, where answers are
    a closed set."""
    linear_rows: int = 0
    """Those validation rows."""
    classifier: str = ""
    """A base that is here and gives labels, where answers are a closed set."""
    classifier_score: float = 0.0
    """Share of the validation rows that a linear model on what it makes of each text answers
    rightly, without any tuning of it."""
    classifier_seconds: float = 0.0
    """That it took."""

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        options: Decided,
        tokens: int,
        rows: int,
        measured: Measured,
        price: float,
        threads: int,
    ) -> Self:
        """`tokens` and `rows` of one epoch; `price` in credits per token."""
        seconds, low, high = seconds_per_epoch(measured, tokens)
        return cls(
            spec.name,
            options.method,
            options.max_epochs,
            options.max_epochs * -(-rows // options.batch_size),
            tokens,
            options.max_epochs * tokens * price,
            round(seconds, 2),
            round(low, 2),
            round(high, 2),
            measured.memory_mb,
            measured.model_mb,
            threads,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def seconds_per_epoch(measured: Measured, tokens: int) -> tuple[float, float, float]:
    """The expected time of an epoch of so many tokens, and an interval."""
    rates = [s / t for s, t in zip(measured.seconds, measured.tokens, strict=True)]
    usual, fixed = rates[1:], measured.validation_seconds
    middle = sum(usual) / len(usual)
    return (
        tokens * middle + fixed,
        LOW * (tokens * min(rates) + fixed),
        HIGH * (tokens * max(rates) + fixed),
    )
