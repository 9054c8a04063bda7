"""Bias after tuning, the base beside the tuned model: scores by group, and answers that change when
only a word for a group does.

What the base brought and what tuning added stand apart: every figure is measured on both. Imports
no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.documents.verdict import Gap

LEAST_IN_GROUP, LEAST_SWAPPED = 10, 10  # verdict rows; below, a score or a rate says nothing
MOST_GROUPS = 20


def by_value(contexts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Every context column of two to MOST_GROUPS values, with the places of the rows of each
    value."""
    for column in dict.fromkeys(k for c in contexts for k in c):
        groups: dict[str, list[int]] = {}
        for i, context in enumerate(contexts):
            groups.setdefault(str(context.get(column, "")), []).append(i)
        if 2 <= len(groups) <= MOST_GROUPS:
            yield column, dict(sorted(groups.items()))


def gaps(
    contexts: Sequence[Mapping[str, Any]], base: Sequence[float], tuned: Sequence[float]
) -> tuple[list[Gap], list[str]]:
    """Of every context column with two or more groups of LEAST_IN_GROUP rows; and what stood in the
    way elsewhere."""
    found, not_measured = [], []
    for column, groups in by_value(contexts):
        large = {g: rows for g, rows in groups.items() if len(rows) >= LEAST_IN_GROUP}
        if len(large) < 2:
            not_measured.append(f"{column}: fewer than two groups of {LEAST_IN_GROUP} verdict rows")
            continue
        of_base, of_tuned = (
            {g: sum(arm[i] for i in rows) / len(rows) for g, rows in large.items()}
            for arm in (base, tuned)
        )
        (base_worst, b), (tuned_worst, t) = (
            min(s.items(), key=lambda x: x[1]) for s in (of_base, of_tuned)
        )
        sizes = {g: len(rows) for g, rows in large.items()}
        found.append(
            Gap(
                column,
                sizes,
                max(of_base.values()) - b,
                max(of_tuned.values()) - t,
                base_worst,
                b,
                tuned_worst,
                t,
            )
        )
    if not found and not not_measured:
        not_measured.append("groups: no other column has a few values")
    return found, not_measured
