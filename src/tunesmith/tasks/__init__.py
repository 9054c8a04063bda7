"""What a model is tuned to do. A task is a module with the functions of `Task`: whoever adds one
adds a file and a line here."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from tunesmith.catalog import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TASKS = {"text_generation": "tunesmith.tasks.text_generation"}


class Sized(Protocol):
    """What the loop knows of an example."""

    @property
    def number(self) -> int:
        """Of its row, for messages."""

    @property
    def size(self) -> int:
        """In the task's unit, such as tokens: what goes through the model."""

    @property
    def weight(self) -> int:
        """Of its supervised items, such as learnt tokens: what its loss is a sum of."""


class Task(Protocol):
    """N supervised items in a batch of rows."""

    def load(self, spec: ModelSpec, device: "torch.device", precision: str = "full") -> Any:
        """The base as a model that a method can change."""

    def together(
        self, model: Any, rows: Sequence[Any], most: int, most_rows: int | None = None
    ) -> list[list[int]]:
        """Indices of rows that go through the model at once: sizes of at most `most` together, or
        one row."""

    def losses(self, model: Any, rows: Sequence[Any]) -> "tuple[Tensor, Tensor]":
        """The loss of each supervised item, (N,), not averaged, and which of the rows it belongs
        to, (N,)."""


def load(name: str) -> Task:
    return cast(Task, import_module(TASKS[name]))
