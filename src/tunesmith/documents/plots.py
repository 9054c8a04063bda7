"""Pictures of a classifier's answers to the rows that chose nothing, as SVG text. Plain data in: of
each row its label, what the model answered, and how likely it held that."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tunesmith.errors import InvalidOptionValue

MOST_SHOWN = 40  # labels of a confusion matrix: the commonest, and those that are confused most
BINS = 10
INK, LINE, BAR, WRONG = "#222222", "#dddddd", "#1f77b4", "#b3261e"


@dataclass(frozen=True)
class Answer:
    row: int
    label: str
    predicted: str
    probability: float

    @property
    def is_right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Picture:
    """Shown by itself in a notebook."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg


def plot(what: str, name: str, rows: Sequence[Mapping[str, Any]]) -> Picture:
    """`confusion`, `reliability` or `labels` of the rows of tunesmith.predictions."""
    if what not in PLOTS:
        raise InvalidOptionValue(name="plot", value=what, allowed=f"one of {', '.join(PLOTS)}")
    kept = ("row", "label", "predicted", "probability")
    answers = [Answer(**{k: r[k] for k in kept}) for r in rows]
    if not answers:
        allowed = "a job that gives labels and has verdict rows"
        raise InvalidOptionValue(name="plot", value=name, allowed=allowed)
    return Picture(PLOTS[what](name, answers))


@dataclass(frozen=True)
class Mistakes:
    pairs: Sequence[tuple[str, str, int]]
    """Label, answer in its place and how often, the most frequent first."""
    worst: Sequence[Mapping[str, Any]]
    """The rows of highest loss: row, loss, wanted, answer and text."""


