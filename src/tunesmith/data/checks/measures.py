"""Measures of the audit: what counts tell of answers and groups, and which labels look wrong."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

FOLDS = 3  # of the rows whose labels are suspected; a class needs a row in each
LEAST_SUSPECTED = 50  # rows


def can_be_suspected(labels: Sequence[str]) -> list[int]:
    """The rows, of those with these labels, that `suspect_labels` can say something of: of classes
    with a row in each fold. None where they are too few, or of one class."""
    counts = Counter(labels)
    found = [i for i, name in enumerate(labels) if counts[name] >= FOLDS]
    return found if len(found) >= LEAST_SUSPECTED and len({labels[i] for i in found}) > 1 else []


def suspect_labels(x: Any, labels: Sequence[str]) -> list[int]:
    """Rows that a linear model which did not see them holds for another label: for that one as
    likely as for the rows that have it, for their own a fifth as likely or less (confident
    learning, Northcutt et al. 2021, arXiv 1911.00068). `x`: the rows' texts, or an array (N, D) of
    what a base makes of them.

    None where the model is right on less than half of the rows, or does not take away a fifth of
    the errors of always saying the commonest label: it has no say there.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    names = sorted(set(labels))
    y = np.asarray([names.index(v) for v in labels])
    if isinstance(x, np.ndarray):
        x = (x - x.mean()) / (x.std() + 1e-12)
        # held back strongly: with less, more of the rows that are named are labelled rightly
        model: Any = LogisticRegression(C=0.03, max_iter=200)
    else:
        # trained by steps, not by logistic regression's solver: its time grows linearly with rows,
        # and it calls no threaded library
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        descent = SGDClassifier(loss="log_loss", alpha=1e-4, max_iter=30, random_state=0)
        model = make_pipeline(words, descent)
    p = cross_val_predict(
        model,
        x,
        y,
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0),
        method="predict_proba",
    )
    right, commonest = (p.argmax(1) == y).mean(), np.bincount(y).max() / len(y)
    if right < max(0.5, commonest + 0.2 * (1 - commonest)):
        return []
    own, best = p[np.arange(len(y)), y], p.argmax(1)
    usual = np.asarray([own[y == k].mean() for k in range(len(names))])
    return [
        int(i)
        for i in np.nonzero((best != y) & (p.max(1) >= usual[best]) & (own < 0.2 * usual[y]))[0]
    ]


def dependence(table: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Mutual information of a table's rows and columns over the entropy of its rows, and the p
    value of the chi-squared test.

    The p value is that of Wilson and Hilferty's cube-root approximation (1931), good to about
    0.001.
    """
    n = sum(map(sum, table))
    rows = [sum(r) for r in table]
    columns = [sum(r[j] for r in table) for j in range(len(table[0]))]
    information = chi = 0.0
    for i, row in enumerate(table):
        for j, k in enumerate(row):
            expected = rows[i] * columns[j] / n
            information += k / n * math.log(k / expected) if k else 0.0
            chi += (k - expected) ** 2 / expected if expected else 0.0
    freedom = max(1, (sum(r > 0 for r in rows) - 1) * (sum(c > 0 for c in columns) - 1))
    z = ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return information / max(1e-12, entropy(rows)), 0.5 * math.erfc(z / math.sqrt(2))


def entropy(counts: Sequence[int]) -> float:
    n = sum(counts)
    return -sum(k / n * math.log(k / n) for k in counts if k)


def quantiles(ordered: Sequence[int]) -> dict[str, int]:
    return {
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "longest": ordered[-1],
    }
