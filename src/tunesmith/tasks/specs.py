"""The tasks that a model can be tuned to do, declared. No torch.

Whoever adds a task adds an entry here, or declares one in a package of his own under the entry
point `tunesmith.tasks`, and writes the two modules that it names. Nothing else changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from tunesmith.errors import UnknownTask

MESSAGES = "messages"
ENTRY_POINTS = "tunesmith.tasks"


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task before any row is read."""

    name: str
    columns: Mapping[str, tuple[str, ...]]
    """`prompt`, what goes into the model, and `completion`, what it learns to give: each with the
    names that its column may have, the one that is taken first in front."""
    unit: str
    """What the size of a row counts: token, picture."""
    methods: tuple[str, ...]
    """How its models can be tuned."""
    rows: str
    """The module with the functions of `data.rules.RowRules`; it imports no torch."""
    code: str
    """The module with the functions of `tasks.Task`."""
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
    preprocessing: str = "preprocessing.json"
    """The file in a model's folder that says how rows become what goes into it."""
    pipeline_tag: str = ""
    """What the Hugging Face hub calls such a model."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a column which is trained on may have."""
        own = tuple(dict.fromkeys(n for names in self.columns.values() for n in names))
        return (*own, MESSAGES) if self.takes_messages else own

    @property
    def rules(self) -> Any:
        return import_module(self.rows)

    @property
    def task(self) -> Any:
        return import_module(self.code)


TEXT_GENERATION = TaskSpec(
    "text_generation",
    columns={"prompt": ("prompt",), "completion": ("completion",)},
    unit="token",
    methods=("full", "lora"),
    rows="tunesmith.data.text_generation",
    code="tunesmith.tasks.text_generation",
    reads=("on_long", "learn", "swap_terms"),
    needs=("tokenizer.json",),
    takes_messages=True,
    has_windows=True,
    preprocessing="prompt_template.json",
    pipeline_tag="text-generation",
)
OWN = {spec.name: spec for spec in (TEXT_GENERATION,)}


@cache
def known() -> Mapping[str, TaskSpec]:
    """Every task by its name: the product's own, and those that installed packages declare."""
    added = (point.load() for point in entry_points(group=ENTRY_POINTS))
    return {**{spec.name: spec for spec in added}, **OWN}


def find(name: str) -> TaskSpec:
    """UnknownTask where no installed package declares it."""
    if name in OWN:  # without a look at what is installed, which takes time
        return OWN[name]
    if name not in known():
        raise UnknownTask(name=name, known=sorted(known()))
    return known()[name]


def of_config(config: Mapping[str, Any]) -> TaskSpec:
    """The task of a base that only its config.json tells of."""
    kind = str(config.get("model_type", ""))
    return next((spec for spec in known().values() if kind in spec.model_types), TEXT_GENERATION)


def readers(specs: Iterable[TaskSpec]) -> dict[str, tuple[str, ...]]:
    """Of each option that only some tasks read: those tasks."""
    every = list(specs)
    options = sorted({option for spec in every for option in spec.reads})
    return {o: tuple(s.name for s in every if o in s.reads) for o in options}
