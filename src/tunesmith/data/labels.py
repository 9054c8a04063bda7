"""The labels that a classifier gives: their names in the order of its outputs, one or several to a
row. No torch."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from tunesmith.errors import UnfitLabels

MOST_LABELS = 10_000
THRESHOLD = 0.5
"""Where a row may have several labels: those at least as likely are given."""


@dataclass(frozen=True)
class Labels:
    names: tuple[str, ...]
    several: bool = False
    """Whether a row may have none, one or several of them."""

    @classmethod
    def among(cls, completions: Iterable[str], lists: bool) -> "Labels":
        """Those of the training rows' completions, numbers in their order, all else by name.
        UnfitLabels where nothing can be learnt of them."""
        given = list(completions)
        names = {n for c in given for n in labels_of(c, lists)}
        if len(names) < 2:
            only = next(iter(names), "none")
            raise UnfitLabels(reason=f"the training rows have one label, {only!r:.60}")
        if len(names) > MOST_LABELS:
            raise UnfitLabels(reason=f"there are {len(names):,} labels, {MOST_LABELS:,} at most")
        if len(names) == len(given) > 2 and not lists:
            reason = f"each of {len(given):,} training rows has a label of its own"
            raise UnfitLabels(reason=reason)
        return cls(tuple(ordered(names)), lists)

    def places(self, completion: str) -> tuple[int, ...]:
        """Of a row's labels; those that no training row has are left out."""
        known = {name: i for i, name in enumerate(self.names)}
        return tuple(known[n] for n in labels_of(completion, self.several) if n in known)

    def unknown(self, completion: str) -> list[str]:
        """A row's labels that no training row has."""
        return [n for n in labels_of(completion, self.several) if n not in set(self.names)]

    def text(self, places: Collection[int]) -> str:
        """What COMPLETE gives: the label, or where a row may have several a JSON list of them."""
        found = [self.names[i] for i in places]
        return to_text(found) if self.several else found[0]

    def to_json(self) -> dict[str, Any]:
        return {"labels": list(self.names), "several": self.several}


@dataclass(frozen=True)
class Classification:
    """A classifier's answer to one text."""

    label: str
    """The likeliest label; where a row may have several, a JSON list of those likely enough."""
    labels: tuple[str, ...]
    """Those that it stands for."""
    probabilities: Mapping[str, float]
    """Of every label; they add up to one where a row has one label."""

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        scores: Sequence[float],
        several: bool,
        threshold: float | Mapping[str, float] = THRESHOLD,
    ) -> "Classification":
        """`threshold`: for every label, or for each by its name (the others: THRESHOLD)."""
        known = Labels(tuple(names), several)
        needed = (
            [threshold.get(n, THRESHOLD) for n in names]
            if isinstance(threshold, Mapping)
            else [threshold] * len(names)
        )
        places = chosen(scores, several, needed)
        return cls(
            known.text(places),
            tuple(names[i] for i in places),
            dict(zip(names, scores, strict=True)),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"labels": list(self.labels)}


def chosen(
    scores: Sequence[float], several: bool, needed: Sequence[float] | None = None
) -> list[int]:
    """Places of the labels that are given, of the probabilities of all."""
    if several:
        least = needed or [THRESHOLD] * len(scores)
        return [i for i, p in enumerate(scores) if p >= least[i]]
    return [max(range(len(scores)), key=scores.__getitem__)]


def to_text(names: Iterable[str]) -> str:
    """Several labels as the text that a row has for them."""
    return json.dumps(ordered(set(names)), ensure_ascii=False)


def labels_of(completion: str, several: bool) -> list[str]:
    if not several:
        return [completion]
    try:
        found = json.loads(completion)
    except ValueError:
        return [completion]
    return [str(n) for n in found] if isinstance(found, list) else [completion]


def ordered(names: Collection[str]) -> list[str]:
    """Numbers in their order where all are numbers, else by name."""
    numbers = {n: _number(n) for n in names}
    if all(v is not None for v in numbers.values()):
        return sorted(names, key=lambda n: (numbers[n], n))
    return sorted(names)


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def set_f1(answer: str, wanted: str) -> float:
    """Of two sets of labels: the harmonic mean of precision and recall; 1 where both are empty."""
    a, w = (set(labels_of(x, True)) for x in (answer, wanted))
    return 2 * len(a & w) / (len(a) + len(w)) if a or w else 1.0


def same_set(answer: str, wanted: str) -> float:
    return float(set(labels_of(answer, True)) == set(labels_of(wanted, True)))


def macro_f1(answers: Sequence[str], wanted: Sequence[str], several: bool) -> float:
    """The mean over labels of the harmonic mean of precision and recall; labels that neither stand
    in a row nor are answered are left out."""
    pairs = [
        (set(labels_of(a, several)), set(labels_of(w, several)))
        for a, w in zip(answers, wanted, strict=True)
    ]
    hit: dict[str, int] = {}
    seen: dict[str, int] = {}
    for a, w in pairs:
        for n in (*a, *w):
            seen[n] = seen.get(n, 0) + 1
        for n in a & w:
            hit[n] = hit.get(n, 0) + 1
    return sum(2 * hit.get(n, 0) / count for n, count in seen.items()) / max(1, len(seen))