def confused(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Of rows of tunesmith.predictions: label, answer in its place and how often, the most
    frequent first."""
    found = Counter((r["label"], r["predicted"]) for r in rows if r["label"] != r["predicted"])
    return [(label, given, n) for (label, given), n in found.most_common()]


def by_label(answers: Sequence[Answer]) -> list[tuple[str, int, float, float]]:
    """Of each label: its rows, the share of them that is answered with it (recall), and the share
    of its answers that are right (precision; 0 where it was never answered). The worst first."""
    rows, given = Counter(a.label for a in answers), Counter(a.predicted for a in answers)
    right = Counter(a.label for a in answers if a.is_right)
    found = [
        (
            n,
            rows[n],
            right[n] / rows[n] if rows[n] else 0.0,
            right[n] / given[n] if given[n] else 0.0,
        )
        for n in sorted(rows.keys() | given.keys())
    ]
    return sorted(found, key=lambda f: (f[2] + f[3], f[0]))


def reliability(answers: Sequence[Answer]) -> list[tuple[float, float, int]]:
    """Over bins of equal width: mean probability, share that was right, rows; empty bins left
    out."""
    bins: dict[int, list[Answer]] = {}
    for a in answers:
        bins.setdefault(min(BINS - 1, int(a.probability * BINS)), []).append(a)
    return [
        (
            sum(a.probability for a in some) / len(some),
            sum(a.is_right for a in some) / len(some),
            len(some),
        )
        for _, some in sorted(bins.items())
    ]


# ---------------------------------------------------------------- pictures


def _confusion(name: str, answers: Sequence[Answer]) -> str:
    """Rows are the labels, columns the answers; a cell's darkness is its share of the row."""
    counts = Counter((a.label, a.predicted) for a in answers)
    rows = Counter(a.label for a in answers)
    every = sorted({n for pair in counts for n in pair})
    wrong = Counter(n for a in answers if not a.is_right for n in (a.label, a.predicted))
    shown = sorted(sorted(every, key=lambda n: (-wrong[n], -rows[n], n))[:MOST_SHOWN])
    cell, left = max(14, min(48, 720 // len(shown))), 190
    size = cell * len(shown)
    title = f"{name}: label (row) and answer (column), {len(answers):,} rows"
    if len(shown) < len(every):
        title += f"; the {len(shown)} of {len(every)} labels that are confused most"
    out = []
    for i, label in enumerate(shown):
        y = 60 + i * cell
        out.append(text(left - 6, y + cell * 0.65, label, "end"))
        out.append(
            f'<text transform="translate({left + i * cell + cell * 0.65:.0f},'
            f'{70 + size:.0f}) rotate(60)" fill="{INK}">{escape(label[:28])}</text>'
        )
        for j, given in enumerate(shown):
            n = counts[label, given]
            share = n / rows[label] if rows[label] else 0.0
            colour = BAR if i == j else WRONG
            out.append(
                f'<rect x="{left + j * cell}" y="{y}" width="{cell}" height="{cell}"'
                f' fill="{colour}" fill-opacity="{share:.2f}" stroke="{LINE}">'
                f"<title>{escape(label)} answered as {escape(given)}: {n}</title></rect>"
            )
            if n and cell >= 22:
                out.append(text(left + (j + 0.5) * cell, y + cell * 0.65, str(n), "middle"))
    return svg(left + size + 40, size + 220, title, out)


def _reliability(name: str, answers: Sequence[Answer]) -> str:
    """How often answers are right, by how likely the model held them: on the diagonal where it
    says what is true."""
    found = reliability(answers)
    side, left, top = 320, 60, 50

    def at(x: float, y: float) -> tuple[float, float]:
        return left + side * x, top + side * (1 - y)

    out = [
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="{LINE}"/>'
    ]
    (x1, y1), (x2, y2) = at(0, 0), at(1, 1)
    out.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}"/>')
    for tick in (0.0, 0.5, 1.0):
        out.append(text(left - 8, at(0, tick)[1] + 4, f"{tick:.0%}", "end"))
        out.append(text(at(tick, 0)[0], top + side + 18, f"{tick:.0%}", "middle"))
    places = [at(p, right) for p, right, _ in found]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    out.append(f'<polyline points="{line}" fill="none" stroke="{BAR}" stroke-width="1.5"/>')
    for (x, y), (p, right, n) in zip(places, found, strict=True):
        radius = 3 + 9 * (n / len(answers)) ** 0.5
        out.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{BAR}">'
            f"<title>{n} rows: held for {p:.0%} likely, {right:.0%} right</title></circle>"
        )
    out.append(text(left + side / 2, top + side + 40, "how likely the model held it", "middle"))
    return svg(side + 120, side + 110, f"{name}: share that was right, {len(answers):,} rows", out)


def _labels(name: str, answers: Sequence[Answer]) -> str:
    """Of each label, the worst first: how many of its rows were found, how many of its answers are
    right."""
    found = by_label(answers)
    left, width, step = 190, 260, 18
    out = [text(left, 44, "found of its rows (blue), right of its answers (grey)", "start")]
    for i, (label, n, recall, precision) in enumerate(found):
        y = 54 + i * step
        out.append(text(left - 6, y + 11, label, "end"))
        for share, colour, offset in ((recall, BAR, 0), (precision, "#999999", 7)):
            out.append(
                f'<rect x="{left}" y="{y + offset}" width="{width * share:.1f}" height="6"'
                f' fill="{colour}"/>'
            )
        out.append(
            text(left + width + 8, y + 11, f"{recall:.0%}, {precision:.0%} ({n} rows)", "start")
        )
    return svg(left + width + 150, 70 + step * len(found), f"{name}: label by label", out)


PLOTS: dict[str, Callable[[str, Sequence[Answer]], str]] = {
    "confusion": _confusion,
    "reliability": _reliability,
    "labels": _labels,
}


def text(x: float, y: float, words: str, anchor: str) -> str:
    """A line of text; one that ends at a place is cut to what fits before it."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">'
        f"{escape(words[:28])}</text>"
        if anchor == "end"
        else f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">'
        f"{escape(words)}</text>"
    )


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A picture of these parts under its title, on white."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
        f' font-family="sans-serif" font-size="11" role="img"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="12" y="24" fill="{INK}" font-size="13">{escape(title)}</text>\n{body}\n</svg>\n'
    )
