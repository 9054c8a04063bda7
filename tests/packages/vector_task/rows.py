"""What the task knows of rows: `tunesmith.data.rules.RowRules`."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from tunesmith.catalog import ModelSpec, read_json
from tunesmith.data.checks.rows import RowChecks as Checks
from tunesmith.data.dataset import Dataset, Row, insert_rows
from tunesmith.data.rules import Encoding
from tunesmith.data.staging import Source
from tunesmith.errors import InvalidQuestion
from tunesmith.options import Decided, Options

__all__ = ["Checks"]


@dataclass(frozen=True)
class Point:
    row: Row
    vector: list[float]
    is_cut: bool = False
    weight: int = 1

    @property
    def number(self) -> int:
        return self.row.row

    @property
    def size(self) -> int:
        return len(self.vector)


def preprocessing(spec: ModelSpec) -> dict[str, Any]:
    return {"inputs": read_json(Path(spec.folder), "config.json")["inputs"]}


def fitted(preprocessing: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    return dict(preprocessing)


def encoder(preprocessing: Mapping[str, Any], spec: ModelSpec) -> int:
    return int(preprocessing["inputs"])


def add_rows(
    own: duckdb.DuckDBPyConnection, source: Source, file: Path, unread: dict[str, int]
) -> None:
    sql = "SELECT row, prompt, completion, context FROM read_parquet(?) ORDER BY row"
    judged = []
    for row, vector, number, context in own.execute(sql, [str(file)]).fetchall():
        reason = None
        try:
            question(vector)
            if not math.isfinite(float(number)):
                reason = "number is none"
        except (InvalidQuestion, TypeError, ValueError):
            reason = "vector or number is none"
        judged.append((row, vector, number, context, False, vector, reason))
    insert_rows(own, source.part, judged)


def encode(
    dataset: Dataset, part: str, encoder: int, spec: ModelSpec, options: Options | Decided
) -> Encoding[Point]:
    found = Encoding[Point]()
    for row in dataset.rows(part):
        vector = question(row.prompt)
        if len(vector) == encoder:
            found.accepted.append(Point(row, vector))
        else:
            found.reject(
                part, row, "another length", f"{len(vector)} numbers, the base takes {encoder}"
            )
    return found


def question(value: Any) -> list[float]:
    try:
        vector = [float(x) for x in (json.loads(value) if isinstance(value, str) else value)]
    except (TypeError, ValueError):
        raise InvalidQuestion(
            task="vector_to_number", reason=f"{value!r:.60} is no vector"
        ) from None
    if not vector or not all(map(math.isfinite, vector)):
        raise InvalidQuestion(
            task="vector_to_number", reason=f"{value!r:.60} is no vector of numbers"
        )
    return vector


def count_tokens(encoder: int, text: str) -> None:
    return None


def words(row: Row) -> None:
    return None


def near(answer: str, wanted: str) -> float:
    return float(abs(float(answer) - float(wanted)) <= 0.2)


def metrics_for(completions: Sequence[str], encoder: int) -> dict[str, Callable[[str, str], float]]:
    return {"within_0.2": near}
