from tunesmith.evaluation.metrics import commonest, exact_match


def test_exact_match_forgives_spaces_at_the_ends_alone() -> None:
    assert exact_match(["a ", "B", "c d"], ["a", "b", "c  d"]) == 1 / 3
    assert exact_match([], []) == 0


def test_the_commonest_answer_is_the_most_frequent_one() -> None:
    assert commonest(["x", "y", "y ", "z"]) == "y"
