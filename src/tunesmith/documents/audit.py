"""The audit of a dataset, as every door shows it: what is wrong with the rows, which rows, and the
SQL that mends it. Plain data; what is looked for: `data.checks`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Finding:
    name: str
    """What was looked for, in snake case; stable, for programs."""
    severity: str
    """error: rows are lost or the result is worthless; warning: the model learns something
    unwanted; note: worth knowing."""
    count: int
    source: str
    """training, validation or test."""
    rows: tuple[int, ...]
    """Positions in the query, from 1; at most ROWS_SHOWN of them."""
    message: str
    advice: str
    fix: str = ""
    """A SELECT that gives the query's rows without the finding; empty where no SQL can mend it."""
    keep: str = ""
    """The fix as a condition on the columns prompt and completion; one over a window counts the
    rows that the others leave."""
    replace: tuple[tuple[str, str], ...] = ()
    """The fix as new expressions for columns."""


@dataclass(frozen=True)
class Group:
    """A column that is not prompt or completion, looked at as a group: does it tell the answer?"""

    column: str
    counts: Mapping[str, int]
    by_answer: Mapping[str, Mapping[str, int]]
    """Rows per answer and group; empty where answers are no closed set."""
    mutual_information: float | None
    """Between group and answer, as a share of the answer's entropy (0 to 1); None where it cannot
    be measured."""
    p_value: float | None
    """Of the chi-squared test that group and answer are independent."""


@dataclass(frozen=True)
class AuditReport:
    rows: Mapping[str, int]
    """Rows per query, usable or not."""
    tokens: int | None
    """Of the usable training rows, once, with template and stop ids."""
    base_model: str
    lengths: Mapping[str, Mapping[str, int]]
    """prompt and completion: median, 95 % and longest, in tokens."""
    classes: Mapping[str, int]
    """Answers with their number of training rows, the commonest first; empty where answers are no
    closed set."""
    imbalance: float | None
    """Rows of the commonest answer over those of the rarest."""
    entropy: float | None
    """Of the answers, over that of as many equally frequent ones (1: balanced)."""
    languages: Mapping[str, float]
    groups: tuple[Group, ...]
    findings: tuple[Finding, ...]
    not_measured: tuple[str, ...] = ()
    clean_sql: str = ""
    """The training query with every fix but those that need a person's eye (ADVISORY)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        findings = tuple(
            Finding(**{**f, "rows": tuple(f["rows"]), "replace": tuple(map(tuple, f["replace"]))})
            for f in data["findings"]
        )
        return cls(
            **{
                **data,
                "findings": findings,
                "groups": tuple(Group(**g) for g in data["groups"]),
                "not_measured": tuple(data["not_measured"]),
            }
        )

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")
