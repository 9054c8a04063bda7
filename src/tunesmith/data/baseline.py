"""The linear model on words that every tuned model must beat, and the answers that it is fit for: a
closed set. No torch."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from tunesmith.errors import MissingExtra

MOST_CLASSES, LONGEST, SHARE = 200, 80, 0.2
ROWS_LIMIT = 20_000  # training rows; more cost minutes


def is_closed_set(answers: Collection[str], rows: int) -> bool:
    """Whether the distinct `answers` of so many rows are a closed set: short, and each given again
    and again."""
    return len(answers) <= min(MOST_CLASSES, max(3, SHARE * rows)) and all(
        len(a) <= LONGEST for a in answers
    )


def is_installed() -> bool:
    return find_spec("sklearn") is not None


def fit(texts: Sequence[str], answers: Sequence[str], *, longest_gram: int = 2) -> Any:
    """Logistic regression on TF-IDF of words and pairs of words: a scikit-learn pipeline with
    `predict`. MissingExtra without it."""
    if not is_installed():
        raise MissingExtra(what="the linear model on words", extra="audit")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, longest_gram), token_pattern=r"\b\w+\b")
    model = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    return model.fit(texts[:ROWS_LIMIT], answers[:ROWS_LIMIT])


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
