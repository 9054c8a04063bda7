"""The nouns of a job: Job, and JobStatus with its moves. Plain data, no I/O.

Read this first, then service/jobs.py, worker.py and tuning/loop.py.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from tunesmith.options import Decided, Options

if TYPE_CHECKING:
    import pyarrow


class JobStatus(StrEnum):
    PENDING = "PENDING"  # accepted, its rows frozen; waits for a worker
    VALIDATING = "VALIDATING"  # tokens counted, rows checked, every `auto` decided
    RUNNING = "RUNNING"  # the trainer is at work
    WAITING_SPACE = "WAITING_SPACE"  # the disk is full; goes on by itself
    PAUSED = "PAUSED"  # stopped on request; goes back to PENDING on resume
    EVALUATING = "EVALUATING"  # the tuned model answers the verdict rows
    CANCELLING = "CANCELLING"  # cancel accepted; no model will appear
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return not MOVES[self]

    @property
    def is_working(self) -> bool:
        """A worker holds a lease on the job."""
        return self in WORKING

    @property
    def sql(self) -> str:
        """Snowflake's word for this state."""
        return _SQL.get(self, "IN_PROGRESS")

    @property
    def openai(self) -> str:
        """OpenAI's word for this state."""
        return _OPENAI.get(self, "running")


_S = JobStatus
MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    _S.PENDING: frozenset({_S.VALIDATING, _S.CANCELLED}),
    _S.VALIDATING: frozenset({_S.RUNNING, _S.FAILED, _S.CANCELLING}),
    _S.RUNNING: frozenset({_S.EVALUATING, _S.WAITING_SPACE, _S.PAUSED, _S.FAILED, _S.CANCELLING}),
    _S.WAITING_SPACE: frozenset({_S.RUNNING, _S.CANCELLING}),
    _S.PAUSED: frozenset({_S.PENDING, _S.CANCELLED}),
    _S.EVALUATING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLING}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
WORKING = frozenset({_S.VALIDATING, _S.RUNNING, _S.WAITING_SPACE, _S.EVALUATING, _S.CANCELLING})
_SQL = {
    _S.PENDING: "PENDING",
    _S.VALIDATING: "PENDING",
    _S.SUCCEEDED: "SUCCESS",
    _S.FAILED: "ERROR",
    _S.CANCELLED: "CANCELLED",
}
_OPENAI = {
    _S.PENDING: "queued",
    _S.VALIDATING: "validating_files",
    _S.PAUSED: "paused",
    _S.SUCCEEDED: "succeeded",
    _S.FAILED: "failed",
    _S.CANCELLED: "cancelled",
}


# ---------------------------------------------------------------- the job


