"""What a model is tuned to do: what the loop, the evaluator and the doors ask of a task's own code.

A task is declared in `specs`, which imports no torch; its code is a module with the functions of
`Task`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tunesmith.catalog import ModelSpec
from tunesmith.data.rules import Accepted
from tunesmith.options import Decided

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunesmith.inference.engine import Completion, Sampling
    from tunesmith.registry import TunedModel

Told = Callable[[int], None]
"""Hears how many are done."""


@dataclass(frozen=True)
class Agreement:
    """How a model reads the probes, beside how the trained one did."""

    equal: int
    """Probes that are answered as the trained model answered them, ties apart."""
    ties: int
    """Probes that part only where the trained model was about to answer otherwise itself."""
    top1: float
    """Share of the places of an answer at which the best choice is the same."""
    kl: float
    """Mean divergence from what the trained model held for likely, in nats; where nothing is
    likely or not, the mean distance."""
    seen: Any
    """What `Probes.differing` compares."""


class Probes(Protocol):
    """What the trained model answered to some of its rows, kept with it."""

    @property
    def count(self) -> int: ...

    @property
    def stop_rate(self) -> float:
        """Share of the answers that ended by themselves."""

    def save(self, folder: Path) -> None: ...

    def replay(self, model: Any) -> Agreement:
        """How another artefact of the model reads them."""

    def differing(self, a: Agreement, b: Agreement) -> int:
        """Probes that two models read otherwise."""


class Engine(Protocol):
    """A loaded model that answers."""

    model: Any
    adapters: Any
    """What it shares with other engines on its base, or None."""
    adapter: Any

    def must_take(self, question: Any) -> object:
        """An error where the model cannot be asked this."""

    def generate(
        self, questions: "Sequence[Any]", sampling: "Sampling", told: Told | None = None
    ) -> "list[Completion]": ...

    def stream(self, question: Any, sampling: "Sampling") -> "Any":
        """The answer as far as it is written, again and again; the last one is whole."""


R = TypeVar("R", bound=Accepted)


class Exam(Generic[R]):
    """The verdict rows as the models are asked them, and what else is measured on the way. A task
    extends it by what it can measure."""

    against: Sequence[str] = ("base", "examples")
    """The arms that need no tuning: the best of them is what the tuned model must beat."""
    base_answers = True
    """Whether the base answers the rows by itself."""

    why_no_examples = ""
    """Why the base was not asked with examples, where that needs saying."""
    swapped: Sequence[int] | None = None
    """Places of the rows that hold a word for a group that can be exchanged; None where that is
    not measured."""

    def __init__(self, train: Sequence[R], rows: Sequence[R], decided: Decided) -> None:
        self.train, self.rows, self.decided = train, rows, decided

    def examples(self, engine: Any) -> Sequence[Any]:
        """Training rows that the base is shown with each question; none where that means
        nothing."""
        return ()

    def answers(self, engine: Any, told: Told, examples: Sequence[Any] = ()) -> "list[Completion]":
        """To every row."""
        raise NotImplementedError

    def before(self, engine: Any, told: Told) -> dict[str, list[str]]:
        """More arms that the base gives without tuning: their answers to every row."""
        return {}

    def beside(self, engine: Any) -> dict[str, dict[str, float]]:
        """Figures of the tuned model that decide nothing, each as of some states or arms."""
        return {}

    def together(self, answers: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        """Figures of every arm's answers, which are no mean of rows and decide nothing."""
        return {}

    def suspects(self, engine: Any) -> list[int] | None:
        """Training rows, by number, whose answer looks wrong by what the base makes of them; None
        where that cannot be told."""
        return None

    def predictions(self, answers: "Sequence[Completion]") -> list[dict[str, Any]]:
        """The tuned model's answers, row by row (row, label, predicted, probability), where a
        table of them means something."""
        return []

    def swapped_answers(self, engine: Any, told: Told) -> "list[Completion]":
        """To the rows `swapped`, with the words exchanged."""
        return []

    def retention(self, engine: Any) -> float | None:
        """Something that the base could do before it was tuned to something else, smaller is
        better; None where nothing is measured."""
        return None


class Task(Protocol):
    """N supervised items in a batch of rows."""

    def load(
        self,
        spec: ModelSpec,
        device: "torch.device",
        encoder: Any,
        decided: Decided | None = None,
    ) -> Any:
        """The base as a model that a method can change, as the options of a job want it; without
        them as it answers. What is new in it is drawn by torch's random numbers as they stand."""

    def load_tuned(self, folder: Path, device: "torch.device", encoder: Any) -> Any:
        """A model that was tuned whole."""

    def room(self, model: Any) -> int:
        """How much goes through the model at once to begin with, in the task's unit."""

    def why_slower(self, model: Any, rows: Sequence[Any]) -> str:
        """Why these rows go through the model slower than such rows could; empty where they do
        not."""

    def together(
        self, model: Any, rows: Sequence[Any], most: int, most_rows: int | None = None
    ) -> list[list[int]]:
        """Indices of rows that go through the model at once: sizes of at most `most` together, or
        one row."""

    def losses(self, model: Any, rows: Sequence[Any]) -> "tuple[Tensor, Tensor]":
        """The loss of each supervised item, (N,), not averaged, and which of the rows it belongs
        to, (N,)."""

    def rates(self, model: Any, decided: Decided) -> "dict[str, float]":
        """Of trained tensors by name: the multiple of the learning rate at which they learn, where
        it is not one."""

    def remembering(
        self, model: Any, rows: Sequence[Any], home: Path, base: str
    ) -> "AbstractContextManager[str]":
        """Inside, what the model's frozen layers make of these rows may be kept and not computed
        again; `base`: the fingerprint of its weights. Gives why it is not, where that needs
        saying."""

    def words(self, rows: Sequence[Any]) -> set[int]:
        """The numbers of the tokens that rows hold; empty of a task that reads no words."""

    def finish(
        self, model: Any, validation: Sequence[Any], encoder: Any
    ) -> "Mapping[str, Mapping[str, Any]]":
        """What is done to a trained model before it is saved; files that are kept beside it, by
        name, as JSON."""

    def untuned(self, spec: ModelSpec, device: str, encoder: Any) -> Engine:
        """The base as one that answers before it has learnt."""

    def engine_of(self, model: Any, encoder: Any, spec: ModelSpec) -> Engine:
        """A model in memory as one that answers."""

    def engine(self, tuned: "TunedModel", device: str, shared: Any = None) -> Engine:
        """A stored model, or a base, loaded; DamagedFiles or CertificateRefused where it must not
        be. `shared`: what another engine on its base holds."""

    def answer_all(
        self,
        asked: "Sequence[tuple[Any, Any]]",
        sampling: "Sampling",
        told: Told | None = None,
    ) -> "list[Completion]":
        """The answers of some engines to a question each, in order, computed together where they
        can be."""

    def probe(self, engine: Any, rows: Sequence[Any]) -> Probes:
        """What a model that was just trained answers to some of its rows."""

    def probes_of(self, folder: Path) -> Probes:
        """Those that were stored; DamagedFiles."""

    def Exam(self, train: Sequence[Any], rows: Sequence[Any], decided: Decided) -> Exam[Any]: ...
