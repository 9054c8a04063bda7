"""The nouns of a job: Job, JobStatus with its moves, Options and ResolvedOptions. Plain data, no
I/O.

Read this first, then service.py, worker.py and tuning/loop.py.
"""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from tunesmith.errors import (
    InvalidModelName,
    InvalidOption,
    InvalidOptions,
    InvalidOptionValue,
    OptionNotRead,
    closest,
)

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


# ---------------------------------------------------------------- options


def option(default: Any, help: str, *, readers: tuple[str, ...] = (), **limits: Any) -> Any:
    """A field of Options: its default, one line of help, its limits (low, high, choices, auto), and
    the methods that read it; none: all."""
    return field(default=default, metadata={"help": help, "readers": readers, **limits})


@dataclass(frozen=True)
class Options:
    """What the user asked for. Declared once: the CLI's flags, the docs' table and the checks are
    made from these fields.

    `"auto"` means: decided by measurement or rule while VALIDATING, and stored with its reason.
    """

    max_epochs: int | str = option(
        "auto", "Passes over the training rows.", low=1, high=10, auto=True
    )
    patience: int = option(
        2,
        "Epochs without a better validation loss before training stops; 0: never.",
        low=0,
        high=10,
    )
    budget_tokens: int = option(
        0, "Training stops before it has read more tokens; 0: no limit.", low=0, high=10**15
    )
    budget_minutes: float = option(
        0.0, "Training stops after so many minutes; 0: no limit.", low=0.0, high=1e6
    )
    budget_credits: float = option(
        0.0,
        "Training stops before it costs more, by the price table; 0: no limit.",
        low=0.0,
        high=1e9,
    )
    method: str = option("auto", "How weights may change.", choices=("lora", "full"), auto=True)
    learning_rate: float | str = option(
        "auto", "Peak rate of AdamW.", low=1e-7, high=1.0, auto=True
    )
    batch_size: int | str = option("auto", "Rows per optimizer step.", low=1, high=1024, auto=True)
    rank: int | str = option(
        "auto", "Rank of the LoRA matrices.", readers=("lora",), low=1, high=512, auto=True
    )
    targets: str = option(
        "all-linear",
        "Which linear layers LoRA adapts; never the head.",
        readers=("lora",),
        choices=("all-linear", "attention", "mlp"),
    )
    precision: str = option(
        "full",
        "Of the frozen weights while an adapter is trained; full: float32, on a GPU the file's "
        "own. nf4 is QLoRA.",
        readers=("lora",),
        choices=("full", "bfloat16", "nf4"),
    )
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.", low=1e-6, high=1e6)
    weight_decay: float = option(0.0, "Weight decay of AdamW.", low=0.0, high=1.0)
    warmup: float = option(0.1, "Share of the steps in which the rate rises.", low=0.0, high=0.9)
    on_long: str = option(
        "reject", "What becomes of rows over the window.", choices=("reject", "cut_prompt", "fail")
    )
    learn: str = option(
        "all",
        "Which answers of a conversation are learnt: all but those of weight 0, or the last one.",
        choices=("all", "last"),
    )
    encoding: str = option(
        "",
        "Encoding of text files named as data; default: by their byte-order mark, else UTF-8.",
        words="a text codec such as latin-1",
    )
    seed: int = option(
        0, "Decides the split, the order of rows and every random number.", low=0, high=2**31 - 1
    )
    test_data: str = option(
        "",
        "A query whose rows give the verdict; default: half of the validation rows.",
        words="a query",
    )
    swap_terms: str = option(
        "",
        "Pairs of words whose exchange in a prompt should not change the answer; default: a small "
        "English list.",
        words="pairs such as he/she, anna/ali",
        pattern=r"\s*[^/,\s][^/,]*/\s*[^/,\s][^/,]*(,\s*[^/,\s][^/,]*/\s*[^/,\s][^/,]*)*",
    )
    new_version_of: str = option(
        "",
        "A tuned model whose name answers with the new one from the day its verdict is HELPED.",
        words="a model's name",
    )

    @classmethod
    def parse(cls, given: "Options | Mapping[str, Any] | str | None") -> Self:
        """From keyword arguments, an object or JSON text. Numbers may come as text, as public
        scripts send them."""
        if isinstance(given, Options):
            given = given.to_json()
        if isinstance(given, str):
            given = _json_object(given)
        if given is not None and not isinstance(given, Mapping):
            raise InvalidOptions(value=repr(given), reason="not an object")
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in (given or {}).items():
            if name.lower() not in known:
                raise InvalidOption(
                    name=name, value=value, closest=closest(name, known), known=sorted(known)
                )
            if value is not None:
                values[name.lower()] = _checked(known[name.lower()], value)
        return cls(**values)

    def must_be_read(self) -> "Options":
        """OptionNotRead for one that was set and that the method which was asked for does not
        read."""
        for f in self.set_for_a_method():
            if self.method not in ("auto", *f.metadata["readers"]):
                readers = "the method " + " or ".join(f.metadata["readers"])
                raise OptionNotRead(
                    name=f.name,
                    value=getattr(self, f.name),
                    readers=readers,
                    here=f"the method is {self.method}",
                )
        return self

    def set_for_a_method(self) -> "list[Field[Any]]":
        """The options that only some methods read and that are not as they are by default."""
        return [
            f for f in fields(self) if f.metadata["readers"] and getattr(self, f.name) != f.default
        ]

    def to_json(self) -> dict[str, Any]:
        """Only what differs from the defaults: what the user asked."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as e:
        raise InvalidOptions(value=text, reason=str(e)) from None
    if not isinstance(value, dict):
        raise InvalidOptions(value=text, reason="not an object")
    return value


def _checked(f: Any, value: Any) -> Any:
    limits = f.metadata
    if limits.get("auto") and value == "auto":
        return value
    if "choices" in limits:
        if value not in limits["choices"]:
            raise InvalidOptionValue(
                name=f.name, value=value, allowed="one of " + ", ".join(allowed_values(f))
            )
        return value
    if "low" not in limits:
        if not isinstance(value, str) or (
            value and not re.fullmatch(limits.get("pattern", "(?s).*"), value)
        ):
            raise InvalidOptionValue(name=f.name, value=value, allowed=limits["words"])
        return value
    number = _number(value, whole="int" in str(f.type))
    if number is None or not limits["low"] <= number <= limits["high"]:
        raise InvalidOptionValue(name=f.name, value=value, allowed=", ".join(allowed_values(f)))
    return number


def _number(value: Any, whole: bool) -> float | int | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not whole:
        return number
    return (
        int(number) if number == number and abs(number) < 2**53 and number == int(number) else None
    )


def allowed_values(f: Any) -> list[str]:
    """The values that a field of Options takes, in words: for messages, help and the docs."""
    limits = f.metadata
    words = ["auto"] if limits.get("auto") else []
    if "choices" in limits:
        return words + list(limits["choices"])
    if "low" in limits:
        kind = "a whole number" if "int" in str(f.type) else "a number"
        return [
            *words,
            f"{kind} from {limits['low']:g} to {limits['high']:g}"
            if limits["high"] < 1e9
            else f"{kind} from {limits['low']:g}",
        ]
    return [str(limits["words"])]


@dataclass(frozen=True)
class Resolved:
    value: Any
    origin: str
    """user, measured or default"""
    reason: str


@dataclass(frozen=True)
class ResolvedOptions:
    """What was decided: every option with its value, where it came from and why."""

    decided: Mapping[str, Resolved]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["decided"][name].value
        except KeyError:
            raise AttributeError(name) from None

    def to_json(self) -> dict[str, Any]:
        return {
            k: {"value": r.value, "origin": r.origin, "reason": r.reason}
            for k, r in self.decided.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls({k: Resolved(**v) for k, v in data.items()})


# ---------------------------------------------------------------- names


_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_NAME_PART = re.compile(r'"((?:[^"\x00-\x1f]|""){1,63})"|([^".]+)')


LONGEST_NAME = 63


def with_suffix(name: str, suffix: str) -> str:
    """The name with a suffix, its last part cut where both together would be too long."""
    before, quote, last = _last_part(name)
    while True:
        made = f"{before}{quote}{last}{suffix}{quote}"
        try:
            model_key(made)
            return made
        except InvalidModelName:
            if not last:
                raise
            last = last[:-2] if quote and last.endswith('""') else last[:-1]


def _last_part(name: str) -> tuple[str, str, str]:
    parts = list(_NAME_PART.finditer(name))
    quoted = parts[-1].group(1)
    last = quoted if quoted is not None else parts[-1].group(2)
    return name[: parts[-1].start()], '"' if quoted is not None else "", last


def model_key(name: str) -> str:
    """The form under which a name is unique: unquoted parts folded to lower case, quoted ones as
    they are.

    Snowflake identifiers (finetune-create): optionally database.schema.name.
    """
    if name.encode("utf-8", "replace").decode() != name:
        raise InvalidModelName(name=name)
    parts: list[str] = []
    rest = name
    while True:
        match = _NAME_PART.match(rest)
        if match is None:
            raise InvalidModelName(name=name)
        quoted, plain = match.groups()
        if plain is not None and not _PLAIN_NAME.fullmatch(plain):
            raise InvalidModelName(name=name)
        parts.append(f'"{quoted}"' if quoted is not None else plain.lower())
        rest = rest[match.end() :]
        if not rest:
            break
        if rest[0] != "." or len(parts) == 3:
            raise InvalidModelName(name=name)
        rest = rest[1:]
    return ".".join(parts)


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
    resolved: ResolvedOptions | None = None
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
    """What the job was expected to take, as JSON of `tuning.quote.Quote`, measured when training
    began."""
    used: Mapping[str, Any] | None = None
    """What it took: tokens_per_epoch, seconds_per_epoch, memory_mb."""
    certificate: Mapping[str, Any] | None = None
    """How the stored model was proven, as JSON of `models.certificate.Certificate`."""
    verdict: Mapping[str, Any] | None = None
    """Whether tuning helped, as JSON of `evaluation.verdict.Verdict`: word, metric, n, arms,
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