@dataclass(frozen=True)
class Job:
    """One fine-tuning job as it stands in the store. It does not change; `refresh()` gives a newer
    one."""

    id: str
    """`ft_` and a UUID."""
    name: str
    """The tuned model's name; answers in COMPLETE once the job has succeeded."""
    base_model: str
    task: str
    training_data: str
    validation_data: str
    options: Options
    resolved: Decided | None = None
    """Every option as decided, with origin and reason; known from RUNNING on."""
    status: JobStatus = JobStatus.PENDING
    step: int = 0
    total_steps: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    """Accepted rows per part (train, validation, verdict), and rejected, cut."""
    input_tokens: int = 0
    """Tokens of the accepted training rows, once: prompt, completion, template and stop ids, no
    padding."""
    trained_tokens: int = 0
    """input_tokens times the epochs run, parts of an epoch included."""
    training_loss: float | None = None
    """Nats per token: of the last recorded step while it runs, the mean of the last epoch when it
    has ended."""
    validation_loss: float | None = None
    """Of the last epoch while it runs, of the best one when it has ended."""
    stopped_by: str = ""
    """What ended the training: `max_epochs`, `patience` where the validation loss had stopped
    falling, or the name of a budget."""
    quote: Mapping[str, Any] | None = None
    """What the job was expected to take, as JSON of `documents.quote.Quote`, measured when training
    began."""
    used: Mapping[str, Any] | None = None
    """What it took: tokens_per_epoch, seconds_per_epoch, memory_mb."""
    certificate: Mapping[str, Any] | None = None
    """How the stored model was proven, as JSON of `documents.certificate.Certificate`."""
    verdict: Mapping[str, Any] | None = None
    """Whether tuning helped, as JSON of `documents.verdict.Verdict`: word, metric, n, arms,
    interval, rows won and lost, …"""
    moved: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """Rows that the job counts to another part than the frozen one, {from: {to: rows}}: parts are
    filled again after rejections."""
    doing: Mapping[str, Any] | None = None
    """What is going on in EVALUATING: what, done, of (rows), and left_s, the seconds that this step
    is expected to take."""
    warnings: tuple[str, ...] = ()
    error: Mapping[str, Any] | None = None
    created_at: float = field(default_factory=time.time)
    """Seconds since 1970, like the two below."""
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int = 0
    """How often a worker has taken the job; the fencing number."""
    owner: str = ""
    home: str = ""
    """Identity of the home that it belongs to: where its rows and its model are, and whose worker
    runs it."""
    data_digest: str = ""
    template: Mapping[str, Any] = field(default_factory=dict)
    """The prompt template, frozen at CREATE."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """The base model as found at CREATE: folder, windows, parameters, pretraining rate."""
    service: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def new_id(cls) -> str:
        return f"ft_{uuid.uuid4()}"

    @property
    def progress(self) -> float:
        """Share of the optimizer steps done, 0 to 1."""
        if self.status is JobStatus.SUCCEEDED:
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From the columns of the store that are called like its fields."""
        return cls(**{name: _READ.get(name, _as_it_is)(row[name]) for name in _stored()})

    def to_row(self) -> dict[str, Any]:
        """What `from_row` reads."""
        written = {name: getattr(self, name) for name in _stored()}
        return written | {
            "options": self.options.to_json(),
            "resolved": self.resolved.to_json() if self.resolved else None,
            "status": self.status.value,
            "warnings": list(self.warnings),
        }

    # What follows asks the service that handed this job out.

    def refresh(self) -> "Job":
        return self.service.describe(self.id)  # type: ignore[no-any-return]

    def wait(self, timeout_s: float | None = None, on_change: Any = None) -> "Job":
        """Block until the job has ended, and return it. Ctrl-C stops waiting, never the job."""
        return self.service.wait(self.id, timeout_s=timeout_s, on_change=on_change)  # type: ignore[no-any-return]

    def cancel(self) -> "Job":
        return self.service.cancel(self.id)  # type: ignore[no-any-return]

    @property
    def metrics(self) -> "pyarrow.Table":
        """One row per recorded step, as an Arrow table."""
        return self.service.metrics(self.id)

    def plot(self, what: str = "confusion") -> Any:
        """A picture of a classifier's verdict rows: `confusion`, `reliability` or `labels`. A
        notebook shows it."""
        return self.service.plot(self.id, what)

    def _repr_html_(self) -> str:
        from html import escape

        facts = {
            "status": self.status,
            "base model": self.base_model,
            "progress": f"{100 * self.progress:.0f} %",
            "trained tokens": f"{self.trained_tokens:,}",
            "training loss": self.training_loss,
            "validation loss": self.validation_loss,
            "evaluating": (self.doing or {}).get("what"),
            "error": (self.error or {}).get("message"),
        }
        for arm, score in (self.verdict or {}).get("arms", {}).items():
            facts[f"{arm}, n = {self.verdict['n'] if self.verdict else 0}"] = f"{100 * score:.1f} %"
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(str(v))}</td></tr>"
            for k, v in facts.items()
            if v is not None
        )
        return (
            f"<b>{escape(self.name)}</b> <code>{escape(self.id)}</code><progress "
            f"value='{self.progress}'></progress><table>{rows}</table>"
        )


_READ: dict[str, Callable[[Any], Any]] = {
    "options": Options.parse,
    "resolved": lambda v: Decided.from_json(v) if v else None,
    "status": JobStatus,
    "moved": lambda v: v or {},
    "warnings": tuple,
}
"""How a field is made of what the store keeps; all others are kept as they are."""


def _as_it_is(value: Any) -> Any:
    return value


def _stored() -> list[str]:
    return [f.name for f in fields(Job) if f.name != "service"]
