"""What each task must say of rows, without torch. A task is declared in `tasks.specs`, which names
the module where these functions stand."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import duckdb

from tunesmith.catalog import ModelSpec
from tunesmith.data.checks.rows import RowChecks
from tunesmith.data.dataset import Dataset, Row
from tunesmith.data.staging import Source
from tunesmith.options import Decided, Options

TOO_LONG, REFUSED = "too long", "refused by the chat template"
"""Why a base cannot take a row, in two words; its detail stands beside it."""


class Sized(Protocol):
    """What the training loop knows of a row."""

    @property
    def number(self) -> int:
        """Of the row, for messages."""

    @property
    def size(self) -> int:
        """In the task's unit, such as tokens: what goes through the model."""

    @property
    def weight(self) -> int:
        """Of its supervised items, such as learnt tokens: what its loss is a sum of."""


class Accepted(Sized, Protocol):
    """A row as it goes into a model."""

    @property
    def row(self) -> Row: ...

    @property
    def is_cut(self) -> bool:
        """Whether a part of what goes into the model was left out."""


A = TypeVar("A", bound=Accepted)


@dataclass
class Encoding(Generic[A]):
    """The accepted rows of a part, and those that this base cannot take."""

    accepted: list[A] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """What must be known of the accepted ones."""

    def reject(self, part: str, row: Row, reason: str, detail: str) -> None:
        told = {"part": part, "row": row.row, "reason": reason, "detail": detail}
        self.rejected.append({**told, "context": row.context})


class RowRules(Protocol):
    Checks: type[RowChecks]
    """The audit of its rows."""

    def preprocessing(self, spec: ModelSpec) -> Mapping[str, Any]:
        """What is frozen at CREATE and stored with the model, as JSON: how rows and questions
        become what goes into the model. UnsafeBaseModel where the base does not allow it."""

    def fitted(self, preprocessing: Mapping[str, Any], dataset: Dataset) -> Mapping[str, Any]:
        """The same with what the frozen rows decide of it, such as the labels that there are."""

    def encoder(self, preprocessing: Mapping[str, Any], spec: ModelSpec) -> Any:
        """That, ready for use; made once for many rows."""

    def add_rows(
        self,
        own: duckdb.DuckDBPyConnection,
        source: Source,
        file: Path,
        unread: dict[str, int],
    ) -> None:
        """Judge the staged rows of a source and add each to the table `rows` with `insert_rows`:
        which is usable, and what duplicates are told by. Keys that are not trained on are counted
        in `unread`."""

    def encode(
        self,
        dataset: Dataset,
        part: str,
        encoder: Any,
        spec: ModelSpec,
        options: Options | Decided,
    ) -> Encoding[Any]:
        """The rows of a part as they go into this base, and those that it cannot take."""

    def question(self, value: Any) -> Any:
        """What COMPLETE was given, as the model is asked it; InvalidQuestion."""

    def count_tokens(self, encoder: Any, text: str) -> int | None:
        """Of a text by itself; None where the task reads no texts."""

    def words(self, row: Row) -> str | None:
        """The text of a row from which a linear model on words guesses its answer; None where there
        is none."""

    def metrics_for(
        self, completions: Sequence[str], encoder: Any
    ) -> Mapping[str, Callable[[str, str], float]]:
        """How an answer is scored against the wanted one, from 0 to 1, the metric that decides in
        front; chosen by the training completions alone."""


def different_first(rows: Sequence[A], seed: int) -> list[A]:
    """The rows in a seeded order, one of each answer before the second of any."""
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, A]] = []
    for example in shuffled:
        answer = example.row.completion.strip()
        seen[answer] = seen.get(answer, 0) + 1
        ranked.append((seen[answer], len(ranked), example))
    return [example for *_, example in sorted(ranked, key=lambda r: r[:2])]
