import itertools
import random

import pytest

from tunesmith.data.metrics import METRICS, commonest, exact_match, metrics_for


def test_an_answer_is_right_when_it_is_equal_spaces_at_the_ends_apart() -> None:
    assert exact_match(["a", " b\n", "C", ""], ["a", "b", "c", "d"]) == 0.5


def test_the_commonest_answer_is_the_most_frequent_one() -> None:
    assert commonest(["x", "y", "y ", "z"]) == "y"


@pytest.mark.parametrize(
    ("metric", "answer", "wanted", "score"),
    [
        ("number", "1,000.0", "1000", 1),
        ("number", " 3 ", "3.00", 1),
        ("number", "3 apples", "3", 0),
        ("number", "nan", "nan", 0),
        ("number", "-2", "2", 0),
        ("json", '{"b": 1, "a": [2]}', '{"a": [2], "b": 1.0}', 1),
        ("json", "{a: 1}", '{"a": 1}', 0),
        ("json", "[1, 2]", "[2, 1]", 0),
        ("token_f1", "The cat sat.", "the cat ran", 2 / 3),
        ("token_f1", "", "x", 0),
        ("token_f1", "a a a", "a", 0.5),
        ("rouge_l", "a b c d", "a c b d", 0.75),
        ("rouge_l", "x", "y", 0),
        ("rouge_l", "A, b!", "a b", 1),
    ],
)
def test_a_metric_scores_an_answer(metric: str, answer: str, wanted: str, score: float) -> None:
    assert METRICS[metric](answer, wanted) == pytest.approx(score)


def test_every_metric_gives_one_to_the_wanted_answer_and_stays_between_nought_and_one() -> None:
    r = random.Random(0)
    texts = [
        " ".join(r.choices(["a", "b", "c", "7", "[1]", "ö"], k=r.randrange(1, 9)))
        for _ in range(200)
    ]
    for name in ("exact_match", "token_f1", "rouge_l"):
        assert all(METRICS[name](t, t) == 1 for t in texts)
        assert all(
            0 <= METRICS[name](a, b) <= 1 and METRICS[name](a, b) == METRICS[name](b, a)
            for a, b in itertools.pairwise(texts)
        )


@pytest.mark.parametrize(
    ("completions", "first"),
    [
        (["1", "2.5", "1,000"], "number"),
        (['{"a": 1}', "[2]"], "json"),
        (["yes", "no", "not at all"], "exact_match"),
        (["a sentence that is rather longer than a label would be"] * 3, "token_f1"),
        (["1", "two"], "exact_match"),
        (["true", "false"], "exact_match"),
    ],
)
def test_the_primary_metric_follows_the_kind_of_answer(completions: list[str], first: str) -> None:
    assert metrics_for(completions)[0] == first
