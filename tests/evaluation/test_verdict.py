import json
import math

import numpy as np
import pytest
from scipy import stats

from tunesmith.documents.verdict import Slice, Verdict, Word, objection, sentence
from tunesmith.evaluation.judge import decide, interval, judge, slices, student_t


def scores(n: int, won: int, lost: int) -> tuple[list[int], list[int]]:
    """Tuned and before on n rows: the first `won` only tuned has, the next `lost` only the other,
    of the rest every second both."""
    tuned = [1] * won + [0] * lost + [i % 2 for i in range(n - won - lost)]
    before = [0] * won + [1] * lost + [i % 2 for i in range(n - won - lost)]
    return tuned, before


@pytest.mark.parametrize(
    ("n", "won", "lost", "word"),
    [
        (200, 26, 6, Word.HELPED),
        (200, 6, 26, Word.HARMED),
        (200, 10, 8, Word.NO_EVIDENCE),
        (200, 0, 0, Word.NO_EVIDENCE),
        (200, 4, 0, Word.NO_EVIDENCE),
        (200, 12, 0, Word.HELPED),
        (60, 15, 2, Word.HELPED),
        (60, 6, 0, Word.NO_EVIDENCE),
        (60, 2, 15, Word.HARMED),
        (20, 18, 0, Word.HELPED),
        (1, 1, 0, Word.NO_EVIDENCE),
    ],
)
def test_the_word_follows_the_interval_and_few_rows_need_a_margin(
    n: int, won: int, lost: int, word: Word
) -> None:
    found, difference, low, high = judge(*scores(n, won, lost))
    assert (
        found is word
        and difference == pytest.approx((won - lost) / n)
        and low <= difference <= high
    )


@pytest.mark.parametrize(
    ("right", "word", "against"),
    [
        ({"base": 0, "examples": 20, "commonest": 60, "tuned": 160}, Word.HELPED, "examples"),
        (
            {"base": 0, "examples": 20, "commonest": 60, "tuned": 62},
            Word.NO_EVIDENCE,
            "commonest",
        ),  # it learned the form of an answer
        (
            {"base": 0, "commonest": 100, "tuned": 40},
            Word.NO_EVIDENCE,
            "commonest",
        ),  # worse than a constant, but harmed is what was there
        ({"base": 100, "examples": 20, "commonest": 0, "tuned": 40}, Word.HARMED, "base"),
        (
            {"base": 100, "examples": 120, "commonest": 150, "tuned": 122},
            Word.NO_EVIDENCE,
            "examples",
        ),
    ],
)
def test_helped_is_also_better_than_a_constant_answer_and_harmed_is_worse_than_the_base(
    right: dict[str, int], word: Word, against: str
) -> None:
    arms = {arm: [1.0] * n + [0.0] * (200 - n) for arm, n in right.items()}
    found, arm, difference, low, high = decide(arms)
    assert (found, arm) == (word, against) and low <= difference <= high
    assert difference == pytest.approx((right["tuned"] - right[against]) / 200)


def test_with_few_rows_an_interval_that_touches_the_margin_decides_nothing() -> None:
    tuned, before = scores(99, 12, 1)
    word, _, low, _ = judge(tuned, before)
    assert 0 < low <= 0.05 and word is Word.NO_EVIDENCE
    assert judge(*scores(100, 12, 1))[0] is Word.HELPED


def test_the_interval_is_that_of_the_t_test_on_smooth_values_and_needs_no_seed() -> None:
    x = np.random.default_rng(1).normal(0.3, 1, 40)
    low, high = interval(x)
    wanted = stats.t.interval(0.95, 39, x.mean(), stats.sem(x))
    assert (low, high) == pytest.approx(wanted, abs=0.03) and interval(x) == (low, high)


@pytest.mark.parametrize("freedom", [5, 9, 29, 99, 499])
def test_student_t_is_scipys(freedom: int) -> None:
    assert student_t(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_rows_exchanged_at_random_are_called_helped_rarely() -> None:
    """A small dose of the calibration that `make proofs` runs at its full size."""
    r = np.random.default_rng(0)
    words = []
    for _ in range(300):
        n, share = int(r.integers(100, 400)), r.uniform(0.01, 0.4)
        difference = (r.random(n) < share) * r.choice([-1, 1], n)
        words.append(judge(difference.clip(0), (-difference).clip(0))[0])
    assert words.count(Word.HELPED) <= 0.05 * 300 and words.count(Word.HARMED) <= 0.05 * 300


def test_scores_are_shown_by_every_column_that_can_be_a_slice() -> None:
    contexts = [
        {"region": "north" if i < 10 else "south", "id": i, "one": "same"} for i in range(30)
    ]
    tuned, before = [1.0] * 10 + [0.5] * 20, [0.0] * 10 + [0.5] * 20
    found = slices(contexts, tuned, before)
    assert [(s.column, s.value, s.n, s.before, s.tuned) for s in found] == [
        ("region", "north", 10, 0, 1),
        ("region", "south", 20, 0.5, 0.5),
    ]
    assert found[1].low == found[1].high == 0


def test_a_verdict_crosses_as_json_and_says_its_word_first() -> None:
    verdict = Verdict(
        Word.HELPED,
        "exact_match",
        168,
        {"base": 0.0, "examples": 0.2, "tuned": 0.9},
        "examples",
        0.7,
        0.6,
        0.8,
        {"base": 3.0, "tuned": 0.1},
        0.99,
        examples=5,
        won=(1, 2),
        slices=(Slice("region", "north", 10, 0.1, 0.9, 0.5, 1.0),),
        worst=({"row": 3},),
        notes=("a",),
    )
    data = json.loads(json.dumps(verdict.to_json()))
    assert Verdict.from_json(data) == verdict
    assert sentence(data).startswith(
        "HELPED: tuning gained +70.0 points on 168 rows (95 % interval +60.0 to +80.0), against the base with 5"
    )
    assert "against always answering 'billing'" in sentence(
        {**data, "against": "commonest", "commonest_answer": "billing"}
    )
    assert sentence({**data, "word": "NO_EVIDENCE"}).startswith("NO EVIDENCE") and math.isclose(
        data["low"], 0.6
    )


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (None, "it has no verdict"),
        ({"word": "NO_EVIDENCE", "stop_rate": 1.0}, "its verdict is NO_EVIDENCE"),
        ({"word": "HARMED", "stop_rate": 1.0}, "its verdict is HARMED"),
        ({"word": "HELPED", "stop_rate": 0.94}, "only 94% of its answers stop by themselves"),
        ({"word": "HELPED", "stop_rate": 0.95}, ""),
    ],
)
def test_a_name_moves_only_to_a_model_that_helped_and_stops(
    verdict: dict[str, object] | None, why: str
) -> None:
    assert objection(verdict) == why
