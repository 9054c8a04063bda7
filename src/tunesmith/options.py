"""Options: what the user asked, and what was decided. Plain data, no I/O."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeAlias

from tunesmith.errors import (
    InvalidOption,
    InvalidOptions,
    InvalidOptionValue,
    OptionNotRead,
    closest,
)
from tunesmith.tasks import specs
from tunesmith.tasks.specs import TaskSpec

MOST = 2**31 - 1  # of a seed
Readers: TypeAlias = Mapping[str, tuple[str, ...]]
"""Of each option that only some methods, or some tasks, read: those."""


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field of Options: its default, one line of help, its limits (low, high, choices, auto)."""
    return field(default=default, metadata={"help": help, **limits})


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
    task: str = option(
        "",
        "What the base is tuned to do; default: what such a base is for.",
        words="text_generation, text_classification, or a task of an installed package",
        pattern=r"[a-z0-9_]+",
    )
    method: str = option(
        "auto", "How weights may change.", choices=("lora", "full", "head"), auto=True
    )
    learning_rate: float | str = option(
        "auto", "Peak rate of AdamW.", low=1e-7, high=1.0, auto=True
    )
    batch_size: int | str = option("auto", "Rows per optimizer step.", low=1, high=1024, auto=True)
    class_weights: str = option(
        "none",
        "How much rows of each label count.",
        words="none, balanced, or an object of labels with their weights",
        pattern=r"none|balanced|\{[\s\S]*\}",
        objects=True,
    )
    head_rate: float = option(
        10.0,
        "How many times faster than the other weights a new head learns.",
        low=0.01,
        high=1000.0,
    )
    layer_decay: float = option(
        1.0, "How fast each layer learns, as a share of the one above it.", low=0.01, high=1.0
    )
    dropout: float = option(
        0.0,
        "Share of the states that training sets to zero, drawn anew in every step.",
        low=0.0,
        high=0.9,
    )
    freeze: str = option(
        "",
        "What stays as it is, from below: so many layers, a share of them, or the weights whose "
        "names a pattern matches.",
        words="a number of layers, a share such as 0.5, or a pattern of names",
        numbers=True,
    )
    rank: int | str = option("auto", "Rank of the LoRA matrices.", low=1, high=512, auto=True)
    targets: str = option(
        "all-linear",
        "Which linear layers LoRA adapts; never the head.",
        choices=("all-linear", "attention", "mlp"),
    )
    precision: str = option(
        "full",
        "Of the frozen weights while an adapter is trained; full: float32, on a GPU the file's "
        "own. nf4 is QLoRA.",
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
    label_separator: str = option(
        "",
        "What stands between the labels of a row that may have several, where they are one text.",
        words="a text such as a comma",
    )
    seed: int = option(
        0, "Decides every random number: new weights, dropout, and what follows.", low=0, high=MOST
    )
    split_seed: int | str = option(
        "auto", "Decides which rows go to which part; auto: as seed.", low=0, high=MOST, auto=True
    )
    order_seed: int | str = option(
        "auto", "Decides the order of rows in training; auto: as seed.", low=0, high=MOST, auto=True
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

    def must_be_read(self, task: TaskSpec, by_method: Readers) -> Self:
        """OptionNotRead for one that was set and that this task, or the method which was asked for,
        does not read; InvalidOptionValue for a method that the task has not."""
        if self.method not in ("auto", *task.methods):
            allowed = f"{task.name} is tuned by {' or '.join(task.methods)}"
            raise InvalidOptionValue(name="method", value=self.method, allowed=allowed)
        by_task = specs.readers(specs.OWN.values())
        for name in self.set_for_some(by_task):
            if name not in task.reads:
                self._is_not_read(name, "the task", by_task[name], f"the task is {task.name}")
        possible = task.methods if self.method == "auto" else (self.method,)
        for name in self.set_for_some(by_method):
            if not set(possible) & set(by_method[name]):
                here = f"the method is {' or '.join(possible)}"
                self._is_not_read(name, "the method", by_method[name], here)
        return self

    def _is_not_read(self, name: str, what: str, readers: Sequence[str], here: str) -> None:
        words = f"{what} {' or '.join(readers)}"
        raise OptionNotRead(name=name, value=getattr(self, name), readers=words, here=here)

    def set_for_some(self, readers: Readers) -> list[str]:
        """The options that only some read and that are not as they are by default."""
        found = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return [f.name for f in found if f.name in readers]

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
    if limits.get("numbers") and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:g}"
    if limits.get("objects") and isinstance(value, Mapping):
        value = json.dumps({str(k): v for k, v in value.items()}, ensure_ascii=False)
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
class Reason:
    """Why an option has its value."""

    origin: str
    """user, measured or default"""
    words: str


@dataclass(frozen=True)
class Decided:
    """What was decided: the fields of Options, none of them `auto`, and why each is what it is."""

    max_epochs: int
    patience: int
    budget_tokens: int
    budget_minutes: float
    budget_credits: float
    task: str
    method: str
    learning_rate: float
    batch_size: int
    class_weights: str
    head_rate: float
    layer_decay: float
    dropout: float
    freeze: str
    rank: int
    targets: str
    precision: str
    max_grad_norm: float
    weight_decay: float
    warmup: float
    on_long: str
    learn: str
    encoding: str
    label_separator: str
    seed: int
    split_seed: int
    order_seed: int
    test_data: str
    swap_terms: str
    new_version_of: str
    reasons: Mapping[str, Reason] = field(default_factory=dict, compare=False)

    def values(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(Options)}

    def to_json(self) -> dict[str, Any]:
        """Of each option: its value, origin and reason."""
        because = {n: self.reasons.get(n, Reason("default", "")) for n in self.values()}
        return {
            name: {"value": value, "origin": because[name].origin, "reason": because[name].words}
            for name, value in self.values().items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` gave, also in an earlier release: an option that is newer than the job has
        its default."""
        values: dict[str, Any] = {
            f.name: data[f.name]["value"] if f.name in data else f.default
            for f in fields(Options)
            if f.name in data or f.default != "auto"
        }
        for name in ("split_seed", "order_seed"):  # newer than the first release
            values.setdefault(name, values.get("seed", 0))
        reasons = {name: Reason(d["origin"], d["reason"]) for name, d in data.items()}
        return cls(**values, reasons=reasons)
