"""When answers are a closed set, and how far words alone get."""

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

from tunesmith.data import baseline

ROWS = [
    (f"{thing} number {i}", team)
    for i in range(30)
    for thing, team in (("invoice", "billing"), ("parcel", "shipping"))
]


@pytest.mark.parametrize(
    ("answers", "rows", "closed"),
    [
        (["a", "b", "c"], 3, True),
        ([str(i) for i in range(20)], 100, True),
        ([str(i) for i in range(21)], 100, False),
        ([str(i) for i in range(201)], 10_000, False),
        (["a", "x" * 81], 100, False),
    ],
)
def test_a_closed_set_is_short_and_each_answer_is_used_again(
    answers: list[str], rows: int, closed: bool
) -> None:
    assert baseline.is_closed_set(answers, rows) is closed


@pytest.mark.parametrize("most", [10, 10**9])
def test_of_very_many_labels_the_arms_are_models_that_need_one_pass(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(baseline, "MOST_CELLS", most)
    n = 12
    texts = [f"thing{i // 2} w{i % 3}" for i in range(2 * n)]
    targets = [(i // 2,) for i in range(2 * n)]
    model = baseline.fit(texts, [f"label {i // 2}" for i in range(2 * n)])
    assert isinstance(model[-1], NearestCentroid) == (most == 10)
    assert list(model.predict(texts[:4])) == ["label 0", "label 0", "label 1", "label 1"]
    features = np.eye(n, dtype=np.float32).repeat(2, 0)
    for several in (False, True):
        found = baseline.probe(features, targets, features, several, 0)
        assert found == [list(t) for t in targets]
    assert baseline.fit_several(texts, targets, texts) == [list(t) for t in targets]


def test_words_decide_where_they_can_and_are_not_asked_where_answers_are_open() -> None:
    assert baseline.score(
        ROWS, [("my invoice", " billing "), ("a parcel", "shipping"), ("parcel", "billing")]
    ) == pytest.approx(2 / 3)
    assert (
        baseline.score([(f"say {i}", f"answer {i}") for i in range(50)], [("say 1", "answer 1")])
        is None
    )
    assert baseline.score([("x", "one")] * 20, [("x", "one")]) is None, (
        "one answer for all is nothing to learn"
    )
    assert baseline.score(ROWS, []) is None
