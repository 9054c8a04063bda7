"""Which rows teach, which choose, which judge: a pure function of group sizes and their drawn
order.

Rows with equal prompts are one group, and a group is never parted. A part that is held out is
filled as near to its share as whole groups allow, and never over it: a group larger than a part
stays with the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tunesmith.words import counted

T = TypeVar("T")
PARTS = ("train", "validation", "verdict")
HELD_OUT_SHARE = 0.1  # of a table without a validation query: as much again for the verdict
HELD_OUT_LIMIT = 500  # rows; more would cost time and hardly narrow an interval
FEW_ROWS = 10  # below it nothing is held out, and the job warns
EXACT = 2000  # rows of a part that are chosen by every sum which the groups can give
NEAR = 0.9  # of its share; a part with fewer rows is told


@dataclass(frozen=True)
class Plan:
    """What becomes of one query's rows: so many to the verdict and to validation, the rest to
    `rest`."""

    rest: str
    verdict: int = 0
    validation: int = 0


def plans(usable: Mapping[str, int]) -> dict[str, Plan]:
    """The plan of each query that was given, by its usable rows."""
    n = usable.get("training", 0)
    held_out = min(HELD_OUT_LIMIT, max(1, round(HELD_OUT_SHARE * n)))
    found = {"training": Plan("train")}
    if "validation" in usable:
        found["validation"] = Plan(
            "validation", verdict=0 if "test" in usable else usable["validation"] // 2
        )
    elif n >= FEW_ROWS:
        found["training"] = Plan(
            "train", verdict=0 if "test" in usable else held_out, validation=held_out
        )
    if "test" in usable:
        found["test"] = Plan("verdict")
    return found


def split(sizes: Sequence[int], plan: Plan) -> list[str]:
    """The part of each group, given in drawn order with its number of rows."""
    parts = [plan.rest] * len(sizes)
    wanted = plan.verdict + plan.validation
    there = min(wanted, sum(size for size in sizes if size <= max(plan.verdict, plan.validation)))
    verdict = plan.verdict * there // max(1, wanted)  # where rows are few, both parts have some
    for part, share in (
        ("verdict", verdict),
        ("validation", min(plan.validation, there - verdict)),
    ):
        free = [i for i, p in enumerate(parts) if p == plan.rest and part != plan.rest]
        for i in _fill([sizes[i] for i in free], share):
            parts[free[i]] = part
    return parts


def _fill(sizes: Sequence[int], share: int) -> list[int]:
    """The groups, as early ones as possible, whose rows together come nearest to `share` without
    passing it.

    All but the last EXACT rows are taken as they come; from there on `reached` holds, as bits,
    every sum that the groups can give.
    """
    taken, first = [], 0
    while first < len(sizes) and share > EXACT:
        if sizes[first] <= share - EXACT:
            taken.append(first)
            share -= sizes[first]
        first += 1
    reached = [1]
    used: list[int] = []
    whole = (1 << (share + 1)) - 1
    for i, size in enumerate(sizes[first:], first):
        if reached[-1] >> share & 1:
            break
        if size <= share:
            used.append(i)
            reached.append((reached[-1] | reached[-1] << size) & whole)
    left = reached[-1].bit_length() - 1
    found = []
    for n in range(len(used) - 1, -1, -1):
        if not reached[n] >> left & 1:  # only with this group
            found.append(used[n])
            left -= sizes[used[n]]
    return taken + found[::-1]


def counted_to(
    part: str,
    moved: Mapping[str, Mapping[str, Sequence[int]]],
    rows_of: Callable[[str], Iterable[T]],
    number: Callable[[T], int],
) -> Iterator[T]:
    """The rows that a job counts to a part, in order: the frozen ones (`rows_of`) without those
    that moved away, and those that came."""
    gone = {row for rows in moved.get(part, {}).values() for row in rows}
    come = {origin: set(to[part]) for origin, to in moved.items() if part in to}
    kept = (row for row in rows_of(part) if number(row) not in gone)
    if not come:
        yield from kept
        return
    joined = [
        row for origin, wanted in come.items() for row in rows_of(origin) if number(row) in wanted
    ]
    yield from sorted([*kept, *joined], key=number)


def warnings(counts: Mapping[str, int], found: Mapping[str, Plan]) -> Iterator[str]:
    """What must be told about the sizes of the parts."""
    total = sum(counts[p] for p in PARTS)
    if total < FEW_ROWS and set(found) == {"training"}:
        yield (
            f"only {counted(total, 'usable row')}: a few hundred are a good start; below "
            f"{FEW_ROWS} none is held out to measure on"
        )
        return
    for source, plan in found.items():
        for part, share in (("verdict", plan.verdict), ("validation", plan.validation)):
            if share and counts[part] < NEAR * share:
                sizes = (
                    f"train {counts['train']}, validation {counts['validation']}, verdict "
                    f"{counts['verdict']}"
                )
                yield (
                    f"{part} has {counts[part]} of the {counted(share, 'row')} meant for it, "
                    f"since rows with equal prompts stay together "
                    f"and the groups of the {source} data do not divide so: {sizes}"
                )
    if not counts["verdict"]:
        yield "no verdict rows: the tuned model will not be compared with its base"
    if not counts["validation"]:
        yield (
            "no validation rows: nothing chooses the best epoch, and training ends with its "
            "last step"
        )
