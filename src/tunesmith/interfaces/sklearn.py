"""Tuning by scikit-learn's protocol: a classifier of texts that stands in pipelines, in
cross-validation and in searches."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.text import Broken, plain, value_of
from tunesmith.errors import MissingExtra, TrainingFailed, UnfitLabels
from tunesmith.jobs import Job, JobStatus
from tunesmith.service import Tunesmith
from tunesmith.tasks.specs import TEXT_CLASSIFICATION

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError:
    raise MissingExtra(what="TextClassifier", extra="audit") from None


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Gives labels to texts, or to pairs of texts.

    `fit` is a job like every other: it runs in a process of its own, its model has a name, and a
    part of the rows is kept to choose the checkpoint and to judge the model. Parameters are
    options of the same names; `options` holds any others.
    """

    def __init__(
        self,
        base_model: str = "all-minilm-l6-v2",
        *,
        name: str = "text_classifier",
        method: str = "auto",
        max_epochs: int | str = "auto",
        learning_rate: float | str = "auto",
        batch_size: int | str = "auto",
        freeze: str | float = "",
        seed: int = 0,
        options: dict[str, Any] | None = None,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        self.base_model, self.name, self.method = base_model, name, method
        self.max_epochs, self.learning_rate, self.batch_size = max_epochs, learning_rate, batch_size
        self.freeze, self.seed, self.options, self.home = freeze, seed, options, home

    def fit(self, X: Iterable[Any], y: Iterable[Any], *, wait: bool = True) -> Self:
        """`X`: texts, or pairs of them; `y`: a label for each. Where not `wait`, the job goes on
        by itself: it is `job_`, and whoever predicts waits for it. TrainingFailed."""
        texts, given = list(X), list(y)
        if len(texts) != len(given):
            told = f"there are {len(texts)} texts and {len(given)} labels"
            raise UnfitLabels(reason=told)
        self.classes_ = np.unique(np.asarray(given))
        names = [_name(c) for c in self.classes_]
        if len(set(names)) < len(names):
            raise UnfitLabels(reason="two of the labels are written alike")
        self._names = names
        rows = [_row(t) | {"label": _name(c)} for t, c in zip(texts, given, strict=True)]
        asked = {
            "task": TEXT_CLASSIFICATION.name,
            **{k: getattr(self, k) for k in ("method", "max_epochs", "learning_rate")},
            **{k: getattr(self, k) for k in ("batch_size", "freeze", "seed")},
            **(self.options or {}),
        }
        self.job_: Job = self._service.create(self.name, self.base_model, rows, **asked)
        if wait:
            self._wait()
        return self

    def predict(self, X: Iterable[Any]) -> NDArray[Any]:
        """The likeliest label of each text, (N,)."""
        likeliest = self.predict_proba(X).argmax(1)
        found: NDArray[Any] = self.classes_[likeliest]
        return found

    def predict_proba(self, X: Iterable[Any]) -> NDArray[np.float64]:
        """(N, labels), in the order of `classes_`."""
        check_is_fitted(self, "job_")
        self._wait()
        found = self._service.classify(self.job_.name, list(X))
        table = [[c.probabilities.get(n, 0.0) for n in self._names] for c in found]
        return np.asarray(table, float).reshape(-1, len(self._names))

    @property
    def _service(self) -> Tunesmith:
        return Tunesmith(home=self.home)

    def _wait(self) -> None:
        if not self.job_.status.is_final:
            self.job_ = self._service.wait(self.job_.id)
        if self.job_.status is not JobStatus.SUCCEEDED:
            why = (self.job_.error or {}).get("message", f"it is {self.job_.status.value}")
            raise TrainingFailed(id=self.job_.id, phase="fitting", reason=why)


def _name(label: Any) -> str:
    found = value_of(plain(label))
    if found is None or isinstance(found, Broken):
        raise UnfitLabels(reason=f"{label!r:.40} is no label")
    return str(found)


def _row(text: Any) -> dict[str, Any]:
    if isinstance(text, Sequence) and not isinstance(text, str) and len(text) == 2:
        return {"text": text[0], "text_pair": text[1]}
    return {"text": text}
