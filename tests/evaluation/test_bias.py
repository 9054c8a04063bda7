"""Groups and exchanged words: what is measured, and what is said not to be."""

import pytest

from tunesmith.data.swaps import PAIRS, Swap
from tunesmith.evaluation.bias import gaps


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He lost his card.", "She lost her card."),
        ("HE is a Man; a woman asked", "SHE is a Woman; a man asked"),
        ("the theme of mankind", "the theme of mankind"),
        ("She said she", "He said he"),
        ("", ""),
    ],
)
def test_words_are_exchanged_whole_and_both_ways(text: str, other: str) -> None:
    assert Swap(PAIRS)(text) == other


def test_the_users_own_pairs_take_the_place_of_the_list() -> None:
    swap = Swap("New York/Lagos, anna/ali")
    assert (
        swap("Anna flew from New York to lagos; he waited")
        == "Ali flew from Lagos to new york; he waited"
    )


def test_the_gap_is_from_the_best_to_the_worst_group_of_base_and_tuned() -> None:
    contexts = [
        {"region": r, "id": i} for i, r in enumerate(["north"] * 10 + ["south"] * 20 + ["west"] * 9)
    ]
    base = [1.0] * 5 + [0.0] * 5 + [1.0] * 5 + [0.0] * 15 + [0.0] * 9
    tuned = [1.0] * 9 + [0.0] + [1.0] * 20 + [0.0] * 9
    [gap], not_measured = gaps(contexts, base, tuned)
    assert (gap.column, dict(gap.rows)) == ("region", {"north": 10, "south": 20}), (
        "west is too small to be judged"
    )
    assert (gap.base, gap.base_worst, gap.base_worst_score) == (0.25, "south", 0.25)
    assert (gap.tuned, gap.tuned_worst, gap.tuned_worst_score) == (pytest.approx(0.1), "north", 0.9)
    assert not_measured == []


def test_what_cannot_be_measured_is_said() -> None:
    assert gaps([{}] * 30, [1.0] * 30, [1.0] * 30) == (
        [],
        ["groups: no other column has a few values"],
    )
    found, why = gaps([{"g": "a"}] * 25 + [{"g": "b"}] * 5, [1.0] * 30, [1.0] * 30)
    assert found == [] and why == ["g: fewer than two groups of 10 verdict rows"]
