"""The linear model on words that every tuned model must beat, and the answers that it is fit for: a
closed set. No torch."""

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from tunesmith.errors import MissingExtra

MOST_CLASSES, LONGEST, SHARE = 200, 80, 0.2
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths that a probe chooses among
ROWS_LIMIT = 20_000  # training rows; more cost minutes
MOST_CELLS = 4_000_000  # rows times answers; logistic regression of more would take longest of all


def is_closed_set(answers: Collection[str], rows: int) -> bool:
    """Whether the distinct `answers` of so many rows are a closed set: short, and each given again
    and again."""
    return len(answers) <= min(MOST_CLASSES, max(3, SHARE * rows)) and all(
        len(a) <= LONGEST for a in answers
    )


def is_installed() -> bool:
    return find_spec("sklearn") is not None


def fit(texts: Sequence[str], answers: Sequence[str], *, longest_gram: int = 2) -> Any:
    """Logistic regression on TF-IDF of words and pairs of words, of more than MOST_CELLS the
    nearest class mean: a scikit-learn pipeline with `predict`. MissingExtra without it."""
    if not is_installed():
        raise MissingExtra(what="the linear model on words", extra="audit")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, answers = texts[:ROWS_LIMIT], answers[:ROWS_LIMIT]
    words = TfidfVectorizer(ngram_range=(1, longest_gram), token_pattern=r"\b\w+\b")
    is_large = len(texts) * len(set(answers)) > MOST_CELLS
    last = _nearest() if is_large else LogisticRegression(C=10, max_iter=1000)
    return make_pipeline(words, last).fit(texts, answers)


def fit_several(
    texts: Sequence[str], targets: Sequence[Sequence[int]], asked: Sequence[str]
) -> list[list[int]]:
    """The same for rows that may have several labels each: a model for every label. The places of
    those that it gives `asked`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b")
    known = words.fit_transform(texts[:ROWS_LIMIT])
    y = _matrix(targets[:ROWS_LIMIT])
    given = (_ridge() if y.size > MOST_CELLS else _one_vs_rest(10.0)).fit(known, y)
    return _places(given.predict(words.transform(asked)))


def _one_vs_rest(penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(LogisticRegression(C=penalty, max_iter=1000))


def _nearest() -> Any:
    """The class whose mean is nearest."""
    from sklearn.neighbors import NearestCentroid

    class Nearest(NearestCentroid):  # type: ignore[misc]
        def fit(self, X: Any, y: Any) -> Any:
            with warnings.catch_warnings():
                # of deviations within a class, which only shrinking reads
                warnings.simplefilter("ignore")
                return super().fit(X, y)

    return Nearest()


def _ridge() -> Any:
    """All labels in one solve."""
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier()


def _matrix(targets: Sequence[Sequence[int]]) -> Any:
    """(N, C), one for each row's labels."""
    import numpy as np

    found = np.zeros((len(targets), 1 + max((p for t in targets for p in t), default=0)), int)
    for row, places in enumerate(targets):
        found[row, list(places)] = 1
    return found


def _places(matrix: Any) -> list[list[int]]:
    return [[i for i, given in enumerate(row) if given] for row in matrix.tolist()]


def probe(
    known: Any, targets: Sequence[tuple[int, ...]], asked: Any, several: bool, seed: int
) -> list[list[int]]:
    """The labels of `asked` by a linear model on features, (N, D) arrays: logistic regression with
    an L2 penalty that a fifth of the known rows chooses, features scaled by one mean and deviation
    (Kumar et al. 2022, arXiv 2202.10054). Of more than MOST_CELLS rows times labels the nearest
    class mean, or ridge regression where rows have several."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    mean, deviation = known.mean(), known.std() + 1e-12
    x, z = ((a.astype(np.float64) - mean) / deviation for a in (known, asked))
    kept = [i for i, t in enumerate(targets) if t or several]
    x, some = x[kept], [targets[i] for i in kept]
    y = _matrix(some) if several else np.array([t[0] for t in some])

    def fitted(penalty: float, rows: Any) -> Any:
        plain = LogisticRegression(C=penalty, max_iter=300)
        return (_one_vs_rest(penalty) if several else plain).fit(x[rows], y[rows])

    if (y.size if several else len(y) * len(set(y.tolist()))) > MOST_CELLS:
        given = (_ridge() if several else _nearest()).fit(x, y).predict(z)
        return _places(given) if several else [[int(i)] for i in given]

    order = np.random.default_rng(seed).permutation(len(kept))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    best = 1.0
    if len(held) and (several or len(set(y[rest])) > 1):
        best = max(PENALTIES, key=lambda c: float(fitted(c, rest).score(x[held], y[held])))
    found = fitted(best, order).predict(z)
    return _places(found) if several else [[int(i)] for i in found]


def score(train: Iterable[tuple[str, str]], test: Iterable[tuple[str, str]]) -> float | None:
    """Share of `test` that a model fitted on `train` answers rightly, pairs of text and answer;
    None where answers are no closed set."""
    pairs, asked = ([(t, a.strip()) for t, a in part] for part in (train, test))
    classes = Counter(a for _, a in pairs)
    if len(classes) < 2 or not asked or not is_closed_set(classes, len(pairs)):
        return None
    model = fit([t for t, _ in pairs], [a for _, a in pairs])
    found = model.predict([t for t, _ in asked])
    return sum(str(f) == a for f, (_, a) in zip(found, asked, strict=True)) / len(asked)
