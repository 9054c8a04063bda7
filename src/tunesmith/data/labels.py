"""The labels that a classifier gives: their names in the order of its outputs, one or several to a
row. No torch."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from tunesmith.errors import InvalidOptionValue, UnfitLabels

MOST_LABELS = 10_000
RESAMPLES = 1000
NONE, BALANCED, MOST_WEIGHT = "none", "balanced", 1000.0
THRESHOLD = 0.5
"""Where a row may have several labels: those at least as likely are given."""


@dataclass(frozen=True)
class Labels:
    names: tuple[str, ...]
    several: bool = False
    """Whether a row may have none, one or several of them."""
    counts: tuple[int, ...] = ()
    """Training rows of each; none where no row was read."""
    rows: int = 0

    @classmethod
    def among(cls, completions: Iterable[str], lists: bool) -> "Labels":
        """Those of the training rows' completions, numbers in their order, all else by name.
        UnfitLabels where nothing can be learnt of them."""
        given = list(completions)
        counts = Counter(n for c in given for n in labels_of(c, lists))
        names = counts.keys()
        if len(names) < 2:
            only = next(iter(names), "none")
            raise UnfitLabels(reason=f"the training rows have one label, {only!r:.60}")
        if len(names) > MOST_LABELS:
            raise UnfitLabels(reason=f"there are {len(names):,} labels, {MOST_LABELS:,} at most")
        if len(names) == len(given) > 2 and not lists:
            reason = f"each of {len(given):,} training rows has a label of its own"
            raise UnfitLabels(reason=reason)
        known = tuple(ordered(names))
        return cls(known, lists, tuple(counts[n] for n in known), len(given))

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
        return {
            "labels": list(self.names),
            "several": self.several,
            "counts": list(self.counts),
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Labels":
        return cls(
            tuple(data["labels"]), bool(data["several"]), tuple(data["counts"]), int(data["rows"])
        )

    def factors(self, class_weights: str) -> tuple[float, ...]:
        """How much a row of each label counts, by the option of that name; none where all count
        alike. InvalidOptionValue.

        Where a row has one label they are scaled so that the training rows count one in the mean:
        `balanced` is rows / (labels x rows of the label), as scikit-learn has it. Where a row may
        have several, it is how much a row that has the label counts against one that has not:
        `balanced` is rows without it over rows with it, at most MOST_WEIGHT.
        """
        if class_weights == NONE:
            return ()
        if class_weights == BALANCED:
            found = [(self.rows - n) / n if self.several else self.rows / n for n in self.counts]
            found = [min(max(f, 1 / MOST_WEIGHT), MOST_WEIGHT) for f in found]
        else:
            given = self._weights(class_weights)
            found = [given.get(n, 1.0) for n in self.names]
        if self.several:
            return tuple(found)
        mean = sum(f * n for f, n in zip(found, self.counts, strict=True)) / self.rows
        return tuple(f / mean for f in found)

    def _weights(self, text: str) -> dict[str, float]:
        try:
            given = json.loads(text)
        except ValueError:
            given = None
        numbers = given.values() if isinstance(given, dict) else [None]
        is_good = all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < math.inf
            for v in numbers
        )
        if not is_good or not set(given) <= set(self.names):
            known = ", ".join(self.names[:20])
            allowed = f"labels of the training rows ({known}), each with a number above 0"
            raise InvalidOptionValue(name="class_weights", value=text, allowed=allowed)
        return dict(given)


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


def labels_of_head(config: Mapping[str, Any]) -> dict[str, int]:
    """The labels of a base that has a head of its own, by its config.json, each with its row; none
    where it has none, or where they have no names."""
    kinds, names = config.get("architectures"), config.get("id2label")
    is_classifier = any("ForSequenceClassification" in str(k) for k in kinds or ())
    if not is_classifier or not isinstance(names, Mapping):
        return {}
    return {
        str(name): int(row)
        for row, name in names.items()
        if str(row).isdecimal() and not str(name).startswith("LABEL_")
    }


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


def macro_f1_interval(
    tuned: Sequence[str], before: Sequence[str], wanted: Sequence[str], several: bool, seed: int
) -> tuple[float, float, float]:
    """The macro F1 of `tuned` minus that of `before`, with the ends of its 95 % interval by a
    paired bootstrap over rows (percentiles)."""
    import numpy as np

    rows = [[set(labels_of(x, several)) for x in given] for given in (tuned, before, wanted)]
    names = sorted({n for given in rows for row in given for n in row})
    a, b, w = (np.array([[n in row for n in names] for row in given], float) for given in rows)
    n = len(wanted)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, n)), drawn])

    def scores(given: Any) -> Any:
        hits, seen = weights @ (given * w), weights @ (given + w)
        return (2 * hits / np.maximum(seen, 1)).sum(1) / np.maximum(1, (seen > 0).sum(1))

    difference = scores(a) - scores(b)
    low, high = np.quantile(difference[1:], [0.025, 0.975])
    return float(difference[0]), float(low), float(high)


def _sets(
    answers: Sequence[str], wanted: Sequence[str], several: bool
) -> list[tuple[set[str], set[str]]]:
    return [
        (set(labels_of(a, several)), set(labels_of(w, several)))
        for a, w in zip(answers, wanted, strict=True)
    ]


def micro_f1(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Of rows that may have several labels: the harmonic mean of precision and recall over all
    labels of all rows; 1 where there are none."""
    pairs = _sets(answers, wanted, True)
    seen = sum(len(a) + len(w) for a, w in pairs)
    return 2 * sum(len(a & w) for a, w in pairs) / seen if seen else 1.0


def macro_f1(answers: Sequence[str], wanted: Sequence[str], several: bool) -> float:
    """The mean over labels of the harmonic mean of precision and recall; labels that neither stand
    in a row nor are answered are left out."""
    pairs = _sets(answers, wanted, several)
    hit: dict[str, int] = {}
    seen: dict[str, int] = {}
    for a, w in pairs:
        for n in (*a, *w):
            seen[n] = seen.get(n, 0) + 1
        for n in a & w:
            hit[n] = hit.get(n, 0) + 1
    return sum(2 * hit.get(n, 0) / count for n, count in seen.items()) / max(1, len(seen))
