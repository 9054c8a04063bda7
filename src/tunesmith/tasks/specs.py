"""The tasks that a model can be tuned to do, declared. No torch.

Whoever adds a task adds an entry here, or declares one in a package of his own under the entry
point `tunesmith.tasks`, and writes the two modules that it names. Nothing else changes.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from tunesmith.errors import Notice, TaskNotLoaded, UnknownTask

MESSAGES = "messages"
ENTRY_POINTS = "tunesmith.tasks"
COLUMNS = {"prompt", "completion"}
PREPROCESSING = ("preprocessing.json", "prompt_template.json")


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task before any row is read."""

    name: str
    columns: Mapping[str, tuple[str, ...]]
    """`prompt`, what goes into the model, and `completion`, what it learns to give: each with the
    names that its column may have, the one that is taken first in front."""
    methods: tuple[str, ...]
    """How its models can be tuned."""
    rows: str
    """The module with the functions of `data.rules.RowRules`; it imports no torch."""
    code: str
    """The module with the functions of `tasks.task.Task`."""
    reads: tuple[str, ...] = ()
    """Options that no other task has a use for, unless that names them too."""
    model_types: frozenset[str] = frozenset()
    """Of config.json: the bases that are tuned to this task."""
    needs: tuple[str, ...] = ()
    """Files of a base, beside config.json and its weights."""
    takes_messages: bool = False
    """A column `messages` may stand for both columns."""
    has_windows: bool = False
    """Its bases read no more than so many units at once."""
    samples: bool = False
    """Its models draw their answers: COMPLETE's options for that are read."""
    preprocessing: str = PREPROCESSING[0]
    """The file in a model's folder that says how rows become what goes into it; one of those
    names."""
    pipeline_tag: str = ""
    """What the Hugging Face hub calls such a model."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a column which is trained on may have."""
        own = tuple(dict.fromkeys(n for names in self.columns.values() for n in names))
        return (*own, MESSAGES) if self.takes_messages else own

    @property
    def rules(self) -> Any:
        return self._module(self.rows)

    @property
    def task(self) -> Any:
        return self._module(self.code)

    def _module(self, name: str) -> Any:
        """TaskNotLoaded where it cannot be imported."""
        try:
            return import_module(name)
        except Exception as e:
            if self.name in OWN:
                raise
            reason = f"{name} cannot be imported ({type(e).__name__}: {e})"
            raise TaskNotLoaded(name=self.name, reason=reason) from e

    def objection(self) -> str:
        """Why it cannot be used as it is declared; empty where it can."""
        if set(self.columns) != COLUMNS or not all(self.columns.values()):
            return "its columns are not prompt and completion, each with a name or more"
        if not isinstance(self.model_types, frozenset):
            return "its model_types are no frozenset"
        if not self.methods:
            return "it has no methods"
        if self.preprocessing not in PREPROCESSING:
            return f"its preprocessing is not one of {', '.join(PREPROCESSING)}"
        return ""


TEXT_GENERATION = TaskSpec(
    "text_generation",
    columns={"prompt": ("prompt",), "completion": ("completion",)},
    methods=("full", "lora"),
    rows="tunesmith.data.text_generation",
    code="tunesmith.tasks.text_generation",
    reads=("on_long", "learn", "swap_terms"),
    needs=("tokenizer.json",),
    takes_messages=True,
    has_windows=True,
    samples=True,
    preprocessing=PREPROCESSING[1],
    pipeline_tag="text-generation",
)
ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "convbert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "funnel",
        "megatron-bert",
        "mobilebert",
        "modernbert",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "squeezebert",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)
"""Architectures that read a text from both sides: `model_type` of config.json."""
TEXT_CLASSIFICATION = TaskSpec(
    "text_classification",
    columns={"prompt": ("text", "prompt"), "completion": ("label", "completion")},
    methods=("full", "lora", "head"),
    rows="tunesmith.data.text_classification",
    code="tunesmith.tasks.text_classification",
    reads=(
        "on_long",
        "head_rate",
        "layer_decay",
        "dropout",
        "class_weights",
        "label_separator",
    ),
    model_types=ENCODERS,
    needs=("tokenizer.json",),
    has_windows=True,
    pipeline_tag="text-classification",
)
OWN = {spec.name: spec for spec in (TEXT_GENERATION, TEXT_CLASSIFICATION)}


@cache
def _declared() -> tuple[Mapping[str, TaskSpec], Mapping[str, str]]:
    """The tasks that installed packages declare, and of those that cannot be used, why. The
    product's own, and whoever was first, keep name and model types."""
    found: dict[str, TaskSpec] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.value):
        try:
            spec = point.load()
            reason = spec.objection() if isinstance(spec, TaskSpec) else "it is no TaskSpec"
            if not reason and spec.name != point.name:
                reason = f"its entry point is called {point.name}"
        except Exception as e:  # whatever a package of somebody else raises
            reason = f"{type(e).__name__}: {e}"
        if not reason:
            others = [s for s in (*OWN.values(), *found.values()) if _meet(s, spec)]
            reason = f"it meets the task {others[0].name}" if others else ""
        if reason:
            broken[point.name] = f"{point.value}: {reason}"
        else:
            found[spec.name] = spec
    return found, broken


def _meet(a: TaskSpec, b: TaskSpec) -> bool:
    return a.name == b.name or bool(a.model_types & b.model_types)


def known() -> Mapping[str, TaskSpec]:
    """Every task that can be used, by its name: the product's own, and those that installed
    packages declare."""
    return {**_declared()[0], **OWN}


def find(name: str) -> TaskSpec:
    """UnknownTask where no installed package declares it, TaskNotLoaded where one does so
    wrongly."""
    if name in OWN:  # without a look at what is installed, which takes time
        return OWN[name]
    found, broken = _declared()
    if name in broken:
        raise TaskNotLoaded(name=name, reason=broken[name])
    if name not in found:
        raise UnknownTask(name=name, known=sorted(known()))
    return found[name]


def of_config(config: Mapping[str, Any]) -> TaskSpec:
    """The task of a base that only its config.json tells of. A package that cannot be used is
    told, once a process."""
    for name, reason in _declared()[1].items():
        if name not in _told:
            _told.add(name)
            warnings.warn(f"the task {name} cannot be used: {reason}", Notice, stacklevel=2)
    kind = str(config.get("model_type", ""))
    return next((spec for spec in known().values() if kind in spec.model_types), TEXT_GENERATION)


_told: set[str] = set()


def readers(specs: Iterable[TaskSpec]) -> dict[str, tuple[str, ...]]:
    """Of each option that only some tasks read: those tasks."""
    every = list(specs)
    options = sorted({option for spec in every for option in spec.reads})
    return {o: tuple(s.name for s in every if o in s.reads) for o in options}
