"""What a phase tells whoever runs it: one dataclass for each message, one JSON line on the way.

A phase writes no database; its worker writes down what it hears. Imports no torch.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Warned:
    """Something that the user must read; kept with the job."""

    message: str


@dataclass(frozen=True)
class Rejected:
    """Rows that cannot be used: part, row, reason, detail."""

    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """What is known of a job before any weight is loaded."""

    resolved: Mapping[str, Any]
    """Every option with its value, origin and reason."""
    input_tokens: int
    """Of the accepted training rows, once."""
    rows: Mapping[str, int]
    """By part, and how many were rejected and cut."""
    moved: Mapping[str, Mapping[str, Sequence[int]]]
    """Rows that the job counts to another part than the frozen one: see Dataset."""


@dataclass(frozen=True)
class Quoted:
    quote: Mapping[str, Any]
    """Of `documents.quote.Quote`."""


@dataclass(frozen=True)
class Started:
    """Training begins, or goes on, after so many optimizer steps."""

    step: int
    total_steps: int


@dataclass(frozen=True)
class RowLosses:
    """Losses of single rows: of a step's rows before its update, or of all validation rows."""

    part: str
    epoch: int
    rows: Sequence[Sequence[float | int | None]]
    """Of each row: its number, nats per supervised token (None where that is no number), and the
    supervised tokens."""


@dataclass(frozen=True)
class Probed:
    """What a linear model on a base's features answers rightly."""

    score: float | None
    """Share of the validation rows; None where scikit-learn is not here."""
    rows: int
    seconds: float


@dataclass(frozen=True)
class Suspected:
    """Training rows, by number, whose answers look wrong by what the base makes of them; None where
    that cannot be told."""

    rows: Sequence[int] | None


@dataclass(frozen=True)
class RatesTried:
    """What a range test found."""

    tried: Sequence[Mapping[str, float]]
    """rate and loss of each step."""
    suggested: float


@dataclass(frozen=True)
class Predicted:
    """A classifier's answers to verdict rows."""

    rows: Sequence[Mapping[str, Any]]
    """Of each: row, label, predicted, probability."""


@dataclass(frozen=True)
class Stepped:
    """An optimizer step that is recorded. Losses in nats per supervised token, None where they are
    no number."""

    step: int
    epoch: int
    training_loss: float | None
    learning_rate: float
    validation_loss: float | None
    """None unless the validation rows were read after this step."""
    grad_norm: float | None
    """Before clipping."""
    tokens: int
    tokens_per_second: float
    seconds: float
    trained_tokens: int
    """Of all steps so far."""


@dataclass(frozen=True)
class Trained:
    """The finished model lies in the attempt's folder."""

    step: int
    trained_tokens: int
    training_loss: float | None
    validation_loss: float | None
    stopped_by: str
    used: Mapping[str, Any]


@dataclass(frozen=True)
class Doing:
    """What is going on while a model is judged: `done` of so many rows, and the seconds that the
    rest of this arm will take."""

    what: str
    done: int
    of: int
    left_s: float | None


@dataclass(frozen=True)
class Certified:
    certificate: Mapping[str, Any]
    """Of `documents.certificate.Certificate`."""


@dataclass(frozen=True)
class Judged:
    verdict: Mapping[str, Any] | None
    """Of `documents.verdict.Verdict`; None where no row was kept for it."""


@dataclass(frozen=True)
class Compared:
    """What `prove_resume` found."""

    steps: int
    """Done in one go, and done with a kill in between."""
    resumed_from: int
    """The checkpoint that the second half began with."""
    tensors: int
    different: Sequence[str]
    """Trained tensors that were not equal to the bit at the end."""


@dataclass(frozen=True)
class Measured:
    """What the rehearsal found: a few optimizer steps of this job, on this machine, thrown away."""

    seconds: Sequence[float]
    tokens: Sequence[int]
    """Of the rows of each step; the first step is that of the longest rows."""
    validation_seconds: float
    """Of one pass over the validation rows."""
    memory_mb: int
    model_mb: float
    micro_tokens: int
    """Tokens that fit through the model at once."""


@dataclass(frozen=True)
class Written:
    """A model that was exported or imported, proven by its probes."""

    certificate: Mapping[str, Any]
    method: str
    digest: str
    """Of the manifest of what was written."""


@dataclass(frozen=True)
class Converted:
    """Plain weights were made of a file."""

    quantisation: str
    """In which they were before; empty where in none."""


@dataclass(frozen=True)
class Failed:
    error: Mapping[str, Any]
    """Of `errors.TunesmithError`."""


@dataclass(frozen=True)
class Done:
    """The phase has ended well."""


Message: TypeAlias = (
    Warned
    | Rejected
    | Prepared
    | Quoted
    | Started
    | RowLosses
    | Stepped
    | Trained
    | Doing
    | Certified
    | Predicted
    | Judged
    | Compared
    | Measured
    | RatesTried
    | Probed
    | Suspected
    | Written
    | Converted
    | Failed
    | Done
)
Report: TypeAlias = Callable[[Message], None]

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__args__}


def to_line(message: Message) -> str:
    """The message as one line of JSON; ValueError where it holds a number that JSON has not."""
    facts = {f.name: getattr(message, f.name) for f in fields(message)}
    return json.dumps({"kind": type(message).__name__, **facts}, allow_nan=False) + "\n"


def from_line(line: str | bytes) -> Message:
    facts = json.loads(line)
    return _KINDS[facts.pop("kind")](**facts)
