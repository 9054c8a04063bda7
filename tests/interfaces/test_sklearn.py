"""scikit-learn's own tools over a classifier that is tuned by jobs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from conftest import WORDS
from tunesmith import TextClassifier
from tunesmith.errors import TrainingFailed, UnfitLabels

TEXTS = [f"{WORDS[i % 2]} {WORDS[2 + i % 5]} {i}" for i in range(80)]
NUMBERS = np.array([3 + i % 2 for i in range(80)])
FAST = {"learning_rate": 3e-3, "max_epochs": 4, "batch_size": 4, "options": {"head_rate": 1}}


def fast(base: Path, **more: Any) -> TextClassifier:
    return TextClassifier(str(base), **FAST | more)


def test_it_learns_and_gives_the_labels_as_they_were(home: Path, tiny_encoder: Path) -> None:
    model = fast(tiny_encoder)
    with pytest.raises(NotFittedError):
        model.predict(TEXTS)
    assert model.fit(TEXTS, NUMBERS, wait=False) is model and model.job_.id
    assert list(model.classes_) == [3, 4]
    assert model.score(TEXTS, NUMBERS) > 0.9
    probabilities = model.predict_proba(TEXTS[:5])
    assert probabilities.shape == (5, 2) and np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert model.predict(TEXTS[:4]).dtype == NUMBERS.dtype


def test_sklearns_tools_take_it(home: Path, tiny_encoder: Path) -> None:
    model = fast(tiny_encoder)
    again = clone(model)
    assert again is not model and again.get_params() == model.get_params()
    assert again.set_params(max_epochs=2).max_epochs == 2
    lower = FunctionTransformer(lambda texts: [t.lower() for t in texts])
    piped = make_pipeline(lower, model).fit(TEXTS, NUMBERS)
    assert piped.score(TEXTS, NUMBERS) > 0.9
    names = [WORDS[n - 3] for n in NUMBERS]
    assert min(cross_val_score(model, TEXTS, names, cv=2)) > 0.8
    search = GridSearchCV(model, {"max_epochs": [1, 4]}, cv=2).fit(TEXTS, names)
    assert set(search.best_params_) == {"max_epochs"} and set(search.classes_) == set(names)


def test_what_cannot_be_fitted_says_why(home: Path, tiny_encoder: Path) -> None:
    with pytest.raises(UnfitLabels, match="80 texts and 79 labels"):
        fast(tiny_encoder).fit(TEXTS, NUMBERS[1:])
    with pytest.raises(UnfitLabels, match="one label"):
        fast(tiny_encoder).fit(TEXTS, ["x"] * 80)
    with pytest.raises(TrainingFailed, match="freeze"):
        fast(tiny_encoder, freeze="no such weight").fit(TEXTS, NUMBERS)
