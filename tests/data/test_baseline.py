"""When answers are a closed set, and how far words alone get."""

import pytest

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
