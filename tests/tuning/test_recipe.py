from dataclasses import fields

import pytest

from tunesmith.catalog import ModelSpec
from tunesmith.options import Options
from tunesmith.phases.prepare import warnings
from tunesmith.tuning.recipe import Known, decide, token_budget


def facts(rows: int = 900, parameters: int = 3_000_000, **changes: object) -> Known:
    return Known(ModelSpec(name="b", parameters=parameters, **changes), rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 9, 100, 1000, 100_000])
@pytest.mark.parametrize("parameters", [40_000, 3_000_000, 135_000_000, 8_000_000_000])
def test_every_auto_becomes_a_value_that_the_option_itself_would_accept(
    rows: int, parameters: int
) -> None:
    resolved = decide(Options(), facts(rows, parameters))
    assert "auto" not in resolved.values().values()
    Options.parse(resolved.values())
    assert set(resolved.reasons) == {f.name for f in fields(Options)}
    assert all(
        r.words and r.origin in ("user", "measured", "default") for r in resolved.reasons.values()
    )


def test_what_the_user_asked_for_stays_and_says_so() -> None:
    resolved = decide(Options(max_epochs=2, method="lora"), facts())
    assert (
        resolved.max_epochs == 2
        and resolved.reasons["max_epochs"].origin == "user"
        and resolved.method == "lora"
    )


def test_a_very_small_base_is_tuned_whole_and_a_large_one_by_adapter() -> None:
    assert (
        decide(Options(), facts()).method == "full"
        and decide(Options(), facts(parameters=135_000_000)).method == "lora"
    )


def test_a_small_table_gets_more_epochs_within_the_contracts_ten() -> None:
    assert (
        decide(Options(), facts(rows=100)).max_epochs == 10
        and decide(Options(), facts(rows=50_000)).max_epochs == 3
    )


def test_a_rate_above_the_pretraining_rate_is_warned_about() -> None:
    spec = ModelSpec(name="b", pretraining_rate=1e-3)
    assert "above the rate" in warnings(spec, 2e-3, [])[0] and not warnings(spec, 1e-3, [])
    for method in ("full", "lora"):
        assert decide(Options(method=method), facts(pretraining_rate=1e-4)).learning_rate <= 1e-4, (
            "no rule goes above it by itself"
        )


@pytest.mark.parametrize(
    ("tokens", "credits", "price", "found"),
    [
        (0, 0.0, 1e-6, (0, "budget_tokens")),
        (500, 0.0, 1e-6, (500, "budget_tokens")),
        (0, 1e-3, 1e-6, (1000, "budget_credits")),
        (500, 1e-3, 1e-6, (500, "budget_tokens")),
        (5000, 1e-3, 1e-6, (1000, "budget_credits")),
        (0, 1e-9, 1e-6, (1, "budget_credits")),
        (0, 1e-3, 0.0, (0, "budget_tokens")),
    ],
)
def test_the_tighter_budget_decides_and_a_tiny_one_is_not_none(
    tokens: int, credits: float, price: float, found: tuple[int, str]
) -> None:
    assert (
        token_budget(decide(Options(budget_tokens=tokens, budget_credits=credits), facts()), price)
        == found
    )
