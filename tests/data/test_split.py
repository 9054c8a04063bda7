"""Parts near their shares whenever groups allow, and never a group in two parts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import split
from tunesmith.data.split import EXACT, FEW_ROWS, NEAR, PARTS, Plan
from tunesmith.words import counted

SIZES = st.one_of(
    st.lists(st.integers(1, 3), min_size=1, max_size=200),
    st.lists(st.integers(1, 60), min_size=1, max_size=60),
    st.lists(st.sampled_from([1, 1, 1, 90]), min_size=1, max_size=80),
    st.lists(st.sampled_from([7, 11]), min_size=1, max_size=60),
)


def best_sum(sizes: list[int], most: int) -> int:
    """The nearest sum of some sizes that is not over `most`, by trying."""
    reached = {0}
    for s in sizes:
        reached |= {r + s for r in reached if r + s <= most}
    return max(reached)


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES)
def test_parts_are_as_near_their_shares_as_whole_groups_allow(sizes: list[int]) -> None:
    total = sum(sizes)
    plan = split.plans({"training": total})["training"]
    parts = split.split(sizes, plan)
    counts = {p: sum(s for s, q in zip(sizes, parts, strict=True) if q == p) for p in PARTS}
    assert sum(counts.values()) == total and counts["train"] > 0
    assert counts["verdict"] <= plan.verdict and counts["validation"] <= plan.validation
    if total < FEW_ROWS:
        assert counts == {"train": total, "validation": 0, "verdict": 0}
        return
    fitting = [s for s in sizes if s <= plan.verdict]
    enough = sum(fitting) >= plan.verdict + plan.validation
    if enough:
        assert counts["verdict"] == best_sum(fitting, plan.verdict)
    rest = [s for s, p in zip(sizes, parts, strict=True) if p == "train" and s <= plan.validation]
    assert not enough or all(counts["validation"] + s > plan.validation for s in rest), (
        "nothing that fits is left in train"
    )
    told = list(split.warnings(counts, {"training": plan}))
    for part, share in (("verdict", plan.verdict), ("validation", plan.validation)):
        assert any(
            w.startswith(f"{part} has {counts[part]} of the {counted(share, 'row')} meant")
            for w in told
        ) is (counts[part] < NEAR * share)


@pytest.mark.parametrize("of_one_prompt", [0, 10, 40, 60, 79, 80, 85, 90, 95, 99, 100])
def test_one_prompt_does_not_take_the_training_rows(of_one_prompt: int) -> None:
    sizes = [1] * (100 - of_one_prompt) + ([of_one_prompt] if of_one_prompt else [])
    parts = split.split(sizes, split.plans({"training": 100})["training"])
    counts = {p: sum(s for s, q in zip(sizes, parts, strict=True) if q == p) for p in PARTS}
    free = 100 if of_one_prompt <= 10 else 100 - of_one_prompt
    assert counts["train"] >= 80 and abs(counts["verdict"] - counts["validation"]) <= 1
    assert counts["verdict"] + counts["validation"] == min(20, free)


def test_the_first_groups_in_drawn_order_are_held_out() -> None:
    assert (
        split.split([1] * 20, Plan("train", verdict=2, validation=3))
        == ["verdict"] * 2 + ["validation"] * 3 + ["train"] * 15
    )


@pytest.mark.parametrize("share", [EXACT + 1, 3 * EXACT, 100_000])
def test_large_parts_are_filled_exactly_too(share: int) -> None:
    sizes = [1, 2, 3, 5000] * (share // 6 + 1)
    parts = split.split(sizes, Plan("validation", verdict=share))
    assert sum(s for s, p in zip(sizes, parts, strict=True) if p == "verdict") == share


PLANS: dict[tuple[str, ...], dict[str, Plan]] = {
    ("training",): {"training": Plan("train", 20, 20)},
    ("training", "validation"): {
        "training": Plan("train"),
        "validation": Plan("validation", verdict=100),
    },
    ("training", "test"): {"training": Plan("train", 0, 20), "test": Plan("verdict")},
    ("training", "validation", "test"): {
        "training": Plan("train"),
        "validation": Plan("validation"),
        "test": Plan("verdict"),
    },
}


@pytest.mark.parametrize("given_", PLANS)
def test_what_becomes_of_each_query(given_: Any) -> None:
    assert split.plans(dict.fromkeys(given_, 200)) == PLANS[given_]
